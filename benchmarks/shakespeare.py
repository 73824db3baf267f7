"""Tiny Shakespeare by characters: nanoGPT's setting for a CPU beside ours, for the same seconds on the same threads.

python benchmarks/shakespeare.py        (about seven minutes on two idle cores; REGARD_DATA must be set)

nanoGPT's setting (its README, "I only have a macbook"): 4 layers, width 128, 4 heads, windows of 64, 12 of them a
step, 2,000 steps, AdamW 1e-3 falling to 1e-4, no dropout; it reports 1.88. It is written here in plain torch, with
torch's own fused attention. Ours is the config shakespeare with a smaller model; its number of steps is what fits
into the seconds that the other took. Both see the first nine tenths of the text; the loss is that of the whole last
tenth, in nats a character, in windows of the length each was trained with.
"""

import gzip
import os
import tempfile
import time
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from measure import machine
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import regard

LAYERS, WIDTH, HEADS, WINDOW, BATCH, STEPS = 4, 128, 4, 64, 12, 2000
OURS = {
    "model.width": 128, "model.layers": 4, "model.ffn_width": 352, "model.dropout": 0.0, "texts.length": 128,
    "training.batch_tokens": 2048, "training.learning_rate": 1.6e-2, "training.warmup": 50,
}  # fmt: skip


class Block(nn.Module):
    """A pre-norm block of GPT-2, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
        self.mix, self.join = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.inner, self.outer = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(self.norms[0](x)).unflatten(-1, (3, HEADS, -1)).movedim(-3, 0).transpose(-3, -2)
        x = x + self.join(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(-3, -2).flatten(-2))
        return x + self.outer(nn.functional.gelu(self.inner(self.norms[1](x))))


class Plain(nn.Module):
    """nanoGPT's model."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, WIDTH), nn.Embedding(WINDOW, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.norm(self.blocks(x)) @ self.tokens.weight.T


def plain(train: Tensor, dev: Tensor, vocabulary: int) -> tuple[float, float]:
    """Seconds and loss of nanoGPT's setting."""
    torch.manual_seed(0)
    model = Plain(vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.99), weight_decay=0.1, fused=True)
    start = time.perf_counter()
    for step in range(STEPS):
        rate = 1e-3 * (step + 1) / 100 if step < 100 else 1e-4 + 0.45e-3 * (1 + cos(pi * (step - 100) / (STEPS - 100)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = torch.randint(len(train) - WINDOW - 1, (BATCH, 1)) + torch.arange(WINDOW + 1)
        batch = train[rows]
        loss = cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - start
    whole = (len(dev) - 1) // WINDOW * WINDOW
    with torch.inference_mode():
        losses = [
            cross_entropy(model(a).flatten(0, 1), b.flatten(), reduction="sum")
            for a, b in zip(
                dev[:whole].view(-1, WINDOW).split(64), dev[1 : whole + 1].view(-1, WINDOW).split(64), strict=True
            )
        ]
    return seconds, float(sum(losses)) / whole


def ours(seconds: float) -> dict[str, Any]:
    """Our last evaluation after as many steps as fit into the seconds."""
    config = "shakespeare"
    with tempfile.TemporaryDirectory() as folder:
        speeds: list[float] = []
        trial = OURS | {"training.max_steps": 30, "training.evaluate_every": 30, "texts.dev_share": 0.001}
        regard.train(config, trial, run=Path(folder) / "trial", report=lambda e: speeds.append(e.get("seconds", 0.0)))
        steps = int(seconds / ((speeds[30] - speeds[10]) / 20))
        settings = OURS | {"training.max_steps": steps, "training.evaluate_every": steps}
        marks: dict[str, float] = {}

        def note(event: dict[str, Any]) -> None:
            if event["event"] == "step":
                marks["seconds"] = event["seconds"]

        run = regard.train(config, settings, run=Path(folder) / "run", report=note)
        return {"steps": steps, "seconds": marks["seconds"], "loss": run.journal[0]["dev_loss"]}


def main() -> None:
    """Print both as Markdown."""
    path = Path(os.environ["REGARD_DATA"]) / "tinyshakespeare" / "input.txt.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    letters = {letter: n for n, letter in enumerate(sorted(set(text)))}
    ids = torch.tensor([letters[letter] for letter in text])
    end = len(ids) - round(0.1 * len(ids))
    seconds, loss = plain(ids[:end], ids[end:], len(letters))
    print(f"Measured on {machine()}: `python benchmarks/shakespeare.py`\n")
    print("| setting | steps | seconds | loss, nats a character |\n|---|---|---|---|")
    print(f"| nanoGPT's for a CPU, in plain torch | {STEPS:,} | {seconds:.0f} | {loss:.4f} |", flush=True)
    found = ours(seconds)
    print(f"| ours | {found['steps']:,} | {found['seconds']:.0f} | {found['loss']:.4f} |")


if __name__ == "__main__":
    main()
