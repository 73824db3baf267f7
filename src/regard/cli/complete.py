"""`regard complete`: one beginning in, one continued text out."""

import json
from typing import Annotated, Any

import typer

from regard.cli.lines import run_lines, say
from regard.cli.options import (
    AnyModel,
    BatchTokens,
    Device,
    MinP,
    NoRepeat,
    Output,
    Repetition,
    Seed,
    Temperature,
    Texts,
    Threads,
    TopK,
    TopP,
    TypicalP,
    load_for,
)
from regard.cli.progress import out

TEMPERATURE = 0.8  # bolder toward the probable than the library's 1.0, which is the model's own distribution


def complete(
    texts: Texts = None,
    model: AnyModel = "shakespeare",
    length: Annotated[int, typer.Option(min=0, help="Tokens added at most.")] = 200,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    typical_p: TypicalP = None,
    repetition: Repetition = None,
    no_repeat: NoRepeat = None,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the text; may be repeated.")] = None,
    seed: Seed = None,
    beam: Annotated[int | None, typer.Option(min=1, help="Beam search instead of sampling.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    output: Output = None,
    batch_tokens: BatchTokens = None,
    threads: Threads = None,
    device: Device = "cpu",
) -> None:
    """Continue texts; on a terminal token by token."""
    completer = load_for("complete", model, texts, threads, device)
    given = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p,
        "repetition": repetition, "no_repeat": no_repeat, "seed": seed,
    }  # fmt: skip
    drawing: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if beam is None:
        drawing.setdefault("temperature", TEMPERATURE)
    settings: dict[str, Any] = {"length": length, "stop": stop or []}
    alone = texts is not None and len(texts) == 1 and texts != ["-"]
    if alone and beam is None and not as_json and output is None and out.is_terminal:
        assert texts is not None  # mypy: `alone` implies it
        pieces = completer.stream(texts[0], **settings, **drawing)  # a text that is refused is not printed
        say(texts[0], nl=False)
        for piece in pieces:
            say(piece, nl=False)
        say("")
        return
    if beam is not None:
        settings["beam"] = beam
    if batch_tokens is not None:
        settings["batch_tokens"] = batch_tokens

    def work(some: list[str], first: int) -> list[Any]:
        return list(completer.each(some, record=False, first_index=first, **settings, **drawing))

    def show(made: Any, _: int) -> str:
        if as_json:
            return json.dumps(made.as_json(), ensure_ascii=False)
        return str(made.source + made.text).replace("\n", " ")

    run_lines(texts, work, show, output=output)
