"""What a network sees in a folder of images."""

import os

os.environ.setdefault("LANCE_LOG", "error")  # Lance reads it when it is imported; it warns of every new table
