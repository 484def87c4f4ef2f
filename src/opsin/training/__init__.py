"""Losses that make a network harder to fool while it is trained."""
