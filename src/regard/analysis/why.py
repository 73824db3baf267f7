"""Why this weight: the score between one query and one key as a sum over what wrote the two."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.analysis.base import check_index, check_map
from regard.analysis.residual import FrozenNorm, Stream, Write, check_linear, record, terms
from regard.arguments import check_arguments
from regard.attention.maps.map import AttentionMap
from regard.attention.scores import Cosine, Dot, General, Product, ScaledDot, is_product
from regard.attention.watch import Call
from regard.errors import ConfigError
from regard.nn.multihead import MultiHead
from regard.observation.intervene import refuse_intervened

Terms = dict[str, Float[Tensor, "_"]]  # {what wrote it: term} of a vector


@dataclass(frozen=True, eq=False)
class Why:
    """The score of one pair, taken apart.

    Attributes:
        score: e_ij, the model's own, its bias included and before any mask.
        weight: α_ij.
        parts: {(what wrote the query, what wrote the key): number}; a bias of the scores stands under ("score bias",
            "score bias").
        query: the query's token where the map knows it, else its row.
        key: the key's, likewise.
    """

    score: float
    weight: float
    parts: dict[tuple[str, str], float]
    query: str
    key: str

    @property
    def total(self) -> float:
        """The sum of all parts: the score, up to rounding."""
        return sum(self.parts.values())

    @check_arguments
    def top(self, k: int = 5) -> list[tuple[tuple[str, str], float]]:
        """The k largest parts by magnitude, largest first."""
        if k < 1:
            raise ConfigError(f"top needs k of at least 1; got {k}")
        return sorted(self.parts.items(), key=lambda part: -abs(part[1]))[:k]

    @check_arguments
    def plot(self, path: str | Path | None = None, theme: str = "light") -> Any:
        """Draw the parts: what wrote the query down, what wrote the key across.

        Args:
            path: a .png, .svg or .pdf file; None only makes the figure.
            theme: "light" or "dark".

        Returns:
            the matplotlib figure.
        """
        from regard.figures.tables import draw_parts

        rows, columns = (list(dict.fromkeys(pair[side] for pair in self.parts)) for side in (0, 1))
        numbers = [[self.parts.get((row, column), 0.0) for column in columns] for row in rows]
        return draw_parts(
            numbers, rows, columns, {}, path, title=f"The score of query {self.query} and key {self.key}, part by part",
            note=f"the parts sum to the score, {self.score:.2f}; the weight is {self.weight:.2f}",
            label="part of the score", sides=("in the query ↓", "in the key →"), theme=theme,
        )  # fmt: skip


def why(map: AttentionMap, i: int, j: int) -> Why:
    """e_ij as a sum over what wrote the query and what wrote the key (Elhage et al. 2021, "QK circuit").

        e_ij = Σ_a Σ_b r_a(i) W_Q · W_Kᵀ r_b(j) / √d + bias

    r_a(i) are the terms of the vector that the query is made from: the token's embedding, its position, every head of
    every earlier attention, every feed-forward, the vectors b of projections and norms; r_b(j) likewise for the key,
    in cross-attention the terms of the encoder's state. Every norm on their way is linear with its σ frozen at its
    actual value (head norms and a cosine's lengths too), and so is a rotation by positions. The sum is exact; what an
    earlier part owes to still earlier ones is counted as its own.

    Args:
        map: of one head, and of a result of what `load` returns: `generation.attention[site].select(head)`.
        i: the query, a row of the map; negative ones count from the end.
        j: the key, a column of the map, likewise.

    Raises:
        ConfigError: no map; one that does not know its model, or of several heads; no such row or column; a recurrent
            model; a score that is no product of query and key; queries that are made with a context.
    """
    check_map(map)
    origin = map.origin
    if origin is None:
        raise ConfigError(
            "this map does not know the model that it came from: regard.why takes a map of a result, such as "
            "generation.attention[site].select(head)"
        )
    if origin.heads.numel() != 1:
        raise ConfigError(f"this map has {origin.heads.numel()} heads: choose one by map.select(head)")
    for name, index, size in (("i", i, map.shape[-2]), ("j", j, map.shape[-1])):
        check_index(name, index)
        if not -size <= index < size:
            raise ConfigError(f"{name} = {index} is outside the map, which has {size} on that axis")
    refuse_intervened(origin.run().module, "why")
    i, j, head = i % map.shape[-2], j % map.shape[-1], int(origin.heads)
    with torch.no_grad():
        streams, _ = record(origin.run())
        stream, write = _find(streams, origin.site)
        place = len(write.added) - map.shape[-2] + i
        attention, call = write.attention, write.call
        assert attention is not None
        assert call is not None
        score = _product(attention, call)
        key_stream, until = (stream, write.name) if write.name.endswith("self") else (streams["encoder"], None)
        group = head // (attention.heads // attention.key_heads)
        query = _projected(attention, "query", terms(stream, place, write.name), head, place)
        key = _projected(attention, "key", terms(key_stream, j, until), group, j)
        actual = call.query[0, head, place], call.key[0, group, j]
        parts = _pairs(_scored(query, actual[0], score, "query"), _scored(key, actual[1], score, "key"))
        e = float(score(actual[0][None], actual[1][None]))
        if call.spec.bias is not None:
            device = actual[0].device
            row, column = (torch.tensor([index], device=device) for index in (place, j))
            bias = call.spec.bias.tile(row, column, (*call.query.shape[:-1], call.key.shape[-2]))
            added = float(bias.expand(1, attention.heads, 1, 1)[0, head])
            e, parts["score bias", "score bias"] = e + added, added
        names = (tokens[n] if tokens else str(n) for tokens, n in ((map.query_tokens, i), (map.key_tokens, j)))
        return Why(e, float(map.tile([i], [j])), parts, *names)


def _find(streams: dict[str, Stream], site: str) -> tuple[Stream, Write]:
    """The stream in which an attention stands, and what it wrote."""
    for stream in streams.values():
        for step in stream.steps:
            if isinstance(step, Write) and step.name == site:
                return stream, step
    raise ConfigError(f"{site} is no attention of a Transformer's block: its query is no sum that could be taken apart")


def _product(attention: MultiHead, call: Call) -> Product:
    """The score of an attention, where it is linear in each of query and key."""
    score = call.spec.score
    linear = isinstance(score, ScaledDot | Dot | General | Cosine) and is_product(score) and score.softcap is None
    if not linear:
        raise ConfigError(f"the score {type(score).__name__} is no product of query and key: it is no sum of parts")
    if attention.context is not None:
        raise ConfigError("the queries are made with a context: they are no sum over what wrote one position")
    assert isinstance(score, Product)
    return score


def _projected(attention: MultiHead, side: str, given: Terms, head: int, place: int) -> Terms:
    """Terms of a state as terms of one head's query or key."""
    layer: nn.Linear = getattr(attention, side)
    check_linear(layer, side)
    width = attention.head_width
    rows = slice(head * width, (head + 1) * width)
    found = {name: layer.weight[rows] @ term for name, term in given.items()}
    if layer.bias is not None:
        found[f"{side}.bias"] = layer.bias[rows]
    joint = torch.stack(list(found.values()))
    norm = getattr(attention, f"{side}_norm")
    if norm is not None:
        joint = FrozenNorm.of(side, norm, joint.sum(0)[None]).push(joint, 0)
    if attention.rotary is not None:
        joint = attention.rotary(joint[:, None], torch.tensor([place], device=joint.device))[:, 0]
    return dict(zip(found, joint, strict=True))


def _scored(given: Terms, whole: Tensor, score: Product, side: str) -> Terms:
    """Terms behind the score's projection of their sum: linear, or (a cosine's) a division by the sum's length."""
    project: Callable[[Tensor], Tensor] = getattr(score, f"project_{side}")
    if not isinstance(score, Cosine):
        return {name: project(term[None])[0] for name, term in given.items()}
    length = whole @ whole
    factor = (project(whole[None])[0] @ whole) / length.masked_fill(length == 0, 1)
    return {name: term * factor for name, term in given.items()}


def _pairs(query: Terms, key: Terms) -> dict[tuple[str, str], float]:
    products = torch.stack(list(query.values())) @ torch.stack(list(key.values())).T
    numbers = products.tolist()
    return {(a, b): numbers[m][n] for m, a in enumerate(query) for n, b in enumerate(key)}
