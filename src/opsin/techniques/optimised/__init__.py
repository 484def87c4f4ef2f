"""Pictures by optimisation."""
