"""CIFAR archives and image folders: download, verify, decode and split."""
