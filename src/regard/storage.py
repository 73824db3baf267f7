"""Tensors on disk: safetensors, written to a temporary file, flushed and renamed. No pickle."""

import os
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; a crash or a full disk at any moment leaves the previous file as it was.

    safetensors' own `save_file` makes a file that only its owner may read.

    Raises:
        OSError: it could not be written; the temporary file is removed.
    """
    aside = path.with_name(path.name + ".aside")
    try:
        with aside.open("wb") as file:
            file.write(save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, metadata))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
