"""Constraints on the next token: changes of a step's logits before a token is chosen.

A constraint is a pair of functions over a step: `begin(state, sentences) -> state` before the first token, and
`around(step) -> step`. CTC (`regard.decoding.ctc`) and a word list (`regard.decoding.lexicon`) are such constraints.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from regard.nn.state import gather_hypotheses
from regard.pretrained.rules import GenerationRules

StepFunction = Callable[[Tensor, Any], tuple[Tensor, Any]]


@runtime_checkable
class Constraint(Protocol):
    """A change of a step's logits, with a state of its own around the decoder's.

    Attributes:
        scored: the changed step gives scores that add up as they are, not logits; so does the step that it changes.
    """

    @property
    def scored(self) -> bool: ...

    def begin(self, state: Any, sentences: int) -> Any:
        """The state before the first token, around the decoder's own as its `inner`."""
        ...

    def around(self, step: StepFunction) -> StepFunction:
        """The changed step: (tokens `[N, K]`, state) -> (logits `[N, K, V]`, state)."""
        ...


@dataclass(frozen=True, eq=False)
class RuledState:
    """A state beside the tokens that the rules look back on.

    Attributes:
        inner: the state.
        tokens: `[N, K, t]`, all tokens so far, those before the output included; -1 at the padding of shorter ones.
        limits: `[N]`, output tokens at most.
        step: number of output tokens so far.
    """

    inner: Any
    tokens: Tensor
    limits: Tensor
    step: int

    def select(self, parents: Tensor) -> "RuledState":
        """The state in which hypothesis k of sentence n continues hypothesis `parents[n, k]`."""
        return replace(self, inner=self.inner.select(parents), tokens=gather_hypotheses(self.tokens, parents))

    def keep(self, sentences: Tensor) -> "RuledState":
        """The state of some of the sentences."""
        return replace(
            self, inner=self.inner.keep(sentences), tokens=self.tokens[sentences], limits=self.limits[sentences]
        )


@dataclass(frozen=True, eq=False)
class Ruled:
    """A step that follows rules on tokens: its scores are log-probabilities, -inf at what a rule forbids, 0 at a forced
    token; like transformers' generate, it does not divide them anew.

    Attributes:
        rules: the rules.
        before: tokens that precede each sentence's output; the last of them is the first that the step is given.
        limits: output tokens of each sentence at most.
        device: of the decoder's state; the CPU by default.
    """

    rules: GenerationRules
    before: Sequence[Sequence[int]]
    limits: Sequence[int]
    device: torch.device | None = None
    scored: bool = True

    def begin(self, state: Any, sentences: int) -> RuledState:
        """The state before the first token."""
        longest = max((len(row) for row in self.before), default=1) - 1
        rows = [[-1] * (longest - len(row) + 1) + list(row[:-1]) for row in self.before]
        tokens = torch.tensor(rows, dtype=torch.long, device=self.device).reshape(sentences, 1, longest)
        limits = torch.tensor(list(self.limits), dtype=torch.long, device=self.device)
        return RuledState(state, tokens, limits, 0)

    def around(self, step: StepFunction) -> StepFunction:
        """The step that follows the rules."""
        rules = self.rules
        bad: dict[int, dict[tuple[int, ...], list[int]]] = {}  # by length: the last tokens by those before them
        for *start, last in rules.bad_words:
            bad.setdefault(len(start), {}).setdefault(tuple(start), []).append(last)

        def ruled(token: Tensor, state: RuledState) -> tuple[Tensor, RuledState]:
            scores, inner = step(token, state.inner)
            before = state.tokens.to(token.device).expand(*token.shape, -1)
            tokens = torch.cat([before, token[..., None]], -1)
            banned = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
            banned[..., list(rules.suppressed)] = True
            if state.step == (0 if rules.forced_first is None else 1):
                banned[..., list(rules.suppressed_first)] = True
            for length, ends in bad.items():  # one look at the last tokens for all sequences of a length
                if length > tokens.shape[-1]:
                    continue
                flat = banned.view(-1, banned.shape[-1])
                for place, row in enumerate(tokens[..., tokens.shape[-1] - length :].flatten(0, -2).tolist()):
                    if last := ends.get(tuple(row)):
                        flat[place, last] = True
            scores = scores.masked_fill(banned, -torch.inf)
            if state.step == 0 and rules.forced_first is not None:
                scores = _only(scores, rules.forced_first)
            limits = state.limits.to(token.device)
            if rules.forced_last is not None:
                at_limit = (limits == state.step + 1)[:, None, None]
                scores = torch.where(at_limit, _only(scores, rules.forced_last), scores)
            return scores, RuledState(inner, tokens, limits, state.step + 1)

        return ruled


@dataclass(frozen=True, eq=False)
class CountedState:
    """A state beside the number of tokens so far.

    Attributes:
        inner: the state.
        step: number of output tokens so far.
    """

    inner: Any
    step: int

    def select(self, parents: Tensor) -> "CountedState":
        """The state in which hypothesis k of sentence n continues hypothesis `parents[n, k]`."""
        return replace(self, inner=self.inner.select(parents))

    def keep(self, sentences: Tensor) -> "CountedState":
        """The state of some of the sentences."""
        return replace(self, inner=self.inner.keep(sentences))


@dataclass(frozen=True, eq=False)
class ForcedPrefix:
    """Outputs that begin with given tokens; their scores are the log-probabilities that the model gives them.

    Attributes:
        tokens: what every output begins with.
        within: `[V]`, True at tokens that would continue the last word, which the first free token may not.
        scored: the step gives log-probabilities, which it does not divide anew.
    """

    tokens: Sequence[int]
    within: Tensor
    scored: bool = True

    def begin(self, state: Any, sentences: int) -> CountedState:  # noqa: ARG002 - all begin alike
        """The state before the first token."""
        return CountedState(state, 0)

    def around(self, step: StepFunction) -> StepFunction:
        """The step that writes the prefix first."""

        def prefixed(token: Tensor, state: CountedState) -> tuple[Tensor, CountedState]:
            scores, inner = step(token, state.inner)
            after = CountedState(inner, state.step + 1)
            if state.step < len(self.tokens):
                only = torch.full_like(scores, -torch.inf)
                wanted = self.tokens[state.step]
                only[..., wanted] = scores[..., wanted]
                return only, after
            if state.step == len(self.tokens):
                scores = scores.masked_fill(self.within.to(scores.device), -torch.inf)
            return scores, after

        return prefixed


def log_probs(step: StepFunction) -> StepFunction:
    """A step that gives the log-probabilities of its logits, in float32 at least."""

    def scores(token: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, after = step(token, state)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1), after

    return scores


def _only(scores: Tensor, token: int) -> Tensor:
    """0 at one token, -inf at all others."""
    forced = torch.full_like(scores, -torch.inf)
    forced[..., token] = 0.0
    return forced


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
    if not banned:
        return logits
    left = logits.clone()
    left[torch.tensor(sorted(banned), device=logits.device)] = -torch.inf
    return torch.where((left > -torch.inf).any(), left, logits)  # a constraint may have left out the others


def _would_repeat(earlier: Sequence[int], n: int) -> set[int]:
    """Tokens that would complete an n-gram that has occurred."""
    if not n or len(earlier) < n:
        return set()
    last = tuple(earlier[len(earlier) - n + 1 :])
    return {earlier[i + n - 1] for i in range(len(earlier) - n + 1) if tuple(earlier[i : i + n - 1]) == last}
