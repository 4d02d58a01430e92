"""The machine: cores, CUDA, devices, locks, files that appear whole. Imports no other room."""
