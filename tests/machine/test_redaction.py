"""What a report says may be pasted in public: no home, no user, nothing that a terminal obeys."""

import getpass
from pathlib import Path

import pytest

from regard.machine.redaction import LONGEST, reason, redact


@pytest.fixture
def ada(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")


@pytest.mark.usefixtures("ada")
@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/home/ada/lib/libx.so:/usr/lib", "~/lib/libx.so:/usr/lib"),
        ("/home/ada", "~"),
        ("'/home/ada'", "'~'"),
        ("/home/adam/x", "/home/adam/x"),
        ("/scratch/ada/x", "/scratch/USER/x"),
        ("/scratch/ada", "/scratch/USER"),
        ("C:\\Users\\ada\\x", "C:\\Users\\USER\\x"),
        ("NVIDIA Ada", "NVIDIA Ada"),
        ("a\x1b[31mb\n\u202ec\u00e9", "a\\x1b[31mb\\n\\u202ec\\xe9"),
        ("\udcff", "\\udcff"),
        (5, "5"),
    ],
)
def test_what_is_shown(given: object, shown: str) -> None:
    assert redact(given) == shown


def test_a_long_text_is_cut() -> None:
    assert redact("x" * 1000) == "x" * LONGEST + "..."


def test_without_a_user_and_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise KeyError("getpwuid(): uid not found: 5")

    def homeless() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(getpass, "getuser", missing)
    monkeypatch.setattr(Path, "home", homeless)
    assert redact("/scratch/ada/x") == "/scratch/ada/x"


def test_the_reason_is_one_line() -> None:
    assert reason(RuntimeError("no device\nstack trace")) == "no device"
    assert reason(ValueError()) == "ValueError"
