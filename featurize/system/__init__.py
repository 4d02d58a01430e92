"""The machine: cores, CUDA, onnxruntime sessions, locks, atomic writes, telemetry. Imports no other subpackage."""
