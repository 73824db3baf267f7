"""Every shipped config of pictures, sounds and questions trains for two updates, on made data where theirs would be."""

import gzip
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import regard
from made import made_glyphs, made_sounds, made_table, tone
from regard import experiment
from regard.config import CONFIG_FOLDER
from regard.pretrained import efficientnet
from regard.pretrained.efficientnet import EfficientNet

CONFIGS = CONFIG_FOLDER
FEW = {"training.max_steps": 2, "training.warmup": 1, "training.evaluate_every": 2}
SCENES = {"scenes.scenes": 8, "scenes.dev_scenes": 4, "scenes.ranges": (), "scenes.dev_share": 0.3}
MORE: dict[str, dict[str, Any]] = {
    "emoji": SCENES | {"training.batch_tokens": 600},
    "emoji-styles": SCENES | {"training.batch_tokens": 600},
    "moving": SCENES | {"training.batch_tokens": 2000, "scenes.first": 7},
    "an4": {"training.batch_tokens": 600, "files.dev_share": 0.3},
    "an4-voices": {"training.batch_tokens": 600, "files.dev_share": 0.3},
    "an4-joined": {"training.batch_tokens": 600, "files.dev_share": 0.3},
    "prompts": {"training.batch_tokens": 600, "files.dev_share": 0.3},
    "fsdd": {"files.dev_groups": ("1",)},
    "flickr": {"training.batch_tokens": 100, "files.dev_share": 0.5, "tokenizer.vocabulary": 60},
    "daquar": {"questions.dev_share": 0.5, "tokenizer.vocabulary": 60},
    "shapes": {"questions.dev_share": 0.02},
    "scenes": {
        f"questions.{key}": value
        for key, value in (SCENES | {"scenes.scenes": 30, "scenes.dev_scenes": 9, "scenes.first": 7}).items()
    },
}
SECOND = {"emoji-styles": "emoji", "an4-voices": "an4", "an4-joined": "an4"}  # what goes on, from where


def pack(folder: Path, archive: Path) -> None:
    with tarfile.open(archive, "w") as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, arcname=str(path.relative_to(folder)), recursive=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for $REGARD_DATA."""
    folder = tmp_path_factory.mktemp("senses")
    made_glyphs(folder / "glyphs")
    for name in ("an4", "fsdd", "flickr8k-1000", "daquar"):
        (folder / name).mkdir()
    pack(made_sounds(folder / "sounds"), folder / "an4" / "an4-train.tar")
    sounds = [path.relative_to(folder / "sounds").with_suffix("") for path in (folder / "sounds").rglob("*.flac")]
    (folder / "prompts.txt").write_text("\n".join(f"{name}: Say yes, or no." for name in sounds))
    (folder / "digits").mkdir()
    for digit in range(10):
        for index in (0, 1):
            soundfile.write(folder / "digits" / f"{digit}_ann_{index}.flac", tone("yes", 8000) * digit / 9, 8000)
    pack(folder / "digits", folder / "fsdd" / "fsdd.tar")
    table = made_table(folder / "table")
    shutil.copy(table / "captions.csv.gz", folder / "flickr8k-1000")
    pack(table / "images", folder / "flickr8k-1000" / "images.tar")
    (folder / "rooms").mkdir()
    lines = ["image,question,answer"]
    for number in range(6):
        Image.fromarray(np.full((20, 30, 3), 40 * number, np.uint8)).save(folder / "rooms" / f"image{number}.jpg")
        lines += [f"image{number},how many chairs are in the image{number} ?,{number % 3}"]
    (folder / "daquar" / "train.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    pack(folder / "rooms", folder / "daquar" / "images-train.tar")
    return folder


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", list(MORE))
def test_every_config_trains(name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "shapes":
        pytest.importorskip("easy_vqa")
    monkeypatch.setenv("REGARD_DATA", str(data))
    torch.manual_seed(0)
    network = EfficientNet().eval()
    monkeypatch.setattr(efficientnet, "_network", lambda: network)
    where = dict.fromkeys(("emoji", "emoji-styles", "moving"), "scenes.pictures") | {
        "scenes": "questions.scenes.pictures"
    }
    pictures: dict[str, Any] = {where[name]: str(data / "glyphs")} if name in where else {}
    if name in SECOND:
        before = SECOND[name]
        first = experiment.train(CONFIGS / f"{before}.toml", FEW | MORE[before] | pictures, run=tmp_path / "first")
        pictures |= {"start": str(first.path)}
    if name == "emoji-styles":
        pictures |= {"scenes.styles": (str(data / "glyphs"),)}
    if name == "prompts":
        pictures |= {"files.table": str(data / "prompts.txt"), "files.files": str(data / "sounds")}
    run = experiment.train(CONFIGS / f"{name}.toml", FEW | MORE[name] | pictures, run=tmp_path / "run")
    assert run.journal[-1]["step"] == 2
    assert regard.load(tmp_path / "run").bundle.task in ("caption", "transcribe", "answer")


@pytest.mark.parametrize("task", ["caption", "transcribe"])
def test_the_configs_in_the_documentation_train(
    task: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word by word, on files where they say that they are."""
    text = (Path(__file__).parents[2] / "docs" / "senses.md").read_text("utf-8")
    (config,) = (block for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if f'task = "{task}"' in block)
    (tmp_path / "own.toml").write_text(config)
    monkeypatch.chdir(tmp_path)
    if task == "caption":
        pictures = sorted((data / "table" / "images").iterdir())
        shutil.copytree(data / "table" / "images", "pictures")
        lines = [f"{path.name},a picture number {n}" for n, path in enumerate(pictures)]
        Path("captions.csv").write_text("\n".join(["file,text", *lines]))
    else:
        shutil.copytree(data / "sounds", "recordings")
        sounds = sorted(path.relative_to("recordings") for path in Path("recordings").rglob("*.flac"))
        lines = [f'{path},"Yes, no.",{path.parent.name}' for path in sounds]
        Path("recordings.csv").write_text("\n".join(["file,text,speaker", *lines]))
    run = experiment.train("own.toml", FEW | {"training.batch_tokens": 1200}, run="runs/own")
    assert run.journal[-1]["step"] == 2
