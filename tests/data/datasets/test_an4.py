"""AN4's layout: what its transcriptions say, and what of it is there."""

from pathlib import Path

import pytest

from made import made_sounds
from regard.data.archive import Files
from regard.data.datasets import an4
from regard.errors import DataError


def test_rows_of_a_transcription(tmp_path: Path) -> None:
    files = Files(str(made_sounds(tmp_path / "an4")))
    assert an4.found(files)
    rows = [cells for _, cells in an4.read(files)]
    assert len(rows) == 30
    assert rows[0] == {"file": "wav/an4_clstk/fash/an0-fash-b.flac", "text": " YES ", "speaker": "fash"}


def test_malformed_lines_are_named_and_blank_ones_skipped(tmp_path: Path) -> None:
    folder = made_sounds(tmp_path / "an4")
    table = folder / "etc" / "an4_train.transcription"
    table.write_text("\n<s> YES </s> (an0-fash-b)\n<s> of the other half </s> (an9-none-b)\n\nno id\n")
    rows = an4.read(Files(str(folder)))
    assert next(rows)[1]["text"] == " YES "
    with pytest.raises(DataError, match=r"an4_train.transcription:5: expected '<s> TEXT </s> \(id\)'"):
        next(rows)


def test_another_layout(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    assert not an4.found(Files(str(tmp_path)))


def test_brackets_without_end_take_no_time(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "x.transcription").write_text("<s> A </s> (" + "(" * 1_000_000 + "\n")
    with pytest.raises(DataError, match=r"x\.transcription:1: expected"):
        list(an4.read(Files(str(tmp_path))))
