"""features.h5: read, written, found again. May import system, datasets and images."""
