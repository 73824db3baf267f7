"""Every line of the README runs, on a made corpus and with few steps where it trains, and prints what it says."""

import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from made import made_glyphs, made_sounds
from regard import attend, cli, experiment
from regard.config import parse_setting

ROOT = Path(__file__).parents[1]
FEW = ["--set", "training.max_steps=2", "--set", "tokenizer.vocabulary=120"]
# what else a config needs in place of its own data
SCENES = [
    "scenes.pictures=glyphs",
    "scenes.ranges=[]",
    "scenes.scenes=8",
    "scenes.dev_scenes=4",
    "scenes.dev_share=0.3",
]
MORE = {
    "shakespeare": ["texts.dev_share=0.1"], "english": ["texts.dev_share=0.1"],
    "first --set 'data.train": ["data.dev_share=0.1"], "first": ["data.dev_share=0.003"],
    "emoji": [*SCENES, "training.batch_tokens=600"],
    "moving": [*SCENES, "training.batch_tokens=2000", "scenes.first=7"],
    "an4": ["files.files=sounds", "files.dev_share=0.3", "training.batch_tokens=600"],
    "shapes": ["questions.dev_share=0.01"],
}  # fmt: skip


def blocks(language: str, page: str = "README.md") -> list[str]:
    """A page's code blocks in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)


def run_blocks(page: str) -> dict[str, Any]:
    """Run a page's Python; a block that begins with an import of torch stands alone, another goes on from the last."""
    names: dict[str, Any] = {}
    for block in blocks("python", page):
        if block.startswith("import torch\n"):
            names = {}
        exec(compile(block, page, "exec"), names)
    return names


def commands(page: str = "README.md") -> list[tuple[str, str]]:
    """Every command of a page with the output that stands under it."""
    text = re.sub(r" \\\n +", " ", "\n".join(blocks("console", page)))  # a backslash joins lines
    return [(line.strip(), shown) for line, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).+\n)*)", text, re.MULTILINE)]


def few_of(command: str) -> list[str]:
    """Settings that let a command's training end after two updates on made data."""
    more = next((more for name, more in MORE.items() if f"regard train {name}" in command), ["data.dev_share=0.1"])
    return [*FEW, *(part for setting in more for part in ("--set", setting))]


@pytest.fixture(scope="module")
def place(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the README speaks of."""
    folder = tmp_path_factory.mktemp("readme")
    made_glyphs(folder / "glyphs")
    made_sounds(folder / "sounds")
    frames = [Image.new("RGB", (30, 30), (40 * n, 0, 0)) for n in range(5)]
    frames[0].save(folder / "clip.gif", save_all=True, append_images=frames[1:])
    return folder


def bring(folder: Path) -> None:
    """The files that a reader has: those of `regard samples`."""
    assert cli.run(["samples", str(folder / "samples")]) == 0


def test_every_command(place: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    monkeypatch.chdir(place)
    assert len(commands()) > 12
    for command, shown in commands():
        words = shlex.split(command)
        assert words[0] == "regard"
        if "<" in words:
            whole = command.replace("regard", f"{shlex.quote(sys.executable)} -m regard", 1)
            subprocess.run(whole, shell=True, check=True, cwd=place)
            capfd.readouterr()  # what it printed is not the next command's
            assert (place / "translations.txt").read_text("utf-8").count("\n") == 4
            continue
        arguments = [*words[1:], *(few_of(command) if words[1] == "train" else [])]
        code = cli.run(arguments)
        captured = capfd.readouterr()
        assert code == 0, f"{command}\n{captured.err}"
        assert captured.out.startswith(shown), command
    assert (place / "cat.png").exists()
    assert (place / "trace.png").exists()


@pytest.mark.parametrize(("page", "count"), [("docs/text_models.md", 5), ("docs/senses.md", 5), ("docs/gpu.md", 2)])
def test_every_command_of_a_page(
    page: str, count: int, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(place)
    shutil.rmtree(place / "runs", ignore_errors=True)  # another page's
    assert len(commands(page)) >= count
    for command, shown in commands(page):
        words = shlex.split(command)[1:]
        code = cli.run([*words, *(few_of(command) if words[0] == "train" else [])])
        captured = capfd.readouterr()
        assert code == 0, f"{command}\n{captured.err}"
        assert captured.out.startswith(shown), command


def test_the_commands_of_the_first_page_are_the_readmes_which_are_run() -> None:
    shown, run = ({command for command, _ in commands(page)} for page in ("docs/index.md", "README.md"))
    assert len(shown) == 3
    assert shown <= run


def test_the_first_picture_is_of_the_sentence_that_a_command_looks_at() -> None:
    (sentence,) = re.findall(r'^SENTENCE = "(.*)"', (ROOT / "docs" / "screenshots.py").read_text("utf-8"), re.MULTILINE)
    assert f'regard look fr-en "{sentence}" --save page.html' in {command for command, _ in commands()}


def test_the_config_for_own_files_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    own, _ = blocks("toml", "docs/training.md")
    Path("mine.toml").write_text(own, "utf-8")
    for language in ("fr", "en"):
        lines = (f"{'abcdefg'[n % 7]} {language} {n}" for n in range(211))
        Path(f"mine.{language}").write_text("\n".join(lines) + "\n", "utf-8")
    few = ["--set", "training.max_steps=2", "--set", "model.width=8", "--set", "tokenizer.vocabulary=60"]
    assert cli.run(["train", "mine.toml", "--folder", "runs/mine", *few]) == 0, capfd.readouterr().err
    assert cli.run(["evaluate", "runs/mine", "--part", "test"]) == 0, capfd.readouterr().err


def test_the_settings_of_every_training_command_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_DATA", "data")
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "src/regard/shipped").glob("*/README.md")]
    seen = []
    for page in pages:
        text = re.sub(r" \\\n +", " ", page.read_text("utf-8"))
        fenced = [
            line for block in re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL) for line in block.split("\n")
        ]
        inline = [
            " ".join(span.split()) for span in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        ]
        for command in (*fenced, *inline):
            found = re.match(r"(?:\$ )?regard (?:train|distill \S+) (\S+) ?(.*--set .*)", command)
            if found is None or not (ROOT / f"src/regard/configs/{found[1]}.toml").exists():
                continue
            words = shlex.split(found[2])
            settings = [word for before, word in pairwise(words) if before == "--set"]
            assert [word for word in words if "=" in word] == settings, (
                f"{page}: one setting behind each --set: {command}"
            )
            experiment.read_config(found[1], dict(map(parse_setting, settings)))
            seen.append(command)
    assert len(seen) >= 7


def test_every_python_block(place: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    monkeypatch.chdir(place)
    if not (place / "samples").exists():  # the commands before it make them
        assert cli.run(["samples"]) == 0
    read = experiment.read_config
    few = {"training.max_steps": 2, "tokenizer.vocabulary": 120, "data.dev_share": 0.003}
    monkeypatch.setattr(experiment, "read_config", lambda config, overrides: read(config, {**(overrides or {}), **few}))
    assert len(blocks("python")) == 4
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert (place / "cat.svg").exists()


@pytest.mark.parametrize(
    ("page", "count", "files"),
    [
        ("docs/index.md", 2, {"page.html"}),
        ("docs/look.md", 5, {"heads.png", "map.png", "map.safetensors", "named.png", "patches.html", "patches.png"}),
        ("docs/gallery.md", 1, {"alignment.svg", "heads.svg", "two.svg"}),
        ("docs/findings.md", 5, {"lens.png", "parts.png", "why.png"}),
        pytest.param("docs/findings_patching.md", 6, {"heads.png"}, marks=pytest.mark.slow),
        ("docs/findings_roles.md", 3, set()),
        ("docs/explorer.md", 2, {"page.html", "layers.html", "links.html"}),
        ("docs/own_score.md", 3, set()),
        ("docs/approximate.md", 3, set()),
        ("docs/text_models.md", 2, set()),
        ("docs/senses.md", 1, {"strip.png"}),
    ],
)
def test_every_python_block_of_the_docs(
    page: str, count: int, files: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bring(tmp_path)
    assert len(blocks("python", page)) >= count
    run_blocks(page)
    assert files <= {path.name for path in tmp_path.iterdir()}


def test_a_score_of_ones_own_takes_about_twenty_lines_and_learns(capsys: pytest.CaptureFixture[str]) -> None:
    page = "docs/own_score.md"
    torch.manual_seed(0)
    names = run_blocks(page)
    lines = [line for block in blocks("python", page) for line in block.splitlines() if line.strip()]
    assert len(lines) <= 25
    query, key, value = (names[name] for name in ("query", "key", "value"))
    weights = torch.softmax(-(query[:, :, None] - key[:, None]).abs().sum(-1), -1)
    torch.testing.assert_close(names["output"], weights @ value)
    assert names["losses"][-1] < 0.9 * names["losses"][0]
    fast = names["Fast"](16)
    weights = torch.softmax(fast.query(query) @ fast.key(key).transpose(1, 2), -1)
    torch.testing.assert_close(attend(query, key, value, score=fast, kernel="fused"), weights @ value)
    assert "tensor(" in capsys.readouterr().out


def test_every_python_block_on_attention() -> None:
    shown = blocks("python", "docs/attention.md")
    assert shown
    for block in shown:
        exec(compile(block, "docs/attention.md", "exec"), {})


def test_the_two_commands_are_targets_and_every_link_leads_somewhere() -> None:
    for target in ("demo", "test"):
        assert subprocess.run(["make", "-n", target], cwd=ROOT, check=False, capture_output=True).returncode == 0
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text("utf-8")):
        assert link.startswith("http") or (ROOT / link).exists(), link
