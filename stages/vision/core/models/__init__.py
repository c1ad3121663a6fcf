"""The networks: one file for each family.

Each network maps normalized images, float32 [N, C, H, W], to logits [N, classes]. To add one, write a file here, add it
to `NETWORKS` in registry.py, and add a section of the same name with its options to `model` in params.yaml, to `Model`
in pipeline/params.py and to the recipes.
"""
