"""`python -m opsin` is the `opsin` command."""

from opsin.cli.main import main

main()
