"""From a run to one ONNX graph: resize, backbone, head and distance."""
