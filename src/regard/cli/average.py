"""`regard average`: the mean of checkpoints, or of two models."""

from pathlib import Path
from typing import Annotated

import typer

from regard.cli.lines import say


def average(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    into: Annotated[Path, typer.Argument(help="The new model's folder.")],
    other: Annotated[
        str | None,
        typer.Option("--with", help="Average the run's model with this one instead: the model that it started from."),
    ] = None,
) -> None:
    """Average a run's best checkpoints, or two models."""
    from regard.experiment import average_run

    say(str(average_run(folder, into, other)))
