"""Scores of a classifier."""
