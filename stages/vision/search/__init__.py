"""Hyperparameter search: the Optuna study, its trials as DVC experiments, and how parallel trials share the cores."""
