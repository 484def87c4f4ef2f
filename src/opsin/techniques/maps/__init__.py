"""Maps of a layer, weighted by what they say for the target."""
