"""Running a network, its structure, and the receptive fields of its units."""
