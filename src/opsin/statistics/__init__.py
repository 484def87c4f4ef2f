"""What textures are measured by: grey levels and their co-occurrence, spectra, pyramids, patches."""
