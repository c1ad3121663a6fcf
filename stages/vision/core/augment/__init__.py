"""Augmentation of training batches on the device: one file for each method."""
