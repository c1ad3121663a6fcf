"""Training and inference in PyTorch. Imports torch and the standard library alone."""
