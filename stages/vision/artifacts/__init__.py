"""The files of a training: the trained model, pretrained weights, checkpoints, and the training's fingerprint.

To add to models/model.json, add a field to `ModelConfig` in trained_model.py, and set it in initial_model.py. 
checkpoint.py says how to add to a checkpoint.
"""
