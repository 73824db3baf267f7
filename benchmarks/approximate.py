"""What approximate attention gets wrong, and what it costs, beside the exact softmax of the same queries and keys.

python benchmarks/approximate.py        every table, as Markdown (about three minutes on two idle cores)

Queries and keys are normally distributed with lengths of √64 · `SPREAD`. The output's error is that of the difference,
divided by the exact output's norm; the map's is half of Σ_j |α_ij - α'_ij|, the mean over rows. A LowRank that nobody
has trained approximates nothing: its E and F are fitted to the exact outputs of other queries and keys first.
"""

import sys
from collections.abc import Callable

import torch
from measure import compare, machine, table, write
from torch import Tensor

import regard

HEADS, WIDTH = 8, 64
SPREAD = 0.7


def vectors(n: int, seed: int = 0) -> list[Tensor]:
    """Queries, keys and values."""
    torch.manual_seed(seed)
    return [torch.randn(1, HEADS, n, WIDTH) * s for s in (SPREAD, SPREAD, 1.0)]


def fitted(n: int, rank: int, steps: int = 60) -> regard.LowRank:
    """E and F after some steps of Adam on the exact outputs of other vectors of the same kind."""
    low = regard.LowRank(n, rank)
    optimizer = torch.optim.Adam(low.parameters(), 3e-3)
    for step in range(steps):
        query, key, value = vectors(n, 1 + step)
        exact = regard.attend(query, key, value)
        loss = (low(query, key, value) - exact).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return low.requires_grad_(False)


def main() -> None:
    """Print every table."""
    texts = [f"Measured on {machine()} (`python benchmarks/approximate.py`)."]
    print(texts[0])
    for n in [int(n) for n in sys.argv[1:]] or [512, 2048, 8192]:
        query, key, value = vectors(n)
        ways: dict[str, Callable[[], Tensor]] = {"exact": lambda q=query, k=key, v=value: regard.attend(q, k, v)}
        maps = {"exact": regard.attention_map(query, key)}
        for features in (64, 256, 1024):
            name, score = f"RandomFeatures, {features}", regard.RandomFeatures(WIDTH, features)
            more = {"score": score, "normalizer": regard.Share()}
            ways[name] = lambda q=query, k=key, v=value, more=more: regard.attend(q, k, v, **more)
            maps[name] = regard.attention_map(query, key, **more)
        for rank in (64, 256):
            if n <= 2048:
                low = fitted(n, rank)
                ways[f"LowRank, {rank}, fitted"] = lambda q=query, k=key, v=value, low=low: low(q, k, v)
                maps[f"LowRank, {rank}, fitted"] = low.attention_map(query, key)
        with torch.no_grad():
            texts.append(f"**N = {n:,}, {HEADS} heads of {WIDTH}, float32, forward**\n\n{_with_errors(ways, maps, n)}")
            print(f"\n{texts[-1]}", flush=True)
    if not sys.argv[1:]:
        write("approximate.md", "errors", "\n\n".join(texts))


def _with_errors(ways: dict[str, Callable[[], Tensor]], maps: dict[str, regard.AttentionMap], n: int) -> str:
    exact, rows = ways["exact"](), slice(0, min(n, 512))
    true = maps["exact"].tile(rows, slice(None))
    lines = table(compare(ways)).splitlines()
    heads = [f"{lines[0]} output error | map error |", f"{lines[1]}---|---|"]
    for line, (name, way) in zip(lines[2:], ways.items(), strict=True):
        output = float((way() - exact).norm() / exact.norm())
        far = float((maps[name].tile(rows, slice(None)) - true).abs().sum(-1).mean() / 2)
        heads.append(f"{line} {output:.2f} | {far:.2f} |")
    return "\n".join(heads)


if __name__ == "__main__":
    main()
