"""A network runs once over all photos."""
