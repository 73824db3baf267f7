"""Greedy and beam search over any step function.

A hypothesis that ends keeps its own slice of the state, so what was recorded there (the queries of
every attention) has followed it through every reordering of the beam.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.decoding.constraints import StepFunction
from regard.errors import ConfigError


@runtime_checkable
class Followed(Protocol):
    """What search needs of a state: hypotheses can be selected, sentences kept."""

    def select(self, parents: Int[Tensor, "N K"]) -> "Followed": ...
    def keep(self, sentences: Int[Tensor, "M"]) -> "Followed": ...


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
    """The bookkeeping of one sentence."""

    number: int
    limit: int
    finished: list[Hypothesis] = field(default_factory=list)


def search(
    step: StepFunction, state: Followed, limits: Sequence[int], config: SearchConfig, bos: int | Sequence[int] | Tensor,
    ends: int | Collection[int], scored: bool = False,
) -> list[list[Hypothesis]]:  # fmt: skip
    """The best hypotheses of every sentence, best first.

    At each step a sentence's `beam` best continuations stay; those among them that end in one of `ends` are
    finished, and the sentence is done when it has `beam` finished ones. What a sentence gets does not
    depend on its batch mates: each has its own limit and leaves the batch when it is done.

    Args:
        step: (tokens `[N, K]`, state) -> (logits `[N, K, V]`, state).
        state: of N sentences with one hypothesis each, before the first token.
        limits: the most tokens of each sentence's output, EOS counted; one that reaches it is cut.
        config: how to search.
        bos: the token to begin with, or one for each sentence `[N]`.
        ends: the tokens that end an output.
        scored: what `step` gives are scores that add up as they are, not logits; `log_prob` is then their sum.
    """
    closing = torch.tensor(sorted({ends} if isinstance(ends, int) else set(ends)), dtype=torch.long)
    results: list[list[Hypothesis]] = [[] for _ in limits]
    beams = [_Beam(n, limit) for n, limit in enumerate(limits)]
    rows = torch.as_tensor(bos).reshape(-1, 1, 1).expand(len(limits), 1, 1)  # tokens so far, BOS first: [N, K, t]
    totals = torch.zeros(len(limits), 1)
    while beams:
        logits, state = step(rows[:, :, -1], state)
        totals, parents, tokens = _continue(totals, logits, config.beam, closing, scored)
        rows = torch.cat([torch.take_along_dim(rows, parents[..., None], 1), tokens[..., None]], -1)
        state = state.select(parents)
        length = rows.shape[-1] - 1
        alive = totals > -torch.inf
        going = []
        for n, beam in enumerate(beams):
            _finish(beam, n, rows, totals, tokens, alive, state, config, closing, length)
            if len(beam.finished) >= config.beam or length >= beam.limit or not bool(alive[n].any()):
                ranked = sorted(beam.finished, key=lambda h: -h.score)
                results[beam.number] = ranked[: config.n_best]
            else:
                going.append(n)
        rows, totals, state = _next_beam(rows, totals, alive, state, torch.tensor(going, dtype=torch.long), config.beam)
        beams = [beams[n] for n in going]
    return results


def _continue(
    totals: Float[Tensor, "N K"], logits: Float[Tensor, "N K V"], beam: int, ends: Tensor, scored: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of each sentence, best first: (log p, parent, token), each `[N, ≤ 2·beam]`."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_p = wide if scored else torch.log_softmax(wide, -1)
    candidates = (totals[..., None].to(log_p.dtype) + log_p).flatten(1)
    best, where = candidates.topk(min(2 * beam, candidates.shape[1]), dim=1)
    tokens = where % logits.shape[-1]
    # an ending counts only among the first `beam`: later ones are there to replace endings
    too_late = torch.isin(tokens, ends) & (torch.arange(best.shape[1]) >= beam)
    return best.masked_fill(too_late, -torch.inf), where // logits.shape[-1], tokens


def _finish(
    beam: _Beam, n: int, rows: Tensor, totals: Tensor, tokens: Tensor, alive: Tensor, state: Followed,
    config: SearchConfig, ends: Tensor, length: int,
) -> None:  # fmt: skip
    """Move hypotheses that end here out of the beam; at the limit, all of them."""
    room = config.beam
    for k in range(tokens.shape[1]):
        if not bool(alive[n, k]):
            continue
        closes = bool(torch.isin(tokens[n, k], ends))
        if closes or (length >= beam.limit and room > 0):
            log_prob = float(totals[n, k].detach())
            own = state.keep(torch.tensor([n])).select(torch.tensor([[k]]))
            beam.finished.append(Hypothesis(rows[n, k, 1:].tolist(), config.score(log_prob, length), log_prob, own))
            alive[n, k] = False
        room -= not closes


def _next_beam(
    rows: Tensor, totals: Tensor, alive: Tensor, state: Followed, going: Tensor, beam: int
) -> tuple[Tensor, Tensor, Followed]:
    """The first `beam` living hypotheses of the sentences that go on."""
    rows, totals, alive = rows[going], totals[going], alive[going]
    order = torch.argsort((~alive).long(), dim=1, stable=True)[:, :beam]
    totals = torch.take_along_dim(totals.masked_fill(~alive, -torch.inf), order, 1)
    return torch.take_along_dim(rows, order[..., None], 1), totals, state.keep(going).select(order)
