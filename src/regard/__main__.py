"""`python -m regard` is the `regard` command."""

from regard.cli.main import main

main()
