"""A run becomes one ONNX graph: resize, backbone, head, out-of-distribution score. May import model and parity."""
