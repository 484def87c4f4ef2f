"""Techniques are plain annotated functions: what they are called with, said and cited is read off them."""
