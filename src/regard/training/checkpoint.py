"""Checkpoints: tensors and JSON in one safetensors file with a digest, written to a temporary file and renamed."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.errors import BundleError
from regard.storage import digest, parse_json, write_tensors
from regard.untrusted import file_size, open_tensors

Tensors = dict[str, Tensor]
LAST = "last.safetensors"  # of a run, from which it is resumed


def save_checkpoint(path: Path, tensors: Tensors, state: dict[str, Any]) -> None:
    """Write a checkpoint; a crash or a full disk at any moment leaves the previous file as it was.

    Raises:
        BundleError: it could not be written (a full disk, missing permission); the temporary file is removed.
    """
    note = json.dumps(state)
    tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    try:
        write_tensors(path, tensors, {"state": note, "digest": digest(tensors, note)})
    except Exception as error:  # safetensors has error types of its own
        last = path.with_name(LAST)
        before = (
            "the previous one is still valid" if path.exists()
            else f"{last} is still valid: continue from it with --resume" if last.exists()
            else "there is no previous one"
        )  # fmt: skip
        reason = getattr(error, "strerror", None) or error
        raise BundleError(f"{path}: the checkpoint could not be written ({reason}); {before}") from error


def load_checkpoint(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Raises:
        BundleError: missing, no regular file, cut short, or changed since it was written.
    """
    if not path.exists():
        raise BundleError(f"{path}: no such checkpoint")
    file_size(path)  # refuses a pipe, which would never end
    try:
        with open_tensors(path) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # safetensors raises its own error type
        raise BundleError(f"{path}: damaged or cut short ({error}): use an earlier checkpoint") from error
    note = metadata.get("state", "")
    if metadata.get("digest") != digest(tensors, note):
        raise BundleError(
            f"{path}: its contents are not what was written (the digest differs): use an earlier checkpoint"
        )
    return tensors, parse_json(note)


def average(checkpoints: list[Tensors]) -> Tensors:
    """The mean of several models' weights, computed in float64 (Vaswani et al. 2017, section 6.1)."""
    first = checkpoints[0]
    return {name: torch.stack([c[name].double() for c in checkpoints]).mean(0).to(first[name].dtype) for name in first}


def flatten_optimizer(optimizer: Any) -> Tensors:
    """An optimizer's moments and counters as tensors under flat names."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{i}.{name}": torch.as_tensor(value) for i, values in state.items() for name, value in values.items()
    }


def restore_optimizer(optimizer: Any, tensors: Tensors) -> None:
    """Load what `flatten_optimizer` returned into an optimizer."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
