"""`regard why`: which words an output came from, through which heads, and whether that is faithful."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from regard.cli.lines import are_many, check_looks, draw_all, run_lines, targets_of
from regard.cli.options import Beam, Device, ModelName, Texts, load
from regard.cli.progress import counting_bar
from regard.errors import ConfigError, RegardError

TASKS = ("translate", "complete")


def why(
    model: ModelName,
    texts: Texts = None,
    look: Annotated[list[Path] | None, typer.Option(help="Draw the answer to this file (.png, .svg, .pdf).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    beam: Beam = None,
    length: Annotated[int, typer.Option(min=1, help="The most tokens that a completion adds.")] = 40,
    device: Device = "cpu",
) -> None:
    """Which words of the input an output came from.

    For each word of the output: the words it came from, the heads that carried them, and whether this is faithful.
    """
    from regard.analysis.reasons import reasons

    check_looks(look or [], texts)
    pipeline = load(model, texts, device=device)
    if pipeline.task is None:
        raise pipeline.refusal()
    if pipeline.task not in TASKS:
        raise ConfigError(
            f"{model} is a model for `regard {pipeline.task}`: `regard why` explains translations and completions"
        )
    if pipeline.task == "complete":
        settings: dict[str, Any] = {"length": length} | ({"temperature": 0} if beam is None else {"beam": beam})
    else:
        settings = {"beam": beam}
    many = are_many(texts)

    def work(some: list[str], _: int) -> list[Any]:
        return [_explained(one) for one in pipeline.each(some, **settings)]

    def _explained(made: Any) -> Any:
        try:
            if many or isinstance(made, RegardError):
                return made if isinstance(made, RegardError) else reasons(made)
            with counting_bar("words") as done:
                return reasons(made, done=done)
        except RegardError as error:
            return error

    def show(found: Any, _: int) -> str | None:
        if as_json:
            return json.dumps(found.as_json(), ensure_ascii=False)
        whole = found.source + found.text if pipeline.task == "complete" else found.text
        typer.echo(whole.replace("\n", " "))
        for line in found.lines():
            typer.echo(line)
        return None

    def draw(found: Any, number: int) -> bool:
        return draw_all(found, targets_of(look or [], "", number, many), found.plot)

    run_lines(texts, work, show, chunk=1, draw=draw)
