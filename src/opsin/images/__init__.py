"""Photos from files, images as tensors, colours."""
