"""Files of a folder or a .tar archive, by name."""

import tarfile
from functools import cached_property

from regard.data.files import check_regular, expand, unpacking
from regard.errors import DataError
from regard.storage import check_possible

Cells = tuple[str, dict[str, str]]  # file and line of a table's row, and its values by column


class Files:
    """The files of a folder or a .tar archive, by their names."""

    def __init__(self, where: str) -> None:
        self.path = expand(where)
        if not self.path.exists():
            raise DataError(f"{self.path}: no such folder or archive")

    def names(self) -> list[str]:
        """The names of all files, sorted."""
        if self._members is None:
            return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file())
        return sorted(self._members)

    @cached_property
    def _members(self) -> dict[str, tuple[int, int]] | None:
        """Offset and size of each file of an archive; None for a folder."""
        if self.path.is_dir():
            return None
        whole = check_regular(self.path)
        with unpacking(self.path, "neither a folder nor a .tar archive"):
            with tarfile.open(self.path, "r:") as archive:
                members = [m for m in archive if m.isfile()]
                if any(m.issparse() for m in members):
                    raise DataError(f"{self.path}: holds a file with holes: make the archive without tar's --sparse")
                found = {m.name.removeprefix("./"): (m.offset_data, m.size) for m in members}
            if any(offset < 0 or size < 0 or offset + size > whole for offset, size in found.values()):
                raise EOFError("a file in it goes beyond its end")
            return found

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            DataError: there is no such file.
        """
        if self._members is None:
            path = self.path / name
            check_possible(path)
            if not path.is_file():
                raise DataError(f"{path}: no such file")
            return path.read_bytes()
        if name not in self._members:
            raise DataError(f"{self.path}: holds no {name}")
        offset, size = self._members[name]
        with self.path.open("rb") as archive:
            archive.seek(offset)
            return archive.read(size)
