"""What approximate attention gets wrong, and what it costs, beside the exact softmax of the same queries and keys.

python benchmarks/approximate.py        every table, as Markdown (under a minute on two idle cores)

Queries, keys and values are half noise and half their place (a sinusoid), so that there is something to look for and
something that a LowRank can learn; `SPREAD` is the standard deviation of an entry of queries and keys. The output's
error is the norm of the difference over the exact output's norm; the map's is half of Σ_j |α_ij - α'_ij|, the mean over
rows. Beside them stands the average of all values, which knows nothing: no approximation should be worse.
"""

import sys
from collections.abc import Callable

import torch
from measure import compare, machine, table, write
from torch import Tensor

import regard
from regard.attention.watch import Call, watching
from regard.text.tokenizer import BOS

HEADS, WIDTH = 8, 64
SPREAD = 0.7
ROWS = 512  # of a head, whose maps are compared
SENTENCES = [
    "le chat noir dort sur le canapé depuis ce matin .",
    "nous avons décidé de partir demain avec nos amis parce que le temps sera meilleur .",
    "je ne sais pas pourquoi il est venu ici hier soir sans rien dire à personne .",
]

Way = Callable[[], Tensor]


def vectors(n: int, seed: int = 0, spread: float = SPREAD) -> list[Tensor]:
    """Queries, keys and values."""
    torch.manual_seed(seed)
    place = regard.sinusoidal(n, WIDTH) * 2**0.5  # of variance 1, as the noise
    return [size * (torch.randn(1, HEADS, n, WIDTH) + place) / 2**0.5 for size in (spread, spread, 1.0)]


def shares(width: int, features: int) -> dict[str, object]:
    """What `attend` and `attention_map` are told."""
    return {"score": regard.RandomFeatures(width, features), "normalizer": regard.Share()}


def fitted(n: int, rank: int, spread: float = SPREAD, draws: int = 4) -> regard.LowRank:
    """E drawn at random, and the F that comes nearest to the exact maps of other vectors of the same kind."""
    low = regard.LowRank(n, rank).requires_grad_(False)
    low.of_keys.normal_(std=n**-0.5)
    left, right = torch.zeros(rank, rank), torch.zeros(rank, n)
    for draw in range(draws):
        query, key, _ = vectors(n, 1 + draw, spread)
        rows = torch.randperm(n)[:ROWS]
        mixed = regard.attention_map(query, low.of_keys @ key).tile(rows, slice(None)).flatten(0, 2)
        exact = regard.attention_map(query, key).tile(rows, slice(None)).flatten(0, 2)
        left, right = left + mixed.T @ mixed, right + mixed.T @ exact
    ridge = 1e-5 * left.diagonal().mean() * torch.eye(rank)
    low.of_values.copy_(torch.linalg.solve((left + ridge).double(), right.double()))
    return low


def both(n: int, spread: float = SPREAD) -> tuple[dict[str, Way], dict[str, regard.AttentionMap]]:
    """Every way to compute it, and the map that it applies."""
    query, key, value = vectors(n, spread=spread)
    kinds = {"exact": {}, "average of all": {"normalizer": "uniform"}}
    kinds |= {f"RandomFeatures, {m}": shares(WIDTH, m) for m in (64, 256, 1024)}
    ways: dict[str, Way] = {k: lambda more=more: regard.attend(query, key, value, **more) for k, more in kinds.items()}
    ways["average of all"] = lambda: value.mean(-2, keepdim=True).expand_as(value)
    maps = {kind: regard.attention_map(query, key, **more) for kind, more in kinds.items()}
    for rank in (64, 256):
        low = fitted(n, rank, spread)
        ways[f"LowRank, {rank}, fitted"] = lambda low=low: low(query, key, value)
        maps[f"LowRank, {rank}, fitted"] = low.attention_map(query, key)
    return ways, maps


def map_errors(maps: dict[str, regard.AttentionMap]) -> dict[str, float]:
    """How far each map is from the first."""
    t = next(iter(maps.values())).shape[-2]
    tiles = {name: one.tile(slice(0, t, max(1, t // ROWS)), slice(None)) for name, one in maps.items()}
    exact = next(iter(tiles.values()))
    return {name: float((tile - exact).abs().sum(-1).mean() / 2) for name, tile in tiles.items()}


def costs(n: int) -> str:
    """Times, memory and errors of every way."""
    ways, maps = both(n)
    exact, far = ways["exact"](), map_errors(maps)
    lines = table(compare(ways)).splitlines()
    rows = [f"{lines[0]} output error | map error |", f"{lines[1]}---|---|"]
    for line, (name, way) in zip(lines[2:], ways.items(), strict=True):
        rows.append(f"{line} {float((way() - exact).norm() / exact.norm()):.2f} | {far[name]:.2f} |")
    return f"**N = {n:,}, {HEADS} heads of {WIDTH}, float32, forward**\n\n" + "\n".join(rows)


def by_spread(n: int = 512, spreads: tuple[float, ...] = (0.25, 0.5, 0.7, 1.0, 1.4)) -> str:
    """Map errors of shorter and longer queries and keys."""
    columns = [map_errors(both(n, spread)[1]) for spread in spreads]
    rows = ["| way | " + " | ".join(f"spread {spread}" for spread in spreads) + " |", "|---" * (len(columns) + 1) + "|"]
    names = [name for name in columns[0] if name != "exact"]
    rows += [f"| {name} | " + " | ".join(f"{column[name]:.2f}" for column in columns) + " |" for name in names]
    return f"**Map error by the length of queries and keys, N = {n:,}**\n\n" + "\n".join(rows)


def trained() -> str:
    """Map errors on the queries and keys of a trained translator."""
    model = regard.load("fr-en")
    names = {module: name for name, module in model.model.named_modules()}
    found: dict[str, list[list[float]]] = {}

    def look(call: Call) -> None:
        where = names[call.owner].split(".")
        asked = call.query, call.key
        maps = {"exact": regard.attention_map(*asked, mask=call.spec.mask)}
        maps["average"] = regard.attention_map(*asked, normalizer="uniform", mask=call.spec.mask)
        for m in (64, 256, 1024):
            maps[str(m)] = regard.attention_map(*asked, **shares(call.query.shape[-1], m), mask=call.spec.mask)
        found.setdefault(f"{where[0]}, {where[-1]}", []).append(list(map_errors(maps).values())[1:])

    for sentence in SENTENCES:
        source, target = (model.tokenizer.encode(text) for text in (sentence, model(sentence).text))
        with watching(look):
            model.model(torch.tensor([source]), torch.tensor([[BOS, *target]]))
    rows = ["| attention | average of all | " + " | ".join(f"RandomFeatures, {m}" for m in (64, 256, 1024)) + " |"]
    rows.append("|---|---|---|---|---|")
    for site, errors in found.items():
        rows.append(f"| {site} | " + " | ".join(f"{e:.2f}" for e in torch.tensor(errors).mean(0).tolist()) + " |")
    return "**Map error in the translator fr-en, which was trained with exact attention**\n\n" + "\n".join(rows)


@torch.no_grad()
def main() -> None:
    """Print every table."""
    texts = [f"Measured on {machine()} (`python benchmarks/approximate.py`)."]
    print(texts[0])
    sizes = [int(n) for n in sys.argv[1:]]
    for n in sizes or [512, 2048, 8192]:
        texts.append(costs(n))
        print(f"\n{texts[-1]}", flush=True)
    if not sizes:
        texts += [by_spread(), trained()]
        print("\n" + "\n\n".join(texts[-2:]))
        write("approximate.md", "errors", "\n\n".join(texts))


if __name__ == "__main__":
    main()
