"""Shared by all tests: one thread, a made corpus, and a tiny model trained on it."""

import gzip
import io
import sys
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from checked import check_types

check_types()  # before anything of regard is imported

import pretend_device  # noqa: E402, F401 - registers the device before the first backward pass
from regard import cli  # noqa: E402

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a grid marked `sampled(n)`, one case in n stays in `make test`, the first always; the others are slow.

    The choice is by a hash of the name, so it cuts across every axis and is the same in every process.
    """
    begun = set()
    for item in items:
        sampled = item.get_closest_marker("sampled")
        if sampled is None or not hasattr(item, "callspec"):
            continue
        function = item.nodeid.split("[")[0]
        if function in begun and zlib.crc32(item.nodeid.encode()) % sampled.args[0]:
            item.add_marker(pytest.mark.slow)
        begun.add(function)


NOUNS = {"chat": "cat", "chien": "dog", "cheval": "horse", "lapin": "rabbit", "canard": "duck"}
COLOURS = {"noir": "black", "blanc": "white", "rouge": "red", "vert": "green"}
VERBS = {"mange": "eats", "dort": "sleeps", "court": "runs"}


def made_pairs() -> list[tuple[str, str]]:
    """A grammar's French–English pairs: short, regular, with adjectives that change places."""
    short = [(f"le {n}", f"the {m}") for n, m in NOUNS.items()]
    coloured = [(f"le {n} {c}", f"the {d} {m}") for (n, m), (c, d) in product(NOUNS.items(), COLOURS.items())]
    verbs = [
        (f"Le {n} {c} {v}.", f"The {d} {m} {w}.")
        for (n, m), (c, d), (v, w) in product(NOUNS.items(), COLOURS.items(), VERBS.items())
    ]
    return short + coloured + verbs


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for $REGARD_DATA: a made corpus where the shipped configs look for theirs (English, tab, French)."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "tatoeba-fra-eng").mkdir()
    lines = "".join(f"{english}\t{french}\n" for french, english in made_pairs())
    (folder / "tatoeba-fra-eng" / "pairs.en-fr.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "tinyshakespeare").mkdir()
    play = "".join(f"ROMEO:\n{english}\n\n" for _, english in made_pairs())
    (folder / "tinyshakespeare" / "input.txt.gz").write_bytes(gzip.compress(play.encode()))
    return folder


def tiny(kind: str, **training: Any) -> dict[str, Any]:
    """A config that trains in seconds."""
    model = {
        "recurrent": {"kind": "recurrent", "width": 32, "embedding": 32, "score_width": 16},
        "transformer": {
            "kind": "transformer",
            "width": 32,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "heads": 2,
            "ffn_width": 64,
        },
    }[kind]
    return {
        "dev_sentences": 8,
        "data": {
            "train": "$REGARD_DATA/tatoeba-fra-eng/pairs.en-fr.tsv.gz", "source": 1, "target": 0,
            "dev_share": 0.1, "fragments": 0.2,
        },
        "tokenizer": {"vocabulary": 80},
        "model": model,
        "training": {
            "max_steps": 6, "batch_tokens": 256, "evaluate_every": 3, "warmup": 2, "schedule": "cosine",
            "learning_rate": 0.003,
        } | training,
    }  # fmt: skip


@pytest.fixture(scope="session", params=["recurrent", "transformer"])
def tiny_run(request: pytest.FixtureRequest, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of each kind of model, barely trained."""
    from regard import experiment

    folder = tmp_path_factory.mktemp("runs") / request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGARD_DATA", str(data_folder))
        experiment.train(tiny(request.param), run=folder)
    return folder


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run the command in this process: arguments and standard input to (exit code, output, errors)."""

    def run(*arguments: object, stdin: bytes | None = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run
