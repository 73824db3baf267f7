"""The ladders of pictures, sounds and questions: without attention, soft, hard, Transformer.

python benchmarks/senses.py train RUNS [LADDER …]     trains every rung into RUNS/LADDER-RUNG (finished ones are left)
python benchmarks/senses.py RUNS [LADDER …]           measures what is there and prints Markdown
python benchmarks/senses.py style FOLDER [MODEL]      the shipped emoji, or a run, on drawings in another style

A rung is a shipped config and what differs from it; REGARD_DATA must be set for flickr, daquar, fsdd and an4.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import regard
from regard.data.media import scene_points
from regard.data.questions import Open, question_parts, read_questions
from regard.data.scenes.glyphs import Glyphs
from regard.data.scenes.questions import PictureQuestion
from regard.data.scenes.scene import SceneConfig
from regard.data.scenes.scenes import scenes
from regard.data.sound import RATE
from regard.data.tables import Files, Row, read_table, split_rows
from regard.experiment import read_config
from regard.process import tuned
from regard.tasks import description, questions

GRID = {"kind": "grid", "size": 96, "first": 32, "channels": [64, 128], "width": 192}
SMALL_GRID = {"kind": "grid", "size": 64, "first": 16, "channels": [32, 64], "width": 96}
SCENE_GRID = {"kind": "grid", "size": 64, "first": 24, "channels": [48], "width": 96, "norm": "batch"}
FEATURES = {"kind": "features", "size": 224, "width": 256, "dropout": 0.3}
HARD = {"model.normalizer": "hard"}
FEW = {"scenes.first": 40, "scenes.most": 2, "scenes.single_epochs": 2, "scenes.scenes": 12_800,
       "training.max_steps": 900, "training.evaluate_every": 150}  # fmt: skip
STACKED = {
    "kind": "stacked", "embedding": 192, "hops": 2, "score_width": 192, "dropout": 0.3,
    "source_encoder": FEATURES | {"cell": 16, "width": 320},
}  # fmt: skip
BLOCKS = {"kind": "transformer", "heads": 4, "encoder_layers": 1, "decoder_layers": 2, "positions": "sinusoidal"}
NEW_SPEAKER = {"files.group": "speaker", "files.dev_groups": ["theo"]}
NO_CTC = {"training.ctc": 0, "describing.ctc": 0}
PYRAMID = {
    "kind": "recurrent", "width": 96, "embedding": 32, "score": "additive", "score_width": 64, "dropout": 0.1,
    "source_encoder": {"kind": "pyramid", "bands": 64, "layers": 2, "width": 96},
}  # fmt: skip
NO_LOOK = {"model.score": "none", "model.gate": False, "training.coverage_loss": 0}

LADDERS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "emoji": ("emoji", {
        "none": FEW | NO_LOOK,
        "soft": FEW,
        "hard, straight through": FEW | HARD,
        "hard, REINFORCE": FEW | HARD | {"training.hard": "reinforce"},
        "Transformer": FEW | {
            "model": BLOCKS | {"width": 192, "ffn_width": 384, "dropout": 0.1, "source_encoder": GRID},
        },
    }),
    "flickr": ("flickr", {
        "none": NO_LOOK,
        "soft": {},
        "hard, straight through": HARD | {"training.coverage_loss": 0},
        "hard, REINFORCE": HARD | {"training.coverage_loss": 0, "training.hard": "reinforce"},
        "Transformer": {
            "model": BLOCKS | {"width": 256, "ffn_width": 512, "dropout": 0.3, "source_encoder": FEATURES},
            "training.coverage_loss": 0,
        },
    }),
    "shapes": ("shapes", {
        "none": {"model.hops": 0},
        "soft, one look": {"model.hops": 1},
        "soft, two looks": {},
        "hard, two looks": HARD,
        "Transformer": {"model": {
            "kind": "questions", "width": 96, "heads": 4, "ffn_width": 192, "layers": 2, "positions": "rotary",
            "dropout": 0.1, "source_encoder": SMALL_GRID,
        }},
    }),
    "scenes": ("scenes", {
        "none": {"model.hops": 0},
        "soft, one look": {"model.hops": 1},
        "soft, two looks": {},
        "hard, two looks": HARD,
        "Transformer": {"model": {
            "kind": "questions", "width": 96, "heads": 4, "ffn_width": 192, "layers": 2, "positions": "rotary",
            "dropout": 0.1, "source_encoder": SCENE_GRID,
        }},
    }),
    "daquar": ("daquar", {
        "none": {"model": STACKED | {"hops": 0}},
        "soft, two looks": {"model": STACKED},
        "hard, two looks": {"model": STACKED | {"normalizer": "hard"}},
        "Transformer": {},
    }),
    "moving": ("moving", {"soft": {}}),
    "fsdd": ("fsdd", {
        "known speakers": {},
        "a new speaker": NEW_SPEAKER,
        "a new speaker, Conformer": NEW_SPEAKER | {"model.convolution": 7},
        "without attention": NO_CTC | {"model": PYRAMID | {"score": "none"}},
        "soft": NO_CTC | {"model": PYRAMID},
        "soft, location": NO_CTC | {"model": PYRAMID | {"score": "location"}},
        "hard": NO_CTC | {"model": PYRAMID | {"normalizer": "hard"}},
        "Transformer": NO_CTC,
    }),
}  # fmt: skip


def folder(runs: Path, ladder: str, rung: str) -> Path:
    """Where a rung's run is."""
    return runs / f"{ladder}-{rung.replace(', ', '-').replace(' ', '-').lower()}"


def train(runs: Path, ladders: list[str]) -> None:
    """Train what is not there yet; a run that was stopped goes on."""
    for ladder in ladders:
        name, rungs = LADDERS[ladder]
        for rung, overrides in rungs.items():
            where = folder(runs, ladder, rung)
            if not (where / "bundle.json").exists():
                resume = (where / "last.safetensors").exists()
                regard.train(name, overrides, run=where, resume=resume)
            print(where, flush=True)


def measure(runs: Path, ladder: str) -> list[dict[str, Any]]:
    """A row for every rung that is there."""
    rungs = LADDERS[ladder][1]
    rows = []
    for rung in rungs:
        where = folder(runs, ladder, rung)
        if (where / "bundle.json").exists():
            settings = read_config(where / "config.toml")
            ready = regard.load(where.resolve())
            minutes = [json.loads(line) for line in (where / "journal.jsonl").read_text().splitlines()]
            seconds = max(entry.get("seconds", 0) for entry in minutes)
            rows.append({"rung": rung, **MEASURES[ladder](ready, settings), "minutes": seconds / 60})
    return rows


def measure_scenes(ready: Any, settings: Any) -> dict[str, float]:
    """Exact captions and pointing on development scenes that training never looked at, by how many things there are."""
    config: SceneConfig = settings.scenes
    glyphs, row = Glyphs(config), {}
    for count in range(1, config.most + 1):
        shown = list(scenes(glyphs, config, range(400), "measured", True, count))
        said = description.described(ready, [scene_points(one) for one in shown], beam=4, record=True)
        scores = description.text_scores([one.text for one in said], [one.caption for one in shown])
        row[f"exact, {count} thing{'s' * (count > 1)} %"] = scores["exact"]
        if ready.bundle.model_config.kind != "recurrent" or ready.bundle.model_config.score != "none":
            row[f"pointing, {count} %"] = description.pointing(said, shown)[0]
    return row


def measure_moving(ready: Any, settings: Any) -> dict[str, float]:
    """Exact captions of development scenes, right things and right ways, and how often a thing's words look at it."""
    shown = list(scenes(Glyphs(settings.scenes), settings.scenes, range(400), "measured", True))
    said = description.described(ready, [scene_points(one) for one in shown], beam=4, record=True)
    names = [one.things[0].name for one in shown]
    ways = [one.caption.removeprefix(name) for one, name in zip(shown, names, strict=True)]
    return {
        "exact %": description.text_scores([one.text for one in said], [one.caption for one in shown])["exact"],
        "thing %": 100 * sum(one.text.startswith(f"{name} ") for one, name in zip(said, names, strict=True)) / 400,
        "way %": 100 * sum(one.text.endswith(way) for one, way in zip(said, ways, strict=True)) / 400,
        "pointing %": description.pointing(said, shown)[0],
    }


def measure_photographs(ready: Any, settings: Any) -> dict[str, float]:
    """BLEU-1, BLEU-4 and CIDEr of the development photographs against all their captions."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    rows = split_rows(read_table(settings.files), settings.files)[1]
    references: dict[str, list[str]] = {}
    for one in rows:
        references.setdefault(one.file, []).append(_plain(one.text))
    firsts = [next(one for one in rows if one.file == name) for name in references]
    pictures, _ = description.read_pictures(firsts, Files(settings.files.files), settings.model.source_encoder)
    said = description.described(ready, pictures, beam=settings.describing.beam)
    outputs = {name: [_plain(one.text)] for name, one in zip(references, said, strict=True)}
    bleu, _ = Bleu(4).compute_score(references, outputs, verbose=0)
    return {
        "BLEU-1": 100 * bleu[0],
        "BLEU-4": 100 * bleu[3],
        "CIDEr": float(Cider().compute_score(references, outputs)[0]),
    }


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def measure_questions(ready: Any, settings: Any) -> dict[str, float]:
    """Right answers on the development part; of those to questions that one thing answers, too."""
    _, dev, opened = question_parts(settings.questions)
    row = {"right, development %": _right(ready, settings, dev, opened)}
    single = [one for one in dev if "," not in one.answer]
    return row | ({"of one thing %": _right(ready, settings, single, opened)} if len(single) < len(dev) else {})


def _right(ready: Any, settings: Any, asked: list[PictureQuestion], opened: Open) -> float:
    made = questions.batches(
        asked, opened, ready.answers, ready.tokenizer, settings.model, settings.training.batch_tokens
    )
    return questions.accuracy(ready.model, made)


def measure_shapes(ready: Any, settings: Any) -> dict[str, float]:
    """Right answers on development and on the package's own test part; how often the shape is what is looked at."""
    asked, opened = read_questions(settings.questions, "test")
    row = measure_questions(ready, settings) | {"right, test %": _right(ready, settings, asked, opened)}
    hits = []
    for one in asked[::40]:
        cells = _last_look(ready, opened(one.file), one.question)
        if cells is not None:
            points = torch.from_numpy(np.array(opened(one.file).convert("RGB"))).int()
            shape = (points - points[0, 0]).abs().sum(-1) > 60  # what differs from the corner
            left, upper, right, lower = (round(edge * len(points)) for edge in cells)
            hits.append(bool(shape[upper:lower, left:right].any()))
    return row | ({"looks at the shape %": 100 * sum(hits) / len(hits)} if hits else {})


def measure_scene_questions(ready: Any, settings: Any) -> dict[str, float]:
    """Right answers on development scenes, all and by kind; how often the last look is at the thing in question."""
    _, dev, opened = question_parts(settings.questions)
    row = {"right %": _right(ready, settings, dev, opened)}
    for name, begins in KINDS.items():
        row[f"{name} %"] = _right(ready, settings, [one for one in dev if one.question.startswith(begins)], opened)
    for name, begins in KINDS.items():
        hits = []
        for one in [one for one in dev if one.box and one.question.startswith(begins)][:150]:
            cell = _last_look(ready, opened(one.file), one.question)
            if cell is not None and one.box is not None:
                x, y = (cell[0] + cell[2]) / 2, (cell[1] + cell[3]) / 2
                hits.append(one.box[0] <= x <= one.box[2] and one.box[1] <= y <= one.box[3])
        if hits:
            row[f"looks, {name} %"] = 100 * sum(hits) / len(hits)
    return row


KINDS = {"color": "what color", "where": "where", "is it there": "do you see", "beside": "what is"}


def _last_look(ready: Any, picture: Image.Image, question: str) -> tuple[float, float, float, float] | None:
    """The cell that the answer's last look weighs most, as shares of the picture; None where nobody looks."""
    _, weights = ready(picture, question).word_attention
    if not len(weights):
        return None
    side = round(weights.shape[-1] ** 0.5)
    row, column = divmod(int(weights[-1].argmax()), side)
    return column / side, row / side, (column + 1) / side, (row + 1) / side


def joined(rows: list[Row], samples: list[torch.Tensor], longest: float = 15.0) -> list[tuple[str, torch.Tensor]]:
    """Three recordings of a group after each other, as many as there are that are heard as one piece."""
    groups: dict[str, list[int]] = {}
    for n, row in enumerate(rows):
        groups.setdefault(row.group, []).append(n)
    threes = [some[i : i + 3] for some in groups.values() for i in range(0, len(some) - 2, 3)]
    found = [(" ".join(rows[n].text for n in three), torch.cat([samples[n] for n in three])) for three in threes]
    return [(text, sound) for text, sound in found if len(sound) <= longest * RATE]


def measure_sounds(ready: Any, settings: Any) -> dict[str, float]:
    """Exact texts and word errors of the development recordings, and word errors of three joined."""
    rows = split_rows(read_table(settings.files), settings.files)[1]
    samples = description.read_sounds(rows, Files(settings.files.files))
    said = description.described(ready, samples, beam=settings.describing.beam)
    scores = description.text_scores([one.text for one in said], [one.text for one in rows])
    threes = joined(rows, samples)
    said = description.described(ready, [sound for _, sound in threes], beam=settings.describing.beam)
    three = description.text_scores([one.text for one in said], [text for text, _ in threes])
    return {
        "recordings": len(rows), "exact %": scores["exact"], "word errors %": scores["wer"],
        "three joined": len(threes), "their word errors %": three["wer"],
    }  # fmt: skip


MEASURES = {
    "emoji": measure_scenes, "flickr": measure_photographs, "shapes": measure_shapes,
    "scenes": measure_scene_questions, "daquar": measure_questions,
    "moving": measure_moving, "fsdd": measure_sounds,
}  # fmt: skip


def main() -> None:
    """Train, or print tables."""
    arguments = sys.argv[1:]
    if arguments[0] == "style":
        settings = read_config("emoji", {"scenes.pictures": arguments[1]})
        for key, value in measure_scenes(regard.load((arguments[2:] or ["emoji"])[0]), settings).items():
            print(f"{key}: {value:.2f}")
        return
    training = arguments[0] == "train"
    runs, *ladders = arguments[training:]
    chosen = ladders or list(LADDERS)
    if training:
        train(Path(runs), chosen)
        return
    with tuned():
        for ladder in chosen:
            rows = measure(Path(runs), ladder)
            columns = list(dict.fromkeys(key for row in rows for key in row))
            print(f"\n### {ladder}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
            for row in rows:
                cells = (row.get(key, "") for key in columns)
                print(
                    "| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"
                )


if __name__ == "__main__":
    main()
