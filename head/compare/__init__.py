"""Runs against each other, and whether a difference means anything."""
