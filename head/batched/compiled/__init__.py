"""The training steps of stacked heads, compiled by numba."""
