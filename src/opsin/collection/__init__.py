"""What a network sees in a folder of images."""

import os
from importlib.util import find_spec

from opsin.base.extras import extra

os.environ.setdefault("LANCE_LOG", "error")  # Lance reads it when it is imported; it warns of every new table

with extra("collection"):
    for package in ("lance", "pyarrow"):
        if find_spec(package) is None:
            raise ImportError(f"No module named {package!r}")
