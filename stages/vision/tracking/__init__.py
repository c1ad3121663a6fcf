"""Runs, metrics and models in MLflow and TensorBoard."""
