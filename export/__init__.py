"""A trained run becomes one ONNX file, checked against the trained model. May import featurize and head."""
