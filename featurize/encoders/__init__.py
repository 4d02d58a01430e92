"""Encoders other than the EfficientNets: where each comes from, and its ONNX file.
May import system, backbones and engines."""
