"""`regard caption`: one picture in, one line out."""

from typing import Annotated, Any

import typer

from regard.cli.media import Segments, run_media
from regard.cli.options import Beam, Device, Draw, Files, Model, Output, Smooth, Threads, load_for


def caption(
    files: Files = None,
    model: Model = "emoji",
    beam: Beam = None,
    look: Draw = None,
    smooth: Smooth = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line: text, score, places.")] = False,
    output: Output = None,
    threads: Threads = None,
    device: Device = "cpu",
) -> None:
    """Describe pictures: one file in, one line out."""
    captioner = load_for("caption", model, files, threads, device)

    def work(path: str, _: Segments) -> Any:
        return captioner(path, beam=beam, record=bool(look or as_json))

    run_media(files, work, look, smooth, as_json, output)
