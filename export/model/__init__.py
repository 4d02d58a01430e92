"""A model file: metadata, onnxruntime sessions, outputs. No torch. Imports no other room."""
