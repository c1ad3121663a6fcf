"""Corrupted test images, which show the known weaknesses of a model (Hendrycks & Dietterich 2019, arXiv:1903.12261).

To add a corruption, write a function in the file of its kind, and enter it in table.py.
"""
