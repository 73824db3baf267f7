"""Measures of attention: how certain a head is, how far it looks, and the loss of the model without it.

Every measure takes maps (`AttentionMap`), so it works at any length and for any model that can be observed. A
weight says where a layer looked, not what the output depends on: `importance` measures that.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import log
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regard.arguments import check_arguments
from regard.attention.maps.map import AttentionMap
from regard.data.align import Link, scores
from regard.errors import ShapeError
from regard.observation.intervene import ablate, intervene, refuse_intervened
from regard.observation.observe import module_of


def effective_span(seen: AttentionMap) -> Float[Tensor, "*batch T"]:
    """exp(H_i), the number of keys that equal weights of the same entropy would cover; 1 for a one-hot or dead row."""
    return seen.entropy().exp()


def coverage_deviation(seen: AttentionMap) -> Float[Tensor, "*batch"]:
    """-1/S Σ_j ln(1 + (1 - Σ_i α_ij)²): 0 if every key receives a total weight of 1, negative otherwise.

    Source: Rikters and Fishel 2017, equation 1.
    """
    deviation: Tensor = -(1 + (1 - seen.received()).square()).log().mean(-1)
    return deviation


@check_arguments
def share_on(seen: AttentionMap, keys: Sequence[int]) -> Float[Tensor, "*batch"]:
    """The share of all weight on some keys; for key 0, the weight of an attention sink (Xiao et al. 2024).

    Args:
        keys: their numbers; those below 0 count from the end.

    Raises:
        ShapeError: a key that the map does not have.
    """
    if other := [key for key in keys if not -seen.shape[-1] <= key < seen.shape[-1]]:
        raise ShapeError(f"share_on: there is no key {other[0]} in a map of {seen.shape[-1]} keys")
    received = seen.received()
    total = received.sum(-1)
    once = {key + seen.shape[-1] if key < 0 else key for key in keys}
    return received[..., sorted(once)].sum(-1) / total.masked_fill(total == 0, 1)


def mean_distance(seen: AttentionMap) -> Float[Tensor, "*batch"]:
    """The mean distance between query and key, weighted by the attention, in positions."""
    profile = seen.distance()
    positions = torch.arange(profile.shape[-1], device=profile.device) - (seen.shape[-1] - 1)
    total = profile.sum(-1)
    return (profile * positions.abs()).sum(-1) / total.masked_fill(total == 0, 1)


def monotonicity(seen: AttentionMap) -> Float[Tensor, "*batch"]:
    """The share of consecutive queries whose key of greatest weight does not move back; 1: left to right.

    It is 0 for a map without two consecutive queries that attend to a key.
    """
    best = seen.argmax()
    before, after = best[..., :-1], best[..., 1:]
    both = (before >= 0) & (after >= 0)
    forward = ((after >= before) & both).sum(-1)
    share: Tensor = forward / both.sum(-1).clamp(min=1)
    return share


def alignment_error(
    seen: Sequence[AttentionMap], sure: Sequence[set[Link]], possible: Sequence[set[Link]] | None = None
) -> Float[Tensor, "*batch"]:
    """The alignment error rate of the keys of greatest weight against gold links, for every head; 0 is best.

    Args:
        seen: a map `[*batch, T, S]` for each sentence, all with the same leading axes.
        sure: for each sentence the links (query, key) that must be there.
        possible: those that may be there; the sure ones by default.

    Source: Och and Ney 2003, section 2.5.
    """
    rows = [one.argmax() for one in seen]
    best = [one.reshape(-1, one.shape[-1]).tolist() for one in rows]
    errors = [
        scores([{(i, j) for i, j in enumerate(keys) if j >= 0} for keys in head], sure, possible)["aer"]
        for head in zip(*best, strict=True)
    ]
    return torch.tensor(errors, device=rows[0].device).reshape(seen[0].shape[:-2])


def similarity(seen: AttentionMap) -> Float[Tensor, "*batch H H"]:
    """1 - mean Jensen–Shannon divergence (in bits) between the rows of two heads: 1 where two heads are identical.

    Source: Clark et al. 2019, section 6. Holds two heads' weights at a time.
    """
    if len(seen.shape) < 3:
        raise ShapeError(f"similarity needs heads on axis -3; the map has shape {list(seen.shape)}")
    heads = seen.shape[-3]
    table = torch.ones(*seen.shape[:-3], heads, heads, device=seen.source.like.device)
    whole = (slice(None),) * (len(seen.shape) - 3)
    for a, b in combinations(range(heads), 2):
        p, q = (_share(seen.select(*whole, head).full()) for head in (a, b))
        middle = (p + q) / 2
        divergence = (_bits(middle) - (_bits(p) + _bits(q)) / 2).mean(-1)
        table[..., a, b] = table[..., b, a] = 1 - divergence
    return table


def _share(weights: Tensor) -> Tensor:
    total = weights.sum(-1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1)


def _bits(p: Tensor) -> Tensor:
    bits: Tensor = torch.special.entr(p).sum(-1) / log(2)
    return bits


def importance(model: Any, loss: Callable[[], float], heads: Mapping[str, int]) -> dict[str, list[float]]:
    """The increase of the loss when a head is ablated: {site: [Δloss of each head]}; larger is more important.

    Source: Voita et al. 2019, section 4; Michel et al. 2019, section 3.2.

    Args:
        model: an nn.Module, or what `regard.load` returns.
        loss: computes the model's loss on data of your choice.
        heads: {site: number of heads}.
    """
    refuse_intervened(module_of(model), "importance")
    whole = loss()
    result: dict[str, list[float]] = {}
    for site, count in heads.items():
        result[site] = []
        for head in range(count):
            with intervene(model, site, ablate(head)):
                result[site].append(loss() - whole)
    return result
