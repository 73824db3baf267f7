"""The exams of graphs, each file in a process of its own: run-time type checks have no place in a graph."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMS = Path(__file__).parent / "exams"


def run(name: str, marked: str) -> None:
    command = [
        sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-x", "--import-mode=importlib", "-o", "addopts=",
        "-o", "filterwarnings=", "-p", "no:cacheprovider", "--noconftest", "-m", marked, str(EXAMS / name),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTEST_ADDOPTS": ""})
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("name", ["exam_attention.py", "exam_models.py"])
def test_exams(name: str) -> None:
    run(name, "not slow")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exam_attention.py", "exam_models.py"])
def test_all_exams(name: str) -> None:
    run(name, "slow")


def test_the_page_on_graphs() -> None:
    """What docs/gpu.md shows runs as it stands."""
    page = (Path(__file__).parents[1] / "docs" / "gpu.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", block], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
