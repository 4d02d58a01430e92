"""The runtimes of ``export_conformance.py``: ``native`` (called from Python), ``web`` (JavaScript).

Each function takes a model file and a list of inputs, and returns the probabilities of each, or raises any exception.
"""
