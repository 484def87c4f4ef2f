"""Results of techniques: data that can draw, save and load itself."""
