"""`regard report`: a training run as one page."""

from pathlib import Path
from typing import Annotated

import typer

from regard.cli.lines import say


def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder, finished or not.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page; report.html in the run's folder by default.")
    ] = None,
) -> None:
    """Write a page about a training run.

    It shows curves, samples, attention as it formed, settings and the machine.
    """
    from regard.figures.files import check_page, write_page
    from regard.report import report as page

    path = folder / "report.html" if output is None else output
    check_page(path)
    write_page(path, page(folder))
    say(str(path))
