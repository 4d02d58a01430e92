"""Runs compared with each other and with baselines: is a difference significant? May import reports, runs and below."""
