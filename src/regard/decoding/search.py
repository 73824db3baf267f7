"""Greedy and beam search over any step function.

A hypothesis that ends keeps its own slice of the state, so what was recorded there (the queries of
every attention) has followed it through every reordering of the beam.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.decoding.constraints import StepFunction, innermost
from regard.errors import ConfigError
from regard.nn.state import State


@runtime_checkable
class Followed(Protocol):
    """What search needs of a state: hypotheses can be selected, sentences kept."""

    def select(self, parents: Int[Tensor, "N K"]) -> "Followed": ...
    def keep(self, sentences: Int[Tensor, "M"]) -> "Followed": ...


BLOCK = 64  # numbers whose maximum is taken first, where the largest of many are looked for
LENGTH_PENALTY = 0.6  # α of Wu et al. 2016, equation 14, unless a model has its own


@dataclass(frozen=True)
class SearchConfig:
    """How to search.

    Attributes:
        beam: hypotheses kept per sentence; 1 is greedy.
        length_penalty: α of score = log p / ((5 + length) / 6)^α (Wu et al. 2016, equation 14); 0 ranks by log p.
        n_best: hypotheses returned per sentence, at most `beam`.

    Raises:
        ConfigError: numbers that make no sense.
    """

    beam: int = 4
    length_penalty: float = LENGTH_PENALTY
    n_best: int = 1

    def __post_init__(self) -> None:
        if self.beam < 1 or not 1 <= self.n_best <= self.beam:
            raise ConfigError(
                f"beam must be at least 1 and n_best between 1 and beam; got beam = {self.beam}, n_best = {self.n_best}"
            )

    def score(self, log_prob: float, length: int) -> float:
        """What ranks a finished hypothesis of `length` tokens, EOS counted."""
        return float(log_prob / ((5 + length) / 6) ** self.length_penalty)


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """One output: token ids without BOS, with EOS if it was produced; its score, log-probability, and state."""

    tokens: list[int]
    score: float
    log_prob: float
    state: Followed


@dataclass
class _Beam:
    """The bookkeeping of one sentence.

    Attributes:
        number: its index among all sentences.
        limit: output tokens at most.
        rows: the tokens so far of each hypothesis, without BOS.
        finished: hypotheses that have ended.
    """

    number: int
    limit: int
    rows: list[list[int]] = field(default_factory=lambda: [[]])
    finished: list[Hypothesis] = field(default_factory=list)


class _Candidate(NamedTuple):
    """A continuation: its log-probability, the hypothesis that it continues, and its token."""

    log_prob: float
    parent: int
    token: int


def search(
    step: StepFunction, state: Followed, limits: Sequence[int], config: SearchConfig, bos: int | Sequence[int] | Tensor,
    ends: int | Collection[int], scored: bool = False, device: torch.device | None = None,
) -> list[list[Hypothesis]]:  # fmt: skip
    """The best hypotheses of every sentence, best first.

    At each step a sentence's `beam` best continuations stay; those among them that end in one of `ends` are
    finished, and the sentence is done when it has `beam` finished ones. What a sentence gets does not
    depend on its batch mates: each has its own limit and leaves the batch when it is done.

    The continuations of all sentences come to the host in one transfer a step; states stay on their device.

    Args:
        step: (tokens `[N, K]`, state) -> (logits `[N, K, V]`, state).
        state: of N sentences with one hypothesis each, before the first token.
        limits: the most tokens of each sentence's output, EOS counted; one that reaches it is cut.
        config: how to search.
        bos: the token to begin with, or one for each sentence `[N]`.
        ends: the tokens that end an output.
        scored: what `step` gives are scores that add up as they are, not logits; `log_prob` is then their sum.
        device: of the tokens that `step` is given; the CPU by default.
    """
    closing = {ends} if isinstance(ends, int) else set(ends)
    results: list[list[Hypothesis]] = [[] for _ in limits]
    beams = [_Beam(n, limit) for n, limit in enumerate(limits)]
    last = torch.as_tensor(bos, device=device).reshape(-1, 1).expand(len(limits), 1)
    totals = torch.zeros(len(limits), 1, device=device)
    length = 0
    while beams:
        logits, state = step(last, state)
        length += 1
        going, kept = [], []
        for n, candidates in enumerate(_continue(totals, logits, config.beam, scored)):
            beam = beams[n]
            living, others = _finish(beam, n, candidates, state, config, closing, length)
            if len(beam.finished) >= config.beam or length >= beam.limit or not living:
                ranked = sorted(beam.finished, key=lambda h: -h.score)
                results[beam.number] = ranked[: config.n_best]
                continue
            going.append(n)
            kept.append([*living, *others][: config.beam])
            beam.rows = [[*beam.rows[one.parent], one.token] for one in kept[-1]]
        if not going:
            break
        if len(going) < len(beams):
            beams = [beams[n] for n in going]
            state = state.keep(torch.tensor(going, device=logits.device))
        following = torch.tensor([[[one.parent, one.token] for one in some] for some in kept], device=logits.device)
        last = following[..., 1]
        if config.beam > 1:  # else every hypothesis continues itself
            state = state.select(following[..., 0])
        totals = totals.new_tensor([[one.log_prob for one in some] for some in kept], dtype=_wide(logits))
    return results


def _wide(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _continue(
    totals: Float[Tensor, "N K"], logits: Float[Tensor, "N K V"], beam: int, scored: bool
) -> list[list[_Candidate]]:
    """The best continuations of each sentence, best first, twice as many as the beam; one, if it is greedy."""
    wide = logits.to(_wide(logits))
    log_p = wide if scored else torch.log_softmax(wide, -1)
    some, names = largest(log_p, 2 * beam if beam > 1 else 1)
    sums = (totals[..., None].to(log_p.dtype) + some).flatten(1)
    best, where = sums.topk(min(2 * beam if beam > 1 else 1, sums.shape[1]), dim=1)
    parents, tokens = where // some.shape[-1], names.flatten(1).gather(1, where)
    # one transfer: a float32 holds every integer below 2**24
    numbers = torch.stack([best, parents.to(best.dtype), tokens.to(best.dtype)], -1).tolist()
    return [[_Candidate(log_prob, int(k), int(token)) for log_prob, k, token in some] for some in numbers]


def largest(numbers: Float[Tensor, "*n V"], count: int) -> tuple[Float[Tensor, "*n k"], Int[Tensor, "*n k"]]:
    """The `count` largest numbers of each row, or all, and their places; largest first.

    A row's k largest numbers lie in the k blocks with the largest maxima. Finding these takes one pass over the row
    that does nothing else, several times faster on a CPU than `torch.topk` of whole rows.
    """
    size = numbers.shape[-1]
    if count * BLOCK * 4 > size:
        return numbers.topk(min(count, size))
    whole = size // BLOCK * BLOCK
    maxima = numbers[..., :whole].unflatten(-1, (-1, BLOCK)).amax(-1)
    if whole < size:
        maxima = torch.cat([maxima, numbers[..., whole:].amax(-1, keepdim=True)], -1)
    blocks = maxima.topk(count).indices[..., None] * BLOCK
    places = (blocks + torch.arange(BLOCK, device=numbers.device)).flatten(-2)
    some = numbers.gather(-1, places.clamp(max=size - 1)).masked_fill(places >= size, -inf)
    found, at = some.topk(count)
    # a row with fewer finite numbers than wanted has -inf beside them: at any place, but a place of the row
    return found, places.gather(-1, at).clamp(max=size - 1)


def own_state(state: Any, sentence: int, hypothesis: int) -> Any:
    """The decoder's own state of one hypothesis, for its maps."""
    inner = innermost(state)
    if isinstance(inner, State):
        return inner.one(sentence, hypothesis)
    return inner.keep(torch.tensor([sentence])).select(torch.tensor([[hypothesis]]))


def _finish(
    beam: _Beam, n: int, candidates: Sequence[_Candidate], state: Followed, config: SearchConfig, ends: Collection[int],
    length: int,
) -> tuple[list[_Candidate], list[_Candidate]]:  # fmt: skip
    """Move continuations that end here out of the beam, at the limit all of them; the living ones and the others."""
    room, living, others = config.beam, [], []
    for place, one in enumerate(candidates):
        closes = one.token in ends
        # an ending counts only among the first `beam`: later ones are there to replace endings
        if not one.log_prob > -inf or (closes and place >= config.beam):
            others.append(one._replace(log_prob=-inf))
            continue
        if closes or (length >= beam.limit and room > 0):
            own = own_state(state, n, one.parent)
            tokens = [*beam.rows[one.parent], one.token]
            beam.finished.append(Hypothesis(tokens, config.score(one.log_prob, length), one.log_prob, own))
            others.append(one._replace(log_prob=-inf))
        else:
            living.append(one)
        room -= not closes
    return living, others
