"""`regard prepare`: a corpus, tokenized once into the folder of the run that will train on it."""

from pathlib import Path
from signal import SIGINT
from typing import Annotated, Any

import typer

from regard.cli.lines import complain, say
from regard.cli.options import Run, Settings
from regard.signals import EXIT_OF_SIGNALS


def prepare(
    config: Annotated[Path, typer.Argument(help="A TOML file of a translator, or the name of a shipped config.")],
    settings: Settings = None,
    folder: Run = None,
) -> None:
    """Tokenize a corpus, so that training starts at once."""
    from regard import experiment
    from regard.cli.progress import err
    from regard.config import parse_setting

    with err.status("reading") as status:

        def report(event: dict[str, Any]) -> None:
            status.update(f"{event['pairs']:,} pairs prepared")

        try:
            made = experiment.prepare(config, dict(map(parse_setting, settings or [])), run=folder, report=report)
        except KeyboardInterrupt as error:
            complain("interrupted; what was prepared is kept: the same command continues")
            raise typer.Exit(EXIT_OF_SIGNALS + getattr(error, "number", SIGINT)) from None
    say(str(made))
