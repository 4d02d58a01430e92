"""The machine: cores, CUDA, devices, onnxruntime sessions, file locks, atomic file writes. Imports no other subpackage."""
