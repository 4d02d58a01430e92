"""Fewer bits; ``quantize`` is the story to start at."""
