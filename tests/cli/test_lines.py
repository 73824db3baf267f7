"""One line in, one line out: what comes of inputs, outputs and streams that are not as they should be."""

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import regard
from regard.cli.lines import LONGEST_LINE, check_output, check_targets, draw_to, inputs, targets_of, writing
from regard.errors import ConfigError, RegardError

NOT_UTF8 = os.fsdecode(b"caf\xe9.wav")
SENTENCE = "not UTF-8 (byte 0xe9 at position 3)"


@pytest.mark.parametrize(
    "arguments",
    [
        ("translate", NOT_UTF8), ("complete", NOT_UTF8), ("fill", NOT_UTF8), ("caption", NOT_UTF8),
        ("transcribe", NOT_UTF8), ("trace", "fr-en-rnn", NOT_UTF8),
    ],
)  # fmt: skip
def test_an_argument_that_is_not_utf8_gets_the_sentence_of_standard_input(talk, arguments) -> None:
    assert talk(*arguments) == (1, "\n", f"regard: line 1: {SENTENCE}\n")


@pytest.mark.parametrize("arguments", [("meaning", NOT_UTF8, "a bank"), ("meaning", "bank", NOT_UTF8)])
def test_words_and_texts_too(talk, arguments) -> None:
    assert talk(*arguments) == (2, "", f"regard: {SENTENCE}\n")


def test_a_closed_standard_input_is_one_sentence(talk) -> None:
    code, out, err = talk("translate", stdin=None)
    assert (code, out, err) == (2, "", "regard: standard input is closed: give the inputs as arguments\n")


def test_bytes_of_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfa\r\n\xff\nb\x0bc")))
    first, second, third = inputs(None)
    assert (first, third) == ("a", "b\x0bc")
    assert isinstance(second, RegardError)


class Counted(io.BytesIO):
    most = 0

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(size)
        self.most = max(self.most, len(line))
        return line


def test_a_line_without_end_is_never_in_memory_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Counted(
        b"a\n" + b"x" * (3 * LONGEST_LINE) + b"\nb\n" + b"y" * (LONGEST_LINE - 1) + b"\n" + b"z" * LONGEST_LINE
    )
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=raw))
    found = list(inputs(None))
    assert [one if isinstance(one, str) else "refused" for one in found] == [
        "a",
        "refused",
        "b",
        "y" * (LONGEST_LINE - 1),
        "refused",
    ]
    assert "1,048,576 bytes or more is too long" in str(found[1])
    assert raw.most <= LONGEST_LINE


def test_output_holds_the_lines_once_all_is_done(talk, tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    code, out, err = talk("translate", "le chat noir", "", "la maison", "--beam", 1, "--output", path)
    assert (code, out, err) == (0, "", "")
    assert path.read_text() == "the black cat\n\nthe house\n"
    assert [one.name for one in tmp_path.iterdir()] == ["out.txt"]


def test_output_is_checked_before_the_work(talk, tmp_path: Path) -> None:
    for target, sentence in ((tmp_path / "no" / "x", "does not exist"), (tmp_path, "a folder; name a file in it")):
        code, out, err = talk("translate", "x", "--model", "no-such-model", "--output", target)
        assert (code, out) == (2, "")
        assert "no-such-model" in err or sentence in err
        with pytest.raises(ConfigError, match=sentence):
            check_output(target, ())
    reference = tmp_path / "reference.txt"
    reference.write_text("kept")
    with pytest.raises(ConfigError, match="this is one of the inputs"):
        check_output(reference, [reference])
    assert reference.read_text() == "kept"
    regard.attention_map(torch.ones(2, 3), torch.ones(2, 3)).save(tmp_path / "map.safetensors")  # no model
    written = tmp_path / "translations.jsonl"
    written.write_text("{}")
    check_output(written, ())
    os.mkfifo(tmp_path / "weights.safetensors.pipe")
    (tmp_path / "embeddings.safetensors").write_bytes(b"no model")
    check_output(written, ())
    for weights in ("embeddings.safetensors", "pytorch_model.bin", "model.gguf", "flax_model.msgpack"):
        folder = tmp_path / f"of {weights}"
        folder.mkdir()
        (folder / weights).write_bytes(b"weights")
        (folder / "1_Pooling").mkdir()
        for name in (
            "config.json", "tokenizer.json", "generation_config.json", "x.safetensors.index.json", "vocab.txt",
            "merges.txt", "1_Pooling/config.json",
        ):  # fmt: skip
            (folder / name).write_text("{}")
            with pytest.raises(ConfigError, match="a file of a model or a run"):
                check_output(folder / name, ())
        (folder / "translations.jsonl").write_text("{}")
        check_output(folder / "translations.jsonl", ())
    (tmp_path / "adapter_model.safetensors").write_bytes(b"a model")
    with pytest.raises(ConfigError, match="a file of a model or a run"):
        check_output(written, ())


@pytest.mark.parametrize(
    "arguments",
    [
        ("translate", "le chat", "-o", "a.svg", "--look", "a.svg"),
        ("translate", "le chat", "le chien", "-o", "a-1.svg", "--look", "a.svg"),
        ("caption", "picture.png", "-o", "picture.look.png", "--look"),
        ("evaluate", "fr-en", "--part", "dev", "--output", "a.svg", "--calibration", "a.svg"),
    ],
)
def test_an_output_stands_beside_the_drawings(
    talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = talk(*arguments)
    assert (code, out) == (2, "")
    assert "a drawing is to stand there too" in err
    assert not list(tmp_path.iterdir())


def test_look_never_destroys_a_file(talk, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"a photograph")
    for arguments in (
        ("translate", "le chat"), ("trace", "fr-en-rnn", "le chat"), ("meaning", "bank", "a bank"),
    ):  # fmt: skip
        code, out, err = talk(*arguments, "--look", photo)
        assert (code, out) == (2, "")
        assert "this file exists and was not drawn by regard" in err
    assert photo.read_bytes() == b"a photograph"


def test_a_numbered_drawing_destroys_no_file_either(talk, tmp_path: Path) -> None:
    photo = tmp_path / "align-2.png"
    photo.write_bytes(b"a photograph")
    for arguments in (
        ("translate", "le chat", "le chien"), ("trace", "fr-en-rnn", "le chat", "le chien"),
        ("why", "fr-en", "le chat", "le chien"),
    ):  # fmt: skip
        code, out, err = talk(*arguments, "--look", tmp_path / "align.png")
        assert (code, out) == (2, "")
        assert "align-2.png: this file exists and was not drawn by regard" in err
    assert not draw_to(None, photo, lambda path: path.write_text("drawn"))
    assert photo.read_bytes() == b"a photograph"


def test_a_folder_in_the_place_of_a_drawing_loses_no_line(talk, tmp_path: Path) -> None:
    (tmp_path / "page-2.html").mkdir()
    page = tmp_path / "page.html"
    code, out, err = talk("translate", "--beam", 1, "--look", page, stdin=b"le chat\nle chien\nun chat\n")
    assert (code, [bool(line) for line in out.split("\n")]) == (1, [True, True, True, False])
    assert f"{tmp_path / 'page-2.html'} was not drawn: " in err
    assert (tmp_path / "page-3.html").is_file()


@pytest.mark.parametrize("by", ["arguments", "standard input"])
def test_no_line_is_lost_with_a_drawing(talk, tmp_path: Path, by: str) -> None:
    texts = ["le chat", "", "le chien"]
    given = texts if by == "arguments" else []
    output = tmp_path / "out.txt"
    for target in ((), ("--output", output)):
        code, out, err = talk(
            "translate", *given, "--beam", 1, "--look", tmp_path / "page.html", *target,
            stdin="\n".join(texts).encode() if by == "standard input" else b"",
        )  # fmt: skip
        lines = (output.read_text() if target else out).split("\n")
        assert (code, [bool(line) for line in lines]) == (1, [True, False, True, False])
        assert f"{tmp_path / 'page-2.html'} was not drawn: there is no attention to look at" in err
        assert f"drawn: {tmp_path / 'page-3.html'}" in err


def test_a_picture_of_someone_elses_refuses_its_input_alone(
    talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (32, 32), "red").save(name)
    (tmp_path / "b.look-2.png").write_bytes(b"a photograph")
    code, out, err = talk("caption", "a.png", "b.png", "c.png", "--look")
    assert (code, [bool(line) for line in out.split("\n")]) == (1, [True, False, True, False])
    assert "line 2: --look b.look-2.png: this file exists and was not drawn by regard" in err
    assert (tmp_path / "b.look-2.png").read_bytes() == b"a photograph"


def test_a_folder_in_the_place_of_a_drawing_loses_no_caption(talk, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (32, 32), "red").save(name)
    (tmp_path / "p-2.html").mkdir()
    code, out, err = talk("caption", "a.png", "b.png", "--look", "p.html")
    assert (code, [bool(line) for line in out.split("\n")]) == (1, [True, True, False])
    assert "line 2: p-2.html: a folder; name a file in it" in err
    assert "drawn: p-1.html" in err


def test_a_name_that_no_file_can_have_refuses_its_input_alone(talk, tmp_path: Path) -> None:
    sound = tmp_path / "a.wav"
    soundfile.write(sound, np.zeros(8000, dtype=np.float32), 8000)
    code, out, err = talk("transcribe", "x" * 300 + ".wav", sound)
    assert (code, out) == (1, "\n\n")
    assert "no file can have this name" in err
    page = tmp_path / "page.html"  # silence has no words, and no page
    code, out, err = talk("transcribe", sound, sound, "--look", page)
    assert (code, out) == (1, "\n\n")
    assert err.count("was not drawn: there is no attention to look at") == 2
    code, out, _ = talk("translate", "le chat " * 40 + "dort.txt", "--beam", 1)
    assert (code, bool(out.strip())) == (0, True)


def test_drawings_are_numbered_where_there_are_several() -> None:
    assert targets_of(["a.png", Path("b.svg")], "x", 3, True) == [Path("a-3.png"), Path("b-3.svg")]
    assert targets_of(["NAME.look.png"], "folder/cat.jpg", 1, False) == [Path("cat.look.png")]


def test_the_name_of_a_text_file_is_translated_and_the_way_is_shown(talk, tmp_path: Path) -> None:
    path = tmp_path / "sentences.txt"
    path.write_text("le chat noir\n")
    code, out, err = talk("translate", path, "--beam", 1)
    assert (code, out.count("\n")) == (0, 1)
    assert f"to translate the file: regard translate < {path}" in err


def test_a_recording_may_come_through_a_pipe(talk, tmp_path: Path) -> None:
    tone = np.sin(np.arange(16_000) / 16_000 * 2764).astype("float32") * 0.1
    soundfile.write(tmp_path / "tone.wav", tone, 16_000)
    plain = talk("transcribe", tmp_path / "tone.wav", "--beam", 1)
    assert plain[0] == 0
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    if not (child := os.fork()):
        pipe.write_bytes((tmp_path / "tone.wav").read_bytes())
        os._exit(0)
    assert talk("transcribe", pipe, "--beam", 1) == plain
    os.waitpid(child, 0)


def test_a_pipe_that_nothing_writes_to_is_given_up(talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regard.pipelines.transcriber.PATIENCE", 0.2)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code, _, err = talk("transcribe", pipe)
    assert (code, err) == (1, f"regard: line 1: {pipe}: nothing was written to this pipe for 0.2 seconds\n")
    code, _, err = talk("transcribe", "/dev/zero")
    assert (code, err) == (1, "regard: line 1: /dev/zero: a pipe or a device, not a recording\n")


def interrupted(path: Path) -> None:
    with writing(path) as write:
        write("one")
        raise KeyboardInterrupt


def test_output_that_is_not_finished_is_named_and_nothing_is_lost(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.txt"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert path.read_text() == "before"
    (aside,) = tmp_path.glob(".out.txt.*.aside")
    assert aside.read_text() == "one\n"
    assert capfd.readouterr().err == f"regard: {path} was not written; the lines so far are in {aside}\n"
    with writing(path) as write:
        write("two")
    assert path.read_text() == "two\n"


def test_an_output_without_a_line_leaves_no_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.txt"
    with pytest.raises(KeyboardInterrupt), writing(path):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().err == f"regard: {path} was not written\n"


def test_output_is_no_picture_that_is_captioned(talk, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"a photograph")
    code, out, err = talk("caption", photo, "--output", photo)
    assert (code, out) == (2, "")
    assert "this is one of the inputs" in err
    assert photo.read_bytes() == b"a photograph"


def test_what_is_no_text_or_belongs_to_a_model_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text("{}")
    (tmp_path / "last").mkdir()
    for name in ("bundle.json", "last/progress.json", "diacritics.txt"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(ConfigError, match="no text, or a file of a model or a run"):
            check_output(tmp_path / name, [])
    (tmp_path / "p.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    with pytest.raises(ConfigError, match="no text"):
        check_output(tmp_path / "p.png", [])
    (tmp_path / "out.txt").write_text("before\n")
    check_output(tmp_path / "out.txt", [])
    check_output(tmp_path / "new.json", [])


def test_files_of_models_in_other_layouts_are_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model-00001-of-00002.safetensors", "model.bin", "onnx.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
        (tmp_path / name / "tokenizer.json").write_text("{}")
        with pytest.raises(ConfigError, match="a file of a model"):
            check_output(tmp_path / name / "tokenizer.json", [])
    (tmp_path / "notes.txt").symlink_to(tmp_path / "onnx.json" / "tokenizer.json")
    with pytest.raises(ConfigError, match="a file of a model"):
        check_output(tmp_path / "notes.txt", [])
    (tmp_path / "onnx.json" / "prepared").mkdir()
    (tmp_path / "onnx.json" / "prepared" / "sample.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path / "onnx.json" / "prepared")
    with pytest.raises(ConfigError, match="a file of a model"):
        check_output(Path("sample.jsonl"), [])


def test_an_output_is_checked_where_standard_input_is_closed_or_an_input_has_no_possible_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    check_output(tmp_path / "out.txt", [Path("A" * 300)])
    check_targets([tmp_path / "out.png"], ["A" * 300])
