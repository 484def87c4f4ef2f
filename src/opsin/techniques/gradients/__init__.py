"""Gradients of a score in the image's pixels."""
