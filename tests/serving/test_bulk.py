"""A corpus translated in parts: every row once, in its order, whatever was interrupted or killed."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

import regard
from regard.data.arrow import stream_column
from regard.errors import ConfigError, DataError
from regard.pipelines.load import SHIPPED
from regard.serving.bulk import BulkConfig, Here, PartDone, PartWriter, column_of, part_file, translate_corpus

TEXTS = [
    ("le chat noir", "Le chien dort. Le chat mange.", "la maison", "")[n % 4] + f" {n}" * (n % 4 == 2)
    for n in range(90)
]


def table(path: Path, texts: list[str] = TEXTS) -> Path:
    parquet.write_table(pa.table({"number": list(range(len(texts))), "fr": texts}), path, row_group_size=17)
    return path


def parts(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in parquet.read_table(path).to_pylist()]


def check(folder: Path, texts: list[str]) -> None:
    rows = parts(folder)
    assert [row["id"] for row in rows] == list(range(len(texts)))
    assert [row["source"] for row in rows] == texts
    some = [0, 1, 2, 3, len(texts) - 1]
    found = regard.load("fr-en")([texts[n] for n in some], beam=1)
    assert [rows[n]["text"] for n in some] == [one.text for one in found]
    for n, one in zip(some, found, strict=True):
        assert rows[n]["log_prob"] == pytest.approx(one.log_prob, abs=1e-4)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl", "csv", "tsv", "txt"])
def test_every_kind_of_corpus(tmp_path: Path, kind: str) -> None:
    texts, path = ["un, deux", "", 'le "chat"'], tmp_path / f"corpus.{kind}"
    if kind == "parquet":
        table(path, texts)
    elif kind == "arrow":
        made = pa.table({"fr": texts})
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, made.schema) as writer:
            writer.write_table(made)
    else:
        lines = {
            "jsonl": [json.dumps({"fr": text}) for text in texts], "txt": texts,
            "csv": ["n,fr", '1,"un, deux"', "2,", '3,"le ""chat"""'],
            "tsv": ["n\tfr", "1\tun, deux", "2\t", '3\tle "chat"'],
        }[kind]  # fmt: skip
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    assert list(column_of(path, "fr")) == texts


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'text': it has 'number', 'fr'; name one of them"):
        list(stream_column(table(tmp_path / "c.parquet"), "text"))
    (tmp_path / "c.jsonl").write_text('{"fr": 3}\n')
    with pytest.raises(DataError, match=r"c.jsonl:1: expected an object with a text 'fr'"):
        list(column_of(tmp_path / "c.jsonl", "fr"))


def test_a_refused_column_does_not_bind_the_folder(tmp_path: Path) -> None:
    corpus, folder = table(tmp_path / "corpus.parquet"), tmp_path / "out"

    def run(column: str) -> list[PartDone]:
        config, seen = BulkConfig(str(corpus), 0, column, "fr-en", {}, part=50), []

        def submit(number: int, texts: list[str]) -> Future[PartDone]:
            done: Future[PartDone] = Future()
            (folder / f"part-{number:06d}.parquet").touch()
            done.set_result(PartDone(number, len(texts), 0))
            return done

        translate_corpus(config, folder, submit, 1, seen.append)
        return seen

    with pytest.raises(DataError, match="no column 'text'"):
        run("text")
    assert [one.rows for one in run("fr")] == [50, 40]
    with pytest.raises(ConfigError, match="its parts were made with column = 'fr', not 'number'"):
        run("number")


def test_parts_of_another_corpus_or_model_are_not_taken(tmp_path: Path) -> None:
    corpus, folder, model = tmp_path / "c.txt", tmp_path / "out", tmp_path / "model"
    corpus.write_text("un\ndeux\n")
    model.mkdir()
    (model / "bundle.json").write_text("{}")

    def run() -> None:
        config = BulkConfig.of(corpus, "", str(model), {})

        def submit(number: int, texts: list[str]) -> Future[PartDone]:
            columns = {"source": texts, "error": pa.array([None] * len(texts), pa.string())}
            parquet.write_table(pa.table(columns), part_file(folder, number))
            done: Future[PartDone] = Future()
            done.set_result(PartDone(number, len(texts), 0))
            return done

        translate_corpus(config, folder, submit, 1, lambda _: None)

    run()
    run()
    corpus.write_text("deux\nun\n")  # as long as before
    with pytest.raises(ConfigError, match=r"part-000000\.parquet: made of other texts than the corpus has now"):
        run()
    corpus.write_text("un\ndeux\n")
    (model / "bundle.json").write_text("{ }")
    with pytest.raises(ConfigError, match="its parts were made with weights = '"):
        run()


def test_without_pyarrow_the_package_is_named_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regard.serving.bulk.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs pyarrow: pip install 'regard\[data\]'$"):
        PartWriter(BulkConfig("corpus.txt", 0, "", "fr-en", {}), tmp_path, pytest.fail)


def test_parts_are_made_once_and_continued(tmp_path: Path) -> None:
    corpus, folder = table(tmp_path / "corpus.parquet"), tmp_path / "out"
    made: list[int] = []
    config = BulkConfig(str(corpus), corpus.stat().st_size, "fr", "fr-en", {"beam": 1}, part=20)
    model = regard.load("fr-en")

    def run() -> list[PartDone]:
        from regard.serving.bulk import Here, PartWriter

        seen: list[PartDone] = []
        here = Here(PartWriter(config, folder, lambda _: model))

        def submit(number: int, texts: list[str]):
            made.append(number)
            return here(number, texts)

        translate_corpus(config, folder, submit, 2, seen.append)
        return seen

    assert [one.rows for one in run()] == [20, 20, 20, 20, 10]
    check(folder, TEXTS)
    (folder / "part-000003.parquet").unlink()
    made.clear()
    assert len(run()) == 5
    assert made == [3]
    check(folder, TEXTS)
    assert not list(folder.glob(".*writing"))


@pytest.mark.parametrize("content", ["5", "[1, 2]", "{", '{"corpus": "\\ud800"}', None])
def test_a_damaged_account_of_a_folder_is_refused(tmp_path: Path, content: str | None) -> None:
    about = tmp_path / "corpus.json"
    os.mkfifo(about) if content is None else about.write_text(content, "utf-8")
    config = BulkConfig("corpus.tsv", 1, "fr", "fr-en")
    with pytest.raises(regard.ConfigError, match=r"corpus\.json: .*: name another folder with --to"):
        translate_corpus(config, tmp_path, lambda *_: pytest.fail("a part is made"), 1, lambda _: None)


def test_a_folder_begun_before_precisions_were_kept_says_so(tmp_path: Path) -> None:
    corpus, folder = table(tmp_path / "corpus.parquet", TEXTS[:5]), tmp_path / "out"
    folder.mkdir()
    config = BulkConfig.of(corpus, "fr", "fr-en", {}, "int8")
    about = asdict(config)
    del about["computing"]
    (folder / "corpus.json").write_text(json.dumps(about))
    (folder / "part-000001.parquet").write_bytes(b"")
    with pytest.raises(regard.ConfigError, match="begun before precision and engine were written down"):
        translate_corpus(config, folder, lambda *_: pytest.fail("a part is made"), 1, lambda _: None)


def test_the_command(talk, tmp_path: Path) -> None:
    long = "mot " * 400
    corpus, folder = table(tmp_path / "corpus.parquet", [*TEXTS[:5], long]), tmp_path / "out"
    command = ("translate", "--from", corpus, "--to", folder, "--column", "fr", "--beam", 1)
    code, out, err = talk(*command, "--no-split")
    assert (code, out) == (1, "")
    assert f"1 rows could not be translated: the column 'error' of the parts in {folder} says why" in err
    rows = parts(folder)
    assert len(rows) == 6
    assert "is too long" in rows[5]["error"]
    assert rows[0]["error"] is None
    code, _, err = talk(*command)
    assert (code, "its parts were made with settings = " in err) == (2, True)
    code, _, err = talk("translate", "--from", corpus)
    assert (code, "give both --from FILE and --to FOLDER" in err) == (2, True)
    code, _, err = talk("translate", "--from", tmp_path / "no", "--to", folder)
    assert (code, "no: no such file" in err) == (2, True)
    for several, kind in ((tmp_path, "folder"), (tmp_path / "*.parquet", "pattern")):
        code, _, err = talk("translate", "--from", several, "--to", folder)
        assert (code, f"--from {several}: expected one file, got a {kind}: " in err) == (2, True)
    code, _, err = talk("translate", "--from", corpus, tmp_path / "second.parquet", "--to", folder)
    assert (code, "from one file into a folder of Parquet files" in err) == (2, True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    code, _, err = talk(*command[:4], tmp_path / "other", *command[5:])
    assert (code, "not empty, and not a folder of translated parts" in err) == (2, True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--column", "fr", "le chat"), "--column fr names the texts of a corpus: give the corpus with --from FILE"),
        (("--column", "fr", "--from", "talk.srt"), "--column fr names the texts of a corpus"),
        (("--json", "--pharaoh", "le chat"), "--json and --pharaoh each decide what an output line holds: give one"),
        (("--pharaoh", "--unsure", 0.3, "le chat"), "--pharaoh and --unsure each decide"),
        (("--unsure", 0.3, "--from", "corpus.jsonl", "--to", "out"), "--pharaoh or --unsure"),
        (("--workers", 3, "le chat"), "--workers 3 is the number of processes of --engine ray: add --engine ray, or"),
        (("--workers", 3, "--from", "corpus.jsonl", "--to", "out"), "--workers 3 is the number of processes"),
    ],
)
def test_options_that_would_be_ignored_are_refused(talk, given: tuple[object, ...], message: str) -> None:
    code, out, err = talk("translate", *given)
    assert (code, out, message in err) == (2, "", True)


@pytest.mark.slow
def test_workers_of_ray_import_nothing_from_the_working_directory(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    corpus = table(tmp_path / "corpus.parquet", TEXTS[:5])
    for name in ("regard", "pyarrow", "torch"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('ran')\nraise SystemExit\n")
    (tmp_path / "models").symlink_to(SHIPPED)
    for model in ("fr-en-fast", "./models/fr-en-fast"):
        command = [
            sys.executable, "-P", "-m", "regard", "translate", "--from", str(corpus), "--to", model.replace("/", "_"),
            "--column", "fr", "--beam", "1", "--engine", "ray", "--workers", "1", "--model", model,
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        assert len(parts(tmp_path / model.replace("/", "_"))) == 5
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_killed_worker_of_ray_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    texts = TEXTS * 120
    corpus, folder = table(tmp_path / "corpus.parquet", texts), tmp_path / "out"
    command = [
        sys.executable, "-m", "regard", "translate", "--from", str(corpus), "--to", str(folder), "--column", "fr",
        "--beam", "1", "--engine", "ray", "--workers", "2",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE) as running:
        deadline = time.monotonic() + 240
        while not list(folder.glob("part-*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        workers = [
            int(path.name)
            for path in Path("/proc").iterdir()
            if path.name.isdigit() and (path / "cmdline").exists() and b"ray::PartWriter" in _line(path)
        ]
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        _, err = running.communicate(timeout=400)
    assert running.returncode == 0, err.decode()
    assert len(list(folder.glob("part-*"))) > 5
    check(folder, texts)


def _line(path: Path) -> bytes:
    try:
        return (path / "cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def test_a_table_that_is_cut_short_is_refused_by_line(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text('fr\nun\n"deux\ntrois\n')
    with pytest.raises(DataError, match=r"c.csv:3: not a row of a table"):
        list(column_of(tmp_path / "c.csv", "fr"))
    (tmp_path / "c.csv").write_text("fr,n\nun,1\ndeux\n")
    with pytest.raises(DataError, match=r"c.csv:3: expected 2 columns; got 1"):
        list(column_of(tmp_path / "c.csv", "fr"))


def test_a_corpus_whose_last_rows_were_corrected_goes_on(tmp_path: Path) -> None:
    corpus, into = tmp_path / "c.jsonl", tmp_path / "out"

    def run(lines: list[str]) -> list[int]:
        corpus.write_text("\n".join(lines), "utf-8")
        made = []
        config = replace(BulkConfig.of(corpus, "text", "fr-en-fast", {}), part=2)
        writer = PartWriter(config, into, regard.load)

        def submit(number: int, texts: list[str]) -> Future[PartDone]:
            made.append(number)
            return Here(writer)(number, texts)

        translate_corpus(config, into, submit, 1, lambda _: None)
        return made

    rows = [json.dumps({"text": text}) for text in TEXTS[:3]]
    with pytest.raises(DataError, match=r"c\.jsonl:3: not JSON"):
        run([*rows[:2], "{"])
    assert run([*rows, "", " "]) == [1]
    with pytest.raises(ConfigError, match=r"part-000001\.parquet: made of texts that the corpus has no longer"):
        run(rows[:2])


def test_a_folder_of_others_is_refused_before_anything_is_written_to_it(tmp_path: Path) -> None:
    for name, content in ((".lock", "mine"), ("thesis.txt", "mine"), ("corpus.json", '{"title": "my corpus"}')):
        (tmp_path / name).write_text(content)
    corpus = table(tmp_path.parent / "corpus.jsonl")
    config = BulkConfig.of(corpus, "text", "fr-en-fast", {})
    for path in (None, tmp_path / "thesis.txt"):
        if path is not None:
            path.unlink()
        with pytest.raises(ConfigError, match="not a folder of translated parts"):
            translate_corpus(config, tmp_path, lambda *_: pytest.fail("translated"), 1, lambda _: None)
    assert (tmp_path / ".lock").read_text() == "mine"
    assert (tmp_path / "corpus.json").read_text() == '{"title": "my corpus"}'
