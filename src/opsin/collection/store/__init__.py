"""The tables of a collection on disk."""
