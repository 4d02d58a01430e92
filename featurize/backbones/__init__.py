"""Which frozen network, its weights, and itself as a torch module. May import system."""
