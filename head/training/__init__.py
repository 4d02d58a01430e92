"""One head: the network, its loss, the optimiser, the loop; several averaged into one."""
