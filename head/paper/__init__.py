"""Figures and a methods section for a paper, from a finished run, cross-validation or external test."""
