"""``features.h5``: reading, writing, reusing finished rows. May import system, datasets and images."""
