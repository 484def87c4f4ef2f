"""The same numbers with less work."""
