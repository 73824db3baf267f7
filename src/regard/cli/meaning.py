"""`regard meaning`: what a word means in each of some texts."""

import json
from pathlib import Path
from typing import Annotated

import typer

from regard.cli.lines import check_targets, say, text_of
from regard.cli.options import AnyModel, Device, Threads, load_for


def meaning(
    word: Annotated[str, typer.Argument(help="A word.")],
    texts: Annotated[list[str], typer.Argument(help="Texts that contain it.")],
    model: AnyModel = "english",
    layer: Annotated[int | None, typer.Option(help="The layer of its neighbours; two thirds up by default.")] = None,
    look: Annotated[Path | None, typer.Option(help="Draw its way through the layers (.png, .svg, .pdf).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    threads: Threads = None,
    device: Device = "cpu",
) -> None:
    """What a word means in each text: its vector layer by layer, its neighbours, and the words that moved it."""
    check_targets([look] if look else [])
    word, texts = text_of(word), [text_of(text) for text in texts]
    found = load_for("fill", model, texts, threads, device).meaning(word, texts, layer)
    if look is not None:
        found.plot(look)
    say(json.dumps(found.as_json(), ensure_ascii=False) if as_json else "\n".join(found.lines()))
