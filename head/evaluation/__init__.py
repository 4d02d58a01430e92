"""Predictions, calibration, metrics, confidence intervals and the operating point. Imports no other room of head."""
