"""NVIDIA's driver and cards, what the installed libraries can do with them, and the errors of GPUs. No torch."""
