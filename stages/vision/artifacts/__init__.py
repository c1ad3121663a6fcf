"""The trained model, pretrained weights and checkpoints on disk."""
