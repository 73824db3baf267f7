"""Configs of every task that train in a moment, their data, and inputs for the models."""

import random
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

TEXT = {"kind": "transformer", "width": 16, "heads": 2, "ffn_width": 24, "encoder_layers": 1, "decoder_layers": 1}
RECURRENT = {"kind": "recurrent", "width": 16, "embedding": 16, "score_width": 8}
GRID = {"kind": "grid", "size": 32, "first": 8, "channels": [16], "width": 16}
WORDS, CHARACTERS = {"kind": "words", "vocabulary": 60}, {"kind": "characters", "vocabulary": 60}
TRAINING = {"max_steps": 3, "evaluate_every": 2, "batch_tokens": 400}
KINDS = {  # task, model, tokenizer, and what else the training says
    "transformer": ("translate", TEXT, {"vocabulary": 60}, {}),
    "recurrent": ("translate", RECURRENT, {"vocabulary": 60}, {"guided_alignment": 0.1}),
    "decoder": ("complete", {"kind": "decoder", "width": 16, "heads": 2, "layers": 1, "ffn_width": 16}, CHARACTERS,
                {"metric": "loss"}),
    "encoder": ("fill", {"kind": "encoder", "width": 16, "heads": 2, "layers": 1, "ffn_width": 16}, CHARACTERS,
                {"metric": "loss"}),
    "captioner": ("caption", RECURRENT | {"source_encoder": GRID}, WORDS, {"metric": "exact"}),
    "answerer": ("answer", {"kind": "stacked", "embedding": 12, "score_width": 8, "source_encoder": GRID}, WORDS,
                 {"metric": "exact", "label_smoothing": 0.0}),
    "transcriber": ("transcribe", TEXT | {"source_encoder": {"kind": "sound", "channels": 4, "width": 16}}, CHARACTERS,
                    {"metric": "wer"}),
}  # fmt: skip
TEXTS = ["le chat noir", "the cat", "", "the [MASK] sat"]
COLORS, SAID = ("red", "blue", "green"), ("yes", "no", "go")


def task_of(kind: str) -> str:
    """The task of a kind of run, which is also the verb that uses its model."""
    return KINDS[kind][0]


def config(kind: str, place: Path) -> dict[str, object]:
    """Settings of a run of three updates, and its data in `place`."""
    task, model, tokenizer, training = KINDS[kind]
    return {
        "task": task, "languages": ["fr" if task == "translate" else "", "en"], **_data(task, kind, place),
        "tokenizer": tokenizer, "model": model, "training": TRAINING | training,
    }  # fmt: skip


def _data(task: str, kind: str, place: Path) -> dict[str, object]:
    if task == "translate":
        nouns, adjectives = ("chat cat", "chien dog", "livre book"), ("noir black", "petit small", "vieux old")
        words = [(noun.split(), adjective.split()) for noun in nouns for adjective in adjectives]
        (place / "pairs.tsv").write_text("".join(f"le {a} {x}\tthe {y} {b}\n" for (a, b), (x, y) in words) * 5)
        return {"data": {"train": str(place / "pairs.tsv"), "dev_share": 0.1}}
    if task in ("complete", "fill"):
        (place / "text.txt").write_text("the cat sat.\nthe dog ran.\na man reads.\n" * 40)
        documents = "lines" if task == "fill" else "files"
        return {"texts": {"train": str(place / "text.txt"), "length": 16, "documents": documents}}
    rows: list[tuple[str, ...]] = []
    for n in range(12):
        if task == "transcribe":
            times = np.arange(4000 * (1 + n % 2)) / 16_000
            soundfile.write(place / f"{n}.wav", np.sin(2 * np.pi * (300 + 200 * (n % 3)) * times) / 2, 16_000)
            rows.append((f"{n}.wav", SAID[n % 3]))
        else:
            Image.new("RGB", (40, 32), COLORS[n % 3]).save(place / f"{n}.png")
            color = COLORS[n % 3]
            rows.append((f"{n}.png", f"it is {color}") if task == "caption" else (f"{n}.png", "what color?", color))
    names = {"transcribe": ("sounds.csv", "file,text"), "caption": ("pictures.csv", "file,text")}
    name, columns = names.get(task, ("questions.csv", "file,question,answer"))
    (place / name).write_text("\n".join([columns, *map(",".join, rows)]) + "\n")
    section = "questions" if task == "answer" else "files"
    return {section: {"table": str(place / name), "files": str(place), "dev_share": 0.3}}


def inputs(kind: str, place: Path, dice: random.Random) -> list[str]:
    """Arguments of the verb that uses a model of this kind: a text, a file, or a picture and a question."""
    if task_of(kind) in ("caption", "answer"):
        return [str(place / f"{dice.randrange(12)}.png"), *(["what color?"] if task_of(kind) == "answer" else [])]
    return [str(place / f"{dice.randrange(12)}.wav")] if task_of(kind) == "transcribe" else [dice.choice(TEXTS)]
