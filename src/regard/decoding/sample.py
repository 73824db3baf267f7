"""Sampling: for a batch of beginnings, tokens drawn one after the other from the model's distribution."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from regard.decoding.constraints import StepFunction, forbid_repeated_ngrams, penalize_repetition
from regard.decoding.search import Hypothesis
from regard.errors import ConfigError

_MIX = 0x9E3779B97F4A7C15  # the golden ratio in 64 bits: spreads (seed, index) over the generator's seeds


@dataclass(frozen=True)
class SampleConfig:
    """How to draw.

    Attributes:
        temperature: logits are divided by it; 0 takes the most probable token.
        top_k: only the k most probable tokens.
        top_p: only the most probable tokens that together have this probability (Holtzman et al. 2020, section 3.1).
        min_p: only tokens with at least this share of the greatest probability (Nguyen et al. 2024).
        repetition: logits of tokens that occurred before are divided by it where positive, multiplied where negative
            (Keskar et al. 2019, section 4.1); 1 changes nothing.
        no_repeat: no n-gram of this length occurs twice; 0 allows all.
        seed: of the draws; with one, a sample depends on (seed, index of the text) alone. None draws from torch's
            generator.

    Raises:
        ConfigError: a value outside its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition: float = 1.0
    no_repeat: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, fine, wanted in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition", self.repetition > 0, "above 0"),
            ("no_repeat", self.no_repeat >= 0, "0 or more"),
            ("seed", self.seed is None or 0 <= self.seed < 2**63, "between 0 and 2**63 - 1"),
        ):
            if not fine:
                raise ConfigError(f"{name} must be {wanted}; got {getattr(self, name)}")

    def generator(self, index: int) -> torch.Generator | None:
        """The generator of the text with this index; None without a seed."""
        if self.seed is None:
            return None
        return torch.Generator().manual_seed((self.seed + index * _MIX) % 2**63)


class Drawn(NamedTuple):
    """One step of a batch.

    Attributes:
        rows: indices of the sentences that drew a token.
        tokens: the token of each.
        log_probs: of each token under the step's distribution, before `restrict`.
        state: after the step, of these sentences.
    """

    rows: list[int]
    tokens: list[int]
    log_probs: list[float]
    state: Any


Stop = Callable[[int, list[int]], bool]


def sample(
    step: StepFunction, state: Any, before: Sequence[Sequence[int]], limits: Sequence[int], config: SampleConfig,
    ends: Collection[int], *, stop: Stop = lambda _row, _tokens: False, indices: Sequence[int] | None = None,
) -> Iterator[Drawn]:  # fmt: skip
    """Draw tokens for N sentences, one each per step; a sentence leaves the batch when it has ended.

    Args:
        step: (tokens `[N, 1]`, state) -> (logits `[N, 1, V]`, state).
        state: of N sentences, before the last token of `before`.
        before: the tokens that precede the first drawn one; the last of them is fed first, all count for the rules
            on repetition.
        limits: tokens drawn at most, one limit per sentence.
        config: how to draw.
        ends: tokens that end a sentence.
        stop: (sentence, its drawn tokens) -> whether it ends here.
        indices: of the sentences among all texts of a seed; 0 … N-1 by default.
    """
    generators = [config.generator(index) for index in (range(len(limits)) if indices is None else indices)]
    drawn: list[list[int]] = [[] for _ in limits]
    rows = [n for n, limit in enumerate(limits) if limit > 0]
    if len(rows) < len(limits):
        state = state.keep(torch.tensor(rows, dtype=torch.long))
    last = torch.tensor([[before[n][-1]] for n in rows])
    while rows:
        logits, state = step(last, state)
        plain = logits[:, 0].float()
        allowed = [restrict(plain[i], [*before[n], *drawn[n]], config) for i, n in enumerate(rows)]
        tokens = [_draw(one, config, generators[n]) for one, n in zip(allowed, rows, strict=True)]
        found = plain.log_softmax(-1)[torch.arange(len(rows)), torch.tensor(tokens)].tolist()
        for n, token in zip(rows, tokens, strict=True):
            drawn[n].append(token)
        yield Drawn(list(rows), tokens, found, state)
        going = [
            i
            for i, n in enumerate(rows)
            if drawn[n][-1] not in ends and len(drawn[n]) < limits[n] and not stop(n, drawn[n])
        ]
        if len(going) < len(rows):
            rows = [rows[i] for i in going]
            state = state.keep(torch.tensor(going, dtype=torch.long))
        last = torch.tensor([[drawn[n][-1]] for n in rows])


def sampled(steps: Iterator[Drawn], sentences: int) -> list[list[Hypothesis]]:
    """The finished samples of `sample`, one hypothesis per sentence; none for a sentence that drew nothing."""
    tokens: list[list[int]] = [[] for _ in range(sentences)]
    totals = [0.0] * sentences
    states: dict[int, tuple[Any, int]] = {}
    for one in steps:
        for place, (n, token, log_prob) in enumerate(zip(one.rows, one.tokens, one.log_probs, strict=True)):
            tokens[n].append(token)
            totals[n] += log_prob
            states[n] = (one.state, place)
    return [
        [Hypothesis(tokens[n], totals[n], totals[n], states[n][0].keep(torch.tensor([states[n][1]])))]
        if n in states
        else []
        for n in range(sentences)
    ]


def restrict(logits: Float[Tensor, "V"], earlier: Sequence[int], config: SampleConfig) -> Float[Tensor, "V"]:
    """Logits under the rules, divided by the temperature; -inf at what is left out, never at all tokens."""
    logits = penalize_repetition(logits, earlier, config.repetition)
    logits = forbid_repeated_ngrams(logits, earlier, config.no_repeat).clone()
    if config.temperature > 0:
        logits = logits / config.temperature
    if config.top_k is not None and config.top_k < len(logits):
        logits[logits < logits.topk(config.top_k).values[-1]] = -torch.inf
    if config.min_p is not None:
        logits[logits < logits.max() + torch.tensor(config.min_p).log()] = -torch.inf
    if config.top_p is not None and config.top_p < 1:
        ranked, order = logits.softmax(-1).sort(descending=True, stable=True)
        beyond = ranked.cumsum(-1) - ranked >= config.top_p  # the first is always kept
        logits[order[beyond]] = -torch.inf
    return logits


def _draw(logits: Tensor, config: SampleConfig, generator: torch.Generator | None) -> int:
    if config.temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
