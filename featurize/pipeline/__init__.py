"""One run, from options to the finished cache. May import every room but cluster, audit and cli."""
