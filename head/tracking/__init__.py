"""Trainings told to MLflow and TensorBoard."""
