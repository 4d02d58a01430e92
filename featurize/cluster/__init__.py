"""Runs on a Ray cluster. May import pipeline and what pipeline may import."""
