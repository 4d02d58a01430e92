"""What a head is worth: predictions, calibration, metrics, intervals, the operating point."""
