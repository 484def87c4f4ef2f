"""What every room stands on: errors, files that others wrote, records, output folders, progress, notes."""
