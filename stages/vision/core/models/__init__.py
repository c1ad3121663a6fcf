"""The networks: one file for each family.

Each network maps normalized images, float32 [N, C, H, W], to logits [N, classes]. To add one, write a file here and add
it to `NETWORKS` in `classifier`.
"""
