"""The steps of stacked heads, compiled by numba."""
