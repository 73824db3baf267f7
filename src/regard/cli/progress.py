"""Progress bars on standard error: lines a second, seconds of a long recording, words, and a training run."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from regard.errors import harmless


class HarmlessConsole(Console):
    """A console that makes texts harmless and knows no markup: what is printed may hold names from outside."""

    def print(self, *objects: Any, **settings: Any) -> None:
        """As `rich.console.Console.print`; tables and colored texts are made harmless where they are made."""
        shown = (Text(harmless(one, keep="\n\t")) if isinstance(one, str) else one for one in objects)
        super().print(*shown, **settings)


out, err = HarmlessConsole(), HarmlessConsole(stderr=True)
WIDE = 120  # columns of a terminal that has room for every number of a training run


@contextmanager
def lines_bar(total: int | None, chunk: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar with lines a second, shown on a terminal once more than one chunk is to be done.

    Args:
        total: lines in all, where that is known.
        chunk: lines at a time.
        quiet: results go to standard output: no bar where that is a terminal too.
    """
    if not err.is_terminal or (quiet and out.is_terminal) or (total is not None and total <= chunk):
        yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=err, transient=True) as progress:
        bar = progress.add_task("lines", total=total, speed="")

        def advance(count: int) -> None:
            progress.update(bar, advance=count)
            task = progress.tasks[0]
            speed = task.completed / task.elapsed if task.elapsed else 0.0
            progress.update(bar, speed=f"{speed:,.1f} lines/s")

        yield advance


@contextmanager
def seconds_bar(path: str) -> Iterator[Callable[[float], None]]:
    """A bar over the seconds of a long recording."""
    from regard.data.sound import BLOCK, seconds
    from regard.errors import DataError

    try:
        total = seconds(Path(path)) if os.path.isfile(path) else 0.0
    except DataError:  # reading it gives a better sentence
        total = 0.0
    if total <= BLOCK:
        yield lambda _: None
        return
    with counting_bar("seconds") as update:
        yield lambda done: update(done, total)


@contextmanager
def counting_bar(what: str) -> Iterator[Callable[[float, float], None]]:
    """A bar on a terminal over something counted: called with the number that is done, and that of all."""
    if not err.is_terminal:
        yield lambda _, __: None
        return
    from rich.progress import Progress

    with Progress(console=err, transient=True) as progress:
        bar = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


@contextmanager
def training_bar() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar with loss, speed, development measures, and time left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(40 if err.width >= WIDE else 8), MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )  # fmt: skip
    progress = Progress(*columns, console=err, refresh_per_second=2)
    try:
        yield _TrainingReporter(progress)
    finally:
        if progress.live.is_started:
            progress.stop()


class _TrainingReporter:
    """From the training loop's events to the text of the bar."""

    def __init__(self, progress: Any) -> None:
        self.progress = progress
        self.task: Any = None
        self.dev = self.measure = ""
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
                f"vocabulary {event['vocabulary']:,}, padding {event['padding']:.0%}, {event['precision']} on "
                f"{event['device']}, "
                f"run in {event['run']}"
            )
        elif event["event"] == "step":
            self.loss = event["loss"] if not self.loss else 0.95 * self.loss + 0.05 * event["loss"]
            self.marks = [*self.marks[-49:], (event["seconds"], event["tokens"])]
            spent = self.marks[-1][0] - self.marks[0][0]
            speed = sum(tokens for _, tokens in self.marks[1:]) / spent if spent > 0 else 0.0
            numbers = f"loss {self.loss:.3f}  {speed:,.0f} tokens/s{self.dev}"
            if self.progress.console.width < WIDE:  # the steps and the time are what a narrow terminal must keep
                numbers = f"loss {self.loss:.3f}{self.measure}"
            self.progress.update(self.task, completed=event["step"], numbers=numbers)
        elif event["event"] == "prepare":
            self.progress.console.print(f"{event['pairs']:,} pairs prepared")
        elif event["event"] == "memory":
            self.progress.console.print(
                f"out of memory: a batch of {event['rows']} rows is now computed in {event['pieces']} parts"
            )
        else:
            self.dev = f"  dev loss {event['dev_loss']:.3f}"
            names = (
                ("dev_exact", "exact %", ".1f"), ("dev_wer", "WER %", ".1f"), ("dev_bleu", "BLEU", ".1f"),
                ("dev_chrf", "chrF", ".1f"), ("dev_perplexity", "perplexity", ".2f"),
            )  # fmt: skip
            shown = [f"  {name} {event[key]:{form}}" for key, name, form in names if key in event]
            self.progress.console.print(f"step {event['step']}:{self.dev}{''.join(shown)}")
            self.dev += "".join(shown[:1])
            self.measure = "".join(shown[:1])
