"""Image files to answers: the session, sizes of batches, the predictor."""
