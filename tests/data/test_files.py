"""Text files: compressed in several ways, with a byte order mark, refused by name."""

import bz2
import gzip
import lzma
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from regard.data.archive import Files
from regard.data.files import CHUNK, expand, plain_name, read_lines, read_text, stream_lines
from regard.data.parallel import DataConfig, read_pairs
from regard.data.sound import read_sound
from regard.data.tables import read_cells
from regard.data.texts import TextConfig, read_texts
from regard.errors import DataError

TEXT = "a\tb\nc\td\n"


def packed(path: Path, text: str = TEXT, members: tuple[str, ...] = ("pairs.tsv",)) -> Path:
    raw = text.encode()
    match path.suffix.lower():
        case ".gz":
            path.write_bytes(gzip.compress(raw))
        case ".bz2":
            path.write_bytes(bz2.compress(raw))
        case ".xz":
            path.write_bytes(lzma.compress(raw))
        case ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name in (*members, "__MACOSX/x"):
                    archive.writestr(name, raw)
        case _:
            path.write_bytes(raw)
    return path


@pytest.mark.parametrize("name", ["x.tsv", "x.tsv.gz", "x.TSV.GZ", "x.gz", "x.zip", "X.ZIP", "x.tsv.bz2", "x.tsv.xz"])
def test_every_compression_is_read(name: str, tmp_path: Path) -> None:
    path = packed(tmp_path / name)
    assert read_lines(path) == ["a\tb", "c\td"]
    assert list(read_pairs(str(path), DataConfig(train=str(path)))) == [("a", "b"), ("c", "d")]
    assert read_texts(TextConfig(train=str(path), documents="lines", column=1, dev_share=0)).train == ["b", "d"]


def test_gzip_is_known_by_its_contents(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_bytes(gzip.compress(TEXT.encode()))
    assert read_lines(tmp_path / "x.tsv") == ["a\tb", "c\td"]


def test_the_format_is_that_of_the_file_within(tmp_path: Path) -> None:
    line = '{"source": "a", "target": "b"}\n'
    for name, members in (("x.zip", ("y.jsonl",)), ("x.JSONL.GZ", ()), ("x.jsonl", ())):
        path = packed(tmp_path / name, line, members)
        assert plain_name(path).endswith(".jsonl")
        assert list(read_pairs(str(path), DataConfig(train=str(path)))) == [("a", "b")]


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x.zip: an archive of 2 files \(a, b\): unpack it, and name the file"):
        read_lines(packed(tmp_path / "x.zip", members=("a", "b")))
    (tmp_path / "y.zip").write_bytes(b"PK\x03\x04 cut short")
    (tmp_path / "y.zst").write_bytes(b"\x28\xb5\x2f\xfd....")
    (tmp_path / "y.parquet").write_bytes(b"PAR1....")
    for name, reason in (("y.zip", "cannot be read"), ("y.zst", "unzstd"), ("y.parquet", "a Parquet file")):
        with pytest.raises(DataError, match=rf"{name}: .*{reason}"):
            read_lines(tmp_path / name)


def test_the_whole_text_is_what_the_file_says(tmp_path: Path) -> None:
    for raw, text in ((b"\xef\xbb\xbfa\r\nb", "a\nb"), (b"a\n", "a\n"), (b"", ""), (b"\n", "\n")):
        (tmp_path / "x").write_bytes(raw)
        assert read_text(tmp_path / "x") == text


@pytest.mark.parametrize("end", ["\n", "\n\n", " \n", "\t\n"])
@pytest.mark.parametrize("on_empty", ["skip", "error"])
def test_blank_lines_at_the_end_are_no_pairs(end: str, on_empty: str, tmp_path: Path) -> None:
    files = {"x.tsv": "a\tb\nc\td\n", "x.jsonl": '{"source": "a", "target": "b"}\n{"source": "c", "target": "d"}\n'}
    for name, text in files.items():
        (tmp_path / name).write_text(text + end)
        pairs = read_pairs(str(tmp_path / name), DataConfig(train="", on_empty=on_empty))
        assert list(pairs) == [("a", "b"), ("c", "d")]
        assert pairs.where == [f"{tmp_path / name}:1", f"{tmp_path / name}:2"]
    (tmp_path / "s").write_text("a\nc\n" + end)
    (tmp_path / "t").write_text("b\nd\n")
    where = str(tmp_path / "s"), str(tmp_path / "t")
    assert list(read_pairs(where, DataConfig(train=where, on_empty=on_empty))) == [("a", "b"), ("c", "d")]


def test_a_blank_line_between_is_skipped_or_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"source": "a", "target": "b"}\n\n{"source": "c", "target": "d"}\n')
    where = str(tmp_path / "x.jsonl")
    assert len(read_pairs(where, DataConfig(train=where, on_empty="skip"))) == 2
    with pytest.raises(DataError, match=r"x.jsonl:2: the source is empty"):
        read_pairs(where, DataConfig(train=where))


def test_blank_lines_of_tables(tmp_path: Path) -> None:
    for name, text in {
        "x.csv": "file,text\n\na,b\n  \n", "x.tsv": "file\ttext\na\tb\n\t\n",
        "x.jsonl": '\n{"file": "a", "text": "b"}\n \n',
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
        assert [cells for _, cells in read_cells(tmp_path / name)] == [{"file": "a", "text": "b"}]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('file,text\na,"b\nc,d\ne,f\n', "2"),  # an unclosed quote swallowed two rows
        ('file,text\na,b\nc,"d" e\n', "3"),
        ("file,text\na,b\rc,d\n", "2"),
        ("file,text\na," + "b" * 200_000 + "\n", "2"),
    ],
)
def test_malformed_rows_of_tables_are_named(text: str, where: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(text, newline="")
    with pytest.raises(DataError, match=rf"x.csv:{where}: not a row of a table"):
        list(read_cells(tmp_path / "x.csv"))


def test_documents_without_a_chosen_one_give_their_ends(tmp_path: Path) -> None:
    paths = []
    for name in ("a", "c"):
        (tmp_path / name).write_text(name * 99)
        paths.append(str(tmp_path / name))
    found = read_texts(TextConfig(train=tuple(paths), dev_share=0.02))
    assert [t + d for t, d in zip(found.train, found.dev, strict=True)] == ["a" * 99 + "\n", "c" * 99 + "\n"]
    assert [len(text) for text in found.dev] == [2, 2]


def test_a_variable_may_hold_a_dollar_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(tmp_path / "a$b"))
    assert expand("$REGARD_DATA/x") == tmp_path / "a$b" / "x"
    monkeypatch.delenv("REGARD_DATA")
    with pytest.raises(DataError, match="the environment variable REGARD_DATA is not set"):
        expand("$REGARD_DATA/x")


def test_an_archive_with_holes_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.wav").open("wb") as file:
        file.truncate(2_000_000)
        file.seek(1_000_000)
        file.write(b"x")
    subprocess.run(["tar", "-S", "--format=gnu", "-cf", "s.tar", "a.wav"], cwd=tmp_path, check=True)
    with pytest.raises(DataError, match="holds a file with holes"):
        Files(str(tmp_path / "s.tar")).names()


@pytest.mark.parametrize(("ending", "pack"), [("bz2", bz2.compress), ("xz", lzma.compress), ("gz", gzip.compress)])
def test_streams_one_behind_the_other_are_read_to_the_end_or_refused(tmp_path: Path, ending: str, pack: Any) -> None:
    lines = [f"line {n} of a text" for n in range(20_000)]
    parts = [pack("".join(f"{line}\n" for line in some).encode()) for some in (lines[:9_000], lines[9_000:], [])]
    path = tmp_path / f"t.txt.{ending}"
    path.write_bytes(b"".join(parts))
    assert list(stream_lines(path)) == lines == read_lines(path)
    if ending == "xz":  # whose streams may have zeros between them
        path.write_bytes(bytes(2 * CHUNK).join(parts) + bytes(4))
        assert list(stream_lines(path)) == lines
    damaged = bytearray(parts[1])
    damaged[2] ^= 1
    for broken in (parts[0] + bytes(damaged), parts[0] + b"junk", parts[0][:-9], parts[0] + parts[1][:200]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="cannot be read"):
            list(stream_lines(path))


def test_a_name_that_no_file_has_is_one_sentence(tmp_path: Path) -> None:
    for read in (Files(str(tmp_path)).read, lambda name: read_sound(tmp_path / name)):
        with pytest.raises(DataError, match="no file can have this name"):
            read("a" * 300 + ".wav")
