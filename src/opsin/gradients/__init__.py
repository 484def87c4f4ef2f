"""Derivatives, and the rules that change what a rectifier passes back."""
