"""The command line: one line in, one line out, and the exit codes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import made_pairs
from regard import __version__, cli, load
from regard.signals import ENDING, Ended

ROOT = Path(__file__).parents[2]


def test_version_and_help(talk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert talk("--version") == (0, f"regard {__version__}\n", "")
    code, out, _ = talk("--help")
    assert code == 0
    assert all(verb in out for verb in ("translate", "train", "evaluate", "trace", "average", "export"))
    assert talk("translate", "--help")[0] == 0
    monkeypatch.setenv("COLUMNS", "80")
    summaries = "".join(talk(*verb, "--help")[1].split("Commands:")[1] for verb in ((), ("data",)))
    assert "..." not in summaries  # none is cut


def test_wrong_command_lines_are_usage(talk) -> None:
    code, _, err = talk("translat")
    assert code == 2
    assert "Did you mean 'translate'" in err
    assert talk("translate", "--bogus")[0] == 2
    assert talk()[0] == 2


@pytest.mark.parametrize(("option", "value"), [("--beam", "0"), ("--beam", "seven"), ("--unsure", "1.7")])
def test_a_value_out_of_range_is_quoted(talk, option: str, value: str) -> None:
    code, out, err = talk("translate", option, value, "le chat")
    assert (code, out) == (2, "")
    assert f"Invalid value for '{option}'" in err
    assert f"{value}'" in err


def test_arguments_are_inputs(talk, tiny_run: Path) -> None:
    code, out, err = talk("translate", "le chat noir", "", "le chien", "--model", tiny_run)
    assert (code, out.count("\n"), err) == (0, 3, "")
    assert out.split("\n")[1] == ""


def test_lines_of_standard_input_end_at_newline_only(talk, tiny_run: Path) -> None:
    text = "le chat\u2028noir\n\nle\x85chien\x0b\r\nle lapin".encode()
    code, out, _ = talk("translate", "--model", tiny_run, stdin=text)
    assert (code, out.count("\n")) == (0, 4)
    assert talk("translate", "-", "--model", tiny_run, stdin=text)[1] == out
    assert talk("translate", "--model", tiny_run, stdin=b"") == (0, "", "")


def test_more_lines_than_a_chunk(talk, tiny_run: Path) -> None:
    lines = [s for s, _ in made_pairs()[:70]]
    code, out, _ = talk("translate", "--beam", 1, "--model", tiny_run, stdin="\n".join(lines).encode())
    assert (code, out.count("\n")) == (0, 70)
    assert (
        talk("translate", "--beam", 1, *lines[63:66], "--model", tiny_run)[1].split("\n")[:3] == out.split("\n")[63:66]
    )


def test_a_refused_line_is_an_empty_line_one_sentence_and_exit_1(talk, tiny_run: Path) -> None:
    code, out, err = talk(
        "translate", "--model", tiny_run, stdin=b"le chat\n\xff\xfe\n" + b"a" * 100_000 + b"\nle chien\n"
    )
    assert (code, out.count("\n")) == (1, 4)
    assert out.split("\n")[1:3] == ["", ""]
    assert err.splitlines() == [
        "regard: line 2: not UTF-8 (byte 0xff at position 0)",
        "regard: line 3: a text of 100,000 characters is too long: this model takes 300 tokens; cut it into sentences",
    ]


def test_json_look_and_grid(talk, tiny_run: Path, tmp_path: Path) -> None:
    png, svg = tmp_path / "cat.png", tmp_path / "cat.svg"
    code, out, err = talk(
        "translate",
        "le chat noir",
        "--json",
        "--n-best",
        2,
        "--grid",
        "--look",
        png,
        "--look",
        svg,
        "--model",
        tiny_run,
    )
    record = json.loads(out)
    assert (code, record["source"], len(record["alternatives"])) == (0, "le chat noir", 1)
    assert "noir" in err
    assert f"drawn: {png}\n" in err
    assert f"drawn: {svg}\n" in err
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text()
    talk("translate", "le chat", "le chien", "--look", png, "--model", tiny_run)
    assert (tmp_path / "cat-1.png").exists()
    assert (tmp_path / "cat-2.png").exists()


def test_bad_requests_are_one_sentence(talk, tiny_run: Path, tmp_path: Path) -> None:
    cases = {
        ("translate", "x", "--model", "fr-em"): (2, "unknown model 'fr-em'"),
        ("translate", "x", "--model", "./nowhere"): (
            1,
            "./nowhere: no such folder; expected the folder that `regard train` printed at its end, or a shipped",
        ),
        ("train", "nowhere.toml"): (2, "nowhere.toml: no such config file"),
        ("translate", "x", "--model", tiny_run, "--look", tmp_path / "no" / "x.png"): (1, "does not exist"),
        ("translate", "x", "--model", tiny_run, "--look", tmp_path / "x.foo"): (
            1,
            "end it in .png, .svg, .pdf or .html",
        ),
        ("evaluate", tiny_run, "--source", "nowhere", "--reference", "nowhere"): (1, "nowhere: no such file"),
        ("average", tmp_path, tmp_path): (1, "is not a trained model"),
    }
    for arguments, (wanted, sentence) in cases.items():
        code, _, err = talk(*arguments)
        assert (code, err.count("\n")) == (wanted, 1), err
        assert err.startswith("regard: ")
        assert sentence in err


def test_trace(talk, tiny_run: Path, tmp_path: Path) -> None:
    code, out, err = talk("trace", tiny_run, "le chat noir", "--look", tmp_path / "trace.png")
    assert (code, err) == (0, f"regard: drawn: {tmp_path / 'trace.png'}\n")
    assert "step 1: <s> →" in out
    assert "weight α" in out
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads(talk("trace", tiny_run, "le chat noir", "--json")[1])
    assert record["steps"][0]["previous"] == "<s>"


def test_why(talk, tmp_path: Path) -> None:
    code, out, err = talk("why", "fr-en-rnn", "le chat dort.", "--look", tmp_path / "why.png")
    assert (code, err) == (0, f"regard: drawn: {tmp_path / 'why.png'}\n")
    text, *words, heads, sentence = out.splitlines()
    assert [line.split()[0] for line in words] == text.split() == ["The", "cat", "sleeps."]
    assert all(" ← " in line for line in words)
    assert words[1].split()[:3] == ["cat", "←", "chat"]
    assert heads.startswith("heads: ")
    assert sentence.startswith("contributions ")
    assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = talk("why", "fr-en-rnn", "le chat", "", "--json")
    assert (code, err) == (0, "")
    first, second = map(json.loads, out.splitlines())
    assert first["sentence"].startswith("Whether contributions or attention may be believed stays open")  # two words
    assert first["words"][0]["faithfulness"]["parts"] == ["le", "chat"]
    assert (second["text"], second["words"]) == ("", [])


def test_why_refuses_models_for_other_tasks(talk) -> None:
    code, out, err = talk("why", "english", "the [MASK]")
    assert (code, out) == (2, "")
    assert err == ("regard: english is a model for `regard fill`: `regard why` explains translations and completions\n")


@pytest.mark.slow
def test_why_of_a_completion(talk) -> None:
    code, out, err = talk("why", "shakespeare", "ROMEO: But, soft!", "--length", 8)
    assert (code, err) == (0, "")
    assert out.startswith("ROMEO: But, soft!")
    assert "decoder.layers." in out


def test_evaluate_average_export(talk, tiny_run: Path, tmp_path: Path) -> None:
    for name, side in (("source", 0), ("reference", 1)):
        (tmp_path / name).write_text("".join(f"{pair[side]}\n" for pair in made_pairs()[:5]))
    files = ("--source", tmp_path / "source", "--reference", tmp_path / "reference")
    code, out, _ = talk("evaluate", tiny_run, *files, "--output", tmp_path / "out")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["BLEU", "chrF", "loss", "perplexity"]
    assert "version:" in out
    assert (tmp_path / "out").read_text().count("\n") == 5
    code, out, said = talk("evaluate", tiny_run, *files, "--output", "-")
    assert (code, out) == (2, "")
    assert "--output -: standard output holds this command's other lines: name a file" in said
    assert json.loads(talk("evaluate", tiny_run, *files, "--json")[1])["sentences"] == 5
    assert talk("average", tiny_run, tmp_path / "mean")[:2] == (0, f"{tmp_path / 'mean'}\n")
    both = talk("average", tiny_run, tmp_path / "both", "--with", tmp_path / "mean")
    assert both[:2] == (0, f"{tmp_path / 'both'}\n")
    one, other, mean = (load(path).model.state_dict() for path in (tiny_run, tmp_path / "mean", tmp_path / "both"))
    for name, weight in mean.items():
        assert torch.allclose(weight, (one[name] + other[name]) / 2, atol=1e-6)
    code, _, said = talk("average", tiny_run, tmp_path / "none", "--with", "fr-en")
    assert (code, (tmp_path / "none").exists()) == (2, False)
    assert "average: fr-en has model." in said
    assert talk("export", tmp_path / "mean", tmp_path / "small", "--precision", "float16")[0] == 0
    assert talk("translate", "le chat", "--model", tmp_path / "small")[0] == 0


def test_train_with_bar_and_print_config(
    talk, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    config = ROOT / "src/regard/configs/fr-en-rnn.toml"
    small = ["--set", "model.width=16", "--set", "model.embedding=16", "--set", "tokenizer.vocabulary=80"]
    small += ["--set", "training.max_steps=2", "--set", "data.dev_share=0.1", "--run", tmp_path / "run"]
    code, out, err = talk("train", config, *small)
    assert (code, out) == (0, f"{tmp_path / 'run'}\n")
    assert " 2/2 " in err
    assert "dev loss" in err
    code, out, _ = talk("train", config, "--set", "model.width=16", "--print-config")
    assert code == 0
    assert "\nwidth = 16" in out
    assert 'after the warm-up. One of "inverse_sqrt", "cosine", "constant".\n' in out  # the values that it may have
    assert talk("train", config, "--set", "model.widht=16")[0] == 2
    assert talk("train", config, "--set", "nonsense")[2] == (
        "regard: --set nonsense: expected key=value, for example --set model.width=192\n"
    )


def test_the_module_runs_and_help_does_not_import_torch() -> None:
    code = "import sys, regard.cli.main; regard.cli.main.run(['--help']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
    shown = subprocess.run([sys.executable, "-m", "regard", "--version"], check=True, capture_output=True, text=True)
    assert shown.stdout == f"regard {__version__}\n"


def test_answers_start_without_torchs_compiler() -> None:
    code = """
import sys, regard
for name, text in {"fr-en": "le chat", "fr-en-rnn": "le chat", "shakespeare": "ROMEO:", "english": "a [MASK]"}.items():
    regard.load(name)(text)
    assert "torch._dynamo" not in sys.modules, name
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away_is_no_crash(tiny_run: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "regard", "translate", "le chat", "--model", str(tiny_run)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_what_the_system_refuses_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A full disk behind the output, a folder that may not be read."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "secret/cat.png")

    monkeypatch.setattr("regard.cli.main.app", refuse)
    assert cli.run(["caption", "secret/cat.png"]) == 1
    assert capfd.readouterr().err == "regard: secret/cat.png: Permission denied\n"


def test_a_run_needs_a_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    code = cli.run(["train", "emoji", "--run", str(tmp_path / "file")])
    assert code == 2
    assert "file: a file; a run needs a folder of its own" in capfd.readouterr().err


@pytest.mark.parametrize("verb", ["caption", "transcribe"])
def test_files_are_read_from_standard_input(talk, verb: str) -> None:
    code, out, said = talk(verb, stdin=b"nowhere.png\n")
    assert (code, out) == (1, "\n")
    assert "nowhere.png" in said
    assert "Traceback" not in said
    assert talk(verb, stdin=b"") == (0, "", "")


def test_a_figure_that_would_run_tex_is_refused(talk, tmp_path: Path) -> None:
    code, _, said = talk("trace", "fr-en-rnn", "le chat", "--look", tmp_path / "x.pgf")
    assert code == 1
    assert "cannot draw '.pgf': end it in .png, .svg" in said


@pytest.mark.parametrize("number", ENDING, ids=lambda one: one.name)
def test_a_signal_within_a_verb_is_its_exit_code(
    talk, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, tmp_path: Path
) -> None:
    def ended(*_: object, **__: object) -> None:
        raise Ended(number)

    monkeypatch.setattr("regard.report.report", ended)
    monkeypatch.setattr("regard.data.datasets.downloads.multi30k", ended)
    monkeypatch.setattr("regard.experiment.prepare", ended)
    assert talk("report", tmp_path)[::2] == (128 + number, "regard: interrupted\n")
    assert talk("data", "multi30k")[::2] == (128 + number, "regard: interrupted\n")
    code, _, err = talk("prepare", "first", "--folder", tmp_path / "run")
    assert (code, err) == (128 + number, "regard: interrupted; what was prepared is kept: the same command continues\n")
