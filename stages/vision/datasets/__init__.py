"""CIFAR archives and image folders: download, verify, decode and split.

To add a published dataset whose files look like CIFAR's, add a `Dataset` to `DATASETS` in cifar.py. For other files,
write a module here that returns a training split, a test split and class names, and call it from stages/download.py. In
both cases, add the dataset's name to `Download.dataset` in pipeline/params.py.
"""
