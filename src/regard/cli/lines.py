"""One line in, one line out: the loop of every verb that takes inputs.

A refused input gives an empty line, one sentence with its number on standard error, and exit code 1 at the end; the
others are worked on. Standard output carries nothing but results.
"""

import codecs
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from regard.cli.options import AUTO
from regard.errors import ConfigError, RegardError, harmless, not_utf8

FAILED = 1
CHUNK = 64  # inputs worked on at a time
LONGEST_LINE = 2**20  # bytes of a line of standard input: no model takes as many
OF_A_FILE = 1024  # the same, where standard input is a file: more lines make fuller batches of like lengths

# inputs and the index of the first → a result for each, or the error in its place
Work = Callable[[list[str], int], Sequence[Any]]
# a result and its number → its line; None where it was printed already
Show = Callable[[Any, int], str | None]
Draw = Callable[[Any, int], bool]  # a result and its number → whether all its drawings were made


def complain(sentence: str) -> None:
    """One sentence on standard error, on one line whatever it holds; nothing where standard error takes none."""
    if sys.stderr is not None:
        encoding = sys.stderr.encoding or "utf-8"
        line = f"regard: {harmless(sentence)}".encode(encoding, "backslashreplace").decode(encoding)
        with suppress(OSError, ValueError):  # closed, or on a full disk: the exit code says it
            print(line, file=sys.stderr)


def say(text: str, nl: bool = True) -> None:
    """A result on standard output: as it is in a file or a pipe, in UTF-8; made harmless on a terminal."""
    typer.echo(harmless(text, keep="\n\t") if sys.stdout.isatty() else text, nl=nl)


def run_lines(
    arguments: list[str] | None, work: Work, show: Show, *, output: Path | None = None, chunk: int = CHUNK,
    of_a_file: int | None = None, draw: Draw = lambda *_: True,
) -> None:  # fmt: skip
    """Work on the arguments, or on the lines of standard input, and print one line for each.

    Args:
        arguments: the inputs; None or ["-"] reads standard input.
        work: gives each input of a chunk its result, or an error in its place.
        show: gives a result's line.
        output: a file for the lines; standard output if None.
        chunk: inputs at a time; one where a person types them.
        of_a_file: inputs at a time where standard input is a file; `chunk` by default.
        draw: draws a result whose line is written.

    Raises:
        typer.Exit: with code 1 where an input was refused, or a drawing failed.
        ConfigError: a file for the output that cannot be written; standard input is closed.
    """
    from regard.cli.progress import lines_bar

    reading = not arguments or arguments == ["-"]
    if reading and sys.stdin is None:
        raise ConfigError("standard input is closed: give the inputs as arguments")
    size = 1 if reading and sys.stdin.isatty() else of_a_file or chunk if reading and _is_file(sys.stdin) else chunk
    refused = False
    total = None if reading else len(arguments or ())
    with writing(output) as write, lines_bar(total, chunk, quiet=output is None) as advance:
        numbered = enumerate(inputs(arguments))
        while some := list(islice(numbered, size)):
            good = [text for _, text in some if isinstance(text, str)]
            made = iter(work(good, some[0][0]) if good else ())
            for index, text in some:
                result = next(made) if isinstance(text, str) else text
                if isinstance(result, Exception):
                    refused = True
                    complain(f"line {index + 1}: {result}")
                    write("")
                else:
                    line = show(result, index + 1)
                    if line is not None:
                        write(line)
                    refused |= not draw(result, index + 1)
            advance(len(some))
    if refused:
        raise typer.Exit(FAILED)


def _is_file(stream: Any) -> bool:
    """Whether a stream reads a file that is there as a whole."""
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return False


def inputs(arguments: list[str] | None) -> Iterator[str | RegardError]:
    """The arguments, or the lines of standard input, which end at \\n alone; an error for what is not UTF-8."""
    if arguments and arguments != ["-"]:
        yield from map(_decoded, map(os.fsencode, arguments))
        return
    number = 0
    while line := sys.stdin.buffer.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):  # the rest of it, a piece at a time
                line = sys.stdin.buffer.readline(LONGEST_LINE)
            yield RegardError(f"a line of {LONGEST_LINE:,} bytes or more is too long: cut it into sentences")
        else:
            line = line if number else line.removeprefix(codecs.BOM_UTF8)
            yield _decoded(line.removesuffix(b"\n").removesuffix(b"\r"))
        number += 1


def text_of(argument: str) -> str:
    """An argument as text.

    Raises:
        ConfigError: it is not UTF-8.
    """
    found = _decoded(os.fsencode(argument))
    if isinstance(found, RegardError):
        raise ConfigError(str(found))
    return found


def _decoded(raw: bytes) -> str | RegardError:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return RegardError(not_utf8(error))


@contextmanager
def writing(output: Path | None) -> Iterator[Callable[[str], None]]:
    """A function that writes one line: to standard output, or to a file that is there, whole, once all is done.

    The lines are collected in a new file beside it; if the work ends early, they stay there and the file is named.
    Where there is no line yet, no file stays.

    Raises:
        ConfigError: the file cannot be written.
    """
    if output is None:
        yield say
        return
    check_output(output, ())
    from regard.storage import replacing

    begun = ""
    try:
        with replacing(output, keep=True) as file:
            begun = file.name if output.is_file() or not output.exists() else ""  # a device is written to as it is
            yield lambda line: file.writelines([f"{line}\n".encode()])
    except BaseException:  # the disk may be full only when the file is closed
        if begun:
            complain(f"{output} was not written" + f"; the lines so far are in {begun}" * Path(begun).exists())
        raise


def check_output(output: Path | None, sources: Sequence[Path]) -> None:
    """Refuse a file that cannot be written before there is work to lose.

    Raises:
        ConfigError: its folder does not exist or may not be written to; it is a folder, or one of the inputs.
    """
    if output is None:
        return
    from regard.storage import why_unwritable

    if output == Path("-"):
        raise ConfigError("--output -: standard output holds this command's other lines: name a file")
    if why := why_unwritable(output):
        raise ConfigError(f"--output {output}: {why}")
    if _is_kept(Path(os.path.realpath(output))):
        raise ConfigError(f"--output {output}: this is no text, or a file of a model or a run; name another file")
    inputs = [os.stat(one) for one in sources if os.path.exists(one)]
    if sys.stdin is not None and _is_file(sys.stdin):
        inputs.append(os.fstat(sys.stdin.fileno()))
    if output.exists() and any(os.path.samestat(output.stat(), one) for one in inputs):
        raise ConfigError(f"--output {output}: this is one of the inputs; name another file")


TEXTS_OF_MODELS = ("diacritics.txt", "vocab.txt", "merges.txt", "data.sha256", ".regard")
HOLDS_MODEL = ("bundle.json", ".regard", "model.safetensors.index.json", "model.bin", "onnx.json", "torch.json")
WEIGHTS = ("weights.", "model", "best-", "last.", "adapter_model", "consolidated", "tf", "pytorch_model")
ENDINGS_OF_MODELS = (".json", ".jsonl", ".toml", ".db")
OF_WEIGHTS = (".safetensors", ".bin", ".gguf", ".onnx", ".msgpack", ".pt", ".pth", ".ckpt", ".h5")
OF_MODELS = re.compile(
    r"(.*config|tokenizer|vocab|added_tokens|special_tokens_map|modules|model_index|.*\.index)\.json|params\.json"
)  # names that other programs give to what stands beside weights


def _is_kept(path: Path) -> bool:
    """Whether a file is no text, or one of those that models and runs are made of."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if b"\0" in file.read(2**12):
            return True
    around = path.parent, path.parent.parent
    if path.name in TEXTS_OF_MODELS or OF_MODELS.fullmatch(path.name):
        within = [one for one in path.parent.iterdir() if one.is_dir()] if path.suffix == ".json" else []
        if any(_is_of_weights(one) for folder in (*around, *within) for one in folder.glob("*.*")):
            return True
    texts = path.suffix.lower() in ENDINGS_OF_MODELS or path.name in TEXTS_OF_MODELS
    return texts and any(map(_holds_model, around))


def _is_of_weights(path: Path) -> bool:
    """Whether a file has the name of weights; a saved map has none."""
    from regard.attention.maps.saved import is_map

    return path.suffix in OF_WEIGHTS and not (path.suffix == ".safetensors" and is_map(path))


def _holds_model(folder: Path) -> bool:
    """Whether a folder has a file that models and runs have; saved maps are none."""
    from regard.attention.maps.saved import is_map

    if any((folder / name).exists() for name in HOLDS_MODEL):
        return True
    return any(path.name.startswith(WEIGHTS) and not is_map(path) for path in folder.glob("*.safetensors"))


def targets_of(look: Sequence[str | Path], name: str, number: int, many: bool) -> list[Path]:
    """The files to draw one input to: numbered where there are several inputs."""
    found = [Path(f"{Path(name).stem}.look.png") if str(one) == AUTO else Path(one) for one in look]
    return [path.with_stem(f"{path.stem}-{number}") if many else path for path in found]


def check_targets(targets: Sequence[Path], sources: Sequence[str] = (), page: bool = False) -> None:
    """Refuse to draw where it is impossible, or over a file that regard has not drawn, before there is work to lose.

    Args:
        targets: the files.
        sources: files that are read.
        page: whether a page (.html) may be among them.

    Raises:
        ConfigError: a file that is an input, or that regard has not drawn.
        DataError: a file that cannot be drawn to.
    """
    if not targets:
        return
    from regard.figures.files import check_target, is_drawn

    for target in targets:
        check_target(target, page)
        is_input = any(os.path.exists(one) and target.exists() and target.samefile(one) for one in sources)
        if is_input or not is_drawn(target):
            raise ConfigError(
                f"--look {target}: this file exists and was not drawn by regard: give another name, after the inputs"
            )


def check_apart(output: Path | None, drawn: Sequence[Path]) -> None:
    """Refuse an output in the place of a drawing, numbered or not: the later would replace the earlier.

    Raises:
        ConfigError: it does.
    """
    if output is None:
        return
    whole = Path(os.path.realpath(output))
    for one in drawn:
        other = Path(os.path.realpath(one))
        numbered = re.fullmatch(rf"{re.escape(other.stem)}(-\d+)*{re.escape(other.suffix)}", whole.name)
        if whole.parent == other.parent and numbered:
            raise ConfigError(f"--output {output}: a drawing is to stand there too ({one}): name another file")


def check_looks(look: Sequence[Path], texts: list[str] | None, page: bool = False) -> None:
    """`check_targets` for the drawings of all arguments, and of the first line of standard input.

    Raises:
        ConfigError, DataError: as `check_targets`.
    """
    many = are_many(texts)
    numbers = range(1, 1 + (len(texts) if texts and texts != ["-"] else 1))
    check_targets([path for n in numbers for path in targets_of(look, "", n, many)], page=page)


def draw_to(made: Any, path: Path, plot: Callable[[Path], Any]) -> bool:
    """Draw a result to a file: its page where the file ends in .html, else what `plot` draws.

    Returns:
        whether it was drawn; either is said.
    """
    from regard.figures.files import check_own
    from regard.storage import check_place

    try:
        check_place(path)
        check_own(path)
        if path.suffix.lower() in (".html", ".htm"):
            made.look(path)
        else:
            plot(path)
    except (RegardError, OSError) as error:  # what is still to be done is not lost with a drawing
        complain(f"{path} was not drawn: {error}")
        return False
    complain(f"drawn: {path}")
    return True


def draw_all(made: Any, paths: Sequence[Path], plot: Callable[[Path], Any]) -> bool:
    """`draw_to` each of the files; whether all were drawn."""
    return sum(draw_to(made, path, plot) for path in paths) == len(paths)


def are_many(arguments: list[str] | None) -> bool:
    """Whether drawings are numbered: several inputs, or lines of standard input."""
    return not arguments or len(arguments) != 1 or arguments == ["-"]
