"""Builds one ONNX graph from a run: resize, backbone, head, out-of-distribution score. May import model and parity."""
