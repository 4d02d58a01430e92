"""The run folder: reading it, writing it, going on with it."""
