"""roles: what a head does, tested over a corpus.

A role is a set of cells of the map (the previous token, the token after an earlier occurrence), an order of the rows
(monotone), or what a head writes about the token it looks at (copying, by its weights alone). A picture of one sentence
shows none of this: an effect is compared with a stated null in every input, and all tests are corrected together.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regard.analysis.base import ForwardPass, as_inputs, as_pass
from regard.analysis.circuits import Circuit, circuits
from regard.analysis.reuse import deferring
from regard.arguments import check_arguments
from regard.attention.maps.map import AttentionMap
from regard.attention.maps.sources import ComputedWeights
from regard.errors import ConfigError
from regard.observation.observe import observe

BLOCK = 2**20  # weights looked at together
DRAWS = 1000  # corpora of the bootstrap
SEPARATORS = frozenset({"</s>", "[SEP]", "[CLS]", "<s>", "<|endoftext|>", ".", ",", ";", ":", "!", "?", "\n"})


@dataclass(frozen=True)
class Role:
    """A role that a head was found to have over a corpus.

    Attributes:
        site, head: which head.
        role: its name.
        effect: (share - chance) / (1 - chance), the mean over the inputs: 0 at the null, 1 where all weight is on the
            role's cells.
        p: of a one-sided sign test over the inputs that the effect exceeds the least one, corrected over all tests of
            all heads and roles (Holm 1979). Copying and successor have no inputs: see `Circuit.test`.
        interval: 95 % of the mean effects of 1,000 corpora drawn with replacement (percentile bootstrap, Efron 1979).
        share: mean weight on the role's cells; of "monotone" the steps forward less those back, as a share of all.
        chance: the mean of the null: equal attention to every key that the query may attend to; of "monotone" 0, the
            expectation of the head's own rows in random order.
        inputs: how many were counted (of copying and successor: tokens).
    """

    site: str
    head: int
    role: str
    effect: float
    p: float
    interval: tuple[float, float]
    share: float
    chance: float
    inputs: int


@dataclass(frozen=True, eq=False)
class Sequences:
    """What the queries and the keys of one attention stand for.

    Attributes:
        queries, keys: their tokens; empty where not known.
        predicted: the token that comes after each query's, None where there is none; empty where nothing is predicted.
        crossing: whether the queries are another sequence than the keys.
        counts: of tokens in the corpus.
    """

    queries: Sequence[Hashable]
    keys: Sequence[Hashable]
    predicted: Sequence[Hashable] = ()
    crossing: bool = False
    counts: Mapping[Hashable, int] | None = None

    @cached_property
    def codes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of the tokens of queries `[T]`, keys `[S]` and predictions `[T]`: equal where the tokens are."""
        numbers: dict[Hashable, int] = {None: -1}
        parts = [
            torch.tensor([numbers.setdefault(one, len(numbers)) for one in some], dtype=torch.long)
            for some in (self.keys, self.queries, self.predicted)
        ]
        return parts[1], parts[0], parts[2]


Seen = Mapping[str, tuple[AttentionMap, Sequences]]
Cells = Callable[[Sequences, Tensor, int, int], Tensor | None]
"""Which keys are the role's: (sequences, queries [t], T, S) -> bool `[t, S]`; None where the role has no meaning."""


@check_arguments
def roles(
    model: Any,
    inputs: Any,
    *,
    cells: Mapping[str, Cells] | None = None,
    level: float = 0.05,
    least: float = 0.1,
) -> list[Role]:
    """The roles of a model's heads, tested over inputs; the smallest p-value first.

    - previous token, next token, same token, separator, rare word (the input's rarest token): Voita et al. 2019,
      section 5; Clark et al. 2019, section 3. sink: the first key (Xiao et al. 2024).
    - duplicate token: other occurrences of the query's token. induction: the tokens after its earlier occurrences
      (Elhage et al. 2021; Olsson et al. 2022).
    - retrieval: tokens equal to the next token of the output (Wu et al. 2024, section 2, by weight).
    - alignment, monotone (both of cross-attention): the source positions nearest to the diagonal; the key of greatest
      weight moves forward from row to row.
    - copying, successor, by weights alone: `Circuit`.

    A head has a role if its effect exceeds `least` in significantly many inputs (a minimum-effect test, Murphy and
    Myors 1999): untrained heads differ from equal attention too, by little and the same way in every input. One test of
    n inputs gives at best p = 2⁻ⁿ before the correction: a few inputs prove nothing, and the list is empty.

    Args:
        model: an nn.Module, or what `load` returns.
        inputs: texts for what `load` returns; or dicts of the arguments of the module's forward, not padded, in which
            every row of a batch is an input. A single text or dict is a list of one.
        cells: {role: cells} in place of `CELLS`; no other role is then tested.
        level: of the family of all tests.
        least: the effect that a role must exceed.

    Raises:
        ConfigError: no input; what `as_pass` refuses.
    """
    inputs = as_inputs(inputs)
    if not inputs:
        raise ConfigError("roles need inputs: texts, or dicts of arguments; one is not enough to prove a role")
    passes = [as_pass(model, one) for one in inputs]
    texts = [_sequences(model, one) for one in passes]
    counts = Counter(token for rows in texts for sequences in rows for tokens in sequences for token in tokens)
    heads: dict[str, int] = {}

    def examples() -> Iterator[Seen]:
        for one, rows in zip(passes, texts, strict=True):
            seen = _observed(one, len(rows))
            for row, sequences in enumerate(rows):
                found = _by_site({site: maps[0] for site, maps in seen.items()}, row, len(rows), sequences, counts)
                heads.update({site: _heads(shown) for site, (shown, _) in found.items()})
                yield found

    def weights() -> Iterable[Circuit]:
        return circuits(passes[0].module, heads, _vocabulary(model)) if cells is None else ()

    return find_roles(examples(), cells, level, least, weights)


def _observed(one: ForwardPass, rows: int) -> Mapping[str, Sequence[AttentionMap]]:
    """The maps of a forward pass, whose output is not read: of a single input its last layer is not computed."""

    def run(deferred: AbstractContextManager[None]) -> Mapping[str, Sequence[AttentionMap]]:
        with torch.no_grad(), observe(one.module) as seen, deferred:
            one()
        return seen

    return deferring(one.module, rows, run) if rows == 1 else run(nullcontext())


def find_roles(
    examples: Iterable[Seen],
    cells: Mapping[str, Cells] | None = None,
    level: float = 0.05,
    least: float = 0.1,
    weights: Callable[[], Iterable[Circuit]] = lambda: (),
) -> list[Role]:
    """The roles of heads in maps that are at hand; as `roles`.

    Args:
        examples: {site: (map `[heads, T, S]`, its sequences)} of each input.
        cells, level, least: as in `roles`.
        weights: the circuits of the heads, where their weights are at hand; called after the last example.
    """
    measured: dict[tuple[str, int, str], list[tuple[float, float]]] = {}
    for example in examples:
        for site, (seen, sequences) in example.items():
            numbers = dict(_shares(seen, sequences, CELLS if cells is None else cells))
            if cells is None and sequences.crossing and seen.shape[-2] > 1:
                numbers["monotone"] = _steps(seen), 0.0
            for role, (shares, chance) in numbers.items():
                for head, share in enumerate(shares.tolist()):
                    measured.setdefault((site, head, role), []).append((share, chance))
    tested = [_of_inputs(*head, pairs, least) for head, pairs in measured.items()]
    tested += [Role(one.site, one.head, *one.test()) for one in weights()]
    corrected = holm([one.p for one in tested])
    found = [
        Role(**{**vars(one), "p": p})
        for one, p in zip(tested, corrected, strict=True)
        if p <= level and one.effect > least
    ]
    return sorted(found, key=lambda one: (one.p, -one.effect))


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, which bounds the probability of any false one (Holm 1979, section 3)."""
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, values[index] * (len(values) - rank)))
        corrected[index] = highest
    return corrected


def _of_inputs(site: str, head: int, role: str, pairs: Sequence[tuple[float, float]], least: float) -> Role:
    effects = [(share - chance) / (1 - chance) for share, chance in pairs]
    share, chance = (sum(numbers) / len(pairs) for numbers in zip(*pairs, strict=True))
    p = sign_test([effect - least for effect in effects])
    return Role(site, head, role, sum(effects) / len(effects), p, bootstrap(effects), share, chance, len(pairs))


def bootstrap(numbers: Sequence[float]) -> tuple[float, float]:
    """The 2.5 and 97.5 % quantiles of the mean (Efron 1979); the same draws every time."""
    whole = np.asarray(numbers)
    chosen = np.random.default_rng(0).integers(len(whole), size=(DRAWS, len(whole)))
    low, high = np.quantile(whole[chosen].mean(-1), [0.025, 0.975])
    return float(low), float(high)


def sign_test(differences: Sequence[float]) -> float:
    """The probability of at least so many positive numbers if positive and negative were equally likely."""
    signs = [number > 0 for number in differences if number]
    return _tail(len(signs), sum(signs))


@cache
def _tail(count: int, least: int) -> float:
    """The probability of at least so many heads in `count` throws of a coin; each term of the sum from the last."""
    term, total = 1, 0
    for tails in range(count - least + 1):
        total += term
        term = term * (count - tails) // (tails + 1)
    return float(Fraction(total, 2**count))


def _heads(seen: AttentionMap) -> int:
    return int(np.prod(seen.shape[:-2]))


def _shares(
    seen: AttentionMap, sequences: Sequences, cells: Mapping[str, Cells]
) -> Iterator[tuple[str, tuple[Tensor, float]]]:
    """(role, (share of each head `[heads]`, chance)), over the queries for which the role and another key exist."""
    t, s = seen.shape[-2:]
    visible = _visible(seen)
    names: list[str] = []
    sizes: list[Tensor] = []

    def choose(rows: Tensor, columns: Tensor) -> Tensor:
        """All keys that each query may attend to, and those of every role, `[1 + roles, t, k]`."""
        allowed = visible(rows)
        of_roles = {role: some(sequences, rows, t, s) for role, some in cells.items()}
        known = {role: chosen & allowed for role, chosen in of_roles.items() if chosen is not None}
        names[:] = known
        chosen = torch.stack([allowed, *known.values()])
        sizes.append(chosen.sum(-1))
        return chosen[..., columns]

    mass = seen.mass(choose).reshape(_heads(seen), -1, t).cpu().double()
    keys, *counts = torch.cat(sizes, -1)
    total = mass[:, 0].masked_fill(mass[:, 0] == 0, 1)
    for number, (role, count) in enumerate(zip(names, counts, strict=True), 1):
        some = (count > 0) & (count < keys)
        if some.any():
            share = (mass[:, number] / total)[:, some].mean(-1)
            yield role, (share, float((count.double() / keys)[some].mean()))


def _visible(seen: AttentionMap) -> Callable[[Tensor], Tensor]:
    """The keys that queries may attend to, bool `[t, S]`: the spec's mask; of given weights a causal one, or none."""
    t, s = seen.shape[-2:]
    source = seen.source
    if isinstance(source, ComputedWeights):

        def masked(rows: Tensor) -> Tensor:
            device = source.like.device
            allowed = source.spec.allowed(rows.to(device), source.shape, device).cpu()
            return (
                allowed.flatten(0, -3).any(0).expand(len(rows), s) if allowed.ndim > 2 else allowed.expand(len(rows), s)
            )

        return masked

    def behind(rows: Tensor) -> Tensor:
        return torch.arange(s) <= rows[:, None] + (s - t)

    def all_keys(rows: Tensor) -> Tensor:
        return torch.ones(len(rows), s, dtype=torch.bool)

    if t > s:
        return all_keys
    parts = torch.arange(t).split(max(1, BLOCK // max(1, _heads(seen) * s)))
    ahead = any(bool((seen.tile(rows, slice(None)).cpu() != 0)[..., ~behind(rows)].any()) for rows in parts)
    return all_keys if ahead else behind


def _is_causal(seen: AttentionMap) -> bool:
    t, s = seen.shape[-2:]
    return 1 < t == s and not bool(_visible(seen)(torch.arange(1))[0, 1:].any())


def _steps(seen: AttentionMap) -> Tensor:
    """Steps from row to row on which the key of greatest weight moves forward, less those back, of all `[heads]`."""
    best = seen.argmax().reshape(-1, seen.shape[-2]).cpu()
    before, after = best[:, :-1], best[:, 1:]
    both = (before >= 0) & (after >= 0)
    forward = ((after > before) & both).sum(-1) - ((after < before) & both).sum(-1)
    return forward / both.sum(-1).clamp(min=1)


def _sequences(model: Any, one: ForwardPass) -> list[list[Sequence[Hashable]]]:
    """For each row of a batch its sequences of tokens: the source's first, where there are two.

    The arguments may come in any order: the target's is known by its name, and without one is the second.
    """
    if one.tokens:
        return [[tokens for tokens in (one.source_tokens, one.tokens) if tokens]]
    given = {name: value for name, value in one.arguments.items() if isinstance(value, Tensor)}
    aside, of_target = ("mask", "type", "position", "allowed", "label"), ("decoder", "target", "tgt")
    ids = [
        value.reshape(-1, value.shape[-1])
        for name, value in sorted(given.items(), key=lambda pair: any(word in pair[0] for word in of_target))
        if not value.is_floating_point() and value.dtype != torch.bool and value.ndim in (1, 2)
        if not any(word in name for word in aside)
    ][:2]
    if not ids:
        states = next(iter(given.values()), None)
        return [[] for _ in range(1 if states is None or states.ndim < 3 else len(states))]
    names = getattr(getattr(model, "tokenizer", None), "tokens", list)
    return [[names(tensor[row].tolist()) for tensor in ids] for row in range(len(ids[0]))]


def _by_site(
    maps: Mapping[str, AttentionMap],
    row: int,
    rows: int,
    texts: Sequence[Sequence[Hashable]],
    counts: Mapping[Hashable, int],
) -> Seen:
    """The maps of one row of a batch of `rows`, and what their axes stand for.

    Where source and target have one length, the site's name or the order of the calls tells: an encoder's sites come
    before the first causal one, and what is not causal after it crosses.
    """
    found: dict[str, tuple[AttentionMap, Sequences]] = {}
    decoding = False
    for site, whole in maps.items():
        seen = whole.select(row) if len(whole.shape) > 3 or rows > 1 else whole
        t, s = seen.shape[-2:]
        causal = _is_causal(seen)
        decoding = decoding or causal
        source, target = (texts[0], texts[-1]) if texts else ((), ())
        two = len(texts) == 2
        named = site.rpartition(".")[2] == "cross"  # a recurrent decoder's, which no causal site comes before
        crossing = t != s or named or (two and len(source) == len(target) and decoding and not causal)
        keys = source if two and (crossing or not causal) and s == len(source) else () if named else target
        queries = target if crossing else keys
        queries, keys = (side if len(side) == n else () for side, n in ((queries, t), (keys, s)))
        predicted = [*queries[1:], None] if queries and (causal or (crossing and two)) else []
        found[site] = seen, Sequences(queries, keys, predicted, crossing, counts)
    return found


def _vocabulary(model: Any) -> Callable[[int], Sequence[str]] | None:
    names = getattr(getattr(model, "tokenizer", None), "tokens", None)
    return None if names is None else lambda size: names(list(range(size)))


def beside(offset: int) -> Cells:
    """The key that stands `offset` places after the query (-1: the previous token), within one sequence."""

    def cells(sequences: Sequences, rows: Tensor, t: int, s: int) -> Tensor | None:
        return None if sequences.crossing else torch.arange(s) == rows[:, None] + (s - t) + offset

    return cells


def among(wanted: Callable[[Any], bool]) -> Cells:
    """The keys whose token is wanted, for every query; the first key, a sink's, is not counted."""

    def cells(sequences: Sequences, rows: Tensor, _: int, s: int) -> Tensor | None:
        if not sequences.keys:
            return None
        chosen = torch.tensor([bool(n) and wanted(token) for n, token in enumerate(sequences.keys)])
        return chosen.expand(len(rows), s)

    return cells


def _sink(_: Sequences, rows: Tensor, __: int, s: int) -> Tensor:
    return (torch.arange(s) == 0).expand(len(rows), s)


def _rare(sequences: Sequences, rows: Tensor, _: int, s: int) -> Tensor | None:
    if not sequences.keys or not sequences.counts:
        return None
    number = torch.tensor([sequences.counts.get(token, 0) for token in sequences.keys])
    return (number == number.min()).expand(len(rows), s)


def _duplicate(sequences: Sequences, rows: Tensor, t: int, s: int) -> Tensor | None:
    if sequences.crossing or not sequences.keys:
        return None
    queries, keys, _ = sequences.codes
    return (queries[rows, None] == keys) & (torch.arange(s) != rows[:, None] + (s - t))


def _induction(sequences: Sequences, rows: Tensor, t: int, s: int) -> Tensor | None:
    if sequences.crossing or not sequences.keys:
        return None
    queries, keys, _ = sequences.codes
    before = torch.arange(s) - 1
    return (queries[rows, None] == keys[before]) & (before >= 0) & (before < rows[:, None] + (s - t))


def _retrieval(sequences: Sequences, rows: Tensor, __: int, s: int) -> Tensor | None:
    if not sequences.keys or not sequences.predicted:
        return None
    _, keys, predicted = sequences.codes
    return (predicted[rows, None] == keys).expand(len(rows), s)


def _alignment(sequences: Sequences, rows: Tensor, t: int, s: int) -> Tensor | None:
    if not sequences.crossing or t < 2:
        return None
    diagonal = rows[:, None] * (s - 1) / (t - 1)
    return (torch.arange(s) - diagonal).abs() <= 1


CELLS: dict[str, Cells] = {
    "previous token": beside(-1),
    "next token": beside(1),
    "same token": beside(0),
    "induction": _induction,
    "duplicate token": _duplicate,
    "sink": _sink,
    "separator": among(lambda token: isinstance(token, str) and (token.strip("▁Ġ ") or token) in SEPARATORS),
    "rare word": _rare,
    "retrieval": _retrieval,
    "alignment": _alignment,
}
