"""Fooling the network."""
