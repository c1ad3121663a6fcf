"""Scores of a classifier.

To add a score of the test, compute it in `summarize` in scores.py, and add a field of the same name to `TestMetrics` in
pipeline/metrics_schemas.py.
"""
