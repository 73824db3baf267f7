"""The page of `regard look`: its size, the time until it is seen, and the time of a frame while a long map is panned.

And the time from the question for another text to its maps, on the page that is served.

python benchmarks/page.py            the table, as Markdown (about three minutes on two cores); needs Chromium
python benchmarks/page.py write      the same, written to docs/explorer.md

BertViz (pip install bertviz) is the peer in size. Its page loads scripts from a network, so it is not opened here.
"""

import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import uvicorn
from measure import machine, write
from torch import Tensor

import regard
from regard.attention.maps.page import page_of_maps
from regard.explorer.server import create_explorer
from regard.figures.page import Page
from regard.pipelines.page import look_at

LAYERS, HEADS, TOKENS, WIDTH = 12, 12, 128, 64
LONG = 32_768
SENTENCE = "Le chat noir dort sur le canapé rouge depuis ce matin."
TURNS = 3
FRAMES = """
(steps) => new Promise(done => {
  const canvas = document.querySelector("#regard > div").shadowRoot.querySelector("canvas.main");
  const box = canvas.getBoundingClientRect();
  const say = (kind, x) => canvas.dispatchEvent(new PointerEvent(kind, {bubbles: true, composed: true, pointerId: 1,
    clientX: box.left + x, clientY: box.top + box.height / 2}));
  canvas.setPointerCapture = () => {};
  const gaps = [];
  let last = 0, n = 0;
  say("pointerdown", 700);
  const next = now => {
    if (last) gaps.push(now - last);
    last = now;
    if (n++ === steps) { say("pointerup", 700); done(gaps); return; }
    say("pointermove", 700 - 6 * n);
    requestAnimationFrame(next);
  };
  requestAnimationFrame(next);
})
"""


def main() -> None:
    """Print the table, and write it where that is asked for."""
    missing = [name for name, there in (("Chromium", chromium()), ("playwright", find_spec("playwright"))) if not there]
    if missing:
        print(f"benchmarks/page.py is left out: it needs {' and '.join(missing)}")
        return
    torch.manual_seed(0)
    query, key = torch.randn(2, LAYERS, HEADS, TOKENS, WIDTH).unbind(0)
    value = torch.randn(LAYERS, HEADS, TOKENS, WIDTH)
    layers = {f"layers.{n}": regard.attention_map(query[n], key[n]).with_value(value[n]) for n in range(LAYERS)}
    words = [f"word{n}" for n in range(TOKENS)]
    of_layers = page_of_maps(layers, "twelve layers", {"text": words})
    translation = regard.load("fr-en")(SENTENCE, beam=4, n_best=3).look()
    start = time.perf_counter()
    long = regard.attention_map(*torch.randn(2, 1, LONG, WIDTH).mul(1.5).unbind(0), mask=regard.causal()).look()
    made = time.perf_counter() - start
    rows = [
        ("page of the translator `fr-en`", translation, ""),
        (f"{LAYERS} × {HEADS} heads at {TOKENS} tokens", of_layers, "#screen=heads"),
        (f"{LONG:,} × {LONG:,} weights", long, "#screen=long"),
    ]
    lines = ["| page | size | first paint | drawn | frame while panning |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, page, address) in enumerate(rows):
            file = Path(folder) / f"{number}.html"
            page.save(file)
            first, drawn, frames = measured(file, address, number == 2)
            panned = f"median {statistics.median(frames):.0f} ms, longest {max(frames):.0f} ms" if frames else ""
            lines.append(f"| {name} | {size(page)} | {first:.2f} s | {drawn:.2f} s | {panned} |")
    lines.append(f"| another text asked for on the served page of `fr-en` | | | {asked():.2f} s | |")
    lines += [f"| the same heads in BertViz, `{name}` | {text} | | | |" for name, text in peers(layers, words)]
    table = "\n".join(lines)
    told = (
        f"The translator's page is of `{SENTENCE}`; the two others are of random vectors. "
        f"Measured on `{machine()}`, with Chromium without a GPU: `python benchmarks/page.py`. Times are medians "
        f"of {TURNS} openings of the file; frames are those of three drags of 60, at three zooms. The load average was "
        f"{os.getloadavg()[0]:.0f}. Making the page of {LONG:,} × {LONG:,} weights took {made:.1f} s."
    )
    print(f"{told}\n\n{table}")
    if "write" in sys.argv[1:]:
        write("explorer.md", "page", f"{table}\n\n{told}")


def chromium() -> str | None:
    """The browser."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


def size(page: Page) -> str:
    """Of the file."""
    return f"{page.size / 1e6:.1f} MB"


def measured(file: Path, address: str, panned: bool) -> tuple[float, float, list[float]]:
    """Seconds until the first paint and until a map is drawn, medians; milliseconds between frames of a pan."""
    from playwright.sync_api import sync_playwright

    paints, drawings = [], []
    frames: list[float] = []
    with sync_playwright() as running:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = running.chromium.launch(executable_path=chromium(), args=flags)
        for _ in range(TURNS):
            tab = browser.new_page(viewport={"width": 1350, "height": 900})
            start = time.perf_counter()
            tab.goto(f"file://{file}{address}", wait_until="commit")
            tab.locator("[role=tabpanel] canvas").first.wait_for()
            tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            drawings.append(time.perf_counter() - start)
            paints.append(tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1e3)
            if panned and not frames:
                frames = pan(tab)
            tab.close()
        browser.close()
    return statistics.median(paints), statistics.median(drawings), frames


def asked() -> float:
    """Seconds from the question for another text to its maps, the median of some."""
    from playwright.sync_api import sync_playwright

    model = regard.load("fr-en")
    app, token = create_explorer(look_at([model], [SENTENCE], tests=False), model)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    found = []
    with sync_playwright() as running:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = running.chromium.launch(executable_path=chromium(), args=flags)
        tab = browser.new_page(viewport={"width": 1350, "height": 900})
        tab.goto(f"http://127.0.0.1:{port}/?token={token}")
        for word in ("fatigué", "malade", "content"):
            tab.get_by_label("your own text").fill(f"Le petit chien de mon voisin est {word} depuis ce matin.")
            start = time.perf_counter()
            tab.get_by_role("button", name="look", exact=True).click()
            tab.locator(".of-columns .word", has_text=word).wait_for()
            tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            found.append(time.perf_counter() - start)
        browser.close()
    server.should_exit = True
    thread.join()
    return statistics.median(found)


def pan(tab: Any) -> list[float]:
    """Milliseconds between the frames of drags at three zooms: of the overview, and of exact weights."""
    found: list[float] = []
    for _ in range(3):
        for _ in range(3):
            tab.get_by_role("button", name="zoom in").click()
        tab.wait_for_timeout(1500)
        found += tab.evaluate(FRAMES, 60)
    return found


def peers(layers: dict[str, Any], words: list[str]) -> list[tuple[str, str]]:
    """The views of BertViz of the same heads, with their sizes; none where it is not installed."""
    if find_spec("bertviz") is None:
        return []
    from bertviz import head_view, model_view

    weights: list[Tensor] = [seen.full()[None] for seen in layers.values()]
    views: dict[str, Callable[..., Any]] = {"model_view": model_view, "head_view": head_view}
    found = {name: view(weights, words, html_action="return").data for name, view in views.items()}
    return [(name, f"{len(text.encode()) / 1e6:.1f} MB") for name, text in found.items()]


if __name__ == "__main__":
    main()
