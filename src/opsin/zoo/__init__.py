"""Networks by name, with their preprocessing and class names."""
