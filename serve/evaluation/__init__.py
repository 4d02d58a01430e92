"""Any ONNX classifier measured on labelled images: ours, and those of others. Needs numpy, onnxruntime and Pillow."""
