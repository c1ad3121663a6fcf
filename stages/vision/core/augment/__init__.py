"""Augmentation of training batches on the device.

Each method has a file of its own, and `pipeline.Augmentation` composes them. To add one, write a file here, create and
call it in `Augmentation`, and add its parameters to `AugmentConfig` in core/config.py, to `Augment` in
pipeline/params.py, to `train.augment` in params.yaml and to the recipes.
"""
