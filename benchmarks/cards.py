"""Write the model cards of the shipped models, and the table of `docs/models.md`.

    python benchmarks/cards.py fr-en=runs/fr-en fr-en-rnn=runs/fr-en-rnn

For every NAME=RUN: exports the run's model to the package in int8, translates the development pairs and, once, the
test pairs that its config split off, and writes what was measured beside the weights. Needs $REGARD_DATA.
"""

import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from regard.data.corpus import Pairs
from regard.experiment import evaluate_files, export_bundle, read_config, read_data
from regard.loading import SHIPPED, load
from regard.training.journal import Journal

ROOT = Path(__file__).parents[1]
KINDS = {"transformer": "Transformer", "recurrent": "bidirectional GRU with Bahdanau attention"}
NAMES = {"fr": "French", "en": "English"}


def measure(name: str, pairs: Pairs) -> dict[str, Any]:
    """BLEU, chrF, loss of a shipped model on some pairs, with its default beam."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / side for side in ("source", "reference")]
        for path, lines in zip(files, (pairs.source, pairs.target), strict=True):
            path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        return evaluate_files(load(name), *files)[0]


def ship(name: str, run: Path) -> None:
    """Export a run's model into the package, measure it there, and write its card."""
    settings = read_config(run / "config.toml")
    parts = read_data(settings)
    folder = SHIPPED / name
    shutil.rmtree(folder, ignore_errors=True)
    export_bundle(load(run.resolve()), folder, "int8")
    measured = {"development": measure(name, parts[1]), "test": measure(name, parts[2])}
    journals = [(f"configs/{run.name}.toml", Journal(run / "journal.jsonl").entries())]
    if settings.start:  # what it went on from stands beside it
        before = run.parent / Path(settings.start).name
        journals.insert(0, (f"configs/{before.name}.toml", Journal(before / "journal.jsonl").entries()))
    (folder / "measured.json").write_text(json.dumps(measured, indent=1) + "\n", "utf-8")
    (folder / "README.md").write_text(card(name, settings, parts, measured, journals), "utf-8")


def card(name: str, settings: Any, parts: Any, measured: Any, journals: list[tuple[str, list[dict[str, Any]]]]) -> str:
    """The model card."""
    bundle = load(name).bundle
    weights = sum(p.numel() for p in bundle.model.parameters())
    source, target = (NAMES[language] for language in settings.languages)
    rows = "\n".join(
        f"| {part} | {len(parts[n])} | {m['bleu']:.2f} | {m['chrf']:.2f} | {m['loss']:.3f} | {m['perplexity']:.2f} |"
        for n, (part, m) in enumerate(measured.items(), 1)
    )
    legs = [(config, [e for e in part if e["event"] == "evaluation"]) for config, part in journals]
    trained = ", then ".join(f"`regard train {config}` ({leg[-1]['step']:,} updates)" for config, leg in legs)
    seconds = [leg[-1]["seconds"] for _, leg in legs]
    curve = [e for _, leg in legs for e in leg]
    steps = "\n".join(
        f"| {e['step']} | {e['seconds'] / 60:.1f} | {e['dev_loss']:.3f} | {e['dev_bleu']:.2f} | {e['dev_chrf']:.2f} |"
        for e in curve
    )
    size = sum(path.stat().st_size for path in (SHIPPED / name).iterdir()) / 1e6
    return f"""# {name}

{source} to {target}, {KINDS[settings.model.kind]}, {weights / 1e6:.1f} million parameters, {size:.1f} MB (int8, one
scale per row). Task: short everyday sentences; not meant for long or technical text.

**Data.** {len(parts[0]):,} sentence pairs from [tatoeba.org](https://tatoeba.org) by way of
[manythings.org/anki](https://www.manythings.org/anki/), CC BY 2.0 (FR); attribution: tatoeba.org, manythings.org/anki
and their contributors. Split by English sentence: no English sentence stands on two sides of the split.

**Training.** {trained}, {sum(seconds) / 60:.0f} minutes
wall clock on one thread of a two-core machine ({platform.processor() or platform.machine()}, torch {torch.__version__})
that did other work at the same time.

**Measured** on the shipped weights, beam {measured["test"]["beam"]}, case and punctuation as in the data:

| part | pairs | BLEU | chrF | loss (nats/token) | perplexity |
|---|---|---|---|---|---|
{rows}

BLEU {measured["test"]["bleu_signature"]}; chrF {measured["test"]["chrf_signature"]}. The development part chose the
weights; the test part was measured once.

**Alignment** is read from `{bundle.alignment["site"]}`, heads {bundle.alignment["heads"]}, chosen on development data
(alignment error rate {bundle.alignment["aer"]:.3f} against IBM Model 1). One head was guided during training
(`training.guide`, Garg et al. 2019).

**Curve** (greedy, {settings.dev_sentences} development sentences for BLEU and chrF; minutes on that thread):

| step | minutes | dev loss | BLEU | chrF |
|---|---|---|---|---|
{steps}
"""


def main() -> None:
    """Ship what the command line names."""
    if "REGARD_DATA" not in os.environ:
        sys.exit("set REGARD_DATA to the folder that holds the data")
    for argument in sys.argv[1:]:
        name, _, run = argument.partition("=")
        ship(name, Path(run))
        print(name, "done")


if __name__ == "__main__":
    main()
