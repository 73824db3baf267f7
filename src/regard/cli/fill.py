"""`regard fill`: one text with gaps in, one text without out."""

import json
from typing import Annotated, Any

import typer

from regard.cli.lines import run_lines
from regard.cli.options import AnyModel, Device, Output, Texts, Threads, load_for


def fill(
    texts: Texts = None,
    model: AnyModel = "english",
    top: Annotated[int, typer.Option(min=1, help="How many words --json lists for each gap.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line, with every gap's words.")] = False,
    output: Output = None,
    threads: Threads = None,
    device: Device = "cpu",
) -> None:
    """Fill the gaps of texts: regard fill "the [MASK] of the river"."""
    filler = load_for("fill", model, texts, threads, device)

    def show(made: Any, _: int) -> str:
        return json.dumps(made.as_json(), ensure_ascii=False) if as_json else str(made.text)

    run_lines(texts, lambda some, _: filler.each(some, top=top), show, output=output)
