"""A model file answers: on the command line, over HTTP and on a page. May import featurize and export; no torch."""
