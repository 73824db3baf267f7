"""Models of unknown origin, used: whatever is changed in their folders, every verb gives a result or one sentence."""

import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import soundfile
from PIL import Image

from adversary.attempts import Outcome, attempt, count, judged, run_apart, verb
from adversary.folders import KINDS, change, make

SEED, EACH = 23, 20  # changed folders of each kind
TEXTS = ["le chat noir", "un chien", "", "<b>le</b> chat & chien", "chat " * 9, "\u202eé"]
TRANSLATING = [
    [], ["--json"], ["--n-best", "3", "--json"], ["--protect"], ["--sample", "--seed", "1"], ["--precision", "int8"],
    ["--beam", "4", "--groups", "2", "--diversity", "0.5"], ["--sample", "--mbr", "3"], ["--grid"], ["--pharaoh"],
    ["--prefix", "chat"], ["--unsure", "0.5"], ["--force", "chat"], ["--forbid", "chien"], ["--no-split"],
    ["--sample", "--top-k", "3", "--min-p", "0.1", "--seed", "2"], ["--look", "PLACE/t.svg"],
    ["--engine", "onnx"], ["--threads", "1", "--batch-tokens", "7"],
]  # fmt: skip
COMPLETING = [
    ["--seed", "1"], ["--temperature", "0", "--json"], ["--beam", "3", "--json"], ["--top-k", "3", "--no-repeat", "2"],
    ["--repetition", "1.5", "--typical-p", "0.5", "--seed", "2"], ["--stop", "chat", "--seed", "3"],
]  # fmt: skip
TASKS = {
    "bert": "fill", "roberta": "fill", "encoder": "fill", "gpt2": "complete", "llama": "complete", "qwen3": "complete",
    "shards": "complete", "decoder": "complete", "gguf": "complete", "vit": "look", "whisper": "transcribe",
    "caption": "caption", "transcribe": "transcribe", "answer": "answer",
}  # fmt: skip


def media(place: Path) -> dict[str, str]:
    """A picture and a recording of noise."""
    noise = np.random.default_rng(0)
    picture, recording = place / "x.png", place / "x.wav"
    Image.fromarray(noise.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(picture)
    soundfile.write(recording, noise.normal(size=8000) * 0.1, 16000)
    return {"picture": str(picture), "recording": str(recording)}


def call(kind: str, model: Path, place: Path, dice: random.Random) -> list[str]:
    """A verb that takes such a model, with arguments."""
    path, text, given = str(model), dice.choice(TEXTS), media(place)
    task = TASKS.get(kind.removeprefix("bundle "), "translate")
    seen = given["picture"] if task in ("caption", "look") else given["recording"] if task == "transcribe" else text
    source = place / "texts.txt"
    source.write_text("le chat noir\nun chien\n", "utf-8")
    calls = {
        "translate": lambda: ["translate", text, "--model", path, *dice.choice(TRANSLATING)],
        "complete": lambda: ["complete", text, "--model", path, "--length", "5", *dice.choice(COMPLETING)],
        "fill": lambda: ["fill", f"{text} [MASK]", "--model", path, *dice.choice([[], ["--json", "--top", "50"]])],
        "meaning": lambda: ["meaning", "chat", "le chat noir", "un chat", "--model", path],
        "transcribe": lambda: ["transcribe", given["recording"], "--model", path, *dice.choice([[], ["--json"]])],
        "caption": lambda: ["caption", given["picture"], "--model", path, *dice.choice([[], ["--json"]])],
        "answer": lambda: ["answer", given["picture"], "le chat ?", "--model", path],
        "why": lambda: ["why", path, text, *dice.choice([[], ["--json"], ["--look", "PLACE/w.html"]])],
        "trace": lambda: ["trace", path, text],
        "evaluate": lambda: [
            "evaluate", path, "--source", str(source), *(["--reference", str(source)] if task == "translate" else []),
        ],
        "look": lambda: ["look", path, seen, "--save", str(place / "p.html")],
        "export": lambda: [
            "export", path, str(place / "out"), "--layout", dice.choice(["regard", "hf", "torch", "regard", "hf"]),
        ],
    }  # fmt: skip
    more = {"translate": ["why", "trace", "evaluate"], "complete": ["why", "evaluate"], "fill": ["meaning"]}
    words = calls[dice.choice([task, task, task, *more.get(task, []), "look", "export"])]()
    return [word.replace("PLACE", str(place)) for word in words]


def outcomes(seed: int, each: int, place: Path) -> Iterator[tuple[str, Outcome]]:
    """Every kind in turn, one to three changes at a time."""
    for kind in KINDS:
        whole = make(kind, place / "sound")
        for n in range(each):
            dice = random.Random(f"{seed} {kind} {n}")
            (place / "changed").mkdir()
            copy = shutil.copytree if whole.is_dir() else shutil.copy
            model = Path(copy(whole, place / "changed" / whole.name))
            what = []
            for _ in range(dice.choice([0, 1, 1, 1, 2, 3])):
                if any("file: " in one for one in what):  # it may be a device by now, which is not read to its end
                    break
                try:
                    what.append(change(kind, model, dice))
                except Exception as error:  # a second change of what the first one has made unreadable
                    what.append(type(error).__name__)
            words = call(kind, model, place / "changed", dice)
            yield f"{kind} {n} ({'; '.join(what)}): {words}", attempt(verb(*words), 20.0, 1000.0)
            shutil.rmtree(place / "changed")
        shutil.rmtree(place / "sound")


@pytest.mark.slow
def test_changed_models_are_used() -> None:
    run_apart(__file__, SEED, EACH)


@pytest.mark.parametrize("kind", ["bundle transformer", "llama", "bundle encoder"])
def test_a_few(kind: str, tmp_path: Path) -> None:
    for n in range(2):
        dice, place = random.Random(f"fast {kind} {n}"), tmp_path / str(n)
        place.mkdir()
        model = make(kind, place / "model")
        change(kind, model, dice)
        assert judged(verb(*call(kind, model, place, dice)))[0] in ("read", "refused")


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        faults = count("verbs", int(sys.argv[1]), outcomes(int(sys.argv[1]), int(sys.argv[2]), Path(folder)))
    print(*faults, sep="\n")
    sys.exit(bool(faults))
