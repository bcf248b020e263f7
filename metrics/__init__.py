"""Metrics of images: features and distances (tensors in, numbers out), and evaluation of files and networks."""
