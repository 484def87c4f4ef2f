"""The network itself: its weights and what its layers give."""
