"""A run, from options to the finished cache. May import all of these but cluster and audit."""
