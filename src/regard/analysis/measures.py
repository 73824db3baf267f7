"""Measures of attention: the role of a head, its certainty, and the loss of the model without it.

Every measure takes maps (`AttentionMap`), so it works at any length and for any model that can be observed. A
weight says where a layer looked, not what the output depends on: `importance` measures that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, log
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from regard.attention.maps.map import AttentionMap
from regard.data.align import Link, scores
from regard.errors import ShapeError
from regard.observation.intervene import ablate, intervene

Sieve = Callable[[int, int, Sequence[str]], Tensor]


def effective_span(seen: AttentionMap) -> Float[Tensor, "*batch T"]:
    """exp(H_i), the number of keys that equal weights of the same entropy would cover; 1 for a one-hot or dead row."""
    return seen.entropy().exp()


def coverage_deviation(seen: AttentionMap) -> Float[Tensor, "*batch"]:
    """-1/S Σ_j ln(1 + (1 - Σ_i α_ij)²): 0 if every key receives a total weight of 1, negative otherwise.

    Source: Rikters and Fishel 2017, equation 1.
    """
    deviation: Tensor = -(1 + (1 - seen.received()).square()).log().mean(-1)
    return deviation


def share_on(seen: AttentionMap, keys: Sequence[int]) -> Float[Tensor, "*batch"]:
    """The share of all weight on some keys; for key 0, the weight of an attention sink (Xiao et al. 2024)."""
    received = seen.received()
    total = received.sum(-1)
    return received[..., list(keys)].sum(-1) / total.masked_fill(total == 0, 1)


def mean_distance(seen: AttentionMap) -> Float[Tensor, "*batch"]:
    """The mean distance between query and key, weighted by the attention, in positions."""
    profile = seen.distance()
    positions = torch.arange(profile.shape[-1], device=profile.device) - (seen.shape[-1] - 1)
    total = profile.sum(-1)
    return (profile * positions.abs()).sum(-1) / total.masked_fill(total == 0, 1)


def monotonicity(seen: AttentionMap) -> Float[Tensor, "*batch"]:
    """The share of consecutive queries whose key of greatest weight does not move back; 1: left to right."""
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
    whole = loss()
    result: dict[str, list[float]] = {}
    for site, count in heads.items():
        result[site] = []
        for head in range(count):
            with intervene(model, site, ablate(head)):
                result[site].append(loss() - whole)
    return result


@dataclass(frozen=True)
class Role:
    """The role that a head was found to have over a corpus.

    Attributes:
        site, head: which head.
        role: the sieve's name.
        share: mean weight on the sieve's keys, over the sentences.
        interval: 95 % of the shares of 1,000 corpora drawn from the sentences with replacement (percentile bootstrap).
        chance: what a head gets that looks at every allowed key equally.
        p: of a one-sided sign test over the sentences that share > chance, times the number of tests (Bonferroni).
        sentences: how many were counted.
    """

    site: str
    head: int
    role: str
    share: float
    interval: tuple[float, float]
    chance: float
    p: float
    sentences: int


def roles(
    sentences: Sequence[tuple[Mapping[str, AttentionMap], Sequence[str]]],
    sieves: Mapping[str, Sieve] | None = None,
    level: float = 0.05,
) -> list[Role]:
    """The roles of heads, tested over a corpus; smallest p-value first.

    For each sentence the mean weight on a sieve's keys is compared with that of uniform attention over the keys the
    head looks at; a head plays the role if it is above in significantly many sentences and at least at twice
    the chance. A picture of one sentence shows none of this.

    Args:
        sentences: ({site: map `[heads, N, N]`}, tokens) of each sentence.
        sieves: {name: (T, S, tokens) -> bool `[T, S]`}; previous, next, same, first and separator token by default.
        level: significance after correction for all tests.

    Source: Voita et al. 2019, section 5; Pande et al. 2021, section 3.
    """
    sieves = SIEVES if sieves is None else sieves
    counts: dict[tuple[str, int, str], list[tuple[float, float]]] = {}
    for maps, tokens in sentences:
        for site, seen in maps.items():
            weights = _share(seen.full())
            looked = (weights > 0).float()
            even = _share(looked)
            for role, sieve in sieves.items():
                chosen = sieve(seen.shape[-2], seen.shape[-1], tokens).to(weights.device)
                some = chosen.any(-1)
                if not bool(some.any()):
                    continue
                share, chance = (((w * chosen).sum(-1)[..., some]).mean(-1) for w in (weights, even))
                for head, pair in enumerate(zip(share.tolist(), chance.tolist(), strict=True)):
                    counts.setdefault((site, head, role), []).append(pair)
    found = []
    for (site, head, role), pairs in counts.items():
        share, chance = (sum(numbers) / len(pairs) for numbers in zip(*pairs, strict=True))
        p = min(1.0, _sign_test(pairs) * len(counts))
        if p <= level and share >= 2 * chance:
            interval = bootstrap([share for share, _ in pairs])
            found.append(Role(site, head, role, share, interval, chance, p, len(pairs)))
    return sorted(found, key=lambda role: (role.p, -role.share))


def bootstrap(numbers: Sequence[float], draws: int = 1000) -> tuple[float, float]:
    """The 2.5 and 97.5 % quantiles of the mean (Efron 1979); the same draws every time."""
    whole = np.asarray(numbers)
    chosen = np.random.default_rng(0).integers(len(whole), size=(draws, len(whole)))
    low, high = np.quantile(whole[chosen].mean(-1), [0.025, 0.975])
    return float(low), float(high)


def _sign_test(pairs: Sequence[tuple[float, float]]) -> float:
    """The probability of at least so many values above chance if above and below were equally likely (a sign test)."""
    differ = [share > chance for share, chance in pairs if share != chance]
    n, above = len(differ), sum(differ)
    return float(sum(comb(n, k) for k in range(above, n + 1)) / 2**n)


def beside(offset: int) -> Sieve:
    """The key that stands `offset` places after the query (-1: the previous token)."""

    def sieve(t: int, s: int, _: Sequence[str]) -> Tensor:
        return torch.arange(s) == torch.arange(t)[:, None] + (s - t) + offset

    return sieve


def among(wanted: Callable[[str], bool]) -> Sieve:
    """The keys whose token is wanted, for every query."""

    def sieve(t: int, _: int, tokens: Sequence[str]) -> Tensor:
        return torch.tensor([wanted(token) for token in tokens]).expand(t, -1)

    return sieve


def rare(counts: Mapping[str, int]) -> Sieve:
    """The rarest token of the sentence (Voita et al. 2019, section 5.2), by its count in a corpus."""

    def sieve(t: int, _: int, tokens: Sequence[str]) -> Tensor:
        number = torch.tensor([counts.get(token, 0) for token in tokens])
        return (number == number.min()).expand(t, -1)

    return sieve


SEPARATORS = frozenset({"</s>", "[SEP]", "[CLS]", "<s>", "<|endoftext|>", ".", ",", ";", ":", "!", "?"})
SIEVES: dict[str, Sieve] = {
    "previous": beside(-1),
    "next": beside(1),
    "same": beside(0),
    "first": lambda t, s, _: (torch.arange(s) == 0).expand(t, -1),
    "separator": among(lambda token: token.strip("▁Ġ ") in SEPARATORS),
}
