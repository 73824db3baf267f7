"""`regard trace`: a decoding worked through."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from regard.cli.lines import are_many, check_looks, draw_all, run_lines, say, targets_of
from regard.cli.options import Beam, Device, ModelNames, Texts, load_for
from regard.cli.progress import HarmlessConsole, out


def trace(
    model: ModelNames,
    texts: Texts = None,
    look: Annotated[list[Path] | None, typer.Option(help="Draw the trace to this file (.png, .svg, .pdf).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    beam: Beam = None,
    device: Device = "cpu",
) -> None:
    """Show a decoding step by step.

    For every step: the query, the scores, the weights, the context and the most probable tokens.
    """
    check_looks(look or [], texts)
    translator = load_for("translate", model, texts, device=device)
    many = are_many(texts)

    def show(generation: Any, _: int) -> str | None:
        if as_json:
            return json.dumps({"text": generation.text, **generation.trace.as_json()}, ensure_ascii=False)
        say(generation.text)
        wide = HarmlessConsole(width=max(out.width, 90), highlight=False)
        for line in generation.trace.lines(out.width):
            wide.print(line)
        return None

    def draw(generation: Any, number: int) -> bool:
        return draw_all(generation, targets_of(look or [], "", number, many), generation.trace.plot)

    run_lines(texts, lambda some, _: translator.each(some, beam=beam), show, draw=draw)
