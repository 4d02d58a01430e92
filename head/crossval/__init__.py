"""Cross-validation: one head per fold, out-of-fold predictions, the report. May import every room but sweep and cli."""
