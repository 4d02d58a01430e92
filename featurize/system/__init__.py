"""The machine: cores, CUDA, devices, file locks, atomic file writes. Imports no other room."""
