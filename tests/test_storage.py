"""Tensors on disk: what is written is read, by everybody, and never half."""

import os
import stat
from dataclasses import dataclass

import pytest
import torch
from safetensors import safe_open

from regard import storage
from regard.errors import ConfigError
from regard.storage import exclusive, fingerprint, write_tensors


def read(path):
    with safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_what_is_written_is_read(tmp_path):
    tensor = torch.arange(6.0).reshape(2, 3).T  # not contiguous
    write_tensors(tmp_path / "x", {"a": tensor}, {"note": "ü"})
    found, metadata = read(tmp_path / "x")
    assert torch.equal(found["a"], tensor)
    assert metadata == {"note": "ü"}


def test_others_may_read_it(tmp_path):
    before = os.umask(0o022)
    try:
        write_tensors(tmp_path / "x", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644


def test_a_full_disk_leaves_the_previous_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    write_tensors(tmp_path / "x", {"a": torch.ones(2)})
    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_tensors(tmp_path / "x", {"a": torch.zeros(2)})
    assert torch.equal(read(tmp_path / "x")[0]["a"], torch.ones(2))
    assert os.listdir(tmp_path) == ["x"]


def test_what_a_reader_still_holds_stays_as_it_was(tmp_path):
    write_tensors(tmp_path / "x", {"a": torch.ones(5000)})
    held = read(tmp_path / "x")[0]["a"]  # may be a view of the file itself
    write_tensors(tmp_path / "x", {"a": torch.zeros(3)})
    assert torch.equal(held, torch.ones(5000))


def test_a_folder_is_held_by_one(tmp_path):
    with exclusive(tmp_path):
        second = exclusive(tmp_path)
        with pytest.raises(ConfigError, match="another process is writing"):
            second.__enter__()
    with exclusive(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_fingerprints_depend_on_the_values():
    @dataclass
    class Data:
        rows: list
        change: object = None

    same = [Data([[1, 2], [3]]), Data([[1, 2], [3]], print)]
    others = [Data([[1, 2, 3]]), Data([[1], [2, 3]]), Data([[1, 2], [4]]), Data([["1"], [3]]), Data([torch.ones(2)])]
    assert len({fingerprint(one) for one in same}) == 1
    assert len({fingerprint(one) for one in [same[0], *others]}) == 6
