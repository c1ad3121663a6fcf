"""Runs, metrics and models in MLflow and TensorBoard.

To log something, call a method of `Run` (run.py) in a stage. To add a tag that every MLflow run gets, add it to `tags`
in provenance.py.
"""
