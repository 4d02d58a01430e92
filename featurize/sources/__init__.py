"""Where the bytes of images come from: folders, archives, tables, object stores. May import urls, system and text."""
