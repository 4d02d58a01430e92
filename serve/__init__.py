"""Predictions: on the command line, over HTTP and on a web page. May import featurize and export; no torch."""
