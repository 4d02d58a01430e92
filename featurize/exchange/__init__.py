"""Caches as tables that other programs read and write. May import cache, columns, datasets, sources and pipeline."""
