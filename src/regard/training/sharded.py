"""Sharded checkpoints as torch writes them, read without running what is pickled in them."""

import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem

from regard.errors import BundleError
from regard.untrusted import file_size

METADATA = ".metadata"
PATHS = {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"}
DESCRIPTION = {
    "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
    "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
}  # fmt: skip
KNOWN = {
    "torch.distributed.checkpoint.metadata": DESCRIPTION,
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict", "defaultdict"},
    "pathlib": PATHS,
    "pathlib._local": PATHS,  # their place in Python 3.13
}


class _Names(pickle.Unpickler):
    """Builds nothing but the classes that torch describes a checkpoint with."""

    def find_class(self, module: str, name: str) -> Any:
        of_torch = module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), torch.dtype))
        if of_torch or name in KNOWN.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


class SafePlanner(DefaultLoadPlanner):
    """Reads what is no tensor as plain values."""

    def load_bytes(self, read_item: ReadItem, value: BytesIO) -> None:
        """Keep a value that is no tensor, nor anything that runs when it is read."""
        plain, again = torch.load(value, weights_only=True), BytesIO()
        torch.save(plain, again)  # torch's own planner reads it in the other way
        again.seek(0)
        super().load_bytes(read_item, again)


def check_shards(folder: Path) -> None:
    """Refuse a description of shards that names anything else than torch's own do.

    Raises:
        BundleError: the folder's description is missing, damaged, or would run code; a file of it is no regular one.
    """
    path = folder / METADATA
    for file in (path, *folder.iterdir()):
        file_size(file)  # refuses a pipe, which would never end
    try:
        found = _Names(BytesIO(path.read_bytes())).load()
        for name in {one.relative_path for one in (found.storage_data or {}).values()}:
            if Path(name).name != name or not (folder / name).is_file():
                raise ValueError(f"it names {name}, which is no file of {folder}")
    except Exception as error:  # whatever the pickle calls
        raise BundleError(f"{path}: not a description of a checkpoint ({error}): use an earlier checkpoint") from error
