"""easy-VQA: the questions of its package."""

import builtins

import pytest

from regard.data.datasets import easy_vqa
from regard.errors import DataError


def test_rows_of_the_package() -> None:
    pytest.importorskip("easy_vqa")
    rows, folder = easy_vqa.read("test")
    file, question, answer = rows[0]
    assert (folder / file).exists()
    assert question.endswith("?")
    assert answer


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name == "easy_vqa":
            raise ImportError(name)
        return original(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DataError, match="pip install easy-vqa"):
        easy_vqa.read("train")
