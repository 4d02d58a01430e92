"""The machine: cores, CUDA, devices, onnxruntime sessions, file locks, atomic writes. Imports no other subpackage."""
