"""Image classifiers from a frozen EfficientNet: featurize, head, export, serve."""
