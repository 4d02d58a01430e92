"""The frozen networks: their names, weights and torch modules. May import system."""
