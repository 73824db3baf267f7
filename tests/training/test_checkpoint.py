"""Checkpoints: whole or refused, and never at the cost of the one before."""

import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from regard import storage
from regard.errors import BundleError
from regard.training.checkpoint import (
    average,
    flatten_optimizer,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
)

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.tensor([1.5, float("nan")]).bfloat16(),
    "number": torch.tensor(7),
    "bytes": torch.tensor([3, 255], dtype=torch.uint8),
    "nothing": torch.zeros(0, 4),
}
STATE = {"step": 3, "best": [[0.5, 2]], "note": "là\u2028", "infinite": float("inf")}


def same(a, b):
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert (tensor.dtype, tensor.shape) == (b[name].dtype, b[name].shape)
        assert torch.equal(
            tensor.contiguous().view(-1).view(torch.uint8), b[name].contiguous().view(-1).view(torch.uint8)
        )


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    return path


def test_round_trip(path):
    tensors, state = load_checkpoint(path)
    same(tensors, TENSORS)
    assert state == STATE
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_views_and_gradients_are_written_as_they_look(tmp_path):
    wide = torch.arange(12.0).reshape(3, 4).requires_grad_()
    save_checkpoint(tmp_path / "x", {"turned": wide.T, "part": wide[:, 1]}, {})
    same(load_checkpoint(tmp_path / "x")[0], {"turned": wide.detach().T, "part": wide.detach()[:, 1]})


def test_missing(tmp_path):
    with pytest.raises(BundleError, match=r"none\.safetensors: no such checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "best-1.safetensors")
    with pytest.raises(BundleError, match=r"best-1\.safetensors: expected a regular file; got a pipe"):
        load_checkpoint(tmp_path / "best-1.safetensors")


def test_truncated_anywhere_is_refused(path):
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(BundleError, match=r"last\.safetensors: .*use an earlier checkpoint"):
            load_checkpoint(path)


def test_one_changed_byte_anywhere_is_refused(path):
    whole = path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(BundleError, match=r"last\.safetensors: .*use an earlier checkpoint"):
            load_checkpoint(path)


def test_changed_contents_are_told_from_damage(path):
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(BundleError, match="not what was written"):
        load_checkpoint(path)


def test_a_file_of_somebody_else_is_refused(tmp_path):
    save_file({"weight": torch.ones(2)}, str(tmp_path / "x"))
    with pytest.raises(BundleError, match="not what was written"):
        load_checkpoint(tmp_path / "x")


def full_disk(file):
    Path(f"/proc/self/fd/{file}").write_bytes(b"half a file")
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_previous_one(path, monkeypatch):
    monkeypatch.setattr(storage.os, "fsync", full_disk)
    with pytest.raises(
        BundleError, match=r"could not be written \(.*No space left.*\); the previous one is still valid"
    ):
        save_checkpoint(path, {"other": torch.ones(1)}, {})
    same(load_checkpoint(path)[0], TENSORS)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_full_disk_at_the_first_one(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.os, "fsync", full_disk)
    with pytest.raises(BundleError, match="there is no previous one"):
        save_checkpoint(tmp_path / "x", TENSORS, STATE)
    assert not list(tmp_path.iterdir())


def test_a_file_that_the_system_does_not_let_grow(path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(BundleError, match="could not be written"):
            save_checkpoint(path, {"large": torch.ones(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    same(load_checkpoint(path)[0], TENSORS)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(BundleError, match="could not be written"):
        save_checkpoint(tmp_path / "none" / "x", TENSORS, STATE)


def test_average_is_taken_in_float64():
    numbers = [1e8, 1.0, -1e8, 3.0]  # their float32 sum from the left is 3
    models = [{"x": torch.tensor([n]), "y": torch.full((2,), n).half()} for n in [16777216.0, 1.0, 1.0]]
    mean = average(models)
    assert mean["x"].dtype == torch.float32
    assert mean["x"].item() == torch.tensor((16777216.0 + 1 + 1) / 3, dtype=torch.float32).item()
    assert average([{"x": torch.tensor([n])} for n in numbers])["x"].item() == 1.0
    assert mean["y"].dtype == torch.float16


def test_average_of_one_is_itself():
    assert torch.equal(average([{"x": TENSORS["weight"]}])["x"], TENSORS["weight"])


def make_optimizer(fused):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 2))
    groups = [{"params": [p for p in model.parameters() if p.ndim == n], "weight_decay": n / 8} for n in (2, 1)]
    return model, torch.optim.AdamW(groups, lr=0.1, fused=fused)


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.linspace(-1, 1, 12).reshape(4, 3)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("fused", [True, False])
def test_optimizer_goes_on_bit_for_bit(tmp_path, fused):
    model, optimizer = make_optimizer(fused)
    for _ in range(3):
        step(model, optimizer)
    save_checkpoint(tmp_path / "x", flatten_optimizer(optimizer) | model.state_dict(), {})
    tensors, _ = load_checkpoint(tmp_path / "x")
    other, fresh = make_optimizer(fused)
    other.load_state_dict({name: t for name, t in tensors.items() if not name.startswith("optimizer.")})
    restore_optimizer(fresh, tensors)
    for _ in range(3):
        step(model, optimizer)
        step(other, fresh)
    same(dict(model.state_dict()), dict(other.state_dict()))
    same(flatten_optimizer(optimizer), flatten_optimizer(fresh))


def test_a_fresh_optimizer_has_nothing_to_keep():
    model, optimizer = make_optimizer(True)
    assert flatten_optimizer(optimizer) == {}
    restore_optimizer(optimizer, {})
    step(model, optimizer)
