"""Pages and figures of a run, and the process that draws them."""
