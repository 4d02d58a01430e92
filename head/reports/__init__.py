"""The report of a run, and the process that draws its figures. May import evaluation and training."""
