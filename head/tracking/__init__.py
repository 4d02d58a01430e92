"""Experiment tracking in MLflow and TensorBoard. May import training."""
