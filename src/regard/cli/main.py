"""The command line. Verbs are declared once, here; torch is imported inside the verb that needs it."""

import codecs
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from regard import __version__
from regard.errors import ChoiceError, ConfigError, RegardError

if TYPE_CHECKING:
    from regard.pipelines.translator import Generation, Translator

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
CHUNK = 64  # lines translated at a time
AUTO = "NAME.look.png"  # what a --look without a value stands for, of the verbs that may have it so
BARE_LOOK = ("caption", "transcribe", "answer")

app = typer.Typer(
    name="regard", help="Attention you can choose, train and see.", no_args_is_help=True, add_completion=False,
    rich_markup_mode=None,    pretty_exceptions_enable=False,
)  # fmt: skip
out, err = Console(), Console(stderr=True)

ModelName = Annotated[str, typer.Argument(help="A shipped model's name, or a run's folder.")]
Texts = Annotated[list[str] | None, typer.Argument(help="Texts; none, or -, reads lines from standard input.")]
Beam = Annotated[
    int | None,
    typer.Option(min=1, max=100, help="Hypotheses kept per sentence; 1 is greedy. Default: the model's own."),
]
Look = Annotated[
    list[Path] | None,
    typer.Option(
        help="Draw the alignment to this file (.png, .svg, .pdf); with several inputs, name-1.png, name-2.png, …"
    ),
]
AnyModel = Annotated[
    str, typer.Option(help="A shipped model's name, a run's folder, or one in the Hugging Face layout (hf:NAME).")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line: tokens, score, alternatives, alignment.")]


def main() -> None:
    """The `regard` command: runs a verb; a refusal is one sentence on standard error."""
    sys.exit(run())


def run(arguments: list[str] | None = None) -> int:
    """Run a verb and give back its exit code: 0, 1 (the work failed), 2 (usage), 130 (interrupted)."""
    warnings.formatwarning = lambda message, *_: f"regard: {message}\n"
    try:
        return int(app(_with_values(sys.argv[1:] if arguments is None else arguments), standalone_mode=False) or OK)
    except (typer.Abort, KeyboardInterrupt):
        _complain("interrupted")
        return INTERRUPTED
    except (ChoiceError, ConfigError) as error:
        _complain(str(error))
        return USAGE
    except RegardError as error:
        _complain(str(error))
        return FAILED
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # that one: the reader of our output went away, as head does
            _complain(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
        with suppress(OSError):  # what could not be written is not tried again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if not hasattr(error, "show") or not hasattr(error, "exit_code"):
            raise
        error.show()  # typer's own refusals of a wrong command line; their class is private
        return int(error.exit_code)


def _with_values(arguments: list[str]) -> list[str]:
    """Arguments in which a --look that nothing follows says where to draw."""
    if not arguments or arguments[0] not in BARE_LOOK:
        return arguments
    follows = [*arguments[1:], "--"]
    return [
        part
        for this, following in zip(arguments, follows, strict=True)
        for part in ([this, AUTO] if this == "--look" and following.startswith("--") else [this])
    ]


def _complain(sentence: str) -> None:
    print(f"regard: {sentence}", file=sys.stderr)


def _show_version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(f"regard {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = None,
) -> None:
    """Attention you can choose, train and see."""


@app.command()
def translate(
    texts: Texts = None,
    model: Annotated[str, typer.Option(help="A shipped model's name, or a run's folder.")] = "fr-en",
    beam: Beam = None,
    n_best: Annotated[int, typer.Option(min=1, help="How many outputs --json lists, at most the beam.")] = 1,
    look: Look = None,
    as_json: Json = False,
    grid: Annotated[
        bool, typer.Option("--grid", help="Show the alignment as a coloured grid on standard error.")
    ] = False,
) -> None:
    """Translate texts: one line in, one line out."""
    translator = _load_as(model, "translate", texts)
    if n_best > 1:
        beam = max(n_best, beam or translator.decoding.beam)
    _each_line(texts, translator, look, as_json, grid, beam=beam, n_best=n_best, record=bool(as_json or grid or look))


@app.command()
def complete(
    texts: Texts = None,
    model: AnyModel = "shakespeare",
    length: Annotated[int, typer.Option(min=0, help="Tokens added at most.")] = 200,
    temperature: Annotated[
        float | None, typer.Option(help="Below 1 bolder towards the likely; 0 takes the likeliest. Default: 0.8.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Only the likeliest tokens that together have this share.")
    ] = None,
    min_p: Annotated[float | None, typer.Option(help="Only tokens with this share of the likeliest one's.")] = None,
    repetition: Annotated[
        float | None, typer.Option(help="Above 1: what stood before becomes less likely. Default: 1.")
    ] = None,
    no_repeat: Annotated[
        int | None, typer.Option(help="No sequence of so many tokens twice; 0, the default, allows all.")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the text; may be given again.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same text.")] = None,
    beam: Annotated[int | None, typer.Option(min=1, help="Beam search instead of drawing.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Go on with texts; to a terminal as it is written."""
    completer = _load_as(model, "complete", texts)
    given = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition": repetition,
        "no_repeat": no_repeat, "seed": seed,
    }  # fmt: skip
    drawing = {name: value for name, value in given.items() if value is not None}
    if beam is None:
        drawing.setdefault("temperature", 0.8)
    settings = {"length": length, "stop": stop or []}
    if beam is None and not as_json and out.is_terminal and texts and len(texts) == 1 and texts != ["-"]:
        typer.echo(texts[0], nl=False)
        for piece in completer.stream(texts[0], **settings, **drawing):
            typer.echo(piece, nl=False)
        typer.echo("")
        return

    def work(text: str) -> str:
        made = completer(text, record=False, **settings, **drawing, **({} if beam is None else {"beam": beam}))
        return json.dumps(made.as_json(), ensure_ascii=False) if as_json else (text + made.text).replace("\n", " ")

    _one_by_one(texts, work)


@app.command()
def fill(
    texts: Texts = None,
    model: AnyModel = "english",
    top: Annotated[int, typer.Option(min=1, help="How many words --json lists for each gap.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with every gap's words.")] = False,
) -> None:
    """Fill the gaps of texts: regard fill "the [MASK] of the river"."""
    encoder = _load_as(model, "fill", texts)

    def work(text: str) -> str:
        made = encoder.fill(text, top)
        return json.dumps(made.as_json(), ensure_ascii=False) if as_json else made.text

    _one_by_one(texts, work)


@app.command()
def meaning(
    word: Annotated[str, typer.Argument(help="A word.")],
    texts: Annotated[list[str], typer.Argument(help="Texts in which it stands.")],
    model: AnyModel = "english",
    layer: Annotated[
        int | None, typer.Option(help="Where its neighbours are looked for; two thirds up by default.")
    ] = None,
    look: Annotated[Path | None, typer.Option(help="Draw its way through the layers (.png, .svg, .pdf).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """What a word means in each text: its vector layer by layer, its neighbours, and the words that moved it."""
    _check_drawable([look] if look else [])
    found = _load_as(model, "fill", texts).meaning(word, texts, layer)
    if look is not None:
        found.plot(look)
    typer.echo(json.dumps(found.as_json(), ensure_ascii=False) if as_json else "\n".join(found.lines()))


Files = Annotated[list[str] | None, typer.Argument(help="Files; none, or -, reads their names from standard input.")]
Draw = Annotated[
    list[str] | None,
    typer.Option(
        help="Show where each word looked: in the terminal, and drawn to this file (.png, .svg, .pdf; NAME.look.png "
        "where nothing follows; with several inputs numbered)."
    ),
]
Smooth = Annotated[bool, typer.Option("--smooth", help="Blend the cells of the drawing; exact ones otherwise.")]


@app.command()
def caption(
    files: Files = None,
    model: Annotated[str, typer.Option(help="A shipped model's name, or a run's folder.")] = "emoji",
    beam: Beam = None,
    look: Draw = None,
    smooth: Smooth = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line: text, score, places.")] = False,
) -> None:
    """Say what is in pictures: one file in, one line out."""
    describer = _load_as(model, "caption", files)

    def work(path: str, _: Each) -> Any:
        return describer(path, beam=beam, record=bool(look or as_json))

    _each_file(files, work, look, smooth, as_json)


@app.command()
def transcribe(
    files: Files = None,
    model: Annotated[str, typer.Option(help="A shipped model's name, or a run's folder.")] = "spelling",
    beam: Beam = None,
    look: Draw = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line: text, score, times.")] = False,
) -> None:
    """Write down what is said: one recording in, one line out; a long one is cut at quiet moments and joined."""
    describer = _load_as(model, "transcribe", files)

    def work(path: str, each: Each) -> Any:
        with _reading(path) as report:
            return describer.hear(path, report, each, beam=beam, record=bool(look or as_json))

    _each_file(files, work, look, False, as_json)


@app.command()
def answer(
    picture: Annotated[str, typer.Argument(help="A picture.")],
    questions: Annotated[
        list[str] | None, typer.Argument(help="Questions about it; none, or -, reads lines from standard input.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A run's folder.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many answers --json lists.")] = 5,
    look: Draw = None,
    smooth: Smooth = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line: answers, places.")] = False,
) -> None:
    """Answer questions about a picture: one question in, one line out."""
    if model is None:
        raise ConfigError(
            "no model that answers comes with regard: train one, for example `regard train configs/shapes.toml`, and "
            "name it, --model runs/shapes"
        )
    answerer = _load_as(model, "answer", questions)
    seen = answerer.read(picture)

    def work(question: str, _: Each) -> Any:
        made = answerer.ask(seen, [question], top)[0]
        if made.unknown:
            _complain(f"words that no training question had: {', '.join(made.unknown)}")
        return made

    _each_file(questions, work, look, smooth, as_json, named=picture)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A TOML file; configs/ holds those of the shipped models.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a setting: --set model.width=192.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME-OF-THE-CONFIG by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in its folder.")] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print every setting with its meaning, and stop.")
    ] = False,
) -> None:
    """Train a model from a config."""
    from regard.config import parse_setting, to_toml

    overrides = dict(map(parse_setting, settings or []))
    from regard import experiment

    if print_config:
        typer.echo(to_toml(experiment.read_config(config, overrides)), nl=False)
        return
    from regard.training.loop import Interrupted

    with _progress() as report:
        try:
            finished = experiment.train(config, overrides, run=run, resume=resume, report=report)
        except Interrupted:
            _complain("interrupted; everything is saved: the same command with --resume goes on")
            raise typer.Exit(INTERRUPTED) from None
    typer.echo(f"{finished.path}")


@app.command()
def evaluate(
    model: ModelName,
    source: Annotated[
        Path, typer.Option(help="Sentences, one a line; a text; or a table (.csv, .tsv, .jsonl) of files and texts.")
    ],
    reference: Annotated[Path | None, typer.Option(help="A translator's references, one a line.")] = None,
    beam: Beam = None,
    output: Annotated[Path | None, typer.Option(help="Write the translations to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a model on files: loss and perplexity, and its task's own measures."""
    from regard.tasks.table import evaluate as measure

    numbers, outputs = measure(_load(model), source, reference, beam)
    if output:
        output.write_text("".join(line + "\n" for line in outputs), "utf-8")
    typer.echo(json.dumps(numbers) if as_json else "\n".join(_measured(numbers)))


def _measured(numbers: dict[str, Any]) -> Iterator[str]:
    """One line a measure, with its signature where it has one; counts and settings of the search are left out."""
    names = {"bleu": "BLEU", "chrf": "chrF", "wer": "WER %", "exact": "exact %", "accuracy": "accuracy %"}
    for name, value in numbers.items():
        if isinstance(value, float):
            more = {"loss": f"nats a token, {numbers['tokens']} tokens"}.get(name, numbers.get(f"{name}_signature", ""))
            yield f"{names.get(name, name):<20}{value:.4f}   {more}".rstrip()


@app.command()
def trace(
    model: ModelName,
    texts: Texts = None,
    look: Annotated[list[Path] | None, typer.Option(help="Draw the trace to this file (.png, .svg, .pdf).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    beam: Beam = None,
) -> None:
    """A decoding worked through: every step's scores, weights, context and predictions."""
    translator = _load_as(model, "translate", texts)

    def show(generation: "Generation", paths: list[Path]) -> None:
        for path in paths:
            generation.trace.plot(path)
        if as_json:
            typer.echo(json.dumps({"text": generation.text, **generation.trace.as_json()}, ensure_ascii=False))
            return
        typer.echo(generation.text)
        longest = sum(max(8, len(token)) + 2 for token in generation.source_tokens)
        wide = Console(width=max(out.width, 90, 14 + longest), highlight=False)
        for line in generation.trace.lines():
            wide.print(line)

    _each(texts, translator, look, show, beam=beam)


@app.command()
def average(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    into: Annotated[Path, typer.Argument(help="The new model's folder.")],
    other: Annotated[
        str | None,
        typer.Option("--with", help="Another model: the mean of the run's and this one, which it started from."),
    ] = None,
) -> None:
    """Average a run's best checkpoints, or its model and another, into a new model."""
    from regard.experiment import average_run

    typer.echo(str(average_run(folder, into, other)))


@app.command()
def export(
    model: ModelName,
    into: Annotated[Path, typer.Argument(help="The folder to write.")],
    precision: Annotated[str, typer.Option(help="float32, float16 or int8.")] = "int8",
    layout: Annotated[
        str, typer.Option(help="regard, or hf: config.json and model.safetensors in float32, which transformers loads.")
    ] = "regard",
) -> None:
    """Write a model as a small folder: weights in float16 or int8, no checkpoints."""
    from regard.export.folder import export_bundle

    export_bundle(_load(model), into, precision, layout)
    typer.echo(str(into))


def _load(name: str, texts: list[str] | None = None) -> Any:
    """A model; where a few arguments are all the work, one thread does it: a busy second core would only delay it."""
    from regard.pipelines.load import load

    if texts and texts != ["-"] and len(texts) <= CHUNK:
        import torch

        torch.set_num_threads(1)

    return load(name)


def _load_as(name: str, task: str, texts: list[str] | None = None) -> Any:
    """A model that does a task.

    Raises:
        ConfigError: it does another.
    """
    found = _load(name, texts)
    if found.bundle.task != task:
        raise ConfigError(f"{name} is a model for `regard {found.bundle.task}`, not for `regard {task}`")
    return found


def _check_drawable(look: list[Path] | None) -> None:
    """Refuse a file that cannot be drawn to before there is work to lose."""
    for path in look or []:
        from regard.figures.heatmap import check_target

        check_target(path)


def _one_by_one(texts: list[str] | None, work: Callable[[str], str]) -> None:
    """One line in, one line out; what cannot be worked on is an empty line, one sentence, and exit 1 at the end."""
    from regard.pipelines.base import InputError

    failed = False
    for number, line in enumerate(_inputs(texts), 1):
        try:
            typer.echo(work(line.decode("utf-8") if isinstance(line, bytes) else line))
        except (InputError, UnicodeDecodeError) as error:
            failed = True
            _complain(f"line {number}: {_reason(error)}")
            typer.echo("")
    if failed:
        raise typer.Exit(FAILED)


Each = Callable[[Any], None]  # what is done with every piece of a long recording


def _each_file(
    files: list[str] | None, work: Callable[[str, Each], Any], look: list[str] | None, smooth: bool, as_json: bool,
    named: str | None = None,
) -> None:  # fmt: skip
    """One file (or question about the one that is `named`) in, one line out; what cannot be worked on is an empty
    line, one sentence, and exit 1 at the end."""
    if look and not files and named is None:
        raise ConfigError(f"--look {look[0]} says where to draw: name the inputs before it, for example cat.png --look")
    from regard.pipelines.base import InputError

    failed, many = False, files is None or len(files) != 1 or files == ["-"]
    for path in look or []:
        if path != AUTO:
            _check_target(Path(path), [named] if named else files or [])
    for number, line in enumerate(_inputs(files), 1):
        try:
            name = line.decode("utf-8") if isinstance(line, bytes) else line
            if not name.strip() and named is None:
                raise InputError("an empty line names no file")
            targets = [Path(f"{Path(named or name).stem}.look.png") if p == AUTO else Path(p) for p in look or []]
            targets = [p.with_stem(f"{p.stem}-{number}") if many else p for p in targets]
            for target in targets:
                _check_target(target, [named or name])
            pieces = _Pieces(targets, smooth, as_json)
            made = work(name, pieces)
        except (InputError, UnicodeDecodeError) as error:
            failed = True
            _complain(f"line {number}: {_reason(error)}")
            typer.echo("")
            continue
        whole = json.dumps(made.as_json() | ({"pieces": pieces.said} if pieces.said else {}), ensure_ascii=False)
        typer.echo(whole if as_json else " ".join(made.text.split()))
        for target in targets if not pieces.count else ():
            _show_looks(made, target, smooth)
    if failed:
        raise typer.Exit(FAILED)


def _check_target(target: Path, inputs: list[str]) -> None:
    """Refuse to draw where it is impossible, or over a picture that is somebody's."""
    from regard.figures.heatmap import check_target, is_drawn

    check_target(target)
    if any(Path(one).exists() and target.exists() and target.samefile(one) for one in inputs) or not is_drawn(target):
        raise ConfigError(
            f"--look {target}: this file is there, and not drawn by regard: name another, behind the inputs"
        )


class _Pieces:
    """Draws the pieces of a long recording as they come, and keeps what --json says of them."""

    def __init__(self, targets: list[Path], smooth: bool, as_json: bool) -> None:
        self.targets, self.smooth, self.as_json = targets, smooth, as_json
        self.count = 0
        self.said: list[dict[str, Any]] = []

    def __call__(self, piece: Any) -> None:
        self.count += 1
        if self.as_json:
            self.said.append({"start": piece.start, **piece.as_json()})
        for path in self.targets:
            _show_looks(piece, path.with_stem(f"{path.stem}-{self.count}"), self.smooth)


def _show_looks(made: Any, path: Path, smooth: bool) -> None:
    from regard.figures.overlay import strip, timeline

    words, weights = made.word_attention
    if err.is_terminal and len(weights):
        still = made.picture and made.positions.shape[1] == 2
        err.print((strip if still else timeline)(words, weights, err.width))
    made.plot(path, smooth)
    _complain(f"drawn: {path}")


@contextmanager
def _reading(path: str) -> Iterator[Callable[[float], None]]:
    """A progress bar over the seconds of a long recording."""
    from regard.data.sound import BLOCK, seconds
    from regard.errors import DataError

    try:
        total = seconds(Path(path))
    except DataError:  # whoever reads it says so better
        total = 0.0
    if total <= BLOCK or not err.is_terminal:
        yield lambda _: None
        return
    from rich.progress import Progress

    with Progress(console=err, transient=True) as progress:
        bar = progress.add_task("seconds", total=total)
        yield lambda done: progress.update(bar, completed=done)


Show = Callable[["Generation", list[Path]], None]


def _each_line(
    texts: list[str] | None,
    translator: "Translator",
    look: list[Path] | None,
    as_json: bool,
    grid: bool,
    **settings: Any,
) -> None:
    def show(generation: "Generation", paths: list[Path]) -> None:
        typer.echo(json.dumps(generation.as_json(), ensure_ascii=False) if as_json else generation.text)
        if grid:
            from regard.figures.terminal import grid as coloured

            alignment = generation.alignment
            err.print(coloured(alignment.matrix.tolist(), alignment.target, alignment.source))
        for path in paths:
            generation.alignment.plot(path)

    _each(texts, translator, look, show, **settings)


def _each(
    texts: list[str] | None,
    translator: "Translator",
    look: list[Path] | None,
    show: Show,
    **settings: Any,
) -> None:
    """One line in, one line out; what cannot be worked on is an empty line, one sentence, and exit 1 at the end."""
    _check_drawable(look)
    lines = enumerate(_inputs(texts), 1)
    many = texts is None or len(texts) != 1 or texts == ["-"]
    failed = False
    while chunk := [line for _, line in zip(range(CHUNK), lines, strict=False)]:
        good: list[tuple[int, str]] = []
        refused: dict[int, str] = {}
        for number, line in chunk:
            try:
                text = line.decode("utf-8") if isinstance(line, bytes) else line
                translator.encode(text)
                good.append((number, text))
            except ValueError as error:
                refused[number] = _reason(error)
        made = dict(zip([n for n, _ in good], translator.many([t for _, t in good], **settings), strict=True))
        for number, _ in chunk:
            if number in refused:
                failed = True
                _complain(f"line {number}: {refused[number]}")
                typer.echo("")
            else:
                show(made[number], [p.with_stem(f"{p.stem}-{number}") if many else p for p in look or []])
    if failed:
        raise typer.Exit(FAILED)


def _reason(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 (byte 0x{error.object[error.start]:02x} at position {error.start})"
    return str(error)


def _inputs(texts: list[str] | None) -> Iterator[str | bytes]:
    """The arguments, or the lines of standard input; a line ends at \\n and nowhere else."""
    if texts and texts != ["-"]:
        yield from texts
        return
    for number, line in enumerate(sys.stdin.buffer):
        line = line if number else line.removeprefix(codecs.BOM_UTF8)
        yield line.removesuffix(b"\n").removesuffix(b"\r")


@contextmanager
def _progress() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A progress bar with loss, speed, development loss and BLEU, and time left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False),
    )  # fmt: skip
    progress = Progress(*columns, console=err, refresh_per_second=2)
    try:
        yield _Reporter(progress)
    finally:
        if progress.live.is_started:
            progress.stop()


class _Reporter:
    """Turns the loop's events into the bar's text."""

    def __init__(self, progress: Any) -> None:
        self.progress = progress
        self.task: Any = None
        self.dev = ""
        self.loss = 0.0
        self.marks: list[tuple[float, int]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "start":
            self.progress.start()
            self.task = self.progress.add_task(
                "training", total=event["max_steps"], numbers="", completed=event["step"]
            )
            self.progress.console.print(
                f"{event['training']}, {event['development']}, "
                f"vocabulary {event['vocabulary']:,}, padding {event['padding']:.0%}, {event['precision']}, "
                f"run in {event['run']}"
            )
        elif event["event"] == "step":
            self.loss = event["loss"] if not self.loss else 0.95 * self.loss + 0.05 * event["loss"]
            self.marks = [*self.marks[-49:], (event["seconds"], event["tokens"])]
            spent = self.marks[-1][0] - self.marks[0][0]
            speed = sum(tokens for _, tokens in self.marks[1:]) / spent if spent > 0 else 0.0
            numbers = f"loss {self.loss:.3f}  {speed:,.0f} tokens/s{self.dev}"
            self.progress.update(self.task, completed=event["step"], numbers=numbers)
        else:
            self.dev = f"  dev loss {event['dev_loss']:.3f}"
            names = (
                ("dev_exact", "exact %", ".1f"), ("dev_wer", "WER %", ".1f"), ("dev_bleu", "BLEU", ".1f"),
                ("dev_chrf", "chrF", ".1f"), ("dev_perplexity", "perplexity", ".2f"),
            )  # fmt: skip
            shown = [f"  {name} {event[key]:{form}}" for key, name, form in names if key in event]
            self.progress.console.print(f"step {event['step']}:{self.dev}{''.join(shown)}")
            self.dev += "".join(shown[:1])
