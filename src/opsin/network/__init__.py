"""The one way to run a network, what it looks like inside, and what its units see."""
