"""The proof that a file answers as the run does, and the certificate."""
