"""Files of unknown origin, read in bounds: regular ones only, JSON without surprises, tensors after their header."""

import json
import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from regard.errors import BundleError, shown

JSON_BYTES = 2**22  # of a file of settings; a vocabulary has a limit of its own
HEADER_BYTES = 2**23  # of a safetensors header
TENSORS = 5_000  # of a model: some five hundred layers
SHARDS = 10_000
FLOATS = ("F16", "BF16", "F32", "F64")


def open_tensors(path: Path) -> Any:
    """A file of tensors, as `safetensors.safe_open` gives it, whose own names of files are UTF-8 alone."""
    try:
        return safe_open(os.fspath(path.absolute()).encode("utf-8").decode("utf-8"), framework="pt")
    except UnicodeEncodeError:  # it is opened by its number
        number = os.open(path, os.O_RDONLY)
        try:
            return safe_open(f"/dev/fd/{number}", framework="pt")
        finally:
            os.close(number)


def named(name: str) -> str:
    """A name from outside within a sentence: as it is where it is short and printable, else its shortened repr."""
    return name if name.isprintable() and 0 < len(name) <= 120 else shown(name)


def file_size(path: Path) -> int:
    """Bytes of a regular file, or of the one that a link leads to.

    Raises:
        BundleError: it is missing, or is a folder, a pipe or a device.
    """
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise BundleError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read: {shown(str(error))}") from error
    if not stat.S_ISREG(found.st_mode):
        raise BundleError(f"{path}: expected a regular file; got {_kind(found.st_mode)}")
    return found.st_size


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def read_text(path: Path, limit: int = JSON_BYTES) -> str:
    """The text of a regular file in UTF-8.

    Raises:
        BundleError: it cannot be read, is not UTF-8, or has more than `limit` bytes.
    """
    if (size := file_size(path)) > limit:
        raise BundleError(f"{path}: damaged: expected at most {limit:,} bytes; got {size:,}")
    try:
        with path.open("rb") as file:
            return file.read(limit).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: damaged: {error}") from error


def read_object(path: Path, limit: int = JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file; each key once, all numbers finite, no halves of characters.

    Raises:
        BundleError: as `read_text`; or it is not such an object.
    """
    text = read_text(path, limit)
    try:
        values = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite_number)
        if "\\ud" in text.lower():  # a file could not be written with half a character
            json.dumps(values, ensure_ascii=False).encode()
    except RecursionError as error:
        raise BundleError(f"{path}: damaged: its lists are nested too deeply") from error
    except ValueError as error:
        raise BundleError(f"{path}: damaged: {error}") from error
    if not isinstance(values, dict):
        raise BundleError(f"{path}: damaged: expected an object")
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} stands there twice")
    return values


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"expected finite numbers; got {name}")


def _finite_number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"expected finite numbers; got {shown(text)}")
    return value


@dataclass(frozen=True)
class Stored:
    """What a safetensors header says of a tensor: its kind ("F32", "I8", …) and its shape."""

    kind: str
    shape: tuple[int, ...]


class TensorFiles:
    """The tensors of some safetensors files: the headers are read at once, a tensor when it is asked for.

    Attributes:
        stored: kind and shape by name.

    Args:
        paths: regular files.

    Raises:
        BundleError: a file is missing or damaged, or two have a tensor of one name.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.stored: dict[str, Stored] = {}
        self._of: dict[str, tuple[Path, Any]] = {}
        for path in paths:
            self._add(path)

    def _add(self, path: Path) -> None:
        size = file_size(path)
        try:
            with path.open("rb") as raw:
                header = int.from_bytes(raw.read(8), "little")
            if header > HEADER_BYTES:
                raise BundleError(
                    f"{path}: damaged: its header has {header:,} bytes; expected at most {min(size, HEADER_BYTES):,}"
                )
            file: Any = open_tensors(path)
            names = file.keys()
            if len(self.stored) + len(names) > TENSORS:
                raise BundleError(f"{path}: expected at most {TENSORS:,} weights; got more")
            for name in names:
                if name in self.stored:
                    raise BundleError(f"{path}: weight {named(name)} stands in another file too")
                part = file.get_slice(name)
                self.stored[name] = Stored(str(part.get_dtype()), tuple(part.get_shape()))
                self._of[name] = path, file
        except (SafetensorError, OSError, ValueError, OverflowError) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(f"{path}: damaged: {shown(str(error))}") from error

    def read(self, name: str) -> Tensor:
        """A tensor in memory of its own; a floating-point one as float32.

        Raises:
            BundleError: it has numbers that are infinite or NaN.
        """
        path, file = self._of[name]
        try:
            tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise BundleError(f"{path}: damaged: {named(name)}: {shown(str(error))}") from error
        return as_float(tensor, f"{path}: {named(name)}") if tensor.is_floating_point() else tensor.clone()


def as_float(tensor: Tensor, where: str) -> Tensor:
    """A copy in float32.

    Raises:
        BundleError: a number is infinite or NaN, or beyond float32.
    """
    copy = tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    # a finite sum proves finite terms; finite terms may still sum up to infinity
    if not copy.sum().isfinite() and not copy.isfinite().all():
        raise BundleError(f"{where} has numbers that are infinite or NaN: the file is damaged")
    return copy


def faults_of(error: ValidationError) -> str:
    """The first faults that pydantic found, on one line."""
    found = error.errors(include_input=False, include_url=False)
    listed = (f"{named('.'.join(map(str, fault['loc'])))}: {_cut(fault['msg'])}" for fault in found[:3])
    return "; ".join(listed) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, shortened; its kind, where it has none."""
    lines = str(error).strip().splitlines()
    return _cut(lines[0]) if lines and lines[0].strip() else type(error).__name__


def _cut(line: str) -> str:
    line = line if line.isprintable() else repr(line)
    return line if len(line) <= 300 else line[:297] + "…"
