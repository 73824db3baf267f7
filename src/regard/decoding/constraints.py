"""What may be said next: rules that change the logits of a step before a token is chosen.

A constraint is a pair of functions over a step: `begin(state, sentences) -> state` before the first token, and
`around(step) -> step`. CTC (`regard.decoding.ctc`) and a word list (`regard.decoding.lexicon`) are such constraints.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

StepFunction = Callable[[Tensor, Any], tuple[Tensor, Any]]


@runtime_checkable
class Constraint(Protocol):
    """A change of what a step says, with a state of its own around the decoder's.

    Attributes:
        scored: the changed step gives scores that add up as they are, not logits.
    """

    @property
    def scored(self) -> bool: ...

    def begin(self, state: Any, sentences: int) -> Any:
        """The state before the first token, around the decoder's own as its `inner`."""
        ...

    def around(self, step: StepFunction) -> StepFunction:
        """The changed step: (tokens `[N, K]`, state) -> (logits `[N, K, V]`, state)."""
        ...


@dataclass(frozen=True)
class Suppressed:
    """Tokens that are never produced: their logits are -inf.

    Attributes:
        tokens: their ids.
    """

    tokens: tuple[int, ...]
    scored: bool = False

    def begin(self, state: Any, sentences: int) -> Any:  # noqa: ARG002
        """The state itself: nothing has to be remembered."""
        return state

    def around(self, step: StepFunction) -> StepFunction:
        """The step with these logits at -inf."""

        def without(token: Tensor, state: Any) -> tuple[Tensor, Any]:
            logits, state = step(token, state)
            logits = logits.clone()
            logits[..., list(self.tokens)] = -torch.inf
            return logits, state

        return without


def innermost(state: Any) -> Any:
    """The decoder's own state within those of the constraints around it."""
    while hasattr(state, "inner"):
        state = state.inner
    return state


def penalize_repetition(logits: Float[Tensor, "V"], earlier: Sequence[int], penalty: float) -> Float[Tensor, "V"]:
    """Logits of earlier tokens, divided by `penalty` where positive and multiplied where negative.

    Source: Keskar et al. 2019, section 4.1.
    """
    if penalty == 1 or not earlier:
        return logits
    logits = logits.clone()
    seen = torch.tensor(sorted(set(earlier)), device=logits.device)
    found = logits[seen]
    logits[seen] = torch.where(found > 0, found / penalty, found * penalty)
    return logits


def forbid_repeated_ngrams(logits: Float[Tensor, "V"], earlier: Sequence[int], n: int) -> Float[Tensor, "V"]:
    """-inf at tokens that would complete an n-gram a second time, unless that would leave none; n = 0 allows all."""
    banned = _would_repeat(earlier, n)
    if not banned or len(banned) >= len(logits):
        return logits
    logits = logits.clone()
    logits[torch.tensor(sorted(banned), device=logits.device)] = -torch.inf
    return logits


def _would_repeat(earlier: Sequence[int], n: int) -> set[int]:
    """Tokens that would complete an n-gram that has occurred."""
    if not n or len(earlier) < n:
        return set()
    last = tuple(earlier[len(earlier) - n + 1 :])
    return {earlier[i + n - 1] for i in range(len(earlier) - n + 1) if tuple(earlier[i : i + n - 1]) == last}
