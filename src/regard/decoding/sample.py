"""Sampling: one token after the other, drawn from what the model says, under rules that leave some out."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from regard.errors import ConfigError

StepFunction = Callable[[Tensor, Any], tuple[Tensor, Any]]


@dataclass(frozen=True)
class SampleConfig:
    """How to draw.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: only the k likeliest tokens.
        top_p: only the likeliest tokens that together have this probability (Holtzman et al. 2020, section 3.1).
        min_p: only tokens with at least this share of the likeliest one's probability (Nguyen et al. 2024).
        repetition: logits of tokens that stood before are divided by it where positive, multiplied where negative
            (Keskar et al. 2019, section 4.1); 1 changes nothing.
        no_repeat: no sequence of so many tokens comes twice; 0 allows all.
        seed: of the draws; None draws from torch's generator.

    Raises:
        ConfigError: a value that makes no sense.
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
        ):
            if not fine:
                raise ConfigError(f"{name} must be {wanted}; got {getattr(self, name)}")


class Drawn(NamedTuple):
    """One token, its log-probability under the model itself, and the state before it."""

    token: int
    log_prob: float
    state: Any


def sample(
    step: StepFunction, state: Any, first: int, before: Sequence[int], limit: int, config: SampleConfig,
    ends: Collection[int],
) -> Iterator[Drawn]:  # fmt: skip
    """Tokens one by one, at most `limit`; the last is one of `ends`, if one was drawn.

    Args:
        step: (tokens `[1, 1]`, state) -> (logits `[1, 1, V]`, state).
        state: of one sentence, before `first`.
        first: the token that the first drawn one follows.
        before: everything before, `first` included, for the rules about repetition.
        limit: tokens at most.
        config: how to draw.
        ends: tokens that end the text.
    """
    generator = None if config.seed is None else torch.Generator().manual_seed(config.seed)
    earlier, token = list(before), first
    for _ in range(limit):
        logits, state = step(torch.tensor([[token]]), state)
        plain = logits[0, 0].float()
        allowed = restrict(plain, earlier, config)
        if config.temperature == 0:
            token = int(allowed.argmax())
        else:
            token = int(torch.multinomial(allowed.softmax(-1), 1, generator=generator))
        earlier.append(token)
        yield Drawn(token, float(plain.log_softmax(-1)[token]), state)
        if token in ends:
            return


def restrict(logits: Float[Tensor, "V"], earlier: Sequence[int], config: SampleConfig) -> Float[Tensor, "V"]:
    """Logits under the rules, divided by the temperature; -inf for what is left out, never for all."""
    logits = logits.clone()
    if config.repetition != 1 and earlier:
        seen = torch.tensor(sorted(set(earlier)))
        found = logits[seen]
        logits[seen] = torch.where(found > 0, found / config.repetition, found * config.repetition)
    banned = _would_repeat(earlier, config.no_repeat)
    if banned and len(banned) < len(logits):
        logits[torch.tensor(sorted(banned))] = -torch.inf
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


def _would_repeat(earlier: Sequence[int], n: int) -> set[int]:
    """Tokens that would make a sequence of n tokens come a second time."""
    if not n or len(earlier) < n:
        return set()
    last = tuple(earlier[len(earlier) - n + 1 :])
    return {earlier[i + n - 1] for i in range(len(earlier) - n + 1) if tuple(earlier[i : i + n - 1]) == last}
