"""Every setting of a config, at its limits and beyond, for every task: a model that can be used, or one sentence."""

import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pydantic import BaseModel

from adversary.attempts import Outcome, attempt, count, judged, run_apart, verb
from adversary.small import KINDS, config, inputs, task_of
from regard.config import to_toml, validate
from regard.experiment import read_config
from regard.tasks.config import ExperimentConfig

SEED, EACH = 31, 150  # settings with a value, of each kind
WHOLE = ["-1", "0", "1", "2", "1.5", "true", str(2**53), str(2**63 - 1), str(10**20)]
REAL = ["0.0", "1e-300", "1e-45", "0.5", "0.999999", "1.0", "2", "1e300", "inf", "nan", "-1.0"]
OTHER = ['""', '"x"', "[]", '["a"]', "{}", "0", '"\\u0000"', f'"{"x" * 1000}"', '"/dev/zero"', '"."', "[0]", "[1e300]"]
ENDLESS = {("training.max_steps", str(2**53))}  # allowed: such a run ends when it is told to


def attempts(settings: BaseModel, before: str = "") -> Iterator[tuple[str, str]]:
    """Each setting and section of a config, with each value that it is given, in TOML."""
    for name, value in settings:
        if isinstance(value, BaseModel):
            yield from attempts(value, f"{before}{name}.")
        else:
            yield from ((before + name, text) for text in _values(value) if (before + name, text) not in ENDLESS)


def _values(value: object) -> list[str]:
    if isinstance(value, bool):
        return ["true", "false", "2"]
    return WHOLE if isinstance(value, int) else REAL if isinstance(value, float) else OTHER


def outcomes(kind: str, seed: int, each: int, place: Path) -> Iterator[tuple[str, Outcome]]:
    """Some of the settings and values, in random order."""
    settings = place / "settings.toml"
    settings.write_text(to_toml(validate(ExperimentConfig, config(kind, place), kind)))
    chosen = random.Random(f"{seed} {kind}").sample([*attempts(read_config(settings))], each)
    for n, (name, text) in enumerate(chosen):
        words, dice = f"{name}={text}", random.Random(n)
        yield (
            f"{kind} {n}: {words[:60]}",
            attempt(lambda w=words, d=dice: use(kind, settings, place / "run", w, d), 30.0, 2500.0),
        )
        shutil.rmtree(place / "run", ignore_errors=True)


def use(kind: str, settings: Path, run: Path, setting: str, dice: random.Random) -> None:
    """Train with a setting, and use the model."""
    verb("train", str(settings), "--run", str(run), "--set", setting)()
    verb(task_of(kind), *inputs(kind, settings.parent, dice), "--model", str(run), "--json")()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_at_its_limits(kind: str) -> None:
    run_apart(__file__, SEED, EACH, kind)


@pytest.mark.parametrize(
    ("kind", "setting"),
    [("transcriber", "scenes={}"), ("answerer", "training.ctc=0.5"), ("encoder", "training.coverage_loss=1.0"),
     ("decoder", f"texts.length={2**53}"), ("captioner", f"model.source_encoder.size={2**53}"),
     ("recurrent", f"data.words={10**20}"), ("transformer", f"tokenizer.vocabulary={2**31 - 1}"),
     ("transformer", "data.phrases=inf"), ("transcriber", f"model.source_encoder.bands={10**20}")],
)  # fmt: skip
def test_a_few(kind: str, setting: str, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(to_toml(validate(ExperimentConfig, config(kind, tmp_path), kind)))
    verdict, text = judged(lambda: use(kind, settings, tmp_path / "run", setting, random.Random(0)))
    assert verdict == ("read" if kind == "decoder" else "refused"), text
    assert kind == "decoder" or setting.partition("=")[0] in text or "has no [scenes]" in text


if __name__ == "__main__":
    seed, each, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    with TemporaryDirectory() as folder:
        faults = count(f"settings, {kind}", seed, outcomes(kind, seed, each, Path(folder)))
    print(*faults, sep="\n")
    sys.exit(bool(faults))
