"""What `make demo` runs: explain the sample photo, in which a network has two classes to choose from."""

import sys

from opsin.cli import main as command
from opsin.images.samples import sample_file


def main() -> None:
    """Call the command line on the sample photo."""
    sys.argv = ["opsin", "explain", str(sample_file("cat_and_espresso")), "-o", "demo"]
    command.main()


if __name__ == "__main__":
    main()
