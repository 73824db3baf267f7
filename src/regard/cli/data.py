"""`regard data`: parallel text made from what is free to use, as TSV files to train on."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from regard.cli.lines import complain, writing

app = typer.Typer(help="Make parallel text to train on, as TSV: source, tab, target.", no_args_is_help=True)
Output = Annotated[Path | None, typer.Option("--output", "-o", help="The file to write; standard output by default.")]


@app.command()
def expressions(
    source: Annotated[str, typer.Argument(help="The source language: fr or en.")],
    target: Annotated[str, typer.Argument(help="The target language: en or fr.")],
    count: Annotated[int, typer.Option(min=1, help="How many pairs.")] = 60_000,
    seed: Annotated[int, typer.Option(help="Another seed, other pairs.")] = 0,
    output: Output = None,
) -> None:
    """Sentences with numbers, times, dates, prices, names and places, written from Unicode's CLDR."""
    from regard.data.expressions import expressions as pairs

    _write(pairs(source, target, count, seed), output)


@app.command()
def debian(
    source: Annotated[Path, typer.Argument(help="Translation-LANGUAGE of the source language, of a Debian mirror.")],
    target: Annotated[Path, typer.Argument(help="Translation-LANGUAGE of the target language.")],
    output: Output = None,
) -> None:
    """Sentences of Debian's package descriptions, in any two languages."""
    from regard.data.datasets.debian import descriptions

    _write(descriptions(source, target), output)


def _write(pairs: Iterable[tuple[str, str]], output: Path | None) -> None:
    count = 0
    with writing(output) as write:
        for here, there in pairs:
            write(f"{here}\t{there}")
            count += 1
    complain(f"{count:,} pairs")
