"""Does the exported file give the predictions of the trained model? Parity check and certificate. May import model."""
