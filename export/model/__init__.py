"""A model file: its metadata, its session on a CPU or a GPU, its outputs. No torch."""
