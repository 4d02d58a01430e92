"""Many settings, ranked: which to try, the results, the runner."""
