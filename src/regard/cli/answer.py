"""`regard answer`: one question about a picture in, one answer out."""

from typing import Annotated, Any

import typer

from regard.cli.lines import complain, text_of
from regard.cli.media import Segments, run_media
from regard.cli.options import Device, Draw, Output, Smooth, Threads, load_for
from regard.errors import ConfigError


def answer(
    picture: Annotated[str, typer.Argument(help="A picture.")],
    questions: Annotated[
        list[str] | None, typer.Argument(help="Questions about it; none, or -, reads lines from standard input.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A run's folder.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many answers --json lists.")] = 5,
    look: Draw = None,
    smooth: Smooth = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line: answers, places.")] = False,
    output: Output = None,
    threads: Threads = None,
    device: Device = "cpu",
) -> None:
    """Answer questions about a picture: one line in, one line out."""
    if model is None:
        raise ConfigError(
            "no model that answers comes with regard: train one, for example `regard train shapes`, and "
            "name it, --model runs/shapes"
        )
    answerer = load_for("answer", model, questions, threads, device)
    seen = answerer.read(text_of(picture))

    def work(question: str, _: Segments) -> Any:
        made = answerer.run(seen, [question], top)[0]
        if made.unknown:
            complain(f"words that no training question had: {', '.join(made.unknown)}")
        return made

    run_media(questions, work, look, smooth, as_json, output, named=picture)
