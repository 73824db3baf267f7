"""Times and memory of ways to do the same work, side by side in one process, as rows of a Markdown table.

Ways take turns, so that a machine that slows down slows all of them; the ratio is between medians. Memory is the
highest resident size while a way runs, less the size before it.
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One way's figures.

    Attributes:
        name: the way.
        seconds: median of its turns.
        fastest: of its turns, in seconds.
        ratio: median over the first way's.
        peak: MiB above what stood before.
    """

    name: str
    seconds: float
    fastest: float
    ratio: float
    peak: float


def compare(ways: Mapping[str, Callable[[], object]], turns: int = 5) -> list[Row]:
    """Every way's figures; the first is what the others are measured against."""
    peaks = {name: _peak(way) for name, way in ways.items()}  # also warms every way up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(taken) for name, taken in seconds.items()}
    first = next(iter(middle.values()))
    return [Row(name, middle[name], min(seconds[name]), middle[name] / first, peaks[name]) for name in ways]


def table(rows: list[Row]) -> str:
    """The figures as a Markdown table."""
    lines = ["| way | median | fastest | ratio | peak memory |", "|---|---|---|---|---|"]
    figures = [
        f"| {row.name} | {_time(row.seconds)} | {_time(row.fastest)} | {row.ratio:.2f} | {row.peak:,.0f} MiB |"
        for row in rows
    ]
    return "\n".join([*lines, *figures])


def against(title: str, rows: list[Row], ours: str) -> list[str]:
    """One row of a Markdown table for every peer of `ours`: both times, how many times faster, and both peaks."""
    own = next(row for row in rows if row.name == ours)
    return [
        f"| {title} | {row.name} | {_time(row.seconds)} | {_time(own.seconds)} | **{row.seconds / own.seconds:.2f}** "
        f"| {row.peak:,.0f} | {own.peak:,.0f} |"
        for row in rows
        if row.name != ours
    ]


AGAINST = ["| work | peer | its time | ours | times faster | its MiB | ours |", "|---|---|---|---|---|---|---|"]


def write(page: str, name: str, text: str) -> None:
    """Put `text` between the marks of this name on a page of the documentation."""
    path = Path(__file__).parents[1] / "docs" / page
    whole = path.read_text("utf-8")
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, rest = whole.split(start)
    path.write_text(f"{before}{start}\n{text}\n\n{end}{rest.split(end)[1]}", "utf-8")


def machine() -> str:
    """What the figures were measured on, in a sentence."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    threads = f"{count} thread" if (count := torch.get_num_threads()) == 1 else f"{count} threads"
    return f"{len(names)} cores of {names[0]}, {memory:.0f} GiB, torch {torch.__version__}, {threads}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _peak(way: Callable[[], object]) -> float:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed goes back, or it would count as there before
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size begins anew
    before = _resident("VmRSS")
    way()
    return max(0.0, _resident("VmHWM") - before)


def joeynmt_model(vocabulary: int, width: int, dropout: float = 0.0) -> Any:
    """JoeyNMT's recurrent encoder-decoder with Bahdanau's attention, random weights, one vocabulary for both sides."""
    from joeynmt.model import build_model
    from joeynmt.vocabulary import Vocabulary

    symbols = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "sep_token": None}
    ids = {"unk_id": 0, "pad_id": 1, "bos_id": 2, "eos_id": 3, "lang_tags": []}
    names = Vocabulary([f"t{n}" for n in range(4, vocabulary)], SimpleNamespace(**symbols, **ids))
    own: dict[str, Any] = {
        "type": "recurrent", "rnn_type": "gru", "embeddings": {"embedding_dim": width, "dropout": dropout}
    }  # fmt: skip
    settings = {
        "encoder": {**own, "hidden_size": width // 2},
        "decoder": {**own, "hidden_size": width, "attention": "bahdanau", "hidden_dropout": dropout},
    }
    return build_model(settings, names, names)


def _resident(name: str) -> float:
    """A line of /proc/self/status, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024
