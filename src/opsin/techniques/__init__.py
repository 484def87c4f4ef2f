"""One technique a file; the file has the function's name."""
