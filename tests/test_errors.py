"""The exception family and its one sentence."""

import pytest
import torch

import regard
from regard.errors import nearest, unknown

FAMILY = ["BundleError", "ChoiceError", "ConfigError", "DataError", "KernelError", "ShapeError"]


@pytest.mark.parametrize("name", FAMILY)
def test_every_refusal_is_a_regard_error_and_a_value_error(name: str) -> None:
    kind = getattr(regard, name)
    assert issubclass(kind, regard.RegardError)
    assert issubclass(kind, ValueError)


@pytest.mark.parametrize(
    ("word", "known", "want"),
    [
        ("sofmax", ["uniform", "softmax", "sparsemax"], ["softmax", "sparsemax", "uniform"]),
        ("zzz", ["b", "a"], ["a", "b"]),
        ("x", [], []),
        ("", ["b", "a"], ["a", "b"]),
    ],
)
def test_nearest_puts_the_likeliest_first_and_the_rest_by_name(word: str, known: list[str], want: list[str]) -> None:
    assert nearest(word, known) == want


def test_unknown_is_one_sentence() -> None:
    error = unknown("kernel", "fusd", ["auto", "fused", "reference"])
    assert isinstance(error, regard.ChoiceError)
    assert str(error) == "unknown kernel 'fusd': expected one of 'fused', 'auto', 'reference'"


def test_unknown_takes_any_object() -> None:
    assert str(unknown("score", 5, ["dot"])) == "unknown score 5: expected one of 'dot'"


def test_an_unknown_choice_is_one_short_line():
    assert str(unknown("part", torch.ones(2, 2), ["head"])) == (
        "unknown part tensor([[1., 1.], [1., 1.]]): expected one of 'head'"
    )
    assert len(str(unknown("part", "x" * 10_000, ["head"]))) < 300


def test_a_sentence_can_be_written_to_any_file():
    error = regard.DataError("half a character: \ud800, and a whole one: é")
    assert str(error) == "half a character: \\ud800, and a whole one: é"
    assert str(regard.ShapeError()) == ""
