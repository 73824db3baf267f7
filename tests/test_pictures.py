"""The pictures of the documentation are what regard draws today, and none is missing."""

import re
from html import unescape
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

import regard

DOCS = Path(__file__).parents[1] / "docs"
DRAWN = run_path(str(DOCS / "pictures.py"))
PICTURES: dict[str, Any] = DRAWN["PICTURES"]
ARCHITECTURES = run_path(str(DOCS / "architectures.py"))
HOMES = ("regard.attention.masks", "regard.attention.biases", "regard.nn.embedding")


def seen(svg: str) -> tuple[list[str], list[str]]:
    """What a reader sees whatever matplotlib wrote it: the colors of the cells in their order, and the words."""
    cells = re.findall(r"<use [^>]*fill: (#\w{6})", svg)
    return cells, [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def version(svg: str) -> str:
    return re.search(r"Matplotlib v[\d.]*\d", svg)[0]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_its_title_makes(name: str) -> None:
    committed = (DOCS / "pictures" / f"{name}.svg").read_bytes()
    drawn = DRAWN["written"](PICTURES[name])
    stale = f"{name}.svg is not what is drawn now: run python docs/pictures.py, and look at it"
    before, now = committed.decode(), drawn.decode()
    assert seen(before) == seen(now), stale
    assert committed == drawn or version(before) != version(now), stale
    assert len(committed) < 25_000
    colours, words = seen(before)
    rows, columns = PICTURES[name].shape[-2:]
    assert len(colours) >= rows * columns * len(PICTURES[name].panels)
    assert [word for word in words if word in PICTURES[name].code.splitlines()] == PICTURES[name].code.splitlines()


def test_every_mask_bias_and_place_has_a_picture_and_every_picture_its_place_on_the_page() -> None:
    codes = "\n".join(picture.code for picture in PICTURES.values())
    public = [name for name in regard.__all__ if getattr(getattr(regard, name), "__module__", "") in HOMES]
    assert {"causal", "window", "alibi", "RelativeBias", "Rotary", "sinusoidal"} <= set(public)
    missing = [name for name in public if not re.search(rf"\b{name}\(", codes)]
    assert not missing, f"{missing} have no picture: add them to docs/pictures.py and docs/attention.md"
    assert all(sign in codes for sign in (" & ", " | ", "~"))
    page = (DOCS / "attention.md").read_text("utf-8")
    shown = re.findall(r"!\[(.*)\]\(pictures/(.*)\.svg\)", page)
    assert shown == [(picture.says, name) for name, picture in PICTURES.items()]
    assert {path.name for path in (DOCS / "pictures").iterdir()} == {f"{name}.svg" for name in PICTURES}


def test_the_cells_are_those_of_the_definition() -> None:
    def grids(name: str) -> list[list[list[float | None]]]:
        return DRAWN["cells"](PICTURES[name], DRAWN["run"](PICTURES[name].code))

    assert grids("causal-more-keys") == [[[1 if j <= i + 3 else None for j in range(7)] for i in range(4)]]
    assert grids("combination") == [[[1 if j < i or j == 0 else None for j in range(6)] for i in range(6)]]
    slopes = (1 / 4, 1 / 16, 1 / 64, 1 / 256)
    expected = [[[round(-m * (i - j), 4) if j <= i else None for j in range(5)] for i in range(5)] for m in slopes]
    assert grids("alibi-causal") == expected


def test_the_recurrent_drawing_has_the_weights_of_the_model_that_its_page_names() -> None:
    step = regard.load("fr-en-rnn")("le chat noir").trace.steps[1]
    assert [round(float(weight), 2) for weight in step.weights] == list(ARCHITECTURES["SECOND_STEP"])
    for theme in ARCHITECTURES["THEMES"]:
        words = seen(ARCHITECTURES["drawn"]("recurrent", theme))[1]
        assert [word for word in words if re.fullmatch(r"\.\d\d", word)] == [".05", ".26", ".68", ".00"]


def test_the_architectures_are_what_is_drawn_now_and_stand_on_one_page_each() -> None:
    names = {f"{name}-{theme}" for name in ARCHITECTURES["DRAWINGS"] for theme in ARCHITECTURES["THEMES"]}
    for name in names:
        committed = (ARCHITECTURES["FOLDER"] / f"{name}.svg").read_text("utf-8")
        assert committed == ARCHITECTURES["drawn"](*name.rsplit("-", 1)), f"run python docs/architectures.py for {name}"
    assert {path.stem for path in ARCHITECTURES["FOLDER"].iterdir()} == names
    pages = "".join(page.read_text("utf-8") for page in (DOCS / "course").glob("*.md"))
    shown = re.findall(r"```\{image\} architectures/(.*)-(light|dark)\.svg\n:class: only-(\w+)\n:alt: .{20}", pages)
    assert sorted(f"{name}-{theme}" for name, theme, _ in shown) == sorted(names)
    assert all(theme == worn for _, theme, worn in shown)
