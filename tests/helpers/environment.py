"""The environment variables of a process that a test starts."""

import os


def clean_environment(**changes: str) -> dict[str, str]:
    """Copy this process's variables without those of DVC and MLflow, which `mlflow.set_tracking_uri` also sets."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))} | changes
