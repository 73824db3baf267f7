"""What caption, transcribe and answer share: drawing where words attended, one input after the other."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regard.cli.lines import (
    are_many,
    check_apart,
    check_output,
    check_targets,
    complain,
    draw_to,
    run_lines,
    targets_of,
)
from regard.cli.options import AUTO
from regard.cli.progress import err
from regard.errors import ConfigError, DataError


class Segments:
    """Draws the segments of a long recording as they are transcribed, and keeps what --json says of them."""

    def __init__(self, targets: list[Path], smooth: bool, as_json: bool) -> None:
        self.targets, self.smooth, self.as_json = targets, smooth, as_json
        self.count = 0
        self.drawn = True  # whether all those drawings were made
        self.json: list[dict[str, Any]] = []

    def __call__(self, segment: Any) -> None:
        self.count += 1
        if self.as_json:
            self.json.append({"start": segment.start, **segment.as_json()})
        for path in self.targets:
            self.drawn &= draw(segment, path.with_stem(f"{path.stem}-{self.count}"), self.smooth)


def run_media(
    arguments: list[str] | None, work: Callable[[str, Segments], Any], look: list[str] | None, smooth: bool,
    as_json: bool, output: Path | None, named: str | None = None,
) -> None:  # fmt: skip
    """One file (or question about the one that is `named`) in, one line out; each is drawn where `look` says.

    Args:
        arguments: file names, or questions.
        work: from one of them, and what becomes of the segments of a long recording, to a result or an error.
        look: files to draw to.
        smooth: blend the cells of the drawings.
        as_json: one JSON object a line.
        output: a file for the lines.
        named: the picture that questions are about.
    """
    from regard.pipelines.base import InputError

    if look and not arguments and named is None:
        raise ConfigError(f"--look {look[0]} says where to draw: name the inputs before it, for example cat.png --look")
    many = are_many(arguments)
    files = [named] if named else arguments or []
    check_targets([Path(one) for one in look or [] if one != AUTO], files, page=True)
    check_output(output, [Path(one) for one in files])
    check_apart(output, [path for one in files for path in targets_of(look or [], one, 1, False)])
    here = output is not None and Path(os.path.realpath(output)).parent == Path.cwd() and AUTO in map(str, look or [])
    if output is not None and here and re.fullmatch(r".*\.look(-\d+)*\.png", output.name):
        raise ConfigError(f"--output {output}: a drawing may have this name: name another file")

    def one(texts: list[str], first: int) -> list[Any]:
        name = texts[0]
        if not name.strip() and named is None:
            return [InputError("an empty line names no file")]
        targets = targets_of(look or [], named or name, first + 1, many)
        segments = Segments(targets, smooth, as_json)
        try:
            check_targets(targets, [named or name], page=True)
        except ConfigError as error:  # a file that may be the user's own stands there
            return [error]
        except DataError as error:  # the text is not lost with a drawing that cannot be made
            complain(f"line {first + 1}: {error}")
            segments.targets, segments.drawn = [], False
        try:
            return [(work(name, segments), segments)]
        except InputError as error:
            return [error]

    def show(made: tuple[Any, Segments], _: int) -> str:
        result, segments = made
        if not as_json:
            return " ".join(result.text.split())
        return json.dumps(result.as_json() | ({"pieces": segments.json} if segments.json else {}), ensure_ascii=False)

    def draw_whole(made: tuple[Any, Segments], _: int) -> bool:
        result, segments = made
        targets = segments.targets if not segments.count else ()
        for target in targets:
            segments.drawn &= draw(result, target, smooth)
        return segments.drawn

    run_lines(arguments, one, show, output=output, chunk=1, draw=draw_whole)


def draw(made: Any, path: Path, smooth: bool) -> bool:
    """The attention of a result's words in the terminal, and in a file; whether that file was drawn."""
    from regard.figures.overlay import strip, timeline

    words, weights = made.word_attention
    if err.is_terminal and len(weights):
        still = made.picture and made.positions.shape[1] == 2
        err.print((strip if still else timeline)(words, weights, err.width))
    return draw_to(made, path, lambda to: made.plot(to, smooth))
