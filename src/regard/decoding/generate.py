"""From a decoder's state to hypotheses: the one way that every pipeline takes.

Search and sampling know no model; here a model's step, the constraints around it and the attention of what comes out
meet. Maps stay lazy: a hypothesis keeps its queries and keys, and weights are computed when they are read.
"""

from collections.abc import Callable, Collection, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from regard.attention.maps.map import AttentionMap, LazyMaps
from regard.decoding.constraints import Constraint, StepFunction, innermost, log_probs
from regard.decoding.phrases import Goal
from regard.decoding.sample import Drawn, SampleConfig, Stop, sample, sampled
from regard.decoding.search import Attention, Hypothesis, SearchConfig, search, search_steps
from regard.device import device_of
from regard.errors import RegardError
from regard.nn.state import State


def _always() -> bool:
    return True


WANTED: ContextVar[Callable[[], bool]] = ContextVar("wanted", default=_always)
UNWANTED = "this output is not wanted any more"


class Unwanted(RegardError):
    """A search or a draw that was ended because its outputs are not wanted any more."""


@contextmanager
def while_wanted(wanted: Callable[[], bool]) -> Iterator[None]:
    """End searches and draws of this block, by `Unwanted`, at the first step before which `wanted` is False."""
    before = WANTED.set(wanted)
    try:
        yield
    finally:
        WANTED.reset(before)


def may_be_unwanted() -> bool:
    """Whether this is within a block of `while_wanted`."""
    return WANTED.get() is not _always


def check_wanted() -> None:
    """Raise `Unwanted` where what is computed is not wanted any more."""
    if not WANTED.get()():
        raise Unwanted(UNWANTED)


@runtime_checkable
class StepModel(Protocol):
    """What generating needs of a model."""

    def step(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits `[N, K, V]` of the next token after `token` `[N, K]`, and the state after it."""
        ...

    def maps(self, state: Any) -> dict[str, AttentionMap]:
        """The maps of every site, `[N, K, heads, T, S]`, of a state that recorded its queries."""
        ...


def generate(
    model: StepModel, state: Any, before: Sequence[Sequence[int]], limits: Sequence[int],
    how: SearchConfig | SampleConfig, ends: Collection[int], *, constraints: Sequence[Constraint] = (),
    stop: Stop = lambda _row, _tokens: False, indices: Sequence[int] | None = None, goals: Sequence[Goal | None] = (),
    attention: Attention | None = None,
) -> list[list[Hypothesis]]:  # fmt: skip
    """The outputs of N sentences, best first: beam search for a `SearchConfig`, draws for a `SampleConfig`.

    Args:
        model: gives `step`.
        state: of N sentences with one hypothesis each, before the last token of `before`.
        before: the tokens that each sentence's output follows; BOS alone for an encoder–decoder.
        limits: output tokens at most, one limit per sentence, the end token counted.
        how: how to choose tokens.
        ends: tokens that end an output.
        constraints: changes of the step, the first innermost.
        stop: (sentence, its tokens) -> whether it ends here; for draws.
        indices: of the sentences among all texts of a seed; 0 … N-1 by default; for draws.
        goals: what each sentence's outputs must have; for a search.
        attention: the model's state -> the last step's weights of the source, `[N, K, S]`, for goals with places.
    """
    step, state = constrained(model, state, constraints, len(limits))
    device = device_of(model)
    scored = any(constraint.scored for constraint in constraints)
    if isinstance(how, SampleConfig):
        steps = sample(step, state, before, limits, how, ends, stop=stop, indices=indices, device=device, scored=scored)
        return with_maps(model, sampled(steps, len(limits)))
    first = [tokens[-1] for tokens in before]
    attended = None if attention is None else lambda state: attention(innermost(state))
    found = search(step, state, limits, how, first, ends, scored=scored, device=device, goals=goals, attention=attended)
    return with_maps(model, found)


def stream(
    model: StepModel, state: Any, before: Sequence[int], limit: int, how: SearchConfig | SampleConfig,
    ends: Collection[int], *, constraints: Sequence[Constraint] = (), stop: Stop = lambda _row, _tokens: False,
    index: int = 0,
) -> Generator[list[int], None, list[Hypothesis]]:  # fmt: skip
    """The outputs of one sentence; after each step, the tokens that the best one begins with, whatever follows.

    Other arguments as in `generate`.

    Args:
        model: gives `step`.
        state: before the last token of `before`.
        before: the tokens that the output follows.
        limit: output tokens at most.
        how: how to choose tokens: a draw is final at once, a token of a search when all that may win share it.
        ends: tokens that end an output.
        constraints: changes of the step.
        stop: whether the output ends here; for draws.
        index: of the sentence among all texts of a seed; for draws.
    """
    step, state = constrained(model, state, constraints, 1)
    scored, device = any(constraint.scored for constraint in constraints), device_of(model)
    if isinstance(how, SearchConfig):
        steps = search_steps(step, state, [limit], how, before[-1], ends, scored=scored, device=device)
        while True:
            try:
                now = next(steps)
            except StopIteration as end:
                (found,) = end.value
                return list(found)
            yield now.settled(0)
    drawn: list[Drawn] = []
    for one in sample(
        step, state, [before], [limit], how, ends, stop=stop, indices=[index], device=device, scored=scored
    ):
        if drawn:
            drawn[-1] = drawn[-1]._replace(state=None)  # only the last state is kept
        drawn.append(one)
        yield [each.tokens[0] for each in drawn]
    return sampled(iter(drawn), 1)[0]


def constrained(
    model: StepModel, state: Any, constraints: Sequence[Constraint], sentences: int
) -> tuple[StepFunction, Any]:
    """The model's step and its state within the constraints, the first innermost.

    The innermost one that is `scored` is given the model's log-probabilities, and no other one divides them anew: what
    is left of a step once tokens are forbidden keeps the log-probability that the model gives it.
    """
    wanted, scored = WANTED.get(), False

    def wanted_step(token: Tensor, state: Any) -> tuple[Tensor, Any]:
        if not wanted():
            raise Unwanted(UNWANTED)
        return model.step(token, state)

    step: StepFunction = wanted_step
    for constraint in constraints:
        if constraint.scored and not scored:
            step, scored = log_probs(step), True
        state, step = constraint.begin(state, sentences), constraint.around(step)
    return step, state


@dataclass(frozen=True, eq=False)
class OwnMaps(State):
    """What is left of a hypothesis' state once its search is over: its maps.

    Attributes:
        maps: {site: map `[M, 1, heads, T, S]`} of M hypotheses of one length.
        row: of this one.
    """

    maps: Mapping[str, AttentionMap]
    row: int


def with_maps(model: StepModel, found: Sequence[Sequence[Hypothesis]]) -> list[list[Hypothesis]]:
    """Hypotheses whose states are reduced to their maps, where several can be taken from the batch's buffers at once.

    Hypotheses that ended at the same step are one gather and one frozen map a site; each one's own is made of it when
    it is asked for.
    """
    results = [list(some) for some in found]
    groups: dict[Hashable, list[tuple[int, int, Any]]] = {}
    for n, some in enumerate(results):
        for k, one in enumerate(some):
            state = innermost(one.state)
            known = state.companions() if getattr(state, "record", False) and isinstance(state, State) else None
            if known is not None:
                groups.setdefault(known, []).append((n, k, state))
    for group in groups.values():
        states = [state for *_, state in group]
        whole = {site: one.frozen() for site, one in model.maps(states[0].together(states)).items()}
        for row, (n, k, _) in enumerate(group):
            results[n][k] = replace(results[n][k], state=OwnMaps(whole, row))
    return results


def maps_of(model: StepModel, found: Hypothesis) -> LazyMaps:
    """{site: map `[heads, T, S]`} of one hypothesis, lazy and detached; empty where its state recorded no queries."""
    state = innermost(found.state)
    if isinstance(state, OwnMaps):
        return LazyMaps(state.maps, lambda site: state.maps[site].select(state.row, 0).frozen())
    own: dict[str, AttentionMap] = {}
    if getattr(state, "record", True):
        own = {site: whole.select(0, 0).frozen() for site, whole in model.maps(state.plain()).items()}
    return LazyMaps(own, own.__getitem__)
