"""Texture and style."""
