"""Files on disk: one way to write them, one rule of what may be replaced, one holder of a folder at a time.

A file is written beside its place under a name of its own, flushed, and renamed; then its folder is flushed. Killed at
any moment, what was there is there, or the new file is, whole. Tensors are safetensors; there is no pickle.
"""

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
from array import array
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from io import BufferedWriter
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save
from torch import Tensor

from regard.errors import ConfigError, DataError, harmless

LOCK, MARKER = ".lock", ".regard"
ASIDE = ".aside"  # ends the name of what is being written
# of what stands in regard's own folders: ends of the names of files, and names of folders
FILES = (".json", ".jsonl", ".safetensors", ".toml", ".html", ".sha256", ".txt")
FOLDERS = ("attention", "distilled", "prepared", "tensorboard")
FULL = tuple(getattr(errno, name) for name in ("ENOSPC", "EFBIG", "EDQUOT", "EIO") if hasattr(errno, name))


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; a crash or a full disk at any moment leaves the previous file as it was.

    safetensors' own `save_file` makes a file that only its owner may read.

    Raises:
        OSError: it could not be written; the temporary file is removed.
    """
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(packed, metadata))


def write_text(path: Path, text: str) -> None:
    """Write a text file as `write_tensors` writes tensors: a crash leaves the previous file as it was.

    Raises:
        OSError: it could not be written; the temporary file is removed.
    """
    write_bytes(path, without_halves(text).encode("utf-8"))


def write_bytes(path: Path, raw: bytes) -> None:
    """Write a file as `write_tensors` writes tensors: a crash leaves the previous file as it was.

    Raises:
        OSError: it could not be written; the temporary file is removed.
    """
    with replacing(path) as file:
        file.write(raw)


@contextmanager
def replacing(path: Path, keep: bool = False) -> Iterator[BufferedWriter]:
    """A file to write to that takes the place of `path` when the block ends, and never does if the block fails.

    A symbolic link stays, and the file that it names is replaced; a device or a pipe is written to. But in a folder
    that regard has made (`claim`), and in those within it, links, devices and pipes are replaced themselves.

    Args:
        path: the file.
        keep: leave what was written so far, if anything, beside `path` when the block fails; its name is `file.name`.

    Raises:
        OSError: it could not be written, or is a folder; the temporary file is removed.
    """
    owned = _is_owned(path.parent)
    if not owned and path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb") as device:
            yield device
        return
    place = Path(os.path.realpath(path.parent)) / path.name if owned else Path(os.path.realpath(path))
    if place.is_dir() and not place.is_symlink():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    aside = aside_of(place)
    try:
        with naming(path), aside.open("xb") as file:
            if place.is_file():  # a private file stays private
                shutil.copymode(place, aside)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, place)
    except BaseException:
        if not keep or (aside.exists() and not aside.stat().st_size):
            aside.unlink(missing_ok=True)
        raise
    sync_folder(place.parent)


def _is_owned(folder: Path) -> bool:
    """Whether a folder, or one of the two around it, was made by regard: a stranger's may hold links to anything."""
    whole = Path(os.path.realpath(folder))
    return any((one / MARKER).exists() for one in (whole, *whole.parents[:2]))


@contextmanager
def naming(path: Path, inside: Path | None = None) -> Iterator[None]:
    """Errors of a disk that takes no more name what was being written, as those of opening a file do.

    Args:
        path: what was being written.
        inside: the temporary folder that holds its files.
    """
    try:
        yield
    except OSError as error:
        here = error.filename is None or (inside is not None and str(error.filename).startswith(str(inside)))
        if error.errno in FULL and here:
            error.filename = str(path)
        raise


def why_unwritable(path: Path) -> str:
    """Why no file can be written at a path, in the words of every refusal; empty where one can."""
    if why := _impossible(path):
        return why
    for folder in (path.parent, Path(os.path.realpath(path)).parent):  # that of a link, and that of its target
        if not folder.is_dir():
            return f"{folder} is not a folder" if folder.exists() else f"the folder {folder} does not exist"
    if path.is_dir():
        return "a folder; name a file in it"
    if path.exists() and not os.access(path, os.W_OK):
        return "may not be written to"
    if path.exists() and not path.is_file():  # a device is written to
        return ""
    folder = Path(os.path.realpath(path)).parent  # a file is written beside its place, and renamed
    return "" if os.access(folder, os.W_OK) else f"the folder {folder} may not be written to"


def _impossible(path: Path) -> str:
    """Why nothing on this system can have such a path; empty where something could."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except PermissionError:
        return f"the folder {path.parent} may not be entered"
    except (OSError, ValueError) as error:
        return f"no file can have this name: {getattr(error, 'strerror', None) or error}"
    return ""


def check_possible(path: Path) -> None:
    """Refuse a path that no file can have: too long a name, a zero byte, links that go round.

    Raises:
        DataError: the sentence.
    """
    if why := _impossible(path):
        raise DataError(f"{harmless(str(path))}: {why}")


def check_place(path: Path) -> None:
    """Refuse a path at which no file can be written.

    Raises:
        DataError: as `why_unwritable`.
    """
    if why := why_unwritable(path):
        raise DataError(f"{harmless(str(path))}: {why}")


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """The block writes the file that a caller named; whatever keeps it from being written is one sentence.

    Raises:
        DataError: as `check_place`, before the block runs; the disk takes no more.
    """
    check_place(path)
    try:
        yield
    except OSError as error:
        raise DataError(f"{harmless(str(path))}: could not be written: {error.strerror or error}") from error


@contextmanager
def new_folder(into: Path) -> Iterator[Path]:
    """A folder to fill that becomes `into` when the block ends, whole; if the block fails, nothing is left.

    Args:
        into: a folder that is missing or empty.

    Raises:
        ConfigError: `into` is a file, or is not empty.
    """
    check_name(into)
    into = Path(os.path.realpath(into))  # a link stays; "." has a name
    check_empty(into)
    make_folder(into.parent)
    aside = aside_of(into)
    make_folder(aside, into)
    try:
        with naming(into, aside):
            yield aside
            for path in sorted(aside.rglob("*")):
                sync_folder(path) if path.is_dir() else _sync(path)
            sync_folder(aside)
        check_empty(into)  # another process may have written it meanwhile
        if into.exists():
            shutil.copymode(into, aside)
        os.replace(aside, into)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_folder(into.parent)


def replace_folder(new: Path, there: Path) -> None:
    """Put a folder in the place of another, or where there is none; in one step where Linux can exchange two names.

    Where it cannot, `there` is missing for the moment between two renames.

    Args:
        new: a finished folder beside `there`; it is gone afterward.
        there: its place.
    """
    if there.exists():
        shutil.copymode(there, new)  # a private folder stays private
    if not there.exists():
        os.replace(new, there)
    elif _exchange(new, there):
        shutil.rmtree(new, ignore_errors=True)
    else:
        before = aside_of(there)
        os.replace(there, before)
        os.replace(new, there)
        shutil.rmtree(before, ignore_errors=True)
    sync_folder(there.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where this system or file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "renameat2"):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def check_name(folder: Path) -> None:
    """Refuse a name that no folder can have: too long, or with a character that no file system takes.

    Raises:
        ConfigError: it is such a name.
    """
    if why := _impossible(folder):
        raise ConfigError(f"{harmless(str(folder))}: {why}")


def check_empty(into: Path) -> None:
    """Refuse to write a folder over anything that exists.

    Raises:
        ConfigError: the path is a file, or a folder that is not empty; no folder can have such a name.
    """
    check_name(into)
    if into.exists() and not into.is_dir():
        raise ConfigError(f"{into} is a file: choose a folder")
    if into.exists() and any(into.iterdir()):
        raise ConfigError(f"{into} is not empty: choose another folder")


def claim(folder: Path, purpose: str, known: Collection[str] = ()) -> None:
    """Make a folder regard's own, so that its files may be replaced later; a folder with files of others is refused.

    Args:
        folder: made where there is none.
        purpose: of the folder, for the refusal: "a run".
        known: names that only regard's own folders have: one that holds such a file was made before folders were
            marked.

    Raises:
        ConfigError: the folder holds something, and regard did not make it; it is a file, or cannot be made.
    """
    check_claim(folder, purpose, known)
    make_folder(folder)
    if not (folder / MARKER).exists():
        (folder / MARKER).unlink(missing_ok=True)  # a link to nothing, which is not followed
        write_text(folder / MARKER, "This folder was made by regard, which replaces and removes files in it.\n")


def check_claim(folder: Path, purpose: str, known: Collection[str] = ()) -> None:
    """Refuse a folder that `claim` would refuse, without making one.

    Raises:
        ConfigError: as `claim`.
    """
    check_name(folder)
    if _is_owned(folder.parent):
        refuse_link(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: a file; {purpose} needs a folder of its own")
    if not folder.exists():
        return
    if any((folder / name).exists() for name in (MARKER, *known)):
        for path in (*folder.glob("*"), *folder.glob("*/*")):  # before any work that could not be written then
            kind, other = ("file", "folder") if path.suffix in FILES else ("folder", "file")
            if path.is_symlink() or not (path.suffix in FILES or path.name in FOLDERS):
                continue
            if path.is_dir() if kind == "file" else path.is_file():
                raise ConfigError(f"{path}: a {other}, in the place of a {kind} that {purpose} may write: move it away")
        return
    others = sorted(one.name for one in folder.iterdir() if one.name != LOCK and not one.name.endswith(ASIDE))
    if others:
        raise ConfigError(
            f"{folder}: not empty, and not made by regard ({others[0]!r} is there): {purpose} needs a folder of its own"
        )


def make_folder(folder: Path, named: Path | None = None) -> None:
    """Make a folder, and those around it, where there is none.

    Args:
        folder: the folder.
        named: what a refusal names; the folder itself by default.

    Raises:
        ConfigError: the system refuses it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise ConfigError(f"{named or folder}: this folder cannot be made: {error.strerror or error}") from error


def aside_of(path: Path) -> Path:
    """A name beside `path` that no file has: where it is written before it is renamed."""
    name = os.fsencode(path.name)[:200].decode("utf-8", "ignore")  # of at most 255 bytes in all
    return path.with_name(f".{name}.{secrets.token_hex(4)}{ASIDE}")


def is_aside(name: str) -> bool:
    """Whether a name is one that `aside_of` gives."""
    return re.fullmatch(rf"\..+\.[0-9a-f]{{8}}{re.escape(ASIDE)}", name) is not None


def own_folder(path: Path) -> None:
    """Make a folder within one of regard's own; a link in its place is replaced, as those to files are."""
    if path.is_symlink():
        path.unlink()
    path.mkdir(exist_ok=True)


def refuse_link(path: Path) -> None:
    """Refuse a link where regard would continue what it has begun: it may lead to files of others.

    Raises:
        ConfigError: it is one.
    """
    if path.is_symlink():
        raise ConfigError(f"{path}: a link, which regard does not follow in a folder of its own: name what it leads to")


def remove(path: Path) -> None:
    """Remove a file, a folder with what is in it, or a link, whatever it leads to; no error where there is none."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process was writing in a folder that this one holds (`exclusive`), or in a folder within."""
    for path in list(folder.rglob(f".*{ASIDE}")):
        remove(path)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names, so that a rename in it survives a power failure; no error where that cannot be
    done (Windows, some network file systems)."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone, by a lock that the system releases when the process ends, however it ends.

    Raises:
        ConfigError: another process holds it; its number is named.
    """
    if sys.platform == "win32":  # which has no flock
        yield
        return
    import fcntl

    path = folder / LOCK
    while True:
        file = _lock_file(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(20).strip()
            file.close()
            named = f"process {holder}" if holder.isdigit() else "another process"
            raise ConfigError(
                f"{folder}: {named} is writing to this folder: wait for its end, or choose another folder"
            ) from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # its holder has removed it meanwhile: a lock on it would keep out no other
    with file:
        try:
            with naming(path):
                file.truncate(0)
                os.write(file.fileno(), f"{os.getpid()}\n".encode())
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock_file(path: Path) -> IO[str]:
    """The file that a lock is held on, opened; a link, a pipe or a folder in its place is refused and not written to.

    Raises:
        ConfigError: there is something else.
    """
    try:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise ConfigError(f"{path}: not a file that regard has made: remove it") from error
        raise
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise ConfigError(f"{path}: not a file that regard has made: remove it")
    return os.fdopen(number, "r+")


def without_halves(text: str) -> str:
    """A text that a file can hold: a half of a character (a lone surrogate), which has no UTF-8, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def parse_json(text: str | bytes) -> Any:
    """What JSON stands for.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or has half a character ("\\ud800").
    """
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    halves = "\\ud" in text.lower() if isinstance(text, str) else b"\\ud" in text.lower()
    if halves:  # no file could be written with one
        json.dumps(found, ensure_ascii=False).encode()
    return found


def digest(tensors: dict[str, Tensor], note: str) -> str:
    """SHA-256 of names, shapes, contents and note."""
    total = hashlib.sha256(note.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}{list(tensor.shape)}{tensor.dtype}".encode())
        if tensor.numel():
            total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


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
