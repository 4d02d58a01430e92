"""The engine on a Ray cluster. May import pipeline, and all that pipeline may."""
