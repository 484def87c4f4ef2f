"""What `make demo` runs: explain a sample photo that comes with scikit-image."""

import sys
import tempfile
from pathlib import Path

from PIL import Image
from skimage import data

from opsin.cli import main as command

PHOTO = "cat.png"


def main() -> None:
    """Write the sample photo to a temporary file and call the command line on it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PHOTO
        Image.fromarray(data.cat()).save(path)
        sys.argv = ["opsin", "explain", str(path), "-o", "demo"]
        command.main()


if __name__ == "__main__":
    main()
