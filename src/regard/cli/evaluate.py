"""`regard evaluate`: a model's measures on files."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import typer

from regard.cli.lines import check_apart, check_output, say, writing
from regard.cli.options import Beam, Device, ModelNames, Precision, load
from regard.errors import ConfigError

Part = Literal["dev", "test"]
PATIENCE = 600.0  # seconds that one process of several waits for another
NAMES = {"bleu": "BLEU", "chrf": "chrF", "wer": "WER %", "exact": "exact %", "accuracy": "accuracy %"}


def evaluate(
    model: ModelNames,
    source: Annotated[
        Path | None,
        typer.Option(help="Sentences, one per line; a text; or a table (.csv, .tsv, .jsonl) of files and texts."),
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="A translator's references, one per line.")] = None,
    beam: Beam = None,
    part: Annotated[
        Part | None, typer.Option(help="Instead of --source: the pairs that a translator's config keeps apart.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Draw how often a translator's words of a given probability are in the reference (.png, .svg, .pdf)."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the model's outputs to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    device: Device = "cpu",
    precision: Precision = "float32",
) -> None:
    """Measure a model on files: loss, and its task's own measures."""
    if (source is None) == (part is None):
        raise typer.BadParameter(
            "give --source FILE, or --part dev or test for the pairs that a translator's config keeps apart"
        )
    if part is not None and reference is not None:
        raise typer.BadParameter(f"--part {part} has references of its own: leave out --reference")
    from regard.device import find_device
    from regard.figures.files import check_own, check_target
    from regard.pipelines.load import names_of
    from regard.pipelines.translator import Translator
    from regard.tasks.table import evaluate as measure
    from regard.tasks.translation import word_calibration
    from regard.training.distributed import local_device, together

    check_output(output, [path for path in (source, reference) if path is not None])
    if calibration is not None:
        check_target(calibration)
        check_apart(output, [calibration])
        check_own(calibration)
    place = local_device(find_device(device))
    with TemporaryDirectory() as made, together(place, PATIENCE) as group:
        if source is None:
            source, reference = _held_out(str(names_of(model)[0]), str(part), Path(made), output)
        measured = load(model, device=str(place), precision=precision)
        if calibration is not None and not isinstance(measured, Translator):
            raise ConfigError(f"--calibration draws the words of a translator; {model} is none")
        numbers, outputs = measure(measured, source, reference, beam)
        drawn = None
        if calibration is not None and isinstance(measured, Translator) and reference is not None and group.first:
            drawn = word_calibration(measured, source, reference, beam)
            numbers |= {"calibration_error": drawn.error}
    if not group.first:
        return
    try:
        if output:
            with writing(output) as write:
                for line in outputs:
                    write(line)
        if drawn is not None and calibration is not None:
            drawn.plot(calibration, f"{model}: words in the reference", right="share in the reference", counted="words")
    finally:  # the numbers are not lost with a file, nor a file with standard output
        say(json.dumps(numbers) if as_json else "\n".join(_lines(numbers)))


def _held_out(run: str, part: str, folder: Path, output: Path | None = None) -> tuple[Path, Path]:
    """The sources and references of a run's development or test pairs, as files in a folder.

    Raises:
        ConfigError: the output is one of the run's data files.
    """
    from regard.experiment import data_files, held_out

    pairs = held_out(run, part)
    if output is not None:
        check_output(output, data_files(run))
    paths = folder / "source.txt", folder / "reference.txt"
    for path, lines in zip(paths, (pairs.source, pairs.target), strict=True):
        one_line = (line.replace("\n", " ") for line in lines)  # a JSON string may have several
        path.write_text("".join(f"{line}\n" for line in one_line), "utf-8", newline="\n")
    return paths


def _lines(numbers: dict[str, Any]) -> Iterator[str]:
    """One line a measure, with its signature where it has one; counts and settings of the search are left out."""
    for name, value in numbers.items():
        if isinstance(value, float):
            more = {"loss": f"nats a token, {numbers['tokens']} tokens"}.get(name, numbers.get(f"{name}_signature", ""))
            yield f"{NAMES.get(name, name):<20}{value:.4f}   {more}".rstrip()
