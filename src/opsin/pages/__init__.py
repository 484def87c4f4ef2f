"""Pages that explain photos and show the techniques."""
