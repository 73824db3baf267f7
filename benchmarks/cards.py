"""Write the model cards of the shipped models, and the table of `docs/models.md`.

    python benchmarks/cards.py fr-en=runs/fr-en fr-en-rnn=runs/fr-en-rnn
    python benchmarks/cards.py spelling=runs/an4-joined emoji=runs/shipped+runs/half     # A+B: the mean of two models

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

import everyday
import torch
from senses import measure_scenes, measure_sounds

from regard.data.pairs import Pairs
from regard.data.parallel import DataConfig, corpora
from regard.data.texts import read_texts
from regard.experiment import average_run, read_config
from regard.export.folder import export_bundle
from regard.pipelines.load import SHIPPED, load
from regard.tasks import language
from regard.tasks.table import evaluate
from regard.tasks.translation import read_data
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
        return evaluate(load(name), *files)[0]


def ship(name: str, run: Path, other: str) -> None:
    """Export a run's model, or its mean with another, into the package, measure it there, and write its card."""
    settings = read_config(run / "config.toml")
    folder = SHIPPED / name
    with tempfile.TemporaryDirectory() as mean:
        ready = load((average_run(run, Path(mean), other) if other else run).resolve())
        shutil.rmtree(folder, ignore_errors=True)
        export_bundle(ready, folder, "int8")
    if settings.texts is not None:
        (folder / "README.md").write_text(text_card(name, settings, run), "utf-8")
        return
    if settings.scenes is not None or settings.files is not None:
        (folder / "README.md").write_text(sense_card(name, settings, run, other), "utf-8")
        return
    parts = read_data(settings)
    measured = {"development": measure(name, parts[1]), "test": measure(name, parts[2])}
    (folder / "measured.json").write_text(json.dumps(measured, indent=1) + "\n", "utf-8")
    (folder / "README.md").write_text(card(name, settings, parts, measured, run), "utf-8")


def training_of(run: Path, settings: Any) -> tuple[str, float, list[dict[str, Any]]]:
    """(the commands, minutes, evaluations) of a run, after those of the one that it went on from."""
    before = run.parent / Path(settings.start or "").name  # runs stand beside each other; a shipped model has none
    runs = ([before] if settings.start and (before / "journal.jsonl").exists() else []) + [run]
    legs = [[e for e in Journal(one / "journal.jsonl").entries() if e["event"] == "evaluation"] for one in runs]
    commands = ", then ".join(
        f"`{command_of(one)}` ({leg[-1]['step']:,} updates)" for one, leg in zip(runs, legs, strict=True)
    )
    return commands, sum(leg[-1]["seconds"] for leg in legs) / 60, [e for leg in legs for e in leg]


def command_of(run: Path) -> str:
    """The command that trains a run; its folder has the name of its config."""
    teacher = teacher_of(run)
    return f"regard distill {teacher} {run.name}" if teacher else f"regard train {run.name}"


def teacher_of(run: Path) -> str:
    """The model whose outputs a student was trained on; empty for a run on its references."""
    data = read_config(run / "config.toml").data
    (first, *_) = corpora(data) if isinstance(data, DataConfig) else [None]
    if first is None or not isinstance(first.path, str):
        return ""
    made = Path(first.path).parent / "parts" / "corpus.json"
    return json.loads(made.read_text("utf-8"))["model"] if made.exists() else ""


def text_card(name: str, settings: Any, run: Path) -> str:
    """The card of a model of running text."""
    bundle, texts = load(name).bundle, read_texts(settings.texts)
    dev = language.examples(texts.dev, settings.task, bundle.tokenizer, settings.texts, settings.training, moves=False)
    with torch.inference_mode():
        loss, tokens = language.mean_loss(bundle.model, dev)
    entries = [e for e in Journal(run / "journal.jsonl").entries() if e["event"] == "evaluation"]
    weights = sum(p.numel() for p in bundle.model.parameters())
    size = sum(path.stat().st_size for path in (SHIPPED / name).iterdir()) / 1e6
    what, data = {
        "complete": ("A character language model: a decoder that continues a text", "Tiny Shakespeare (plays that "
                     "are in the public domain, as Andrej Karpathy put them together), its last tenth for development"),
        "fill": ("A masked language model: an encoder that predicts hidden words", "the English side of the pairs from "
                 "[tatoeba.org](https://tatoeba.org) by way of "
                 "[manythings.org/anki](https://www.manythings.org/anki/), CC BY 2.0 (FR); "
                 "two in a hundred sentences, kept apart, for development"),
    }[settings.task]  # fmt: skip
    unit = "character" if settings.task == "complete" else "hidden token"
    curve = "\n".join(f"| {e['step']} | {e['seconds'] / 60:.1f} | {e['dev_loss']:.4f} |" for e in entries)
    return f"""# {name}

{what}; {weights / 1e6:.1f} million parameters, {size:.1f} MB (int8, one scale per row).

**Data.** {data}. {sum(map(len, texts.train)):,} characters for training.

**Training.** `regard train {name}` ({entries[-1]["step"]:,} updates), {entries[-1]["seconds"] / 60:.0f}
minutes wall clock on one thread of a two-core machine ({platform.processor() or platform.machine()},
torch {torch.__version__}) that did other work at the same time.

**Measured** on the shipped weights: development loss {loss:.4f} nats a {unit} ({tokens:,} of them). The development
part chose the weights; there is no test part.

**Curve** (minutes on that thread):

| step | minutes | dev loss |
|---|---|---|
{curve}
"""


def sense_card(name: str, settings: Any, run: Path, other: str) -> str:
    """The card of a model of pictures or sounds."""
    ready = load(name)
    measured = (measure_scenes if settings.scenes else measure_sounds)(ready, settings)
    commands, minutes, entries = training_of(run, settings)
    commands += (
        f", then the mean of both (`regard average runs/{run.name} runs/{name} --with {other}`)" if other else ""
    )
    weights = sum(p.numel() for p in ready.model.parameters())
    size = sum(path.stat().st_size for path in (SHIPPED / name).iterdir()) / 1e6
    what, data = {
        "caption": ("Captions of scenes of emoji",
                    "Scenes of one to three emoji, generated anew in every epoch; objects that are "
                    "together in a development scene never are in a training scene. Half of the things are drawn "
                    "as the font Noto Color Emoji draws them (Google, SIL Open Font License 1.1), half by Twemoji "
                    "(Twitter, CC BY 4.0), Fluent Emoji and Fluent Emoji Flat (Microsoft, MIT), EmojiOne 2 (CC BY "
                    "4.0), EmojiOne 1 (CC BY-SA 4.0), the old Noto Emoji (Google, Apache 2.0) and Streamline "
                    "Emojis (CC BY 4.0), all by way of Iconify's packages; their names are the package emoji's "
                    "(Unicode CLDR)"),
        "transcribe": ("English letters, numbers and commands, from speech to text", "The training half of CMU's AN4 "
                       "(Carnegie Mellon University 1991, free for any purpose): 948 recordings, 42 minutes, 74 "
                       "speakers; one speaker in ten for development; no speaker is in both parts. Other voices, "
                       "telephone lines and synthesizers were not in it, and few of their words come out right"),
    }[settings.task]  # fmt: skip
    rows = "\n".join(f"| {key} | {value:.2f} |" for key, value in measured.items())
    curve = "\n".join(
        f"| {e['step']} | {e['seconds'] / 60:.1f} | {e['dev_loss']:.3f} | {e['dev_exact']:.1f} | {e['dev_wer']:.1f} |"
        for e in entries
    )
    return f"""# {name}

{what}; {weights / 1e6:.1f} million parameters, {size:.1f} MB (int8, one scale per row; convolutions in float16).

**Data.** {data}.

**Training.** {commands}, {minutes:.0f} minutes wall clock on one thread of a two-core machine
({platform.processor() or platform.machine()}, torch {torch.__version__}) that did other work at the same time.

**Measured** on the shipped weights, beam {ready.decoding.beam if settings.files else 4} (`python benchmarks/cards.py`):

| | |
|---|---|
{rows}

The development part chose the weights; there is no test part here.

**Curve** (greedy; minutes on that thread; captions or transcripts exactly right, and wrong words, in percent):

| step | minutes | dev loss | exact | wrong words |
|---|---|---|---|---|
{curve}
"""


CORPORA = {  # a part of a file's name → where its pairs come from, and their license
    "tatoeba": "sentences from [tatoeba.org](https://tatoeba.org) by way of "
    "[manythings.org/anki](https://www.manythings.org/anki/), CC BY 2.0 (FR); attribution: tatoeba.org, "
    "manythings.org/anki and their contributors",
    "expressions": "made sentences with times, dates, prices, numbers, names and places as Unicode's CLDR writes them, "
    "by Babel (`regard data expressions`; CLDR: Unicode License v3)",
    "debian": "sentences of Debian's package descriptions and their translations by the Debian Description Translation "
    "Project (`regard data debian`), each under its package's licence",
}
NOT_MEANT = """The model translates short everyday sentences. It is not meant for long or technical text, for medicine,
law or anything where a mistake does harm: it can leave out or invent words, and `generation.words` shows where it is
unsure. Rare names, words outside its training data, verse and idioms come out wrong; numbers usually survive, and
`protect=True` makes sure of it. It translates a text sentence by sentence, so a pronoun cannot refer to an earlier
sentence."""


def data_of(settings: Any) -> str:
    """Where a config's training pairs come from."""
    named = [
        corpus.path if isinstance(corpus.path, str) else " ".join(corpus.path) for corpus in corpora(settings.data)
    ]
    return "; ".join(text for part, text in CORPORA.items() if any(part in name for name in named))


def card(name: str, settings: Any, parts: Any, measured: Any, run: Path) -> str:
    """The model card."""
    ready = load(name)
    bundle = ready.bundle
    weights = sum(p.numel() for p in bundle.model.parameters())
    source, target = (NAMES[language] for language in settings.languages)
    rows = "\n".join(
        f"| {part} | {len(parts[n])} | {m['bleu']:.2f} | {m['chrf']:.2f} | {m['loss']:.3f} | {m['perplexity']:.2f} |"
        for n, (part, m) in enumerate(measured.items(), 1)
    )
    commands, minutes, curve = training_of(run, settings)
    steps = "\n".join(
        f"| {e['step']} | {e['seconds'] / 60:.1f} | {e['dev_loss']:.3f} | {e['dev_bleu']:.2f} | {e['dev_chrf']:.2f} |"
        for e in curve
    )
    size = sum(path.stat().st_size for path in (SHIPPED / name).iterdir()) / 1e6
    found = everyday.measure(ready)
    taught, teacher = "", teacher_of(run)
    if teacher:
        own = read_config(ROOT / "src" / "regard" / "configs" / f"{run.name}.toml")  # what the teacher translated
        settings = settings.model_copy(update={"data": own.data})
        taught = f" The training side's translations are those of `{teacher}` (sequence-level distillation)."
    return f"""# {name}

{source} to {target}, {KINDS[settings.model.kind]}, {weights / 1e6:.1f} million parameters, {size:.1f} MB (int8, one
scale per row).

**What it cannot do.** {NOT_MEANT}

**Data.** {len(parts[0]):,} pairs in an epoch: {data_of(settings)}.{taught} Split by English sentence: no English
sentence of the Tatoeba pairs stands on two sides of the split.

**Training.** {commands}, {minutes:.0f} minutes
wall clock on one thread of a two-core machine ({platform.processor() or platform.machine()}, torch {torch.__version__})
that did other work at the same time.

**Measured** on the shipped weights, beam {measured["test"]["beam"]}, case and punctuation as in the data:

| part | pairs | BLEU | chrF | loss (nats/token) | perplexity |
|---|---|---|---|---|---|
{rows}

BLEU {measured["test"]["bleu_signature"]}; chrF {measured["test"]["chrf_signature"]}. The development part chose the
weights; the test part was measured once.

**Everyday sentences** that are right word by word (`python benchmarks/everyday.py {name}`; the list was written before
the training):

{everyday.table(found)}

**Alignment** is read from `{bundle.alignment["site"]}`, heads {bundle.alignment["heads"]}, chosen on development data
(alignment error rate {bundle.alignment["aer"]:.3f} against IBM Model 1). One head was guided during training
(`training.guided_alignment`, Garg et al. 2019).

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
        run, _, other = run.partition("+")
        ship(name, Path(run), other)
        print(name, "done")


if __name__ == "__main__":
    main()
