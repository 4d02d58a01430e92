"""Many heads of one shape trained at once, as stacked tensors. May import data and training."""
