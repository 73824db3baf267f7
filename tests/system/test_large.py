"""A corpus of a million pairs: prepared once, then training starts at once and needs little memory."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import tiny
from regard.config import to_toml, validate
from regard.tasks.config import ExperimentConfig

PAIRS = int(os.environ.get("REGARD_TEST_PAIRS", "1_000_000"))
PROGRAM = """
import resource, sys, time
from regard import experiment
begun, first = time.monotonic(), []
def report(event):
    if event["event"] == "step" and not first:
        first.append(time.monotonic() - begun)
experiment.train(sys.argv[1], run=sys.argv[2], report=report)
print(first[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
def test_a_large_corpus_is_prepared_once_and_needs_little_memory(tmp_path: Path) -> None:
    words = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"]
    with (tmp_path / "pairs.tsv").open("w", encoding="utf-8") as file:
        for n in range(PAIRS):
            some = [words[(n * k + k * k) % len(words)] for k in range(1, 4 + n % 12)]
            file.write(f"{' '.join(some)} {n % 997}\t{' '.join(reversed(some)).upper()} {n % 997}\n")
    settings = tiny("transformer", max_steps=20, evaluate_every=20, batch_tokens=2048)
    settings["data"] = {"train": str(tmp_path / "pairs.tsv"), "dev_share": 0.0005}
    settings["tokenizer"] = {"vocabulary": 1000}
    config = tmp_path / "config.toml"
    config.write_text(to_toml(validate(ExperimentConfig, settings, "made")), "utf-8")
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    begun = time.monotonic()
    prepare = [sys.executable, "-m", "regard", "prepare", str(config), "--folder", str(tmp_path / "run")]
    subprocess.run(prepare, check=True, env=one)
    print(f"\n{PAIRS:,} pairs prepared in {time.monotonic() - begun:.0f} s")
    note = json.loads((tmp_path / "run" / "prepared" / "prepared.json").read_text("utf-8"))
    assert 0.99 * PAIRS < note["read"] < PAIRS
    command = [sys.executable, "-c", PROGRAM, str(config), str(tmp_path / "run")]
    found = subprocess.run(command, check=True, env=one, capture_output=True, text=True).stdout.split()
    first, peak = map(float, found)
    print(f"first update after {first:.1f} s, peak memory {peak:.2f} GiB")
    assert peak < 2
