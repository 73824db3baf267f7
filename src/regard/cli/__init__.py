"""The command line: `regard VERB …`."""

from regard.cli.main import run as run
