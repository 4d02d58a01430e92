"""The rows that a head is trained on: splits, poolings, in memory or on the disk."""
