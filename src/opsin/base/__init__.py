"""Shared foundations: errors, untrusted files, records, output folders, progress, notes."""
