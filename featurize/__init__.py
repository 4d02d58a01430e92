"""Images go through a frozen network once; their features are kept in ``features.h5``. Imports no other package."""
