"""Covering parts of the image."""
