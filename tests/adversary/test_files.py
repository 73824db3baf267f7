"""Files and addresses of strangers that the command line reads: archives, tables, subtitles, glossaries, runs.

Every attempt is one verb in a process of its own: a result or one sentence, within 20 seconds of the processor
and 1 GB.
"""

import bz2
import gc
import gzip
import io
import json
import lzma
import os
import random
import socket
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import regard
from adversary.attempts import Outcome, attempt, verb
from regard import cli
from regard.data.datasets import downloads
from regard.errors import DataError

MANY, SEED = 1 << 29, 23  # bytes that a bomb unpacks to
PAIRS = "".join(f"Hello {n}.\tBonjour {n}.\tCC\n" for n in range(60)).encode()
CUE = "00:00:01,000 --> 00:00:02,500\n"
ENTRY = {"event": "evaluation", "step": 3, "seconds": 5.0, "dev_loss": 1.1, "train_loss": 1.3, "skipped": 0}
Attempts = Iterator[tuple[str, list[str]]]


def zipped(name: str, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        archive.writestr(name, content)
    return made.getvalue()


def archives(place: Path) -> Attempts:
    """Bombs, and archives of every method with a few bytes changed."""
    raw = b"\0" * MANY
    bombs = {"x.gz": gzip.compress(raw, 1), "x.bz2": bz2.compress(raw, 1), "x.xz": lzma.compress(raw, preset=0),
             "x.zip": zipped("fra.txt", raw)}  # fmt: skip
    for name, content in bombs.items():
        (place / name).write_bytes(content)
        yield f"bomb {name}", ["data", "shakespeare", str(place / name), "--folder", str(place / f"bomb-{name}")]
    generator = random.Random(SEED)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        for kind, name in (("tatoeba", "fra.txt"), ("fsdd", "x/recordings/0_a_0.wav")):
            for number in range(6):
                changed = bytearray(zipped(name, PAIRS, method))
                for _ in range(generator.choice([1, 2, 5, 20])):
                    changed[generator.randrange(len(changed))] = generator.randrange(256)
                path = place / f"{kind}-{method}-{number}.zip"
                path.write_bytes(changed)
                yield path.name, ["data", kind, str(path), "--folder", str(place / path.stem)]
    (place / "name.zip").write_bytes(zipped("fr\u00e9.txt", PAIRS).replace("\u00e9".encode(), b"\xff\xfe"))
    yield "a name that is not UTF-8", ["data", "tatoeba", str(place / "name.zip"), "--folder", str(place / "name")]


def endless(place: Path) -> Attempts:
    """Pipes that nothing is written to, and a device without end, wherever a verb reads a file."""
    os.mkfifo(place / "pipe")
    (place / "zero").symlink_to("/dev/zero")
    (place / "lines").write_text("le chat\n")
    for name in ("pipe", "zero"):
        path = str(place / name)
        for ending in (".srt", ".safetensors", ".txt"):
            (place / f"{name}{ending}").symlink_to(path)
        run = place / f"run-{name}"
        run.mkdir()
        (run / "config.toml").write_text("")
        (run / "journal.jsonl").symlink_to(path)
        yield f"{name} data", ["data", "shakespeare", path, "--folder", str(place / f"data-{name}")]
        yield f"{name} debian", ["data", "debian", path, path]
        (place / f"{name}.mo").symlink_to(path)
        yield f"{name} messages", ["data", "messages", f"{path}.mo"]
        yield f"{name} further texts", ["distill", "fr-en", "first", "--folder", str(place / name), "--text", path]
        yield (
            f"{name} prepared",
            ["prepare", "first", "--folder", str(place / f"p-{name}"), "--set", f'data.train="{path}"'],
        )
        yield f"{name} glossary", ["translate", "--glossary", path, "le chat"]
        yield f"{name} subtitles", ["translate", "--from", f"{path}.srt"]
        yield f"{name} source", ["evaluate", "fr-en", "--source", path]
        yield f"{name} reference", ["evaluate", "fr-en", "--source", str(place / "lines"), "--reference", path]
        yield f"{name} map", ["look", f"{path}.safetensors", "--save", str(place / "map.html")]
        yield f"{name} journal", ["report", str(run)]
        yield f"{name} token", ["serve", "fr-en", "--token-file", path]


def runs(place: Path) -> Attempts:
    """Folders of runs that no run has written."""
    journals: dict[str, object] = {
        "texts": ENTRY | {"seconds": "a", "step": "b"}, "null": dict.fromkeys(ENTRY) | {"event": "evaluation"},
        "missing": {"event": "evaluation"}, "huge": ENTRY | {"seconds": 1e300},
        "no number": ENTRY | {"seconds": float("nan")},
    }  # fmt: skip
    averages = [{"event": "average"}, {"event": "average", "chosen": False, "of": []},
                {"event": "average", "chosen": False, "of": [77]}]  # fmt: skip
    lines = {name: [entry] for name, entry in journals.items()}
    lines |= {f"average {n}": [ENTRY, one] for n, one in enumerate(averages)}
    lines["a measure later"] = [ENTRY, ENTRY | {"step": 5, "dev_bleu": 7.0}]
    lines["a measure before"] = [ENTRY | {"dev_bleu": 7.0}, ENTRY | {"step": 5}]
    damaged = [b"junk", b"[5]", b'{"rows": 5, "sentences": 5}', b"[" * 100_000, b"\xff"]
    names = "samples.json", "machine.json", "attention/1.json"
    others = {f"{name} {n}": (name, content) for name in names for n, content in enumerate(damaged)}
    for name, entries in lines.items():
        run = place / name
        run.mkdir()
        (run / "config.toml").write_text("")
        (run / "journal.jsonl").write_text("".join(json.dumps(one) + "\n" for one in entries))
        yield name, ["report", str(run)]
    for label, (name, content) in {**others, "config.toml": ("config.toml", b"\xff")}.items():
        run = place / label.replace("/", "-")
        (run / name).parent.mkdir(parents=True)
        (run / "config.toml").write_text("")
        (run / "journal.jsonl").write_text(json.dumps(ENTRY) + "\n")
        (run / name).write_bytes(content)
        yield label, ["report", str(run)]


def texts(place: Path) -> Attempts:
    """Subtitles, corpora and settings."""
    cues = {"many times": CUE * 20_000, "digits": "0" * 200_000 + ":0", "one cue": CUE + "chat\n" * 6_000}
    for name, text in cues.items():
        (place / f"{name}.srt").write_text(text)
        yield name, ["translate", "--from", str(place / f"{name}.srt")]
    for name, line in {
        "half": r'{"text": "\ud800 chat"}',
        "deep": "[" * 100_000,
        "digits": '{"text": ' + "1" * 9_999,
    }.items():
        (place / f"{name}.jsonl").write_text(line + "\n")
        yield name, ["translate", "--from", str(place / f"{name}.jsonl"), "--to", str(place / name)]
    for option, value in (("--n-best", "100000"), ("--threads", "1000000000"), ("--mbr", "1000000000")):
        yield f"{option} {value}", ["translate", option, value, "le chat"]


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
@pytest.mark.parametrize(
    "some",
    [runs, *(pytest.param(some, marks=pytest.mark.slow) for some in (archives, endless, texts))],
    ids=lambda some: some.__name__,
)
def test_files_of_strangers_are_read_or_refused(
    some: Callable[[Path], Attempts], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    regard.load("fr-en")  # imported before the forks
    outcomes: list[tuple[str, Outcome]] = []
    for name, arguments in some(tmp_path):
        outcomes.append((name, attempt(verb(*arguments), seconds=20.0, megabytes=1000.0)))
    faults = [f"{name}: {one.text[-300:]}" for name, one in outcomes if one.verdict == "fault"]
    refused = sum(one.verdict == "refused" for _, one in outcomes)
    with capfd.disabled():
        print(f"{some.__name__}: {len(outcomes)} attempts: {refused} refused, {len(outcomes) - refused} read")
    assert faults == []


def answered(script: Callable[[socket.socket], None]) -> str:
    """The address of a server that runs a script for each connection."""
    listening = socket.create_server(("127.0.0.1", 0))

    def one(connection: socket.socket) -> None:
        with connection:
            try:
                connection.settimeout(5)
                connection.recv(2**16)
                script(connection)
            except OSError:
                pass

    def serve() -> None:
        with listening:
            listening.settimeout(10)
            for _ in range(20):
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}/x"


def drip(what: bytes, first: bytes = b"") -> Callable[[socket.socket], None]:
    def script(connection: socket.socket) -> None:
        connection.sendall(first)
        for _ in range(60):
            connection.sendall(what)
            time.sleep(0.1)

    return script


def redirect(to: str) -> Callable[[socket.socket], None]:
    def script(connection: socket.socket) -> None:
        connection.sendall(f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode())

    return script


OK = b"HTTP/1.1 200 OK\r\n"
SCRIPTS = {
    "a body that drips": (drip(b"x", OK + b"\r\n"), "stopped|not there after"),
    "a header that drips": (drip(b"x", OK), "not there after"),
    "answers that announce another": (drip(b"HTTP/1.1 100 Continue\r\n\r\n"), "not there after"),
    "to a file": (redirect("file:///etc/hostname"), "not allowed"),
    "to ftp": (redirect("ftp://127.0.0.1:1/x"), "redirects to ftp://127.0.0.1:1/x, which is not https"),
    "to itself": (redirect("/x"), "infinite loop"),
    "cut": (lambda connection: connection.sendall(OK + b"Content-Length: 9\r\n\r\nabc"), "after 3 of 9 bytes"),
    "no length": (lambda connection: connection.sendall(OK + b"Content-Length: x\r\n\r\nabc"), "invalid literal"),
    "chunks": (lambda connection: connection.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\nz\r\n"), "Incomplete"),
    "nothing": (lambda connection: None, "closed connection"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_download_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "SILENCE", 1.0)
    monkeypatch.setattr(downloads, "LONGEST", 1.5)
    script, fault = SCRIPTS[name]
    with pytest.raises(DataError, match=fault):
        downloads.fetch(answered(script), "the command")
    gc.collect()  # a connection that was left open is noticed here


def test_nothing_of_the_user_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read is not written to, and a license of the user's own stays."""
    glossary, texts, packages = tmp_path / "terms.tsv", tmp_path / "texts", tmp_path / "Translation-fr"
    glossary.write_text("chat\tcat\n")
    texts.write_text("le chat\n")
    packages.write_text("Package: x\n")
    before = [one.read_bytes() for one in (glossary, texts, packages)]
    assert cli.run(["translate", "--glossary", str(glossary), "--output", str(glossary), "le chat"]) == 2
    assert cli.run(["data", "debian", str(packages), str(packages), "-o", str(packages)]) == 2
    with texts.open() as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", file)
        patch.setattr(os, "fstat", lambda _, stat=os.fstat: stat(file.fileno()))
        assert cli.run(["translate", "--output", str(texts)]) == 2
    assert before == [one.read_bytes() for one in (glossary, texts, packages)]
    licence = tmp_path / "data" / "tinyshakespeare" / "LICENCE.txt"
    licence.parent.mkdir(parents=True)
    licence.write_text("mine")
    (tmp_path / "input.txt").write_text("ROMEO:\n" * 50)
    with pytest.raises(DataError, match=r"LICENCE.txt exists, and says something else"):
        downloads.shakespeare().write(tmp_path / "data", tmp_path / "input.txt")
    assert licence.read_text() == "mine"
    for name in ("a/b-eng", "fr\x1b-eng", "f.r-eng"):
        with pytest.raises(DataError, match="expected a language's three letters"):
            downloads.tatoeba(name)
