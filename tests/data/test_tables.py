"""Files with texts: tables, archives, and the layouts of two public sets."""

import gzip
import tarfile
from pathlib import Path

import pytest
from pydantic import ValidationError

from made import made_sounds, made_table
from regard.data.archive import Files
from regard.data.tables import TableConfig, read_cells, read_table, split_rows
from regard.errors import DataError


def test_a_table_with_several_texts_for_a_file(tmp_path: Path) -> None:
    folder = made_table(tmp_path / "set")
    config = TableConfig(
        table=str(folder / "captions.csv.gz"), files=str(folder / "images"), file="image", text="caption", dev_share=0.5
    )
    rows = read_table(config)
    assert len(rows) == 8
    assert rows[0].text == "a red wall, plain"
    train, dev = split_rows(rows, config)
    assert {r.group for r in train} | {r.group for r in dev} == {f"{n}.png" for n in range(4)}
    assert not {r.group for r in train} & {r.group for r in dev}


def test_an4_s_layout_in_a_folder_and_in_an_archive(tmp_path: Path) -> None:
    folder = made_sounds(tmp_path / "an4")
    with tarfile.open(tmp_path / "an4.tar", "w") as archive:
        archive.add(folder, arcname=".")
    found = [
        read_table(TableConfig(layout="an4", files=str(where), group="speaker", lower=True))
        for where in (folder, tmp_path / "an4.tar")
    ]
    assert [(r.file, r.text, r.group) for r in found[0]] == [(r.file, r.text, r.group) for r in found[1]]
    assert len(found[0]) == 30
    assert ("yes no", "fash") in {(r.text, r.group) for r in found[0]}
    assert Files(str(tmp_path / "an4.tar")).read(found[1][0].file)[:4] == b"fLaC"


def test_fsdd_s_layout(tmp_path: Path) -> None:
    for name in ("7_theo_12.wav", "0_jackson_3.wav", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    rows = read_table(TableConfig(layout="fsdd", files=str(tmp_path), group="index"))
    assert [(r.text, r.group) for r in rows] == [("zero", "3"), ("seven", "12")]
    named = TableConfig(layout="fsdd", files=str(tmp_path), group="index", dev_groups=("12",))
    assert [r.text for r in split_rows(rows, named)[1]] == ["seven"]
    with pytest.raises(DataError, match="no row has index = '99'"):
        split_rows(rows, named.model_copy(update={"dev_groups": ("99",)}))


def test_lines_of_prompts(tmp_path: Path) -> None:
    (tmp_path / "sounds" / "digits").mkdir(parents=True)
    for name in ("added.wav", "beep.wav", "digits/1.wav"):
        (tmp_path / "sounds" / name).write_bytes(b"")
    lines = [
        "; Prompts", "", "added: It's added - twice:  now!", "beep: [a tone]", "digits/1: one", "gone: No file.",
    ]  # fmt: skip
    with gzip.open(tmp_path / "prompts.txt.gz", "wt") as file:
        file.write("\n".join(lines))
    config = TableConfig(
        layout="prompts", table=str(tmp_path / "prompts.txt.gz"), files=str(tmp_path / "sounds"), lower=True, plain=True
    )
    assert [(row.file, row.text) for row in read_table(config)] == [
        ("added.wav", "it's added twice now"), ("digits/1.wav", "one"),
    ]  # fmt: skip
    (tmp_path / "crooked.txt").write_text("added It is added\n")
    with pytest.raises(DataError, match=r"crooked.txt:1: expected 'name: text'; got 'added It is added'"):
        read_table(config.model_copy(update={"table": str(tmp_path / "crooked.txt")}))


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("file\ttext\na.png\thello\nb.png\n")
    with pytest.raises(DataError, match=r"t.tsv:3: expected 2 columns; got 1"):
        read_table(TableConfig(table=str(tmp_path / "t.tsv"), files=str(tmp_path)))
    (tmp_path / "u.csv").write_text("name,text\na,b\n")
    with pytest.raises(DataError, match="no column 'file': there are name, text"):
        read_table(TableConfig(table=str(tmp_path / "u.csv"), files=str(tmp_path)))
    for row, name in ((",b", "file"), ("a, ", "text"), ("a,!?", "text")):
        (tmp_path / "e.csv").write_text(f"file,text\n{row}\n")
        with pytest.raises(DataError, match=rf"e.csv:2: the {name} is empty: remove the row"):
            read_table(TableConfig(table=str(tmp_path / "e.csv"), files=str(tmp_path), plain=True))
    for name in ("deep.jsonl", "unclosed.csv"):
        (tmp_path / name).write_text("[" * 100_000 if name == "deep.jsonl" else 'file,text\na,"b\nc,d\n')
        with pytest.raises(DataError, match=rf"{name}:[12]: not a"):
            read_table(TableConfig(table=str(tmp_path / name), files=str(tmp_path)))
    with pytest.raises(DataError, match="there is no file with a text"):
        read_table(TableConfig(layout="fsdd", files=str(tmp_path)))
    with pytest.raises(DataError, match="no such folder or archive"):
        Files(str(tmp_path / "none.tar"))
    with pytest.raises(DataError, match=r"a.png: no such file"):
        Files(str(tmp_path)).read("a.png")
    with pytest.raises(DataError, match=r"neither a folder nor a .tar archive"):
        Files(str(tmp_path / "t.tsv")).read("a.png")
    with pytest.raises(ValidationError, match="needs a table"):
        TableConfig(files="x")


def test_tabs_have_no_quotes_and_columns_have_one_name(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('text\n"Le chat dort, dit-il.\nLe chien court.\nIl pleut."\nFin\n')
    rows = [cells["text"] for _, cells in read_cells(path)]
    assert rows == ['"Le chat dort, dit-il.', "Le chien court.", 'Il pleut."', "Fin"]
    path.write_text("text\ttext\na\tb\n")
    with pytest.raises(DataError, match=r"t\.tsv:1: several columns 'text'"):
        list(read_cells(path))


def test_a_line_of_tabs_is_a_row_whatever_is_in_it(tmp_path: Path) -> None:
    path, long = tmp_path / "t.tsv", "x" * 200_000
    path.write_bytes(f"text\tother\na\tb\rc\n{long}\t\n".encode())
    assert [list(cells.values()) for _, cells in read_cells(path)] == [["a", "b\rc"], [long, ""]]
