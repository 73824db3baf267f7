"""The Free Spoken Digit Dataset's layout: names that say everything."""

from pathlib import Path

from regard.data.archive import Files
from regard.data.datasets import fsdd


def test_rows_of_names(tmp_path: Path) -> None:
    assert not fsdd.found(Files(str(tmp_path)))
    for name in ("7_theo_12.wav", "notes.txt", "12_theo_3.wav"):
        (tmp_path / name).write_bytes(b"")
    files = Files(str(tmp_path))
    assert fsdd.found(files)
    assert [cells for _, cells in fsdd.read(files)] == [
        {"file": "7_theo_12.wav", "text": "seven", "speaker": "theo", "index": "12"}
    ]
