"""Tensors on disk: safetensors, written to a temporary file, flushed and renamed. No pickle."""

import hashlib
import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from regard.errors import ConfigError


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; a crash or a full disk at any moment leaves the previous file as it was.

    safetensors' own `save_file` makes a file that only its owner may read.

    Raises:
        OSError: it could not be written; the temporary file is removed.
    """
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _replace(path, save(packed, metadata))


def write_text(path: Path, text: str) -> None:
    """Write a text file as `write_tensors` writes tensors: a crash leaves the previous file as it was.

    Raises:
        OSError: it could not be written; the temporary file is removed.
    """
    _replace(path, text.encode("utf-8"))


def _replace(path: Path, raw: bytes) -> None:
    """Write a file aside and rename it."""
    aside = path.with_name(path.name + ".aside")
    try:
        with aside.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone, by a lock that the system releases when the process ends.

    Raises:
        ConfigError: another process holds it.
    """
    if sys.platform == "win32":  # which has no flock
        yield
        return
    import fcntl

    path = folder / ".lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{folder}: another process is writing to this folder: choose another one") from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def fingerprint(value: Any) -> str:
    """SHA-256 of numbers, texts and tensors in nested sequences and dataclasses; other objects are left out."""
    total = hashlib.sha256()
    _update(total, value)
    return total.hexdigest()


def _update(total: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        total.update(
            f"{value.dtype}{tuple(value.shape)}".encode() + value.detach().cpu().contiguous().numpy().tobytes()
        )
    elif isinstance(value, str | int | float | bool):
        total.update(f"{value!r};".encode())
    elif isinstance(value, Sequence):
        total.update(f"[{len(value)}".encode())
        if value and all(type(one) is int for one in value):
            total.update(array("q", value).tobytes())
            return
        for one in value:
            _update(total, one)
    elif is_dataclass(value):
        for field in fields(value):
            _update(total, getattr(value, field.name))
