"""What can be asked of a collection."""
