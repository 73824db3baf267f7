"""A shipped student beside its teacher: source words a second on one thread, with maps too, and their cards' BLEU.

    OMP_NUM_THREADS=1 python benchmarks/fast.py [fr-en:4 fr-en:1 fr-en-fast:1 en-fr:4 en-fr-fast:1] [--lines 2000]

Each argument is a model and the beam that it searches with. The lines are its language's side of Tatoeba
($REGARD_DATA), spread over the file; they are translated in this process by regard and by CTranslate2 on the same
weights, both with int8 products on one thread. Processor seconds, loading not counted, the best of three turns; words
are what stands between spaces. BLEU is the card's, of int8 weights and the model's own beam.
"""

import argparse
import json
import time
from typing import Any

import torch
from file import lines_of

import regard
from regard.pipelines.load import SHIPPED
from regard.process import keep_freed_memory, leave_out_what_is_loaded

TURNS = 3


def seconds(model: Any, lines: list[str], beam: int, record: bool) -> float:
    """Processor seconds of translating some lines, their attention recorded or not."""
    before = time.process_time()
    model.many(lines, beam=beam, record=record)
    return time.process_time() - before


def row(name: str, beam: int, count: int) -> str:
    """A model's line of the table."""
    torch.set_num_threads(1)
    own_model, peer = (regard.load(name, precision="int8", engine=engine) for engine in ("regard", "ctranslate2"))
    lines = lines_of(count, own_model.bundle.languages[0])
    ways = [(own_model, False), (own_model, True), (peer, False)]
    times = [[seconds(model, lines, beam, record) for model, record in ways] for _ in range(TURNS)]
    own, seen, other = (sum(len(line.split()) for line in lines) / min(some) for some in zip(*times, strict=True))
    card = json.loads((SHIPPED / name / "measured.json").read_text("utf-8"))["development"]
    bleu = f"{card['bleu']:.2f}" if card["beam"] == beam else ""
    size = sum(path.stat().st_size for path in (SHIPPED / name).iterdir()) / 1e6
    return (
        f"| `{name}` | {beam} | {size:.1f} MB | {bleu} | {own:,.0f} | {seen:,.0f} | {other:,.0f} | "
        f"**{own / other:.2f}** |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["fr-en:4", "fr-en:1", "fr-en-fast:1", "en-fr:4", "en-fr-fast:1"])
    parser.add_argument("--lines", type=int, default=2000)
    given = parser.parse_args()
    keep_freed_memory()  # as `regard translate` does, and what follows
    leave_out_what_is_loaded()
    print("| model | beam | size | dev BLEU | regard int8, words/s | with maps | CTranslate2 int8, words/s | ratio |")
    print("|---" * 8 + "|")
    for argument in given.models:
        name, _, beam = argument.partition(":")
        print(row(name, int(beam or 4), given.lines), flush=True)


if __name__ == "__main__":
    main()
