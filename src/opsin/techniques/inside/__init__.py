"""Weights and activations."""
