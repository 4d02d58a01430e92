"""Image files to predictions: session, batch sizes, predictor. Imports no other room."""
