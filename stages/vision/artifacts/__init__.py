"""The files of a training: the trained model, pretrained weights, checkpoints, and the training's fingerprint."""
