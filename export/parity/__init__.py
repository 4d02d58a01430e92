"""Does the exported file answer as the trained model does? Comparison and certificate. May import model."""
