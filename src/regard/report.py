"""A training run as one page: settings, curves, samples, attention as it formed, machine and time.

The page is one HTML file that asks for nothing else; it is made from what the run's folder holds.
"""

import html
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from regard.arguments import check_arguments
from regard.config import read_toml
from regard.errors import BundleError
from regard.experiment import CONFIG, MACHINE
from regard.figures.curves import course, curves
from regard.figures.files import MADE, as_svg
from regard.storage import parse_json
from regard.tasks.base import ATTENTION, SAMPLES
from regard.training.best import SMALL_IS_BETTER
from regard.training.config import TrainingConfig
from regard.training.journal import JOURNAL, Journal
from regard.untrusted import first_line, read_text

LARGEST = 2**26  # bytes of a file of the run's folder
MAPS = 6  # updates whose attention is shown beside each other
SENTENCES, EVENTS = 20, 200  # that are shown, at most
LATEST = 2**53  # update
NAMES = {
    "bleu": "BLEU", "chrf": "chrF", "exact": "exactly right, %", "wer": "word error rate, %",
    "perplexity": "perplexity",
    "attention_entropy": "entropy of the attention, nats",
    "attention_coverage": "source tokens with a total weight ≥ ½, %",
}  # fmt: skip
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #666; --line: #ddd; --paper: #fff; --plate: #fff }
@media (prefers-color-scheme: dark) {
    :root { --ink: #e8e8e8; --soft: #aaa; --line: #444; --paper: #161616; --plate: #f4f4f4 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
       margin: 2.5rem auto; padding: 0 1.2rem }
h1 { font-size: 1.5rem; margin: 0 0 .2rem } h2 { font-size: 1.05rem; margin: 2.2rem 0 .5rem }
p.lead { color: var(--soft); margin: 0 0 1.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } td, th { text-align: left; vertical-align: top;
       padding: .25rem 1.4rem .25rem 0; border-bottom: 1px solid var(--line) }
th { font-weight: 500; color: var(--soft) }
figure { margin: .6rem 0; background: var(--plate); padding: .5rem; border-radius: 4px; overflow-x: auto }
figure svg { max-width: 100%; height: auto } figcaption { color: #555; font-size: .85rem }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.35 } summary { cursor: pointer; color: var(--soft) }
"""


@check_arguments
def report(folder: Path) -> str:
    """The page of a run, finished or not.

    Raises:
        BundleError: the folder holds no run, or one without an evaluation.
    """
    entries = Journal(folder / JOURNAL).entries()
    found = [entry for entry in entries if entry.get("event") == "evaluation"]
    if not (folder / CONFIG).exists() or not found:
        raise BundleError(f"{folder}: no run with an evaluation in it: no {CONFIG}, or nothing in {JOURNAL}")
    with _made_by_regard(folder / JOURNAL):
        if not all(0 <= entry["step"] < LATEST for entry in found):
            raise ValueError("the number of an update is beyond all updates")
        best = _best(found, entries, _metric(folder))
        parts = [
            f"<h1>{html.escape(folder.resolve().name)}</h1>",
            f'<p class="lead">{html.escape(_lead(found, best))}</p>',
            *_section("Result", _table(_result(best, found))),
            *_section(
                "Curves", _figure(as_svg(curves(_panels(found), best["step"])), "Dashed: the model that was kept.")
            ),
        ]
        events = _section("Events", _table(_events(entries)))
    with _made_by_regard(folder / SAMPLES):
        parts += _samples(folder)
    with _made_by_regard(folder / ATTENTION):
        parts += _attention(folder)
    with _made_by_regard(folder / MACHINE):
        parts += _section("Machine", _table(_machine(folder)))
    parts += events
    settings = html.escape(read_text(folder / CONFIG))
    parts += ["<h2>Settings</h2>", f"<details><summary>{CONFIG}</summary><pre>{settings}</pre></details>"]
    title = html.escape(f"{folder.resolve().name}: training")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="generator" content="{MADE.decode()}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


@contextmanager
def _made_by_regard(path: Path) -> Iterator[None]:
    """A block that takes a file to be what a run has written; where it is not, one sentence names it.

    Raises:
        BundleError: it is not.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{path}: damaged: not what a training run writes ({first_line(error)})") from error


def _metric(folder: Path) -> str:
    """What a run chooses its best model by."""
    default = TrainingConfig().metric
    section = read_toml(folder / CONFIG).get("training", {})
    found = section.get("metric", default) if isinstance(section, dict) else default
    return str(found)


def _best(found: Sequence[dict[str, Any]], entries: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The evaluation of the model that was kept: of an average, where that was chosen; else of the best update."""
    averages = [entry for entry in entries if entry.get("event") == "average"]
    if averages and averages[-1]["chosen"]:
        return averages[-1]
    if averages:
        found = [one for one in found if one["step"] == averages[-1]["of"][0]]
    measured = [one for one in found if f"dev_{metric}" in one]  # a run that is resumed may measure more
    if not measured:
        return min(found, key=lambda one: one["dev_loss"])
    choose = min if metric in SMALL_IS_BETTER else max
    return choose(measured, key=lambda one: one[f"dev_{metric}"])


def _lead(found: Sequence[dict[str, Any]], best: dict[str, Any]) -> str:
    spent = timedelta(seconds=round(found[-1]["seconds"]))
    kept = (
        f"the mean of {len(best['of'])} checkpoints" if best.get("event") == "average" else f"update {best['step']:,}"
    )
    return f"{found[-1]['step']:,} updates in {spent} of training; kept: {kept}."


def _result(best: dict[str, Any], found: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    yield "loss on development data, nats a token", f"{best['dev_loss']:.4f}"
    for name, shown in NAMES.items():
        if f"dev_{name}" in best:
            yield f"{shown}, development data", f"{best[f'dev_{name}']:.2f}"
        for other in _further(best):
            if f"dev_{other}_{name}" in best:
                yield f"{shown}, {other}", f"{best[f'dev_{other}_{name}']:.2f}"
    yield "updates skipped", f"{found[-1]['skipped']:,}"


def _panels(found: Sequence[dict[str, Any]]) -> list[tuple[str, list[tuple[str, list[tuple[float, float]]]]]]:
    def points(name: str) -> list[tuple[float, float]]:
        return [(float(entry["step"]), float(entry[name])) for entry in found if name in entry]

    further = _further(found[0])
    losses = [("training batch", points("train_loss")), ("development", points("dev_loss"))]
    panels = [("loss, nats a token", losses + [(name, points(f"dev_{name}_loss")) for name in further])]
    for name, shown in NAMES.items():
        if points(f"dev_{name}"):
            others = [(other, points(f"dev_{other}_{name}")) for other in further if f"dev_{other}_{name}" in found[0]]
            panels.append((shown, [("development" if others else "", points(f"dev_{name}")), *others]))
    return panels


def _further(entry: dict[str, Any]) -> list[str]:
    """The names of the further development sets of an evaluation."""
    return [key.removeprefix("dev_").removesuffix("_loss") for key in entry if re.fullmatch(r"dev_.+_loss", key)]


def _samples(folder: Path) -> Iterator[str]:
    """What the model wrote for some development sentences at the last evaluation."""
    rows = _read(folder / SAMPLES)
    if not rows:
        return
    cells = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows["rows"])
    head = "".join(f"<th>{name}</th>" for name in ("source", "reference", f"output at update {rows['step']:,}"))
    yield f"<h2>Samples</h2><table><tr>{head}</tr>{cells}</table>"


def _attention(folder: Path) -> Iterator[str]:
    """The maps of the watched sentences over the course of training."""
    kept = [_read(path) for path in sorted((folder / ATTENTION).glob("*.json"))]
    if not kept:
        return
    shown = [kept[round(n * (len(kept) - 1) / max(1, min(MAPS, len(kept)) - 1))] for n in range(min(MAPS, len(kept)))]
    yield "<h2>Attention as it formed</h2>"
    sentences = shown[-1]["sentences"]
    for number, last in enumerate(sentences[:SENTENCES]):
        maps = [one["sentences"][number]["weights"] for one in shown]
        figure = course([one["step"] for one in shown], maps, last["target"], last["source"])
        site = html.escape(shown[-1]["site"])
        caption = f"{site}, mean of its heads; rows: output tokens, columns: source tokens; the true output given."
        yield _figure(as_svg(figure), caption)
    if len(sentences) > SENTENCES:
        yield f"<p>{len(sentences) - SENTENCES:,} more sentences are in the run's folder {ATTENTION}.</p>"


def _machine(folder: Path) -> Iterator[tuple[str, str]]:
    for name, value in _read(folder / MACHINE).items():
        yield name, f"{value}"


def _events(entries: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    told = [entry for entry in entries if entry.get("event") in ("changed", "skipped")]
    if len(told) > EVENTS:
        yield "earlier", f"{len(told) - EVENTS:,} more events are in {JOURNAL}"
    for entry in told[-EVENTS:]:
        if entry.get("event") == "changed":
            settings = ", ".join(f"{name} = {value}" for name, value in entry["settings"].items())
            yield f"update {entry['step']:,}", f"resumed with {settings}"
        else:
            yield f"update {entry['step']:,}", f"skipped: loss {entry['loss']}, gradient {entry['gradient_norm']}"


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = parse_json(read_text(path, LARGEST)) if path.exists() else {}
    return found


def _section(title: str, body: str) -> list[str]:
    return [f"<h2>{title}</h2>", body] if body else []


def _table(rows: Iterator[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{lines}</table>" if lines else ""


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"
