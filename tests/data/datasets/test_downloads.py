"""Public data sets from a stand-in of the publisher's file, given or fetched from a server on this machine."""

import gzip
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from regard import cli
from regard.data.archive import Files
from regard.data.datasets import an4, downloads, fsdd
from regard.errors import DataError

PAIRS = "Go.\tVa !\tCC-BY 2.0 (France) Attribution: tatoeba.org #1 (A)\nHi.\tSalut.\tthe same\n"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """What manythings.org offers, small."""
    path = tmp_path / "fra-eng.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("_about.txt", "about")
        made.writestr("fra.txt", PAIRS)
    return path


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server of the folder on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_pairs_stand_where_the_configs_look(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(tmp_path / "data"))
    assert cli.run(["data", "tatoeba", str(archive)]) == 0
    made = tmp_path / "data" / "tatoeba-fra-eng" / "pairs.en-fr.tsv.gz"
    assert gzip.decompress(made.read_bytes()).decode() == "Go.\tVa !\nHi.\tSalut.\n"
    said = capsys.readouterr().err
    assert "2 pairs. CC BY 2.0 (FR)" in said
    assert f"export REGARD_DATA={tmp_path / 'data'}" in said
    assert "tatoeba.org" in (made.parent / "LICENCE.txt").read_text()
    assert cli.run(["data", "tatoeba", str(archive)]) != 0
    assert "exists: remove it" in capsys.readouterr().err
    assert downloads.tatoeba("deu-eng").file == "tatoeba-deu-eng/pairs.en-de.tsv.gz"  # as shared data are named


def test_a_text_is_fetched_within_bounds(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "input.txt").write_text("First Citizen:\nBefore we proceed\n" * 10)
    one = replace(downloads.shakespeare(), address=f"{address}/input.txt")
    path, count = one.write(tmp_path / "data")
    assert count == 20
    assert gzip.decompress(path.read_bytes()).decode().startswith("First Citizen:\nBefore we proceed\nFirst Citizen:\n")
    with pytest.raises(
        DataError, match=r"none cannot be fetched \(.*404.*\): download it another way, then run regard data x FILE"
    ):
        downloads.fetch(f"{address}/none", "regard data x FILE")
    (tmp_path / "other.txt").write_text("ROMEO:\nO Romeo!\n" * 10)
    with pytest.raises(DataError, match=r"other\.txt: 160 characters: that is not the text of .*'First Citizen:'"):
        downloads.shakespeare().write(tmp_path / "others", tmp_path / "other.txt")
    with pytest.raises(DataError, match="expected an http or https address"):
        downloads.fetch((tmp_path / "input.txt").as_uri(), "")
    monkeypatch.setattr(downloads, "LARGEST", 100)
    with pytest.raises(DataError, match="more than 100 bytes"):
        downloads.fetch(f"{address}/input.txt", "")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"no tab here\n", r"fra.txt:1: expected English, tab, the other language; got 'no tab here'"),
        (b" \t \n", r"fra.txt:1: expected English, tab, the other language"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b"PK\x03\x04 cut short", "damaged archive|cannot be read"),
    ],
)
def test_another_file_is_refused(content: bytes, fault: str, tmp_path: Path) -> None:
    file = tmp_path / "fra.txt"
    file.write_bytes(content)
    with pytest.raises(DataError, match=fault):
        downloads.tatoeba().write(tmp_path / "data", file)
    assert not (tmp_path / "data").exists()
    with pytest.raises(DataError, match="expected a language's three letters"):
        downloads.tatoeba("../eng")
    with pytest.raises(DataError, match="no such file"):
        downloads.shakespeare().write(tmp_path / "data", tmp_path / "none.txt")


def test_texts_of_a_repository_stand_side_by_side(tmp_path: Path) -> None:
    file = tmp_path / "master.zip"
    parts, languages = ("train", "val", "test_2016_flickr"), ("en", "de", "fr")
    raw = {f"{part}.{language}.gz": gzip.compress(b"a\nb\n") for part in parts for language in languages}
    with zipfile.ZipFile(file, "w") as made:
        for name, content in raw.items():
            made.writestr(f"dataset-master/data/task1/raw/{name}", content)
        made.writestr("dataset-master/data/task1/tok/test_2016_flickr.lc.norm.tok.de", "ein hund\n" * 2)
        made.writestr("dataset-master/data/task2/raw/train.en.gz", b"another task")
        made.writestr("dataset-master/data/task1/raw/../../train.fr.gz", b"elsewhere")
    path, count = downloads.multi30k().write(tmp_path / "data", file)
    assert (path, count) == (tmp_path / "data/multi30k/train.en.gz", 2)
    tokenized = "test_2016_flickr.lc.norm.tok.de.gz"
    assert {one.name for one in path.parent.iterdir()} == {*raw, tokenized, "LICENCE.txt"}
    assert path.with_name("val.de.gz").read_bytes() == raw["val.de.gz"]
    assert gzip.decompress(path.with_name(tokenized).read_bytes()) == b"ein hund\n" * 2
    assert "For research" in (path.parent / "LICENCE.txt").read_text()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("dataset-master/data/task1/raw/train.en.gz", b"not gzip")
    with pytest.raises(DataError, match=r"master\.zip.*(damaged|cannot be read)"):
        downloads.multi30k().write(tmp_path / "other", file)
    assert not (tmp_path / "other").exists()
    for other, sentence in (
        (b"a\n", r"train\.en\.gz has 2 lines and train\.de\.gz has 1: parallel"),
        (None, "cannot be read"),
        (b"a\nb\n", r"train\.fr\.gz is missing: that is not the publisher's archive"),
    ):
        with zipfile.ZipFile(file, "w") as made:
            made.writestr("dataset-master/data/task1/raw/train.en.gz", raw["train.en.gz"])
            made.writestr(
                "dataset-master/data/task1/raw/train.de.gz", b"plain" if other is None else gzip.compress(other)
            )
        with pytest.raises(DataError, match=sentence):
            downloads.multi30k().write(tmp_path / "other", file)
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("dataset-master/README.md", "nothing")
    with pytest.raises(DataError, match="holds none of the texts"):
        downloads.multi30k().write(tmp_path / "other", file)


def test_recordings_become_an_archive_that_the_readers_take(tmp_path: Path) -> None:
    def packed(*names: str) -> Path:
        path = tmp_path / "master.zip"
        with zipfile.ZipFile(path, "w") as made:
            for name in names:
                made.writestr(f"repository-master/{name}", "<s> YES </s> (an1-ab-b)" if "script" in name else name)
        return path

    digits = packed("README.md", "recordings/7_ada_0.wav", "recordings/8_ada_1.wav", "../../7_ada_2.wav")
    path, count = downloads.fsdd().write(tmp_path / "data", digits)
    assert count == 2
    assert [cells["text"] for _, cells in fsdd.read(Files(str(path)))] == ["seven", "eight"]
    with pytest.raises(DataError, match="holds none of the recordings"):
        downloads.an4().write(tmp_path / "data", digits)
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = packed("recordings/7_ada_0.wav", "recordings/7_ada_0.wav")
    with pytest.raises(DataError, match=r"two files 7_ada_0\.wav: that is not the publisher's archive"):
        downloads.fsdd().write(tmp_path / "other", twice)
    spoken = packed("etc/an4_train.transcription", "wav/an4_clstk/ab/an1-ab-b.wav", "wav/an4test_clstk/cd/x-cd-b.wav")
    path, count = downloads.an4().write(tmp_path / "data", spoken)
    assert count == 1
    assert [cells["text"].strip().lower() for _, cells in an4.read(Files(str(path)))] == ["yes"]
