"""`regard evaluate`: a model's measures on files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from regard.cli.lines import check_output, writing
from regard.cli.options import Beam, Device, ModelName, load

NAMES = {"bleu": "BLEU", "chrf": "chrF", "wer": "WER %", "exact": "exact %", "accuracy": "accuracy %"}


def evaluate(
    model: ModelName,
    source: Annotated[
        Path, typer.Option(help="Sentences, one a line; a text; or a table (.csv, .tsv, .jsonl) of files and texts.")
    ],
    reference: Annotated[Path | None, typer.Option(help="A translator's references, one a line.")] = None,
    beam: Beam = None,
    output: Annotated[Path | None, typer.Option(help="Write the model's outputs to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    device: Device = "cpu",
) -> None:
    """Measure a model on files: loss and perplexity, and its task's own measures."""
    from regard.tasks.table import evaluate as measure

    check_output(output, [source, *([reference] if reference else [])])
    numbers, outputs = measure(load(model, device=device), source, reference, beam)
    if output:
        with writing(output) as write:
            for line in outputs:
                write(line)
    typer.echo(json.dumps(numbers) if as_json else "\n".join(_lines(numbers)))


def _lines(numbers: dict[str, Any]) -> Iterator[str]:
    """One line a measure, with its signature where it has one; counts and settings of the search are left out."""
    for name, value in numbers.items():
        if isinstance(value, float):
            more = {"loss": f"nats a token, {numbers['tokens']} tokens"}.get(name, numbers.get(f"{name}_signature", ""))
            yield f"{NAMES.get(name, name):<20}{value:.4f}   {more}".rstrip()
