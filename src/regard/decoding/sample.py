"""Sampling: for a batch of beginnings, tokens drawn one after the other from the model's distribution."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.arguments import check_number, check_whole
from regard.decoding.constraints import StepFunction, forbid_repeated_ngrams, penalize_repetition
from regard.decoding.search import Hypothesis, own_state
from regard.errors import ConfigError, RegardError

_MIX = 0x9E3779B97F4A7C15  # the golden ratio in 64 bits: spreads (seed, index) over the generator's seeds


NOT_FINITE = "the model's logits hold NaN or infinity: no token can be drawn; its training may have diverged"
FRACTIONS = ("temperature", "top_p", "min_p", "typical_p", "repetition")
SMALL, LARGE = 1e-6, 1e6  # what logits may be divided by: they stay finite in float32


@dataclass(frozen=True)
class SampleConfig:
    """How to draw.

    Attributes:
        temperature: logits are divided by it; 0 takes the most probable token.
        top_k: only the k most probable tokens.
        top_p: only the most probable tokens that together have this probability (Holtzman et al. 2020, section 3.1).
        min_p: only tokens with at least this share of the greatest probability (Nguyen et al. 2024).
        typical_p: only tokens whose information is nearest to the distribution's entropy and that together have this
            probability (Meister et al. 2023, equation 12).
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
    typical_p: float | None = None
    repetition: float = 1.0
    no_repeat: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        bounds = f"{SMALL:g} … {LARGE:g}"
        for name, fine, wanted in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("temperature", self.temperature == 0 or SMALL <= self.temperature <= LARGE, f"0, or {bounds}"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "between 0 and 1"),
            ("typical_p", self.typical_p is None or 0 < self.typical_p <= 1, "above 0 and at most 1"),
            ("repetition", self.repetition > 0, "above 0"),
            ("repetition", SMALL <= self.repetition <= LARGE, bounds),
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


def sample_config(drawing: dict[str, Any], beside: Sequence[str]) -> SampleConfig:
    """Settings of drawing by their names, whole numbers taken as the fractions they stand for.

    Args:
        drawing: the settings.
        beside: names of other settings that the caller takes, for the message.

    Raises:
        ConfigError: an unknown setting, or one outside its range.
    """
    unknown = sorted(set(drawing) - set(SampleConfig.__dataclass_fields__))
    if unknown:
        known = ", ".join([*beside, *SampleConfig.__dataclass_fields__])
        raise ConfigError(f"unknown setting {unknown[0]!r}: known are {known}")
    for name, value in drawing.items():
        if value is not None or SampleConfig.__dataclass_fields__[name].default is not None:
            (check_number if name in FRACTIONS else check_whole)(name, value)
    values: dict[str, Any] = {
        name: value if value is None else float(value) if name in FRACTIONS else int(value)
        for name, value in drawing.items()
    }
    return SampleConfig(**values)


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
    device: torch.device | None = None, scored: bool = False,
) -> Iterator[Drawn]:  # fmt: skip
    """Draw tokens for N sentences, one each per step; a sentence leaves the batch when it has ended.

    Random numbers come from CPU generators, whatever the device, so that every device draws what the CPU draws.

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
        device: of the tokens that `step` is given; the CPU by default.
        scored: what `step` gives are log-probabilities, which are not divided anew after a rule has left some out.

    Raises:
        RegardError: a step's logits hold NaN, or infinity, from which no token can be drawn.
    """
    generators = [config.generator(index) for index in (range(len(limits)) if indices is None else indices)]
    drawn: list[list[int]] = [[] for _ in limits]
    rows = [n for n, limit in enumerate(limits) if limit > 0]
    if len(rows) < len(limits):
        state = state.keep(torch.tensor(rows, dtype=torch.long, device=device))
    last = torch.tensor([[before[n][-1]] for n in rows], device=device)
    while rows:
        logits, state = step(last, state)
        plain = logits[:, 0].float()
        allowed = _restricted(plain, [[*before[n], *drawn[n]] for n in rows], config)
        chosen = _draw(allowed, config, [generators[n] for n in rows])
        log_p = plain if scored else plain.log_softmax(-1)
        log_probs = log_p.gather(-1, chosen[:, None])[:, 0]
        # one transfer a step: a float32 holds every integer below 2**24
        numbers = torch.stack([chosen.float(), log_probs]).tolist()
        tokens, found = [int(token) for token in numbers[0]], numbers[1]
        if any(map(isnan, found)):
            raise RegardError(NOT_FINITE)
        for n, token in zip(rows, tokens, strict=True):
            drawn[n].append(token)
        yield Drawn(list(rows), tokens, found, state)
        going = [
            i
            for i, n in enumerate(rows)
            if drawn[n][-1] not in ends and len(drawn[n]) < limits[n] and not stop(n, drawn[n])
        ]
        last = chosen[:, None]
        if len(going) < len(rows):
            rows = [rows[i] for i in going]
            kept = torch.tensor(going, dtype=torch.long, device=logits.device)
            state, last = state.keep(kept), last[kept]


def sampled(steps: Iterator[Drawn], sentences: int) -> list[list[Hypothesis]]:
    """The finished samples of `sample`, one hypothesis per sentence; none for a sentence that drew nothing.

    Args:
        steps: of `sample`.
        sentences: N.
    """
    tokens: list[list[int]] = [[] for _ in range(sentences)]
    totals = [0.0] * sentences
    states: dict[int, tuple[Any, int]] = {}
    for one in steps:
        for place, (n, token, log_prob) in enumerate(zip(one.rows, one.tokens, one.log_probs, strict=True)):
            tokens[n].append(token)
            totals[n] += log_prob
            states[n] = (one.state, place)

    def own(n: int) -> Any:
        state, place = states[n]
        return own_state(state, place, 0)

    return [[Hypothesis(tokens[n], totals[n], totals[n], own(n))] if n in states else [] for n in range(sentences)]


def restrict(logits: Float[Tensor, "V"], earlier: Sequence[int], config: SampleConfig) -> Float[Tensor, "V"]:
    """Logits under the rules, divided by the temperature; -inf at what is left out, never at all tokens."""
    return _restricted(logits[None], [earlier], config)[0]


def _restricted(
    logits: Float[Tensor, "N V"], earlier: Sequence[Sequence[int]], config: SampleConfig
) -> Float[Tensor, "N V"]:
    """`restrict` for a batch; `earlier` holds the tokens so far of each row."""
    if config.repetition != 1 or config.no_repeat:
        rows = [penalize_repetition(row, some, config.repetition) for row, some in zip(logits, earlier, strict=True)]
        rows = [forbid_repeated_ngrams(row, some, config.no_repeat) for row, some in zip(rows, earlier, strict=True)]
        logits = torch.stack(rows)
    if config.temperature > 0:
        logits = logits / config.temperature
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(config.top_k).values[:, -1:], -torch.inf)
    if config.min_p is not None:
        least = torch.tensor(config.min_p).log()  # in float32, as the logits
        logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + least, -torch.inf)
    if config.top_p is not None and config.top_p < 1:
        ranked, order = logits.softmax(-1).sort(descending=True, stable=True)
        beyond = ranked.cumsum(-1) - ranked >= config.top_p
        beyond[..., 0] = False  # the first is always kept, also where float32 rounds top_p to 0
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    if config.typical_p is not None and config.typical_p < 1:
        log_p = logits.log_softmax(-1)
        entropy = torch.special.entr(log_p.exp()).sum(-1, keepdim=True)
        order = (-log_p - entropy).abs().sort(dim=-1, stable=True).indices
        ranked = log_p.exp().gather(-1, order)
        beyond = ranked.cumsum(-1) - ranked >= config.typical_p
        beyond[..., 0] = False
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    return logits


def _draw(
    logits: Float[Tensor, "N V"], config: SampleConfig, generators: Sequence[torch.Generator | None]
) -> Int[Tensor, "N"]:
    """One token of each row: argmax p / e with e from Exp(1), which is what `torch.multinomial` computes on the CPU."""
    if config.temperature == 0:
        return logits.argmax(-1)
    noise = [torch.empty(logits.shape[-1]).exponential_(1, generator=generator) for generator in generators]
    return (logits.softmax(-1) / torch.stack(noise).to(logits.device)).argmax(-1)
