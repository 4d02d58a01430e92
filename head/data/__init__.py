"""The rows that a head is trained on: splits, pooling, in memory or on disk. Imports no other room."""
