"""`regard transcribe`: one recording in, one line out."""

from typing import Annotated, Any

import typer

from regard.cli.media import Segments, run_media
from regard.cli.options import Beam, Device, Draw, Files, Model, Output, Threads, load_for
from regard.cli.progress import seconds_bar


def transcribe(
    files: Files = None,
    model: Model = "spelling",
    beam: Beam = None,
    look: Draw = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line: text, score, times.")] = False,
    output: Output = None,
    threads: Threads = None,
    device: Device = "cpu",
) -> None:
    """Transcribe recordings: one file in, one line out.

    A long recording is cut at quiet moments, and its pieces are joined.

    The default model, spelling, was trained on the 74 voices of CMU's AN4 corpus, 42 minutes of spoken English letters,
    numbers and a few commands. It gets few words right on other voices, telephone lines
    or synthesizers.
    """
    transcriber = load_for("transcribe", model, files, threads, device)

    def work(path: str, segments: Segments) -> Any:
        with seconds_bar(path) as report:
            return transcriber.hear(path, report, segments, beam=beam, record=bool(look or as_json))

    run_media(files, work, look, False, as_json, output)
