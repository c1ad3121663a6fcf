"""Augmentation of training batches on the device.

Each method has a file of its own, and `pipeline.Augmentation` composes them. To add one: write a file here, add a line
to `Augmentation.__init__`, and a field to `AugmentConfig` and to `train.augment` in params.yaml.
"""
