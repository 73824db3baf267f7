"""The page in a real browser: its numbers are the tensors', its pixels are the weights, every screen has content."""

import base64
import csv
import json
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from html import escape
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from safetensors.torch import save

import regard
from regard.attention.maps.map import AttentionMap
from regard.attention.maps.packed import pack_map
from regard.attention.maps.page import page_of_maps
from regard.explorer.server import create_explorer
from regard.figures.page import Page, script
from regard.figures.style import THEMES, scale
from regard.observation.intervene import ablate
from regard.pipelines.checkpoints import checkpoints_of
from regard.pipelines.page import look_at, recorded

Open = Callable[..., Any]
T, S, D, H = 7, 11, 5, 3

ROWS = """
async ([code, packed, how]) => {
  const page = await import(URL.createObjectURL(new Blob([code], {type: "text/javascript"})));
  const raw = Uint8Array.from(atob(packed), c => c.charCodeAt(0)).buffer;
  const tensors = new page.Tensors(raw);
  const found = [];
  for (let h = 0; h < how.heads; h++) {
    const head = new page.Head(tensors, "m", h, how.heads, how.queries, how.keys, how);
    const keys = [...Array(how.keys).keys()];
    for (let i = 0; i < how.queries; i++) found.push([...head.row(i)], keys.map(j => head.weight(i, j)));
  }
  return found;
}
"""


def until(tab: Any, condition: str, argument: object = None) -> None:
    """Wait until a condition holds in the page. Playwright's `wait_for_function` asks for it from within the page,
    where the page's own policy forbids to evaluate a string if it is not true the first time."""
    ends = time.monotonic() + 30
    while not tab.evaluate(condition, argument):
        assert time.monotonic() < ends, f"not within 30 s: {condition}"
        tab.wait_for_timeout(20)


def maps() -> dict[str, AttentionMap]:
    """A map of every kind that a page computes by itself."""
    made = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=made)  # noqa: E731
    query, key = draw(H, T, D), draw(H, S, D)
    lengths = torch.tensor([9, 11, 4])
    dead = torch.ones(T, S, dtype=torch.bool)
    dead[2] = False
    kinds: dict[str, dict[str, Any]] = {
        "scaled dot": {}, "causal": {"mask": regard.causal()}, "window": {"mask": regard.window(2)},
        "padding": {"mask": regard.padding(lengths)},
        "a dead row": {"mask": dead}, "bias": {"bias": draw(H, T, S)}, "alibi": {"bias": regard.alibi(H)},
        "additive": {"score": regard.Additive(D, D, 6)}, "distance": {"score": regard.Distance(0.7)},
        "sparsemax": {"normalizer": "sparsemax"}, "entmax": {"normalizer": "entmax15"},
        "sigmoid": {"normalizer": "sigmoid"}, "softmax1": {"normalizer": "softmax1"},
        "sink": {"normalizer": regard.Sink(draw(H))}, "uniform": {"normalizer": "uniform"},
    }  # fmt: skip
    found = {name: regard.attention_map(query, key, **settings) for name, settings in kinds.items()}
    found["grouped heads"] = regard.attention_map(draw(1, 4, T, D), draw(1, 2, S, D)).select(0)
    found["one head"] = regard.attention_map(draw(T, D), draw(S, D))
    found["given"] = AttentionMap.from_weights(draw(H, T, S).softmax(-1))
    long = draw(2, 300, 8)
    found["long"] = regard.attention_map(long, long, mask=regard.causal())
    return found


def test_the_page_computes_the_weights_of_every_kind_of_map(browser: Any) -> None:
    tab = browser.new_page()
    for name, seen in maps().items():
        how, parts = pack_map(seen)
        packed = base64.b64encode(save({f"m.{key}": part.contiguous() for key, part in parts.items()})).decode()
        rows = np.array(tab.evaluate(ROWS, [script(), packed, how]))
        wanted = seen.full().detach().reshape(-1, seen.shape[-1]).numpy()
        np.testing.assert_allclose(rows[0::2], wanted, atol=1e-3 if name == "long" else 2e-5, err_msg=name)
        np.testing.assert_allclose(rows[1::2], wanted, atol=1e-3 if name == "long" else 2e-5, err_msg=name)
    tab.close()


def poisoned() -> dict[str, AttentionMap]:
    """Maps with a row whose scores are NaN, or infinite, of every normalizer that a page computes."""
    made = torch.Generator().manual_seed(5)
    query, key = torch.randn(H, T, D, generator=made), torch.randn(H, S, D, generator=made)
    query[1, 3, 2] = float("nan")
    query[2, 5, 0] = float("inf")
    found = {name: regard.attention_map(query, key, normalizer=name) for name in
             ("softmax", "sparsemax", "entmax15", "sigmoid", "softmax1", "uniform")}  # fmt: skip
    found["causal"] = regard.attention_map(query, key, mask=regard.causal())
    hidden = key.clone()
    hidden[0, -1] = float("nan")  # which all but the last query may not look at
    found["a key that is masked"] = regard.attention_map(torch.randn(H, S, D, generator=made), hidden,
                                                         mask=regard.causal())  # fmt: skip
    return found


def test_a_row_is_nan_on_the_page_where_it_is_in_the_map(browser: Any) -> None:
    tab = browser.new_page()
    for name, seen in poisoned().items():
        how, parts = pack_map(seen)
        packed = base64.b64encode(save({f"m.{key}": part.contiguous() for key, part in parts.items()})).decode()
        found = tab.evaluate(ROWS, [script(), packed, how])
        rows = np.array([[np.nan if x is None else x for x in row] for row in found], dtype=float)
        wanted = seen.full().detach().reshape(-1, seen.shape[-1]).numpy()
        if name != "uniform":
            assert np.isnan(wanted).any(), name
        for half in (rows[0::2], rows[1::2]):
            np.testing.assert_allclose(half, wanted, atol=2e-5, err_msg=name)
    tab.close()


def said_at(tab: Any, row: int, column: int) -> str:
    canvas, cell, tall = canvas_box(tab)
    canvas.hover(position={"x": (column + 0.5) * cell, "y": (row + 0.5) * tall})
    return tab.locator(".tip").inner_text()


def test_a_row_of_nan_is_shown_as_such(open_page: Open) -> None:
    made = torch.Generator().manual_seed(7)
    query, key = torch.randn(T, D, generator=made), torch.randn(S, D, generator=made)
    query[3, 1] = float("nan")
    rows, columns = [f"q{i}" for i in range(T)], [f"k{j}" for j in range(S)]
    seen = regard.attention_map(query, key, query_tokens=rows, key_tokens=columns)
    tab = open_page(seen.look())
    assert said_at(tab, 3, 4) == "q3 → k4: NaN"
    assert float(said_at(tab, 2, 4).rpartition(" ")[2]) == pytest.approx(float(seen.full()[2, 4]), abs=1e-3)
    tab.locator(".of-rows .word").nth(3).hover()
    assert tab.locator("[data-tour=sentence]").inner_text() == (
        "the weights of “q3” are NaN: one of its scores is no finite number"
    )
    assert tab.get_by_role("region", name="map").locator(".legend").inner_text().endswith("NaN")
    canvas, cell, tall = canvas_box(tab)
    raw = canvas.evaluate("c => c.toDataURL('image/png')").partition(",")[2]
    picture = np.asarray(Image.open(BytesIO(base64.b64decode(raw))).convert("RGB"))
    line = THEMES["light"].line
    assert picture[int(3.15 * tall), int(4.15 * cell)].tolist() == [int(line[n : n + 2], 16) for n in (1, 3, 5)]
    for name in ("Step", "Heads", "Long view"):
        tab.get_by_role("tab", name=name, exact=True).click()
        assert tab.get_by_role("tabpanel").inner_text()
    assert tab.locator("path[stroke-width=NaN]").count() == 0
    tab = open_page(regard.attention_map(query.expand(2, T, D), key.expand(2, S, D)).look(), "#screen=compare")
    assert tab.get_by_role("tabpanel").locator(".legend", has_text="NaN").count() == 3


def test_every_sentence_of_a_batch_is_a_run_with_its_own_weights(open_page: Open) -> None:
    made = torch.Generator().manual_seed(11)
    query, key = torch.randn(3, H, T, D, generator=made), torch.randn(3, H, S, D, generator=made)
    lengths = torch.tensor([11, 7, 5])
    seen = regard.attention_map(query, key, mask=regard.padding(lengths))
    wanted = seen.full()
    tab = open_page(seen.look(), "#head=2")
    for sentence in range(3):
        tab.get_by_role("combobox", name="run").select_option(str(sentence))
        for i, j in ((1, 0), (6, 4), (3, 10)):
            shown = said_at(tab, i, j).rpartition(" ")[2]
            exact = float(wanted[sentence, 2, i, j])
            assert (exact == 0 and shown == "0.000") or shown == "<0.001" or float(shown) == pytest.approx(
                exact, abs=1e-3
            ), (sentence, i, j)  # fmt: skip
    assert exact == 0  # of a key that is padding in the last sentence


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_shown_exactly(open_page: Open, kind: torch.dtype) -> None:
    made = torch.Generator().manual_seed(13)
    query, key = (torch.randn(H, n, D, generator=made).to(kind) for n in (T, S))
    seen = regard.attention_map(query, key)
    witness = torch.softmax(query.double() @ key.double().transpose(-2, -1) / D**0.5, -1)
    tab = open_page(seen.look(), "#head=1")
    for i, j in ((0, 0), (2, 9), (5, 3), (6, 10)):
        shown = said_at(tab, i, j).rpartition(" ")[2]
        assert float(shown) == pytest.approx(float(witness[1, i, j]), abs=1e-3)


def canvas_box(tab: Any) -> tuple[Any, float, float]:
    """The first map's canvas and the size of its cells, once it keeps its size: a page draws it anew when its width
    changes."""
    canvas = tab.locator("canvas.cells").first
    size = lambda: (canvas.get_attribute("data-cell"), canvas.get_attribute("data-tall"), canvas.bounding_box())  # noqa: E731
    before, now = None, size()
    while before != now:
        tab.wait_for_timeout(150)
        before, now = now, size()
    return canvas, float(now[0]), float(now[1])


def test_tooltips_and_pixels_are_the_tensors(open_page: Open, translation: Page) -> None:
    tab = open_page(translation, "#unit=tokens&head=2")
    run = translation.document["runs"][0]
    info = next(one for one in run["maps"] if one["site"] == run["chosen"]["site"])
    query, key = (translation.tensors[f"{info['tensors']}.{name}"] for name in ("query", "key"))
    weights = torch.softmax(query[2] @ key[2].T, -1)
    canvas, cell, tall = canvas_box(tab)
    colours = {}
    raw = canvas.evaluate("c => c.toDataURL('image/png')").partition(",")[2]
    picture = np.asarray(Image.open(BytesIO(base64.b64decode(raw))).convert("RGB")).astype(int)
    for i, j in ((0, 0), (1, 2), (2, 1), (3, 3)):
        canvas.hover(position={"x": (j + 0.5) * cell, "y": (i + 0.5) * tall})
        said = tab.locator(".tip").inner_text()
        assert said.startswith(f"{run['sequences']['output'][i]} → {run['sequences']['source'][j]}: ")
        shown = said.rpartition(" ")[2]
        assert shown == "<0.001" or float(shown) == pytest.approx(float(weights[i, j]), abs=1e-3)
        colours[float(weights[i, j])] = picture[int((i + 0.15) * tall), int((j + 0.15) * cell)].sum()  # not on a number
    light_to_dark = [colours[weight] for weight in sorted(colours)]
    assert light_to_dark == sorted(light_to_dark, reverse=True)
    assert light_to_dark[0] - light_to_dark[-1] > 200


SCALES = """
async ([code, theme]) => {
  const page = await import(URL.createObjectURL(new Blob([code], {type: "text/javascript"})));
  const found = theme === "dark" ? page.DARK : page.LIGHT;
  return [[...found.weights], [...found.difference], found.none];
}
"""


@pytest.mark.parametrize("theme", THEMES)
def test_the_page_has_the_colours_of_the_figures(browser: Any, theme: str) -> None:
    tab = browser.new_page()
    weights, difference, none = tab.evaluate(SCALES, [script(), theme])
    own = THEMES[theme]
    for found, anchors in ((weights, own.weights), (difference, own.signed)):
        np.testing.assert_allclose(np.reshape(found, (256, 3)), 255 * scale(anchors), atol=1)
    assert "#" + "".join(f"{part:02x}" for part in none) == own.line
    tab.close()


def test_every_screen_has_content(open_page: Open, translation: Page) -> None:
    tab = open_page(translation)
    assert tab.get_by_text("Shown: decoder layer 1 · cross-attention, head 0 (of 4): nearest to the word").is_visible()
    names = [one.inner_text() for one in tab.get_by_role("tab").all()]
    assert names == ["Align", "Step", "Heads", "Long view", "Believe it?", "Compare", "Logit lens"]
    wanted = {
        "Align": "What each output word attended to", "Step": "scores every key", "Heads": "encoder layer 0",
        "Long view": "weights",
        "Believe it?": "Shuffling the weights", "Compare": "first − second",
        "Logit lens": "the most probable next token",
    }  # fmt: skip
    for name, text in wanted.items():
        tab.get_by_role("tab", name=name, exact=True).click()
        assert tab.get_by_role("tabpanel").get_by_text(text).first.is_visible(), name
    tab.get_by_role("tab", name="Heads").click()
    assert tab.locator(".thumb").count() == sum(one["how"]["heads"] for one in translation.document["runs"][0]["maps"])


VERDICT = re.compile(
    "may be believed for this output|does not show what this output needs most|explains little of this output|"
    "was not tested against the output"
)


@pytest.mark.parametrize("name", ["translation", "long"])
def test_the_verdict_stands_once_on_every_view(open_page: Open, pages: dict[str, Page], name: str) -> None:
    tab = open_page(pages[name])
    for view in [one.inner_text() for one in tab.get_by_role("tab").all()]:
        tab.get_by_role("tab", name=view, exact=True).click()
        assert len(VERDICT.findall(tab.locator(".page").inner_text())) == 1, view


def test_self_cross_and_recurrent_attention_stand_on_one_screen(open_page: Open, pages: dict[str, Page]) -> None:
    page = pages["two models"]
    number = next(n for n, run in enumerate(page.document["runs"]) if run["made"]["model"] == "fr-en-rnn")
    for site, name in (
        ("encoder.layers.3.self", "encoder layer 3 · self"),
        ("decoder.layers.1.cross", "decoder layer 1 · cross"),
    ):
        tab = open_page(page, f"#screen=compare&unit=tokens&head=2&site={site}&other={number}~mean~decoder.cross")
        assert [one.inner_text() for one in tab.locator(".trio h2").all()] == [
            f"{page.document['runs'][0]['label']}: head 2 (of 4) of {name}-attention",
            f"{page.document['runs'][number]['label']}: its only head of decoder cross-attention", "first − second",
        ]  # fmt: skip
        assert tab.locator("canvas.cells").count() == 3


def test_the_verdict_says_which_other_map_was_tested(open_page: Open, translation: Page) -> None:
    tab = open_page(translation, "#screen=believe&site=encoder.layers.0.self")
    assert tab.get_by_text("encoder layer 0 · self-attention, which was not tested").is_visible()
    assert not tab.get_by_text("attention alone is no explanation").count()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["picture", "sound"])
def test_a_picture_or_a_sound_is_tested_part_by_part(
    open_page: Open, pages: dict[str, Page], name: str, theme: str
) -> None:
    run = pages[name].document["runs"][0]
    tab = open_page(pages[name], f"#screen=believe&theme={theme}", viewport={"width": 320, "height": 900})
    zeroed = run["believe"]["measures"]["zeroed"]
    card = tab.locator(".trio .card").filter(has_text="value zeroing")
    assert f"the part's value is taken away; the 40 largest of {len(zeroed)}" in card.inner_text()
    rows = [row.inner_text().split("\t") for row in card.locator("tbody tr").all()]
    least = sorted(map(abs, zeroed))[-40]
    assert [float(row[1].replace("−", "-")) for row in rows] == [
        pytest.approx(value, abs=1e-3) for value in zeroed if abs(value) >= least
    ]
    first = next(n for n, value in enumerate(zeroed) if abs(value) >= least)
    place = run["media"]["positions"][first]
    assert rows[0][0] == (f"{first // 12 + 1},{first % 12 + 1}" if name == "picture" else f"{place[0]:.2f} s")
    tab.get_by_role("tab", name="Align", exact=True).click()
    assert VERDICT.search(tab.locator(".believe.line").inner_text())
    for view in ("Step", "Long view"):  # which show one head
        tab.get_by_role("tab", name=view, exact=True).click()
        said = "(the first of the 4 whose mean other views show)"
        assert tab.get_by_role("tabpanel").get_by_text(said).is_visible() is (name == "sound"), view


def test_an_encoders_page_says_why_nothing_was_tested(open_page: Open) -> None:
    tab = open_page(look_at([regard.load("english")], ["the river"]))
    line = tab.locator(".believe.line").inner_text()
    assert line == "Believe it? This map was not tested against the output: an encoder has none."


@pytest.mark.parametrize("width", [320, 1280])
def test_the_overview_of_a_long_map_stands_beside_it(open_page: Open, pages: dict[str, Page], width: int) -> None:
    tab = open_page(pages["long"], "#screen=long", viewport={"width": width, "height": 900})
    for _ in range(6):
        tab.get_by_role("button", name="zoom in").click()
    main, mini = (tab.locator(f"canvas.{name}").bounding_box() for name in ("main", "mini"))
    right, below = main["x"] + main["width"] <= mini["x"], main["y"] + main["height"] <= mini["y"]
    assert right is (width > 320)
    assert below is (width == 320)
    assert mini["x"] + mini["width"] <= width
    tab.locator("canvas.mini").click(position={"x": 127, "y": 2})  # to the upper right corner
    top, left, _, wide = json.loads(tab.locator("canvas.main").get_attribute("data-view"))
    assert (top, left + wide) == (0, pytest.approx(1300))
    said = said_at_middle(tab)
    row, column = (int(x.replace(",", "")) for x in re.findall(r"\(([\d,]+)\)", said))
    assert top <= row
    assert left <= column


def said_at_middle(tab: Any) -> str:
    """What is said in the lower right of a long map, where its overview once was."""
    main = tab.locator("canvas.main")
    box = main.bounding_box()
    main.hover(position={"x": box["width"] - 40, "y": box["height"] - 40})
    found: str = tab.locator(".tip").inner_text()
    return found


ADDRESSES = (
    "row=1.5&column=0.5", "row=-1&column=1e3", "row=99&column=999", "run=99", "run=0.5", "run=-1&head=99",
    "site=nowhere&head=2.5", "other=99~99~nowhere", "other=1~2", "screen=nowhere&zoom=deep", "screen=media&row=x",
)  # fmt: skip


@pytest.mark.sampled(6)
@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_fits_no_view_opens_one(open_page: Open, translation: Page, address: str) -> None:
    tab = open_page(translation, f"#unit=tokens&{address}")
    for view in ("Align", "Step", "Compare"):
        tab.get_by_role("tab", name=view, exact=True).click()
        said = tab.get_by_role("tabpanel").inner_text()
        assert said
        assert "undefined" not in said
        assert "NaN" not in said


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 320)])
@pytest.mark.parametrize("tiny_run", ["transformer"], indirect=True)
def test_a_slider_runs_through_the_checkpoints_of_a_training(
    open_page: Open, tiny_run: Path, theme: str, width: int
) -> None:
    model, steps = regard.load(tiny_run), checkpoints_of(tiny_run)
    text, site = "le chat noir", "encoder.layers.0.self"
    address = f"#screen=compare&theme={theme}&site={site}&head=1&unit=tokens"
    tab = open_page(look_at([model], [text], steps=steps), address, viewport={"width": width, "height": 900})
    slider = tab.get_by_role("slider", name="checkpoint")
    total = len(steps) + 1
    own = recorded(model(text).forward_pass())[site].full()[1]
    for number, (step, other) in enumerate(steps.items()):
        assert tab.get_by_text(f"the second: step {step} ({number + 1} of {total})").is_visible()
        theirs = recorded(other(text).forward_pass())[site].full()[1]
        for name, wanted in (("second map", theirs), ("difference", own - theirs)):
            canvas = tab.get_by_role("img", name=name, exact=True)
            cell, tall = (float(canvas.get_attribute(f"data-{one}")) for one in ("cell", "tall"))
            canvas.hover(position={"x": 1.5 * cell, "y": 0.5 * tall})
            said = tab.locator(".tip").inner_text().rpartition(" ")[2].replace("−", "-").replace("<", "")
            assert float(said) == pytest.approx(float(wanted[0, 1]), abs=1e-3)
        slider.focus()
        tab.keyboard.press("ArrowRight")
    assert tab.get_by_text(f"the second: the trained model ({total} of {total})").is_visible()
    tab.mouse.move(0, 0)
    if AXE.exists():
        tab.evaluate(AXE.read_text(encoding="utf-8"))
        assert tab.evaluate(VIOLATIONS) == []
    tab.keyboard.press("Home")
    assert tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


def test_the_copied_python_of_a_checkpoint_gives_what_is_shown(open_page: Open, tmp_path: Path, tiny_run: Path) -> None:
    steps = checkpoints_of(tiny_run)
    page = look_at([regard.load(tiny_run)], ["le chat noir"], steps=steps)
    number = next(n for n, run in enumerate(page.document["runs"]) if "step" in run["made"])
    tab = open_page(page, f"#run={number}&unit=tokens")
    tab.get_by_role("button", name="export").click()
    made: dict[str, Any] = {}
    exec(tab.locator("dialog pre").inner_text().replace('"page.html"', repr(str(tmp_path / "made.html"))), made)
    run = page.document["runs"][number]
    assert made["made"].text == run["text"]
    assert (
        steps[run["made"]["step"]]("le chat noir", beam=4)
        .attention[run["chosen"]["site"]]
        .full()
        .allclose(made["made"].attention[run["chosen"]["site"]].full(), atol=1e-5)
    )


@pytest.mark.parametrize("tiny_run", ["transformer"], indirect=True)
def test_a_text_that_is_asked_for_has_the_checkpoints_and_the_other_models_too(browser: Any, tiny_run: Path) -> None:
    model, other, steps = regard.load(tiny_run), regard.load("fr-en-rnn"), checkpoints_of(tiny_run)
    page = look_at([model, other], ["le chat noir"], tests=False, steps=steps)
    app, token = create_explorer(page, model, against=[other], steps=steps)
    with Served(app) as port:
        tab = browser.new_page()
        tab.goto(f"http://127.0.0.1:{port}/?token={token}#screen=compare&unit=tokens")
        tab.get_by_label("your own text").fill("le chien blanc")
        tab.get_by_role("button", name="look", exact=True).click()
        runs = tab.get_by_role("combobox", name="other run").locator("option")
        runs.filter(has_text=f"fr-en-rnn: {other('le chien blanc').text}").wait_for(state="attached")
        slider = tab.get_by_label("checkpoint", exact=True)
        assert slider.get_attribute("max") == str(len(steps))  # the trained model is the last
        for n, (step, one) in enumerate(steps.items()):
            slider.fill(str(n))
            tab.get_by_text(f"the second: step {step} ({n + 1} of {len(steps) + 1})").wait_for()
            made = one("le chien blanc", beam=4)
            assert tab.get_by_role("combobox", name="other run").locator("option:checked").inner_text() == (
                f"step {step}: {made.text}" if made.text else f"step {step}"
            )
        tab.close()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 320)])
def test_a_word_goes_its_way_through_the_layers_of_an_encoder(open_page: Open, theme: str, width: int) -> None:
    model, texts = regard.load("english"), ["he sat on the bank of the river", "we took the money to the bank"]
    tab = open_page(look_at([model], texts), f"#screen=ways&theme={theme}", viewport={"width": width, "height": 900})
    found = model.meaning("bank", texts)  # the longest word of both
    assert tab.get_by_role("heading", name="“bank” through the layers").is_visible()
    lines = tab.locator("svg.way polyline").evaluate_all("all => all.map(one => one.getAttribute('points'))")
    drawn = np.array([[float(x) for x in line.replace(",", " ").split()] for line in lines]).reshape(2, -1, 2)
    wanted = found.projection.numpy() * [1, -1]  # upwards
    for points in (drawn, wanted):
        points -= points.min((0, 1))
        points /= points.max((0, 1))
    np.testing.assert_allclose(drawn, wanted, atol=1e-4)
    for n, text in enumerate(texts):
        part = tab.get_by_role("region", name=f"text {n + 1}", exact=True)
        said = part.inner_text()
        assert text in said
        nearest = ", ".join(f"{word} ({value:.2f})" for word, value in found.after[n][:6])
        assert f"nearest words in layer {found.layer}: {nearest}" in said
        rows = [row.inner_text().split() for row in part.locator("tbody tr").all()]
        assert [(word, float(value)) for word, value in rows] == [
            (one.word, pytest.approx(one.change, abs=6e-4)) for one in found.moved_by[n][:5]
        ]
    cells = tab.get_by_role("group", name="cosines by layer").locator("td").all_inner_texts()
    assert [float(x.replace("−", "-")) for x in cells] == pytest.approx(found.standardised[:, 0, 1].tolist(), abs=6e-3)
    if AXE.exists():
        tab.evaluate(AXE.read_text(encoding="utf-8"))
        assert tab.evaluate(VIOLATIONS) == []
    tab.get_by_role("combobox", name="word").select_option("river")
    assert tab.locator("svg.way polyline").count() == 1
    tab.get_by_role("combobox", name="run").select_option("1")
    assert tab.get_by_role("heading", name="“bank” through the layers").is_visible()  # there is no river in it
    assert tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


def test_a_page_of_one_map_has_nothing_to_compare(open_page: Open, pages: dict[str, Page]) -> None:
    tab = open_page(pages["picture"])
    assert [one.inner_text() for one in tab.get_by_role("tab").all()] == [
        "Picture",
        "Align",
        "Step",
        "Heads",
        "Long view",
        "Believe it?",
    ]
    tab.get_by_role("tab", name="Step").click()
    assert tab.get_by_text("What if?").count() == 0  # no server asks a model of pictures
    assert "2 head: decoder cross-attention, its only head" in tab.get_by_role("navigation", name="zoom").inner_text()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("score", ["dot", "additive", "distance"])
def test_the_terms_of_a_score_are_those_of_its_equation(open_page: Open, score: str) -> None:
    made = torch.Generator().manual_seed(19)
    query, key = torch.randn(T, D, generator=made), torch.randn(S, D, generator=made)
    own: Any = {"dot": "dot", "additive": regard.Additive(D, D, 6), "distance": regard.Distance(0.7)}[score]
    seen = regard.attention_map(query, key, score=own)
    page = seen.look()
    tab = open_page(page, "#screen=step&zoom=weight&row=2&unit=tokens")
    rows = [line.split("\t") for line in tab.get_by_label("the terms of single coordinates").inner_text().splitlines()]
    table = {row[0]: row[1:] for row in rows}
    name = {"dot": "q × k", "additive": "v × tanh(q + k)", "distance": "(q − k)²"}[score]
    *terms, total = (float(x.replace("−", "-")) for x in table[name] if x)
    assert sum(terms) == pytest.approx(total, abs=0.05)
    e = float(re.search(r"= ([-−]?[\d.]+)", tab.locator(".equation").inner_text())[1].replace("−", "-"))
    assert e == pytest.approx(total if score != "distance" else -total / (2 * 0.7**2), abs=5e-3)
    row = seen.full()[2].detach()
    q, k = (page.tensors[f"0.0.{part}"].flatten(0, -2) for part in ("query", "key"))
    place = [int(n) for n in table["coordinate"] if n.isdecimal()]
    for part, held in (("q", q[2]), ("k", k[row.argmax()])):
        shown = [float(x.replace("−", "-")) for x in table[part] if x]
        assert shown == pytest.approx(held[place].tolist(), abs=6e-3)


def test_a_weight_is_worked_out_to_the_number(open_page: Open, translation: Page) -> None:
    tab = open_page(translation, "#screen=step")
    tab.get_by_role("navigation", name="zoom").get_by_role("button").nth(3).click()
    equation = tab.locator(".equation").inner_text()
    score = float(re.search(r"e = q · k = ([-−]?[\d.]+)", equation)[1])
    total, weight = (float(x) for x in re.search(r"/ ([\d.]+) = ([\d.]+)", equation).groups())
    run = translation.document["runs"][0]
    info = next(one for one in run["maps"] if one["site"] == run["chosen"]["site"])
    head = run["chosen"]["heads"][0]
    query, key = (translation.tensors[f"{info['tensors']}.{name}"][head] for name in ("query", "key"))
    scores = query[0] @ key.T
    assert score == pytest.approx(float(scores.max()), abs=2e-3)
    assert total == pytest.approx(float((scores - scores.max()).exp().sum()), abs=2e-3)
    assert weight == pytest.approx(1 / total, abs=2e-3)


def numbers_of(table: Any) -> dict[str, list[float]]:
    """The numbers of each row of a table, by its first cell."""
    found = {}
    for row in table.locator("tr").all():
        name, *cells = [cell.strip() for cell in row.inner_text().split("\t")]
        found[name] = [float(x.replace("−", "-").replace("<", "")) for x in cells if re.fullmatch(r"[<−\d.]+", x)]
    return found


@pytest.mark.parametrize("name", ["fr-en", "fr-en-rnn"])
def test_the_context_is_the_sum_of_weighted_values(open_page: Open, name: str) -> None:
    model = regard.load(name)
    made = model("le chat noir")
    head, letter, i = (0, "h", 2) if name == "fr-en-rnn" else (2, "v", 2)
    with regard.observe(model) as seen:
        made.forward_pass()()
    found = seen[made.alignment.site][0].select(0)
    weights, value = (part.reshape(-1, *part.shape[-2:])[head] for part in (found.full(), found.value))
    j = int(weights[i].argmax())
    given = weights[i, :, None] * value
    context = given.sum(0)
    page = made.look()
    tab = open_page(page, f"#screen=step&head={head}&unit=tokens&row={i}")
    table = numbers_of(tab.get_by_label("the weights of the row"))
    for n, key in enumerate(made.source_tokens):
        norm, *first = [float(given[n].norm()), *given[n, :4].tolist()]
        assert table[key][2:] == pytest.approx([float(value[n].norm()), norm, *first], abs=6e-3)
        assert table[key][3:] == pytest.approx([norm, *first], abs=1e-3)
    wanted = [float(context.norm()), *context[:4].tolist()]
    assert table[f"context c = Σ α {letter}"] == pytest.approx(wanted, abs=1e-3)
    if name == "fr-en-rnn":
        assert wanted[0] == pytest.approx(page.document["runs"][0]["trace"][i]["context_norm"], abs=1e-3)
    assert tab.get_by_text("next token: “").is_visible()
    tab.get_by_role("navigation", name="zoom").get_by_role("button").nth(3).click()
    table = numbers_of(tab.get_by_label("the value and the context"))
    for row, vector in ((letter, value[j]), (f"α × {letter}", given[j]), (f"c = Σ α {letter}", context)):
        assert table[row] == pytest.approx([*vector[:8].tolist(), float(vector.norm())], abs=1e-3)


def test_values_that_are_not_there_are_said_to_be_left_out(open_page: Open) -> None:
    seen = regard.attention_map(torch.randn(T, D), torch.randn(S, D))
    tab = open_page(seen.look(), "#screen=step")
    assert tab.get_by_text("The values were not recorded with this map").is_visible()
    page = seen.with_value(torch.randn(S, 2**19)).look()
    for zoom in ("row", "weight"):
        tab = open_page(page, f"#screen=step&zoom={zoom}")
        assert tab.get_by_text("Its values are not in this page, which they would make too large").is_visible()


def test_pointing_pinning_and_the_keyboard(open_page: Open, translation: Page) -> None:
    tab = open_page(translation)
    tab.get_by_role("button", name="black").hover()
    assert "“black” attended to “noir”" in tab.locator("[data-tour=sentence]").inner_text()
    tab.mouse.move(5, 5)
    tab.get_by_role("group", name="weights of").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Enter"):
        tab.keyboard.press(key)
    assert "gives “chat” the weight" in tab.locator("[data-tour=sentence]").inner_text()
    assert "row=1" in tab.url
    assert "column=1" in tab.url
    tab.keyboard.press("Escape")
    assert "row=" not in tab.url
    tab.get_by_role("tab", name="Align").focus()
    tab.keyboard.press("ArrowRight")
    assert tab.get_by_role("tab", name="Step").get_attribute("aria-selected") == "true"


def test_a_finger_pins_a_cell_and_reads_its_weight(open_page: Open, translation: Page) -> None:
    tab = open_page(translation, viewport={"width": 320, "height": 640}, has_touch=True, is_mobile=True)
    tab.get_by_role("button", name="black").tap()
    assert tab.locator("[data-tour=sentence]").inner_text().startswith("“black” attended to “noir”")
    canvas, cell, tall = canvas_box(tab)
    canvas.scroll_into_view_if_needed()
    at = {"x": 1.5 * cell, "y": 2.5 * tall}
    canvas.tap(position=at)
    assert tab.locator("[data-tour=sentence]").inner_text().startswith("“cat” gives “chat” the weight")
    assert tab.locator(".tip").inner_text().startswith("cat → chat: ")
    canvas.tap(position=at)
    assert "row=" not in tab.url
    tab.get_by_role("tab", name="Step").tap()
    tab.get_by_role("navigation", name="zoom").get_by_role("button").nth(1).tap()
    canvas, cell, tall = canvas_box(tab)
    canvas.tap(position={"x": 2.5 * cell, "y": 1.5 * tall})
    assert "“▁black” → “▁noir”: α =" in tab.get_by_role("tabpanel").inner_text()
    tab.get_by_role("tab", name="Compare").tap()
    canvas, cell, tall = canvas_box(tab)
    canvas.tap(position={"x": 0.5 * cell, "y": 0.5 * tall})
    assert tab.locator(".tip").inner_text().startswith("the → le: ")


def test_the_lens_is_read_with_the_keyboard(open_page: Open, translation: Page) -> None:
    tab = open_page(translation, "#screen=words")
    lens = translation.document["runs"][0]["lens"]
    tab.get_by_role("group", name="predictions by layer").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowLeft", "ArrowRight", "ArrowRight", "ArrowLeft"):
        tab.keyboard.press(key)
    names = tab.locator(".facts td.name").all_inner_texts()
    assert names == [name for name, _ in lens["top"][len(lens["layers"]) - 2][2]]
    assert tab.locator(".lens td.on").inner_text() == names[0]


def test_the_address_keeps_the_view(open_page: Open, translation: Page) -> None:
    tab = open_page(translation, "#screen=heads&theme=dark")
    tab.locator(".thumb").nth(5).click()
    tab.reload()
    tab.get_by_role("tablist").wait_for()
    assert tab.get_by_role("combobox", name="site").input_value() == translation.document["runs"][0]["maps"][1]["site"]
    assert tab.get_by_role("combobox", name="head").input_value() == "1"
    assert "theme=dark" in tab.url
    tab.get_by_role("tab", name="Compare").click()
    tab.get_by_role("combobox", name="other run").select_option("1")
    tab.get_by_role("combobox", name="other site").select_option("decoder.layers.0.cross")
    tab.get_by_role("combobox", name="other head").select_option("3")
    tab.reload()
    tab.get_by_role("tablist").wait_for()
    chosen = [tab.get_by_role("combobox", name=f"other {name}").input_value() for name in ("run", "site", "head")]
    assert chosen == ["1", "decoder.layers.0.cross", "3"]


def test_what_is_taken_along(open_page: Open, translation: Page, tmp_path: Any) -> None:
    tab = open_page(translation, "#unit=tokens&head=0")
    run = translation.document["runs"][0]
    tab.get_by_role("button", name="export").click()
    held = {}
    for name in ("SVG", "CSV", "npz, all heads", "PNG"):
        with tab.expect_download() as download:
            tab.get_by_role("button", name=name, exact=True).click()
        held[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(held[name])
    with np.load(held["npz, all heads"]) as file:
        arrays = dict(file)
    assert set(arrays) == {one["site"] for one in run["maps"]}
    site = run["chosen"]["site"]
    info = next(one for one in run["maps"] if one["site"] == site)
    query, key = (translation.tensors[f"{info['tensors']}.{name}"] for name in ("query", "key"))
    wanted = torch.softmax(query @ key.transpose(-2, -1), -1).numpy()
    np.testing.assert_allclose(arrays[site], wanted, atol=1e-5)
    table = np.genfromtxt(held["CSV"], delimiter=",", skip_header=1)[:, 1:]
    np.testing.assert_allclose(table, wanted[0], atol=1e-5)
    drawn = held["SVG"].read_text(encoding="utf-8")
    assert all(f">{escape(name)}</text>" in drawn for name in run["sequences"]["source"])
    with Image.open(held["PNG"]) as picture:
        assert picture.width > 300
    code = tab.locator("dialog pre").inner_text()
    compile(code, "page", "exec")
    assert '"le chat noir"' in code


def test_a_dark_page_is_printed_in_the_colours_of_paper(open_page: Open, translation: Page) -> None:
    tab = open_page(translation, "#theme=dark")
    shades = "one => ['color', 'backgroundColor'].map(name => getComputedStyle(one)[name].match(/\\d+/g).map(Number))"
    ink, paper = tab.locator(".page").evaluate(shades)
    assert min(ink) > 200 > 50 > max(paper)
    tab.emulate_media(media="print")
    ink, paper = tab.locator(".page").evaluate(shades)
    assert max(ink) < 50 < 200 < min(paper)
    assert not tab.get_by_role("tablist").is_visible()
    tab.emulate_media(media="screen")
    tab.locator(".page").evaluate("one => { window.print = () => (window.printed = getComputedStyle(one).color); }")
    tab.get_by_role("button", name="export").click()
    tab.get_by_role("button", name="PDF (print)").click()
    until(tab, "window.printed !== undefined")
    assert max(map(int, re.findall(r"\d+", tab.evaluate("window.printed")))) < 50  # light when it is printed
    until(tab, "location.hash.includes('theme=dark')")  # as it was


def test_a_map_that_is_too_large_for_a_file_is_not_offered_as_one(open_page: Open) -> None:
    small, large = (torch.randn(1, 1, n, 4) for n in (6, 4001))
    seen = {"small": regard.attention_map(small, small), "large": regard.attention_map(large, large)}
    for names, offered in (("small", ["npz, all heads"]), ("large", []),
                           ("small large", ["npz, all heads of the smaller maps"])):  # fmt: skip
        tab = open_page(page_of_maps({name: seen[name] for name in names.split()}, "maps"))
        tab.get_by_role("button", name="export").click()
        assert tab.get_by_role("button", name="npz").all_inner_texts() == offered


HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "漢字",
    "مرحبا",
    "a\u0000b",
    "x" * 5000,
]


def test_tokens_are_text(open_page: Open) -> None:
    n = len(HOSTILE)
    seen = regard.attention_map(torch.randn(n, 4), torch.randn(n, 4), query_tokens=HOSTILE, key_tokens=HOSTILE)
    tab = open_page(seen.look())
    assert tab.locator("img").count() == 0
    assert [one.inner_text().strip() for one in tab.locator(".of-rows .word").all()][2:4] == HOSTILE[2:4]
    assert "<img src=x" in tab.locator(".of-rows .word").nth(1).inner_text()


@pytest.mark.parametrize("settings", [{"color_scheme": "dark"}, {"viewport": {"width": 320, "height": 640}}])
def test_dark_and_narrow(open_page: Open, translation: Page, settings: dict[str, Any]) -> None:
    tab = open_page(translation, **settings)
    for name in ("Step", "Heads", "Long view", "Compare", "Align"):
        tab.get_by_role("tab", name=name, exact=True).click()
        wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, name
    hidden = tab.locator(".ribbons").evaluate("one => one.scrollWidth - one.clientWidth")
    assert hidden <= 0  # three words and what is said beside them
    assert tab.locator(".map").evaluate("one => one.scrollHeight - one.clientHeight") <= 0  # nothing to scroll to


def test_a_long_map_opens_pans_and_shows_exact_weights(open_page: Open) -> None:
    torch.manual_seed(2)
    n = 1500
    query, key = torch.randn(n, 16) * 2, torch.randn(n, 16) * 2
    seen = regard.attention_map(query, key, mask=regard.causal())
    tab = open_page(seen.look(), "#screen=long")
    main = tab.locator("canvas.main")
    for _ in range(9):
        tab.get_by_role("button", name="zoom in").click()
    top, left, height, width = json.loads(main.get_attribute("data-view"))
    assert height < 60
    assert math.isclose(height, width, rel_tol=1e-6)
    main.hover(position={"x": 300, "y": 300})
    said = tab.locator(".tip").inner_text()
    row, column = (int(x.replace(",", "")) for x in re.findall(r"\(([\d,]+)\)", said))
    exact = float(seen.tile([row], [column]))
    assert (
        said.endswith("<0.001")
        if 0 < exact < 1e-3
        else float(said.rpartition(" ")[2]) == pytest.approx(exact, abs=1e-3)
    )
    tab.get_by_role("button", name="strongest links").click()
    first = tab.locator(".sum tbody tr").first.inner_text().split("\t")
    weights, keys = seen.top(1)
    assert float(first[2]) == pytest.approx(float(weights.max()), abs=1e-3)
    assert top >= 0
    assert left >= 0
    assert keys.shape == (n, 1)


def pixels_of(canvas: Any) -> Any:
    raw = canvas.evaluate("c => c.toDataURL('image/png')").partition(",")[2]
    return np.asarray(Image.open(BytesIO(base64.b64decode(raw))).convert("RGB")).astype(int)


def shares_of(tab: Any) -> tuple[Any, Any]:
    """The view of a long map at rest, and a function: the shown share of its largest weight at a row and a column."""
    main = tab.locator("canvas.main")
    tab.locator(".long[aria-busy=false]").wait_for()
    tab.wait_for_timeout(600)  # its colors follow when it is at rest
    top, left, height, width = json.loads(main.get_attribute("data-view"))
    picture = pixels_of(main)
    high, wide = picture.shape[0] - 34, picture.shape[1] - 84
    colours = 255 * scale(THEMES["light"].weights)

    def at(row: int, column: int) -> float:
        y = 34 + int((row + 0.5 - top) * high / height)
        x = 84 + int((column + 0.5 - left) * wide / width)
        found: float = np.abs(colours - picture[y, x]).sum(1).argmin() / 255
        return found

    return (int(top), int(left), int(height), int(width)), at


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 320)])
def test_the_other_views_of_a_long_map_show_parts_and_cells_of_it(open_page: Open, theme: str, width: int) -> None:
    made = torch.Generator().manual_seed(23)
    query, key = torch.randn(2, 500, 8, generator=made), torch.randn(2, 700, 8, generator=made)
    rows, columns = [f"q{i}" for i in range(500)], [f"k{j}" for j in range(700)]
    seen = regard.attention_map(3 * query, key, query_tokens=rows, key_tokens=columns)
    weights = seen.full()
    tab = open_page(
        seen.look(), f"#screen=align&head=1&row=450&column=300&theme={theme}", viewport={"width": width, "height": 900}
    )
    assert [one.inner_text() for one in tab.get_by_role("tab").all()] == [
        "Align", "Step", "Heads", "Long view", "Compare",
    ]  # fmt: skip
    assert said_at(tab, 3, 2) == f"q437 → k286: {float(weights[1, 437, 286]):.3f}".replace("0.000", "<0.001")
    tab.get_by_label("first of the keys").fill("600")
    tab.get_by_label("first of the queries").fill("470")  # of which there are 32 at most
    assert tab.locator(".of-rows .word").first.inner_text() == "q468"
    tab.locator(".of-rows .word").nth(5).click()
    values, order = weights[1, 473].topk(8)
    facts = tab.get_by_role("complementary", name="the chosen word")
    table = [row.inner_text().split("\t")[:2] for row in facts.locator("tbody tr").all()]
    assert table == [[f"k{j} ({j + 1})", f"{x:.3f}"] for x, j in zip(values.tolist(), order.tolist(), strict=True)]
    tab.get_by_role("button", name=f"show “k{int(order[0])}”").click()
    assert tab.locator(".of-columns .word", has_text=re.compile(f"^k{int(order[0])}$")).is_visible()
    assert "row=473" in tab.evaluate("location.hash")
    tab.get_by_role("tab", name="Step").click()
    assert tab.get_by_role("heading", name="The query “q473” scores every key").is_visible()
    tab.get_by_role("tab", name="Compare").click()
    pools = [torch.stack([one.amax() for part in head.split(16) for one in part.split(32, -1)]).view(32, 22)
             for head in weights]  # fmt: skip
    canvas = tab.locator("canvas.cells").nth(2)
    cell, tall = (float(canvas.get_attribute(f"data-{name}")) for name in ("cell", "tall"))
    canvas.hover(position={"x": 2.5 * cell, "y": 7.5 * tall})
    said = tab.locator(".tip").inner_text()
    assert said.startswith("112–127 → 64–95: ")
    shown = float(said.rpartition(" ")[2].replace("−", "-"))
    assert shown == pytest.approx(float(pools[1][7, 2] - pools[0][7, 2]), abs=1e-3)
    wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0


@pytest.mark.parametrize("hides", [False, True])
def test_the_picture_of_a_long_map_is_its_weights_wherever_it_was_dragged_to(open_page: Open, hides: bool) -> None:
    torch.manual_seed(4)
    n = 1300
    query, key = torch.randn(n, 16), torch.randn(n, 16)
    query[:, 0], key[617, 0] = 3.0, 12.0  # a sink in the middle
    seen = regard.attention_map(query, key)
    tab = open_page(seen.look(), "#screen=long")
    tab.get_by_role("button", name="log scale").click()
    if hides:
        tab.get_by_role("button", name="hide 1 sink").click()
    for _ in range(8):
        tab.get_by_role("button", name="zoom in").click()
    box = tab.locator("canvas.main").bounding_box()
    tab.mouse.move(box["x"] + 700, box["y"] + 300)
    tab.mouse.down()
    for step in range(1, 8):
        tab.mouse.move(box["x"] + 700 + 61 * step, box["y"] + 300 - 13 * step)
    tab.mouse.up()
    (top, left, height, width), at = shares_of(tab)
    assert left + 4 < 617 < left + width - 4
    rows, columns = slice(top + 2, top + height - 2), slice(left + 2, left + width - 2)
    weights = seen.tile(rows, columns)
    if hides:
        weights[:, 617 - columns.start] = 0
    most = float(weights.max())
    for i in range(0, weights.shape[0], 5):
        for j in (*range(0, weights.shape[1], 7), 617 - columns.start):
            shown = at(rows.start + i, columns.start + j)
            assert shown == pytest.approx(float(weights[i, j]) / most, abs=0.02), (i, j)


WORKERS = {
    "is refused": "window.Worker = class { constructor() { throw new Error('refused by a policy'); } }",
    "fails": "window.Worker = class extends EventTarget { constructor() { super(); setTimeout(() =>"
    " this.dispatchEvent(new Event('error')), 50); } postMessage() {} }",
}


@pytest.mark.parametrize("how", WORKERS)
def test_a_long_map_is_exact_where_a_worker(browser: Any, tmp_path: Path, how: str) -> None:
    torch.manual_seed(6)
    query, key = torch.randn(2, 1511, 16).unbind(0)
    seen = regard.attention_map(query, key)
    seen.look(tmp_path / "page.html")
    tab = browser.new_page()
    tab.add_init_script(WORKERS[how])
    tab.goto(f"file://{tmp_path / 'page.html'}#screen=long")
    tab.get_by_role("button", name="log scale").click()
    for _ in range(7):
        tab.get_by_role("button", name="zoom in").click()
    tab.wait_for_timeout(200)
    (top, left, height, width), at = shares_of(tab)
    rows, columns = slice(top + 2, top + height - 2), slice(left + 2, left + width - 2)
    weights = seen.tile(rows, columns)
    for i, j in ((1, 3), (9, 2), *(divmod(int(n), weights.shape[1]) for n in weights.flatten().topk(9).indices)):
        shown = at(rows.start + i, columns.start + j)
        assert shown == pytest.approx(float(weights[i, j] / weights.max()), abs=0.02), (i, j)
    tab.close()


def test_a_single_strong_weight_is_seen_in_the_whole_of_a_long_map(open_page: Open) -> None:
    n = 4001
    query, key = torch.zeros(n, 8), torch.zeros(n, 8)
    query[1777], key[2222] = 9.0, 9.0
    tab = open_page(regard.attention_map(query, key).look(), "#screen=long")
    tab.get_by_role("button", name="log scale").click()
    _, at = shares_of(tab)
    picture = pixels_of(tab.locator("canvas.main"))[34:, 84:]
    strongest = 255 * scale(THEMES["light"].weights)[-1]
    rows, columns = np.nonzero(np.abs(picture - strongest).sum(2) < 9)
    assert rows.mean() / picture.shape[0] == pytest.approx(1777 / n, abs=0.005)
    assert columns.mean() / picture.shape[1] == pytest.approx(2222 / n, abs=0.005)
    assert at(1000, 1000) == pytest.approx(0, abs=0.01)


WIDGET = """
async ([code, document_, packed]) => {
  const page = await import(URL.createObjectURL(new Blob([code], {type: "text/javascript"})));
  const raw = Uint8Array.from(atob(packed), c => c.charCodeAt(0));
  const traits = {document: document_, tensors: new DataView(raw.buffer)};
  for (const name of ["one", "two"]) {
    const el = document.createElement("div");
    el.id = name;
    document.body.append(el);
    if ("render" in page) throw new Error("anywidget takes the default export alone");
    page.default.render({model: {get: key => traits[key]}, el});
  }
}
"""


def test_a_notebook_that_is_not_trusted_shows_the_picture(browser: Any, translation: Page) -> None:
    tab = browser.new_page()
    tab.set_content(2 * f"<section>{translation._repr_mimebundle_()['text/html']}</section>")
    first, second = (tab.locator("section").nth(n).get_by_role("img") for n in range(2))
    assert tab.locator("section > iframe").nth(1).is_visible()
    assert not first.or_(second).count()
    # JupyterLab takes frames and styles out of the outputs of such a notebook
    tab.evaluate("document.querySelectorAll('section:first-child > :is(iframe, style)').forEach(one => one.remove())")
    assert first.is_visible()
    assert first.bounding_box()["width"] > 100
    assert tab.get_by_text("trust this one").first.is_visible()
    assert not second.count()  # its own frame is there
    tab.close()


def test_the_whole_title_of_the_picture_is_inside_it(browser: Any, translation: Page) -> None:
    tab = browser.new_page()
    tab.set_content(translation.still)
    inside = "one => one.getBoundingClientRect().right <= document.querySelector('svg').getBoundingClientRect().right"
    title = tab.locator("svg > text").first
    assert title.text_content() == "decoder.layers.1.cross: le chat noir"
    assert title.evaluate(inside)
    tab.close()


def test_two_widgets_stand_in_one_notebook(browser: Any, translation: Page) -> None:
    widget = translation.widget()
    tab = browser.new_page()
    packed = base64.b64encode(widget.tensors).decode()
    tab.evaluate(WIDGET, [widget._esm, widget.document, packed])
    tab.locator("#one").get_by_role("tab", name="Heads").click()
    assert tab.locator("#one .thumb").count() > 20
    assert tab.locator("#two .thumb").count() == 0
    assert tab.locator("#two .of-rows .word").all_inner_texts() == ["the", "black", "cat"]
    tab.close()


SAMPLES = Path(regard.__file__).parent / "samples"
AXE = Path(__file__).parents[2] / "frontend" / "node_modules" / "axe-core" / "axe.min.js"
VIOLATIONS = "async () => (await axe.run(document)).violations.map(one => [one.id, one.nodes.map(node => node.html)])"


@pytest.fixture(scope="module")
def pages(translation: Page) -> dict[str, Page]:
    """A page of every kind: what has other views has them here."""
    made = torch.Generator().manual_seed(17)
    long = torch.randn(1300, 8, generator=made)
    long[:, 0], long[3] = 4.0, 0.0
    long[3, 0] = 9.0  # a sink
    even = torch.randn(2, 24, 5, 3, generator=made).div(99).unbind(0)
    return {
        "translation": translation,
        "two models": look_at([regard.load("fr-en"), regard.load("fr-en-rnn")], ["le chat noir"]),
        "picture": look_at([regard.load("emoji")], [str(SAMPLES / "picture.png")]),
        "sound": look_at([regard.load("spelling")], [str(SAMPLES / "recording.flac")]),
        "long": regard.attention_map(long, long).look(),
        "many heads": page_of_maps({name: regard.attention_map(*even) for name in ("layers.0", "layers.1")}, "even"),
    }


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["translation", "two models", "picture", "sound", "long", "many heads"])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1350])
def test_axe_finds_nothing(open_page: Open, pages: dict[str, Page], name: str, theme: str, width: int) -> None:
    if not AXE.exists():
        pytest.skip("needs axe-core: npm ci in frontend/")
    tab = open_page(pages[name], f"#theme={theme}", viewport={"width": width, "height": 900})
    tab.evaluate(AXE.read_text(encoding="utf-8"))
    for view in [one.inner_text() for one in tab.get_by_role("tab").all()]:
        tab.get_by_role("tab", name=view, exact=True).click()
        assert tab.evaluate(VIOLATIONS) == [], view
        wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, view
        for zoom in tab.get_by_role("navigation", name="zoom").get_by_role("button").all():
            zoom.click()
            assert tab.evaluate(VIOLATIONS) == [], (view, zoom.inner_text())
    for button in ("tour", "export"):
        tab.get_by_role("button", name=button, exact=True).click()
        assert tab.evaluate(VIOLATIONS) == [], button
        tab.keyboard.press("Escape")


class Served:
    """The server of a page, in a thread."""

    def __init__(self, app: Any) -> None:
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> int:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return int(self.server.servers[0].sockets[0].getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()


def ribbons(part: Any) -> dict[tuple[str, str], float]:
    """The weights of the ribbons, by source and output word, from where their ends are and how thick they are."""
    found = part.evaluate(
        """part => {
          const words = kind => [...part.querySelectorAll(`.${kind} .word`)].map(one => {
            const box = one.getBoundingClientRect();
            return [one.firstChild.textContent, box.left + box.width / 2, box.top + box.height / 2];
          });
          const sheet = part.querySelector(".sheet").getBoundingClientRect();
          const upright = part.querySelector(".upright") !== null;
          const at = (kind, x, y) => words(kind).reduce((best, one) => {
            const away = upright ? Math.abs(one[2] - y - sheet.top) : Math.abs(one[1] - x - sheet.left);
            return away < best[0] ? [away, one[0]] : best;
          }, [Infinity, ""]);
          return [...part.querySelectorAll("path")].map(path => {
            const n = path.getAttribute("d").match(/-?[\\d.]+/g).map(Number);
            return [at("of-columns", n[0], n[1]), at("of-rows", n[6], n[7]), Number(path.getAttribute("stroke-width"))];
          });
        }"""
    )
    for source, output, _ in found:
        assert max(source[0], output[0]) < 1  # pixels between a ribbon's end and the middle of its word
    return {(source[1], output[1]): (thick - 1) / 13 for source, output, thick in found}


@pytest.mark.parametrize(("width", "beside"), [(1350, True), (390, False)])
def test_what_if_shows_the_attention_before_and_after(
    browser: Any, translation: Page, width: int, beside: bool
) -> None:
    model = regard.load("fr-en")
    app, token = create_explorer(translation, model)
    run = translation.document["runs"][0]
    site, (head,) = run["chosen"]["site"], run["chosen"]["heads"]
    with Served(app) as port:
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.goto(f"http://127.0.0.1:{port}/?token={token}#screen=step")
        tab.get_by_role("combobox", name="attend only to").select_option("1")  # ▁chat
        parts = {name: tab.get_by_role("region", name=name, exact=True) for name in ("before", "after")}
        parts["after"].locator("path").first.wait_for()
        alignment = model("le chat noir", beam=4).alignment
        assert (alignment.site, alignment.heads) == (site, [head])
        drawn = ribbons(parts["before"])
        for i, output in enumerate(alignment.target):
            for j, source in enumerate(alignment.source):
                assert drawn.get((source, output), 0.0) == pytest.approx(
                    float(alignment.matrix[i, j]), abs=0.03 if (source, output) not in drawn else 1e-3
                )

        def forced(weights: torch.Tensor) -> torch.Tensor:
            weights = weights.clone()
            weights[..., head, :, :] = 0
            weights[..., head, :, 1] = 1
            return weights

        with regard.intervene(model.model, site, forced):
            text = model("le chat noir", beam=4).text
        assert parts["after"].get_by_role("paragraph").first.inner_text() == text
        assert ribbons(parts["after"]) == {("chat", word): 1.0 for word in text.split()}
        left, right = (parts[name].bounding_box() for name in ("before", "after"))
        assert (left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]) is beside
        assert (left["x"] == right["x"] and left["y"] + left["height"] <= right["y"]) is not beside
        wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        tab.close()
    assert wide <= 0


def test_what_if_of_a_decoder_alone_shows_the_changed_head(browser: Any) -> None:
    model = regard.load("shakespeare")
    page = look_at([model], ["To be, or not"])
    words = page.document["runs"][0]["words"]["text"]
    key = words["owner"].index(4)  # the first letter of the fifth word
    app, token = create_explorer(page, model)
    with Served(app) as port:
        tab = browser.new_page(viewport={"width": 1350, "height": 900})
        tab.goto(f"http://127.0.0.1:{port}/?token={token}#screen=step")
        tab.get_by_role("combobox", name="attend only to").select_option(str(key))
        parts = {name: tab.get_by_role("region", name=name, exact=True) for name in ("before", "after")}
        parts["after"].locator("path").first.wait_for()
        assert "head 0 (of 4)" in parts["after"].locator(".shown").inner_text()
        before, after = (parts[name].get_by_role("paragraph").first.inner_text() for name in ("before", "after"))
        assert before.split() == page.document["runs"][0]["text"].split()
        said = ["To", "be,", "or", "not", *after.split()[:-1]]  # the last token attends to nothing yet
        drawn = ribbons(parts["after"])
        assert {pair: weight for pair, weight in drawn.items() if pair[1] in said[4:]} == {
            (said[4], word): 1.0 for word in said[4:]
        }
        assert len(ribbons(parts["before"])) > len(said)
        left, right = (parts[name].bounding_box() for name in ("before", "after"))
        assert left["x"] + left["width"] <= right["x"]
        tab.close()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("theme", "width"), [("light", 1350), ("dark", 320)])
def test_a_patch_from_another_sentence_shows_the_attention_before_and_after(
    browser: Any, translation: Page, theme: str, width: int
) -> None:
    model = regard.load("fr-en")
    app, token = create_explorer(translation, model)
    run = translation.document["runs"][0]
    site, (head,) = run["chosen"]["site"], run["chosen"]["heads"]
    other = "le chien blanc"
    with Served(app) as port:
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.goto(f"http://127.0.0.1:{port}/?token={token}#screen=step&theme={theme}")
        assert tab.get_by_role("button", name="patch", exact=True).is_disabled()
        tab.get_by_role("textbox", name="another sentence").fill("le chien")
        tab.get_by_role("button", name="patch", exact=True).click()
        tab.get_by_role("alert").get_by_text("take a sentence of as many tokens").wait_for()
        tab.get_by_role("textbox", name="another sentence").fill(other)
        tab.keyboard.press("Enter")
        parts = {name: tab.get_by_role("region", name=name, exact=True) for name in ("before", "after")}
        parts["after"].locator("path").first.wait_for()
        made = model("le chat noir", beam=4)
        there = replace(model(other, beam=4), ids=made.ids, tokens=made.tokens, text=made.text)
        kept = {site: recorded(there.forward_pass())[site]}
        matrix = replace(there, attention=kept, source=made.source, read=made.read).alignment.matrix
        drawn, source, output = ribbons(parts["after"]), made.source.split(), made.text.split()
        for i, word in enumerate(output):
            for j, key in enumerate(source):
                assert drawn.get((key, word), 0.0) == pytest.approx(
                    float(matrix[i, j]), abs=0.03 if (key, word) not in drawn else 1e-3
                )
        assert ribbons(parts["before"]) != drawn
        assert f"the weights of head {head} of decoder layer 1 · cross-attention from “{other}”" in (
            tab.locator(".believe").last.inner_text()
        )
        tab.get_by_role("combobox", name="part to patch").select_option("values")
        tab.get_by_role("button", name="patch", exact=True).click()
        tab.get_by_text("With the values of").wait_for()
        assert ribbons(parts["after"]) == ribbons(parts["before"])  # only what is read changes
        if AXE.exists():
            tab.evaluate(AXE.read_text(encoding="utf-8"))
            assert tab.evaluate(VIOLATIONS) == []
        wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        tab.close()
    assert wide <= 0


def test_a_saved_page_says_that_it_cannot_patch(open_page: Open, translation: Page) -> None:
    tab = open_page(translation, "#screen=step")
    assert tab.get_by_text("a saved page has no model to ask, nor to patch from another sentence").is_visible()
    assert not tab.get_by_role("button", name="patch", exact=True).count()


SPEECH = (
    "To be, or not to be, that is the question: whether it is nobler in the mind to suffer the slings and arrows of "
    "outrageous fortune, or to take arms against a sea of troubles, and by opposing end them. To die, to sleep; no more"
)


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_if_of_a_long_text_is_a_pair_of_heatmaps(browser: Any, theme: str) -> None:
    model, beginning, key = regard.load("shakespeare"), SPEECH[:140], 17
    page = look_at([model], [beginning])
    app, token = create_explorer(page, model)
    with Served(app) as port:
        tab = browser.new_page(viewport={"width": 1400, "height": 900})
        tab.goto(f"http://127.0.0.1:{port}/?token={token}#screen=step&theme={theme}")
        tab.get_by_role("combobox", name="attend only to").select_option(str(key))
        parts = [tab.get_by_role("region", name=name, exact=True) for name in ("before", "after")]
        parts[1].locator("canvas.cells").wait_for()
        assert "With all weight on “b” (key 18) in head 0" in tab.locator(".believe").last.inner_text()
        words = [len(page.document["runs"][0]["words"]["text"]["texts"])]
        for part in parts:  # 41 words before, 40 after: both are drawn in one way
            assert not part.locator(".ribbons").count()
            words.append(part.locator(".down span").count())
        assert max(words) > 40 >= min(words)
        tab.get_by_role("tab", name="Align", exact=True).click()
        tab.get_by_role("button", name="tokens", exact=True).click()
        tab.get_by_role("tab", name="Step", exact=True).click()
        tab.get_by_role("combobox", name="attend only to").select_option(str(key))
        canvas = parts[1].locator("canvas.cells")
        canvas.wait_for()
        cell, tall = (float(canvas.get_attribute(f"data-{name}")) for name in ("cell", "tall"))
        picture = pixels_of(canvas)
        colours = 255 * scale(THEMES[theme].weights)
        for row in (key, key + 30, len(beginning)):
            for column, wanted in ((key, colours[-1]), (key + 1, colours[0])):  # all of the weight, and none
                shown = picture[int((row + 0.5) * tall), int((column + 0.5) * cell)]
                np.testing.assert_allclose(shown, wanted, atol=2)
        wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        tab.close()
    assert wide <= 0


@pytest.mark.slow
def test_what_if_of_more_than_256_tokens_shows_a_part_before_and_after(browser: Any) -> None:
    model = regard.load("shakespeare")
    page = look_at([model], [SPEECH])
    app, token = create_explorer(page, model)
    with Served(app) as port:
        tab = browser.new_page(viewport={"width": 320, "height": 900})
        tab.goto(f"http://127.0.0.1:{port}/?token={token}#screen=step")
        tab.get_by_role("button", name="ablate that head").click()
        for name in ("before", "after"):
            part = tab.get_by_role("region", name=name, exact=True)
            part.locator(".ribbons").wait_for()
            assert part.locator(".of-rows .word").count() == 32
            assert part.locator("table.bars tbody tr").count() == 6
        after = tab.get_by_role("region", name="after", exact=True).get_by_role("paragraph").first.inner_text()
        with regard.intervene(model.model, "decoder.layers.5.self", ablate(0)):
            assert after.split() == model(SPEECH, length=64, seed=0).text.split()
        wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        tab.close()
    assert wide <= 0


def test_of_another_text_nothing_is_said_that_was_asked_of_the_first(browser: Any) -> None:
    model, site = regard.load("fr-en"), "decoder.layers.1.cross"
    # before the page asks: a test changes the model's attention for all threads that run it
    sentence = look_at([model], ["le chien noir dort dans le jardin"]).document["runs"][0]["believe"]["sentence"]
    short = model("le chat", beam=4).tokens
    app, token = create_explorer(look_at([model], ["le chat noir dort sur le canapé"]), model)
    faults: list[str] = []
    with Served(app) as port:
        tab = browser.new_page(viewport={"width": 1350, "height": 900})
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.goto(f"http://127.0.0.1:{port}/?token={token}#screen=step")
        view = lambda name: tab.get_by_role("tab", name=name, exact=True)  # noqa: E731

        def look(text: str) -> None:
            tab.get_by_role("textbox", name="your own text").fill(text)
            tab.get_by_role("button", name="look", exact=True).click()
            tab.get_by_role("button", name="look", exact=True).wait_for()

        tab.get_by_role("combobox", name="source word").select_option("6")
        tab.get_by_role("button", name="leave it out").click()
        tab.get_by_role("region", name="after", exact=True).wait_for()
        look("le chat dort")
        assert not tab.get_by_role("region", name="after", exact=True).count()
        tab.get_by_role("button", name="leave it out").click()  # the last word: there is no seventh any more
        tab.get_by_text("With leaving out “dort”").wait_for()
        view("Believe it?").click()
        tab.get_by_role("combobox", name="token to test").select_option("1")
        tab.get_by_text("tested at decoder layer 1 · cross-attention, for “▁cat”").wait_for()
        look("le chien noir dort dans le jardin")
        assert not tab.get_by_text("for “▁cat”").count()
        tab.locator(".verdict").wait_for()
        assert tab.locator(".verdict").inner_text() == sentence.replace(site, "decoder layer 1 · cross-attention")
        view("Logit lens").click()
        tab.locator(".lens td").last.hover()
        look("le chat")
        assert tab.locator(".lens tbody tr").count() == len(short)
        tab.close()
    assert faults == []


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 320)])
@pytest.mark.parametrize(("name", "text"), [("fr-en", "le chat noir"), ("shakespeare", "To be, or not")])
def test_maps_are_drawn_before_they_are_tested(browser: Any, theme: str, width: int, name: str, text: str) -> None:
    model = regard.load(name)
    app, token = create_explorer(look_at([model], [text], tests=False), model)
    held: list[Any] = []
    faults: list[str] = []
    with Served(app) as port:
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.on("console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None)
        tab.route("**/api/believe", lambda route: held.append(route))
        tab.goto(f"http://127.0.0.1:{port}/?token={token}#theme={theme}")
        tab.get_by_text("This map is being tested against the output …").wait_for()
        assert tab.locator(".ribbons path").count() > 3
        while not held:  # the question comes when the maps are drawn
            tab.wait_for_timeout(10)
        tab.get_by_role("tab", name="Believe it?").click()
        assert tab.get_by_text("is being tested …").is_visible()
        run = look_at([model], [text]).document["runs"][0]
        later = held.pop()  # the server was asked something else first: the page asks again
        later.fulfill(json={"later": True})
        while not held:
            tab.wait_for_timeout(10)
        held.pop().continue_()
        tab.locator(".verdict").wait_for()
        site = run["believe"]["site"]
        named = tab.locator("[data-tour=verdict] header .note").inner_text().removeprefix("tested at ")
        assert tab.locator(".verdict").inner_text() == run["believe"]["sentence"].replace(site, named)
        tab.get_by_role("tab", name="Align", exact=True).click()
        said = tab.locator(".believe.line").inner_text()
        assert run["believe"]["sentence"].removesuffix(".").rsplit("this map ", 1)[1] in said

        assert not held
        wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        tab.close()
    assert (wide, faults) == (0, [])


@pytest.mark.slow
def test_questions_are_put_to_the_model_and_the_output_that_they_are_about(browser: Any) -> None:
    models = [regard.load("fr-en"), regard.load("fr-en-rnn")]
    page = look_at(models, ["le chat noir"])
    app, token = create_explorer(page, models[0])
    with Served(app) as port:
        tab = browser.new_page(viewport={"width": 1350, "height": 900})
        for number, run in enumerate(page.document["runs"]):
            tab.goto("about:blank")
            tab.goto(f"http://127.0.0.1:{port}/?token={token}#screen=step&run={number}")
            asked = tab.get_by_role("button", name="ablate that head")
            tab.get_by_text("What if?").wait_for()
            assert asked.count() == (number == 0), run["label"]
            if number:
                assert tab.get_by_text("asks fr-en for its first output").is_visible()
            tab.get_by_role("tab", name="Believe it?").click()
            assert tab.get_by_role("combobox", name="token to test").count() == (number == 0)
        tab.close()


@pytest.mark.slow
def test_a_served_page_offers_no_question_that_nobody_answers(browser: Any) -> None:
    app, token = create_explorer(look_at([regard.load("english")], ["the river"]), None)
    with Served(app) as port:
        tab = browser.new_page()
        tab.goto(f"http://127.0.0.1:{port}/?token={token}#screen=step")
        tab.get_by_role("tablist").wait_for()
        assert not tab.get_by_role("textbox", name="your own text").count()
        assert not tab.get_by_role("tab", name="Believe it?").count()
        assert not tab.get_by_text("What if?").count()
        tab.close()


VIEWS = {  # a model, its input, and a view of the page
    "a head": ("fr-en", "le chat noir dort", "#unit=tokens"),
    "a mean within the source": ("fr-en", "le chat noir", "#unit=tokens&site=encoder.layers.0.self&head=mean"),
    "the output's own": ("fr-en", "le chat noir", "#unit=tokens&site=decoder.layers.1.self&head=3"),
    "the second of the beam": ("fr-en", "le chat noir dort", "#unit=tokens&run=1"),
    "two sentences": ("fr-en", "Il fait beau. Le chat dort.", "#unit=tokens"),
    "another model": ("fr-en,fr-en-rnn", "le chat noir", "#unit=tokens&run=3"),
    "a recurrent model": ("fr-en-rnn", "le chat noir", "#unit=tokens"),
    "a decoder alone": ("shakespeare", "To be, or not", "#unit=tokens&head=1"),
    "an encoder alone": ("english", "the man sat", "#unit=tokens&head=2"),
    "a picture": ("emoji", str(SAMPLES / "picture.png"), "#unit=tokens"),
    "a recording": ("spelling", str(SAMPLES / "recording.flac"), "#unit=tokens"),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("view", VIEWS)
def test_the_copied_python_gives_what_is_shown(
    open_page: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: str
) -> None:
    names, given, address = VIEWS[view]
    tab = open_page(look_at([regard.load(name) for name in names.split(",")], [given]), address)
    tab.get_by_role("button", name="export").click()
    with tab.expect_download() as download:
        tab.get_by_role("button", name="CSV", exact=True).click()
    download.value.save_as(tmp_path / "map.csv")
    table = [
        [float(x) for x in row[1:]]
        for row in list(csv.reader(StringIO((tmp_path / "map.csv").read_text(encoding="utf-8"))))[1:]
    ]
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    exec(tab.locator("dialog pre").inner_text(), made)
    head = made["head"]
    found = head.full() if isinstance(head, AttentionMap) else head
    np.testing.assert_allclose(found.detach().numpy(), table, atol=1e-3)
    assert (tmp_path / "page.html").exists()


def test_a_picture_is_bright_where_each_word_looked(open_page: Open, pages: dict[str, Page]) -> None:
    run = pages["picture"].document["runs"][0]
    made = regard.load("emoji")(str(SAMPLES / "picture.png"))
    weights = made.attention[run["chosen"]["site"]].full()[run["chosen"]["heads"]].mean(0)
    tab = open_page(pages["picture"], "#unit=tokens")
    words = tab.get_by_role("group", name="words").get_by_role("button")
    assert [one.inner_text().strip() for one in words.all()] == made.tokens
    for number in (0, 3):
        words.nth(number).hover()
        large = tab.locator(".seen > div canvas").first
        assert large.get_attribute("aria-label") == f"what “{made.tokens[number]}” attended to stays bright"
        raw = large.evaluate("c => c.toDataURL('image/png')").partition(",")[2]
        shade = np.asarray(Image.open(BytesIO(base64.b64decode(raw))).convert("RGBA"))[..., 3] / 255
        height, width = shade.shape
        row = weights[number]
        for j, (down, across) in enumerate(run["media"]["positions"]):
            wanted = 0.7 * (1 - float(row[j] / row.max()))
            assert shade[int(down * height), int(across * width)] == pytest.approx(wanted, abs=0.01)
    before = large.get_attribute("aria-label")
    tab.mouse.move(5, 5)
    tab.get_by_role("button", name="word by word").click()  # which goes on by itself
    until(
        tab,
        "said => document.querySelector('#regard > div').shadowRoot.querySelector('.seen > div canvas')"
        ".getAttribute('aria-label') !== said",
        before,
    )


def test_the_play_head_and_the_word_follow_the_recording(open_page: Open, pages: dict[str, Page]) -> None:
    run = pages["sound"].document["runs"][0]
    made = regard.load("spelling")(str(SAMPLES / "recording.flac"))
    weights = made.attention[run["chosen"]["site"]].full()[run["chosen"]["heads"]].mean(0)
    times = torch.tensor([place[0] for place in run["media"]["positions"]])
    tab = open_page(pages["sound"], "#unit=tokens")
    until(tab, "document.querySelector('#regard > div').shadowRoot.querySelector('audio').readyState > 0")
    words = tab.get_by_role("group", name="words").get_by_role("button")
    assert words.count() == len(made.tokens)
    shown = []
    for second in (0.25, 1.05, 1.75):
        tab.locator("audio").evaluate(
            "(audio, t) => new Promise(done => { audio.addEventListener('timeupdate', () => done(), {once: true});"
            " audio.currentTime = t; })",
            second,
        )
        tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        box, head = (tab.locator(place).bounding_box() for place in (".over", ".over i"))
        assert (head["x"] - box["x"]) / box["width"] == pytest.approx(second / run["media"]["seconds"], abs=0.003)
        wanted = int(weights[:, (times - second).abs().argmin()].argmax())
        pressed = [n for n, one in enumerate(words.all()) if one.get_attribute("aria-pressed") == "true"]
        assert pressed == [wanted]
        shown.append(wanted)
    assert len(set(shown)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["translation", "sound"])
@pytest.mark.parametrize("size", [(320, 640), (1280, 720)])
def test_the_tour_does_not_cover_what_it_speaks_of(
    open_page: Open, pages: dict[str, Page], name: str, size: tuple[int, int]
) -> None:
    tab = open_page(pages[name], viewport={"width": size[0], "height": size[1]})
    tab.get_by_role("button", name="tour", exact=True).click()
    aside, stops = tab.get_by_role("complementary", name="tour"), 0
    while True:
        card, lit = aside.bounding_box(), tab.locator(".lit").bounding_box()
        title = aside.get_by_role("heading").inner_text()
        assert lit["y"] >= 0, title
        assert lit["y"] + min(lit["height"], 150) <= card["y"], title
        stops += 1
        onward = aside.get_by_role("button", name="next", exact=True)
        if not onward.count():
            break
        onward.click()
    assert stops > 7


@pytest.mark.parametrize("name", ["translation", "picture", "sound"])
def test_every_stop_of_the_tour_shows_what_it_speaks_of(open_page: Open, pages: dict[str, Page], name: str) -> None:
    tab = open_page(pages[name])
    run = pages[name].document["runs"][0]
    heads = sum(one["how"]["heads"] for one in run["maps"])
    tab.get_by_role("button", name="tour", exact=True).click()
    aside = tab.get_by_role("complementary", name="tour")
    seen = []
    while True:
        title, text = aside.get_by_role("heading").inner_text(), aside.get_by_role("paragraph").inner_text()
        lit = tab.locator(".lit")
        assert lit.count() == 1, title
        assert lit.is_visible(), title
        place = lit.get_attribute("data-tour")
        seen.append(place)
        content = lit.inner_text()
        if place == "media":
            assert f"“{run['text']}”" in text
        elif place == "ribbons":
            assert all(word in content for word in run["text"].split())
            assert f"“{run['text']}”" in text
        elif place == "sentence":
            word = re.search(r"see “(.*)”", text)
            assert word
            assert content.startswith(f"“{word[1]}”")
        elif place == "map":
            assert lit.locator("canvas.cells").is_visible()
        elif place == "head":
            which = lit.get_by_role("combobox", name="head")
            if which.count():
                said = which.evaluate("one => one.selectedOptions[0].textContent").removesuffix(" (chosen)")
                assert text.lower().startswith(said), title
        elif place == "heads":
            assert tab.locator(".thumb").count() == heads
            assert f"all {heads} heads" in text
        elif place == "zooms":
            level = "3 query" if title == "Where a weight comes from" else "4 weight"
            assert lit.locator("[aria-pressed=true]").first.inner_text().startswith(level)
        elif place == "verdict":
            assert "May this map be believed?" in content
        onward = aside.get_by_role("button", name="next")
        if not onward.count():
            break
        onward.click()
    wanted = {
        "translation": ["ribbons", "sentence", "map", "head", "zooms", "zooms", "heads", "verdict", "lens", "take"],
        "picture": ["media", "sentence", "map", "head", "zooms", "zooms", "verdict", "take"],
        "sound": ["media", "sentence", "map", "head", "zooms", "zooms", "heads", "verdict", "take"],
    }
    assert seen == wanted[name]
    aside.get_by_role("button", name="done").click()
    assert tab.locator(".lit").count() == 0
    assert aside.count() == 0
