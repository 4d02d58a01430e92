"""The run folder: reading it, writing it, resuming an interrupted one. May import evaluation and training."""
