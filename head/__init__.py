"""Classifier heads are trained on cached features, in seconds. May import featurize."""
