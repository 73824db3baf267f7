"""Files of unknown origin: regular ones are read in bounds, everything else is refused in one sentence."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from regard import untrusted
from regard.errors import BundleError
from regard.untrusted import TensorFiles, as_float, file_size, named, read_object, read_text, shown


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("ab")
    (tmp_path / "link").symlink_to(tmp_path / "file")  # as a cache of the hub keeps them
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert file_size(tmp_path / "link") == 2
    for path, what in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a folder"), (Path("/dev/zero"), "a device")):
        with pytest.raises(BundleError, match=f"expected a regular file; got {what}"):
            file_size(path)
    with pytest.raises(BundleError, match="cannot be read"):
        file_size(tmp_path / "loop")


def test_a_long_text_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("é" * 5)
    assert read_text(tmp_path / "a", 10) == "é" * 5
    with pytest.raises(BundleError, match=r"expected at most 9 bytes; got 10"):
        read_text(tmp_path / "a", 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"), ('{"a":' * 100_000, "nested too deeply"), ("[1]", "expected an object"),
        ('{"a": NaN}', "expected finite numbers; got NaN"),
        ('{"a": -Infinity}', "got -Infinity"),
        ('{"a": "\\ud800"}', "surrogates not allowed"), ('{"\\uDFFF": 1}', "surrogates not allowed"),
        ('{"a": 1e999}', "got '1e999'"), ('{"a": 1, "b": 2, "a": 3}', "the key 'a' stands there twice"),
        ("{", "damaged"),
        ('{"a": ' + "1" * 5000 + "}", "damaged"),
    ],
)  # fmt: skip
def test_json_that_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BundleError, match=message) as caught:
        read_object(tmp_path / "a.json")
    assert str(caught.value).isprintable()


def test_json_that_is_read(tmp_path: Path) -> None:
    values = {"a": [1, -2.5e-3, None, True], "b": {"c": "é\n", "\U0001f600": "\U0001f600"}}
    (tmp_path / "a.json").write_text(json.dumps(values))
    assert read_object(tmp_path / "a.json") == values


def test_values_in_a_sentence_stay_short_and_on_one_line() -> None:
    assert (named("layer.0"), shown({"a": 1})) == ("layer.0", "{'a': 1}")
    for value in (
        "a\nregard: forged",
        "\x1b[2J",
        "x" * 10**5,
        [[[["deep"]]]],
        list(range(10**5)),
        {"k" * 500: 10**300},
    ):
        assert shown(value).isprintable()
        assert len(shown(value)) < 400
    assert named("a\nb") == "'a\\nb'"
    assert len(named("x" * 10**5)) < 400


def test_tensors_after_their_header(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3).half(), "b": torch.arange(3)}
    save_file(tensors, tmp_path / "w.safetensors")
    files = TensorFiles([tmp_path / "w.safetensors"])
    assert {name: (one.kind, one.shape) for name, one in files.stored.items()} == {
        "a": ("F16", (2, 3)),
        "b": ("I64", (3,)),
    }
    assert torch.equal(files.read("a"), tensors["a"].float())
    assert torch.equal(files.read("b"), tensors["b"])
    before = files.read("a")
    before[0, 0] = 7
    assert files.read("a")[0, 0] == 0  # memory of its own
    save_file({"b": torch.zeros(1)}, tmp_path / "v.safetensors")
    with pytest.raises(BundleError, match="weight b stands in another file too"):
        TensorFiles([tmp_path / "w.safetensors", tmp_path / "v.safetensors"])


def test_headers_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(BundleError, match=r"its header has 1,099,511,627,776 bytes; expected at most 10"):
        TensorFiles([path])
    path.write_bytes(b"\2\0\0\0\0\0\0\0[]")
    with pytest.raises(BundleError, match="damaged"):
        TensorFiles([path])
    save_file({str(n): torch.zeros(1) for n in range(5)}, path)
    monkeypatch.setattr(untrusted, "TENSORS", 4)
    with pytest.raises(BundleError, match="expected at most 4 weights"):
        TensorFiles([path])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_numbers_that_are_no_numbers_are_refused(number: float) -> None:
    with pytest.raises(BundleError, match="w has numbers that are infinite or NaN"):
        as_float(torch.tensor([1.0, number], dtype=torch.float64), "w")


def test_finite_numbers_whose_sum_is_not_are_read() -> None:
    assert torch.equal(as_float(torch.full((4,), 3e38), "w"), torch.full((4,), 3e38))
    assert as_float(torch.zeros(0), "w").shape == (0,)
