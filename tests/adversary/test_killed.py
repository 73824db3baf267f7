"""`train` and `prepare` in processes that are killed at random moments: begun again, they end as if never killed.

They compute gradients in forks, which a process whose own threads have computed some may not have: `killed.py` is
run as a process of its own.
"""

import sys
from pathlib import Path

import pytest

from adversary.attempts import run_apart

FILE = str(Path(__file__).with_name("killed.py"))
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has no fork")


def test_some_kills() -> None:
    run_apart(FILE, 1, 3, "prepare")


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["prepare", "train"])
def test_many_kills(verb: str) -> None:
    run_apart(FILE, 2, 25, verb)
