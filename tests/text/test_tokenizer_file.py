"""A tokenizer.json of unknown origin: what it would cost is known before a text meets it."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adversary.folders import tokenizer_json
from regard.errors import BundleError
from regard.text import tokenizer_file
from regard.text.pretrained import Fast, read_tokenizer
from regard.text.tokenizer_file import is_charsmap, read_tokenizer_json, refused

LONGER = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def written(path: Path, **sections: Any) -> Path:
    path.write_text(json.dumps(tokenizer_json() | sections))
    return path


def test_padding_truncation_and_random_merges_are_dropped(tmp_path: Path) -> None:
    path = written(
        tmp_path / "t.json",
        padding={
            "strategy": {"Fixed": 1000}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "x",
        },
        truncation={"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        model={"type": "BPE", "vocab": {"l": 0, "e": 1, "le": 2}, "merges": ["l e"], "dropout": 1.0},
        added_tokens=[],
    )  # fmt: skip
    assert read_tokenizer_json(path).encode("le le le").ids == [2, 2, 2]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [LONGER] * 7}}, "its normalizer may make a text 128 times"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 60}}, "its normalizer may make"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 99}}, "a text 100 times"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "x*"}, "content": "x" * 99}}, "a text 100 times"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 4}},
            "its pre_tokenizer may make a text 256",
        ),
        ({"decoder": {"type": "Sequence", "decoders": [LONGER] * 60}}, "its decoder may make a text 1.15e\\+18 times"),
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
            "its precompiled_charsmap is damaged",
        ),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}}, "is not a tokenizer file"),
        ({"model": {"type": "Unigram", "unk_id": 9, "vocab": [["a", 0.0]]}}, "is not a tokenizer file"),
    ],
)
def test_what_is_refused(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=message):
        read_tokenizer_json(written(tmp_path / "t.json", **sections))


def test_what_known_models_do_is_read(tmp_path: Path) -> None:
    normalizer = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}, {"type": "NFKD"}, *[LONGER] * 2,
        ],
    }  # fmt: skip
    read_tokenizer_json(written(tmp_path / "t.json", normalizer=normalizer))


def test_more_entries_than_any_tokenizer_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "t.json")
    monkeypatch.setattr(tokenizer_file, "ENTRIES", path.read_text().count(",") - 1)
    with pytest.raises(BundleError, match="entries; got more"):
        read_tokenizer_json(path)


def test_an_id_that_the_model_does_not_have(tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"<unk>": 0, "le": 10**9}, "unk_token": "<unk>"}
    written(tmp_path / "tokenizer.json", model=model)
    found = read_tokenizer(tmp_path, "gpt2", {}, 97)
    assert isinstance(found, Fast)
    assert found.encode("a") == [0]
    for call in (found.encode, found.marked, found.source_spans):
        with pytest.raises(BundleError, match=r"gives le the number 1000000000; the model has 97 tokens"):
            call("le")


def test_a_panic_is_a_sentence(tmp_path: Path) -> None:
    sections = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    path = written(tmp_path / "t.json", pre_tokenizer=sections)
    with pytest.raises(BundleError, match="it fails: Onig"), refused("it fails"):
        read_tokenizer_json(path).encode("a" * 3000 + "b")


def test_an_interrupt_is_none() -> None:
    with pytest.raises(KeyboardInterrupt), refused("it fails"):
        raise KeyboardInterrupt


def trie(*pairs: tuple[int, int], texts: bytes = b"b\0") -> str:
    """A table whose units are zero but for some pairs (place, unit), in base64."""
    units = np.zeros(512, "<u4")
    for place, unit in pairs:
        units[place] = unit
    raw = struct.pack("<I", units.nbytes) + units.tobytes() + texts
    return base64.b64encode(raw).decode()


def test_tables_of_characters() -> None:
    root, letter = (0, 256 << 10), (256 ^ 97, 97 | 1 << 8 | 1 << 10)  # "a" is followed by a value, one unit further
    value = (256 ^ 97 ^ 1, 1 << 31)
    assert is_charsmap(trie(root, letter, value))
    assert not is_charsmap(trie(root, letter, (value[0], 1 << 31 | 2)))  # a text beyond the end
    assert not is_charsmap(trie((0, 1000 << 10), letter, value))  # a node beyond the end
    assert not is_charsmap(trie(root, (letter[0], 97 | 1 << 8 | 999 << 10), value))
    assert not is_charsmap(trie(root, letter, (value[0], 1 << 31 | 1), texts="é\0".encode()))  # within a character
    assert not is_charsmap(trie(root, letter, value, texts=b"\xff\0"))
    assert not is_charsmap(trie(root, letter, value, texts=b"b" * 999 + b"\0"))
    assert not is_charsmap("!")
    assert not is_charsmap("")
