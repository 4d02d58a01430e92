"""One head: network, loss, optimiser, training loop, ensembles. May import data."""
