"""Limits of connections and bodies, which apply before memory or time is spent."""
