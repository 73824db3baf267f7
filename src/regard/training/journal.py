"""The journal of a run: one JSON object a line, appended as things happen."""

import json
from pathlib import Path
from typing import Any

from regard.errors import ConfigError
from regard.storage import naming, parse_json, write_text
from regard.untrusted import file_size

JOURNAL = "journal.jsonl"  # of a run's folder
Entry = dict[str, Any]


class Journal:
    """JSON lines in a file.

    Args:
        path: of the file; created with the first entry.
        writes: False for a process that leaves writing to another one.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    def write(self, entry: Entry) -> None:
        """Append one entry; it has been handed to the operating system when this returns.

        Raises:
            ConfigError: the journal is a link: the file that it names may not be the run's.
        """
        if not self.writes:
            return
        if self.path.is_symlink():
            raise ConfigError(f"{self.path}: a link, and a journal is appended to: put the file itself there")
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def entries(self) -> list[Entry]:
        """All entries; a line that a crash truncated, or that is no JSON object, is left out.

        Raises:
            BundleError: the file is a pipe or a device.
        """
        if not self.path.exists():
            return []
        found = []
        file_size(self.path)  # refuses a pipe, which would never end
        for line in self.path.read_bytes().split(b"\n"):
            try:
                entry = parse_json(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                found.append(entry)
        return found

    def rewind(self, step: int, but: str = "") -> None:
        """Remove entries after `step`, and all events named `but`, before a run is resumed from that step."""
        if not self.writes:
            return
        steps = [(entry, entry.get("step", 0)) for entry in self.entries() if entry.get("event") != but]
        kept = [entry for entry, own in steps if not isinstance(own, int | float) or own <= step]
        write_text(self.path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept))
