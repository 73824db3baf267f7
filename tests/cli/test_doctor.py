"""`regard doctor`: what it prints, in both forms, and that it ends well whatever is broken."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regard import __version__
from regard.cli import doctor as verb
from regard.cli.doctor import report, section
from regard.machine import facts
from regard.machine.devices import AttentionKernel, Compiler, Device, Precision
from regard.machine.facts import examine
from regard.pipelines.load import shipped

MACHINE = examine(measure=False)


def keys(found: object) -> object:
    """The names in a JSON object, by position; one element of each list."""
    if isinstance(found, dict):
        return {name: keys(value) for name, value in found.items()}
    return [keys(found[0])] if isinstance(found, list) and found else None


def test_the_report_has_the_facts(talk) -> None:
    code, out, err = talk("doctor")
    assert (code, err) == (0, "")
    assert out.isascii()
    assert "\x1b" not in out
    rows = dict(line.strip().split("  ", 1) for line in out.splitlines() if "  " in line.strip())
    assert rows["regard"].strip() == __version__
    threads = torch.get_num_threads(), torch.get_num_interop_threads()
    assert rows["threads"].strip() == f"{threads[0]} inside an operator, {threads[1]} between operators"
    assert rows["models"].strip() == ", ".join(shipped())
    assert str(torch.__version__) in rows["torch"]
    assert "for 256 rows" in out
    assert max(map(len, out.splitlines())) <= verb.WIDTH


def test_the_json_has_one_schema(talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code, out, err = talk("doctor", "--json")
    found = json.loads(out)
    assert (code, err, out.count("\n")) == (0, "", 1)
    speed = dict.fromkeys(found["devices"][0]["precisions"][0]["speed"])
    package = dict.fromkeys(["name", "requirement", "version", "fits"])
    assert keys(found | {"notes": []}) == {
        "software": dict.fromkeys(["regard", "python", "torch", "build", "libraries", "system", "float32_matmul"])
        | {"libraries": [None]},
        "processor": dict.fromkeys(["name", "architecture", "capability", "cores", "usable_cores", "quota"])
        | {"instructions": [None]},
        "threads": dict.fromkeys(["intra_op", "inter_op"]),
        "memory": dict.fromkeys(["total", "available", "limit"]),
        "auto": None,
        "devices": [
            {
                "word": None, "name": None, "memory": None, "capability": None,
                "precisions": [
                    dict.fromkeys(["name", "supported", "native", "why", "not_measured"]) | {"speed": speed}
                ],
                "attention": [dict.fromkeys(["precision", "mask", "kernel"])],
                "compiler": dict.fromkeys(["needs", "found"]),
            }
        ],
        "packages": [package],
        "extras": [dict.fromkeys(["name", "purpose", "complete", "install"]) | {"packages": [package]}],
        "variables": [dict.fromkeys(["name", "value", "changes"])],
        "notes": None,
        "models": [None],
    }  # fmt: skip
    assert found["threads"]["intra_op"] == torch.get_num_threads()
    assert found["devices"][0]["precisions"][0]["speed"] == {"8": 1.0, "256": 1.0}


def test_neither_the_user_nor_the_home_folder_is_shown() -> None:
    """In a process of its own, with a home of its own, and paths of it wherever the environment allows."""
    home = "/home/ada-of-the-tests"
    code = (
        "import sys, pathlib, getpass; getpass.getuser = lambda: 'ada-of-the-tests';"
        "from regard import cli; sys.exit(cli.run(['doctor', '--json']))"
    )
    variables = {
        "HOME": home,
        "LD_PRELOAD": "",
        "CXX": f"{home}/bin/c++",
        "OMP_PLACES": f"{home}/x:/tmp/ada-of-the-tests/y",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ada-of-the-tests" not in done.stdout
    assert '"~/x:/tmp/USER/y"' in done.stdout


def test_a_missing_extra_gives_the_line_for_pip() -> None:
    extra = replace(MACHINE.extras[0], name="gguf", install="pip install 'regard[gguf]'", complete=False)
    lines = list(report(replace(MACHINE, extras=(extra,)), []))
    assert any("pip install 'regard[gguf]'" in line for line in lines)
    assert "  extras" not in lines
    lines = list(report(replace(MACHINE, extras=(), packages=()), []))
    assert "  unknown: regard runs from a folder and is not installed" in lines


def test_a_cuda_machine() -> None:
    card = Device(
        "cuda:0", "NVIDIA A100", 80 * 2**30, "8.0",
        (
            Precision("float32", True, True, "other speeds are relative to this one", {32: 1.0, 2048: 1.0}),
            Precision("bfloat16", True, True, "tensor cores", {32: 2.0, 2048: 9.5}),
            Precision("tf32", True, True, "tensor cores", None, "a switch"),
            Precision("int8", None, None, "not examined"),
            Precision("other", False, False, "no such thing"),
        ),
        (AttentionKernel("float32", "table", "memory-efficient"), AttentionKernel("bfloat16", "none", "flash")),
        Compiler("Triton", None),
    )  # fmt: skip
    lines = list(report(replace(MACHINE, devices=(card,), auto="cuda", notes=("the driver is old",)), ["fr-en"]))
    start = lines.index('device cuda:0: NVIDIA A100, memory 80.0 GiB, 8.0, chosen by device="auto"')
    assert lines[start + 1 : start + 7] == [
        "  precision  speed, 32 rows  speed, 2048 rows  why",
        "  float32    1.00            1.00              other speeds are relative to this one",
        "  bfloat16   2.00            9.50              tensor cores",
        "  tf32       -               -                 tensor cores; not measured: a switch",
        "  int8       unknown         unknown           not examined",
        "  other      no              no                no such thing",
    ]
    assert " ".join(" ".join(lines[start + 7 : start + 9]).split()) == (
        "fastest bfloat16 for 32 rows (2.0 times the speed of float32), bfloat16 for 2048 rows (9.5 times the speed of "
        "float32); measured just now on a linear layer"
    )
    assert lines[start + 9 : start + 11] == [
        "  attention  torch uses flash (bfloat16 without a mask); memory-efficient (float32 under a mask)",
        "  compiler   none found; torch.compile and FlexAttention need Triton",
    ]
    assert lines[-2:] == ["notes", "  the driver is old"]


def test_a_device_without_measurements() -> None:
    card = Device(
        "xpu:0", "Arc", None, None, (Precision("int8", None, None, "not examined"),), (), Compiler("Triton", "x")
    )
    lines = list(report(replace(MACHINE, devices=(card,)), []))
    assert lines[lines.index("device xpu:0: Arc") + 2] == "  int8       unknown: not examined"


def test_an_environment_without_variables() -> None:
    assert "  no variable is set that changes torch" in list(report(replace(MACHINE, variables=()), []))


def test_columns_are_aligned_and_long_cells_continued() -> None:
    assert list(section("t", [("a", "b"), ("long", "c " * 80)]))[:3] == [
        "t", "  a     b", "  long  " + "c " * 55 + "c",
    ]  # fmt: skip


def test_models_that_cannot_be_listed_are_a_note(talk, monkeypatch: pytest.MonkeyPatch) -> None:
    from regard.pipelines import load

    def fail() -> list[str]:
        raise OSError("a folder without rights")

    monkeypatch.setattr(load, "shipped", fail)
    code, out, _ = talk("doctor", "--json")
    found = json.loads(out)
    assert (code, found["models"]) == (0, [])
    assert "models could not be listed: a folder without rights" in found["notes"]


def test_a_broken_torch_is_one_sentence(talk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("libtorch.so: cannot open shared object file")

    monkeypatch.setattr(facts, "examine", fail)
    code, out, err = talk("doctor")
    assert (code, out) == (1, "")
    assert err == (
        "regard: torch does not work here (libtorch.so: cannot open shared object file): install it again, "
        "pip install --force-reinstall torch\n"
    )


def test_the_verb_is_in_the_help(talk) -> None:
    assert "doctor" in talk("--help")[1]
    assert Path(verb.__file__).name == "doctor.py"
