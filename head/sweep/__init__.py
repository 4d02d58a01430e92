"""Many settings, trained and ranked: what to try, the results, the runner. May import batched, runs and below."""
