"""intervene: replace a part of the attention at a site, to measure what the model's output owes to it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from regard.arguments import check_arguments
from regard.attention.maps.map import AttentionMap
from regard.attention.operator import attend
from regard.attention.tracing import is_traced
from regard.attention.watch import Call, changing, computing, suppress, watching
from regard.errors import RegardError, ShapeError, shown, unknown
from regard.observation.observe import known_sites, matches, module_of
from regard.observation.sites import Repeatable, Tracker
from regard.observation.torch_calls import is_tracing, refuse_mapped
from regard.observation.transformers_calls import interface_notified
from regard.shapes import check_tensors, share_heads

Change = Callable[[Tensor], Tensor]
PARTS = ("weights", "query", "key", "value", "output")

_intervened: ContextVar[tuple[list[nn.Module], ...]] = ContextVar("intervened", default=())  # emptied at their end


@check_arguments
def intervene(model: Any, site: str, change: Change, part: str = "weights") -> AbstractContextManager[None]:
    """Inside the block, `site` uses change(weights) instead of its weights: output_i = Σ_j change(α)_ij v_j.

    Works at every site that `observe` records. Gradients flow through the change. An intervened site applies no
    dropout, and computes the whole map where the weights are changed; `nn.MultiheadAttention` returns the changed
    weights where it is asked for them, transformers' models none. With gradient checkpointing, the backward pass
    belongs inside the block too: it repeats the forward.

    An observation of the same model records what the site's own score and normalizer gave: the weights before the
    change, whichever of the two blocks is entered first; so does `generation.attention`. Of nested interventions at
    one site, the innermost acts. Forwards in other threads are left as they are.

    Args:
        model: an nn.Module, or what `regard.load` returns.
        site: a site's path or a pattern, as in `observe`.
        change: from weights `[*batch, heads, T, S]`, after the normalizer, to weights of the same shape;
            `regard.observation.intervene` has `ablate`, `uniform`, `permute` and `force`.
        part: what is changed: "weights"; "query" `[*batch, heads, T, d_k]`, "key" or "value" `[*batch, key heads,
            S, d]`, as they enter the score; "output", of each head `[*batch, heads, T, d_v]`, before they are joined.

    Raises:
        ChoiceError: a site that the model has not, or an unknown part, nearest spelling first.
        ShapeError: a change that returns another shape.
        RegardError: at the end of the block, if the model ran and the site did not attend.
    """
    if part not in PARTS:
        raise unknown("part", part, PARTS)
    module = module_of(model)

    def make() -> AbstractContextManager[None]:
        tracker = Tracker(module, discreet=False)
        known_sites([site], tracker.paths)
        return _intervening(tracker, site, change, part)

    return Repeatable(make)


@contextmanager
def _intervening(tracker: Tracker, site: str, change: Change, part: str) -> Iterator[None]:
    applied = ran = False

    def started(_: nn.Module) -> None:
        nonlocal ran
        ran = True

    def changed(attending: nn.Module, call: Call) -> Tensor | None:
        nonlocal applied
        if not matches(tracker.paths[attending], site):
            return None
        refuse_mapped()
        applied = True
        return output_of(call, part, _keeping_shape(change, tracker.names[attending]))

    def attended(call: Call) -> None:
        nonlocal applied
        attending = tracker.module(call.owner)  # a site that an inner block changes attends, too
        applied = applied or (attending is not None and not is_tracing() and matches(tracker.paths[attending], site))

    tracker.started = started
    mine = [tracker.model]
    _intervened.set((*_intervened.get(), mine))
    try:
        with answering(tracker, changed), watching(attended):
            yield
    finally:
        mine.clear()  # blocks may end in any order, and in another context
        _intervened.set(tuple(one for one in _intervened.get() if one))
    if ran and not applied:
        raise RegardError(
            f"nothing was changed: {shown(site)} ran no attention of its own; regard.observe(model) lists the sites "
            "that do, and names a module that computes attention by hand"
        )


def refuse_intervened(model: nn.Module, finding: str) -> None:
    """Refuse a finding that would be partly of a model with a changed attention, and partly of the model as it is.

    Raises:
        RegardError: the model, or a part of it, is intervened in.
    """
    mine = set(model.modules())
    if any(mine & set(other.modules()) for changed in _intervened.get() for other in changed):
        raise RegardError(f"{finding} does not know of changes that intervene makes: leave its block first")


@contextmanager
def answering(tracker: Tracker, answer: Callable[[nn.Module, Call], Tensor | None]) -> Iterator[None]:
    """Call `answer` with the module and the call of every attention of a model; the tensor it returns is the output.

    Args:
        tracker: of the model, not discreet.
        answer: None leaves the attention as it is.
    """

    def changed(call: Call) -> Tensor | None:
        attending = tracker.module(call.owner)
        return None if attending is None or is_tracing() else answer(attending, call)

    with ExitStack() as stack:
        stack.enter_context(interface_notified())
        stack.enter_context(tracker.tracking())
        stack.enter_context(changing(changed))
        yield


def output_of(call: Call, part: str = "output", change: Change = lambda same: same) -> Tensor:
    """The output of a call `[*batch, heads, T, d_v]` with a part of it changed, without dropout."""
    if part == "weights":
        new = change(map_of(call).full(force=True))
        value = share_heads(call.query, call.value)
        return _weighted(new, value.to(new.dtype)).to(value.dtype)
    if part != "output":
        new_part: Any = {part: change(getattr(call, part))}
        return output_of(replace(call, **new_part))
    spec = call.spec
    with suppress(), computing():
        own = attend(
            call.query, call.key, call.value,
            score=spec.score, normalizer=spec.normalizer, mask=spec.mask, bias=spec.bias,
        )  # fmt: skip
    return change(own)


def _weighted(weights: Tensor, value: Tensor) -> Tensor:
    """Σ_j α_ij v_j `[*batch, T, d_v]`; a value of weight 0 adds nothing, were it NaN, as in every kernel."""
    if not is_traced(value) and bool(value.isfinite().all()):
        return weights @ value
    poisoned = ~value.isfinite()
    whole = weights @ value.masked_fill(poisoned, 0)
    reached = (weights != 0).to(weights.dtype) @ poisoned.to(weights.dtype)
    return whole.masked_fill(reached > 0, float("nan"))


def map_of(call: Call) -> AttentionMap:
    """The map of a call."""
    seen = AttentionMap.from_spec(call.query, call.key, call.spec)
    return seen if call.through is None else seen.through(call.through)


def _keeping_shape(change: Change, site: str) -> Change:
    def checked(part: Tensor) -> Tensor:
        new = change(part)
        check_tensors(**{f"{site}: the result of the change": new})
        if new.is_meta and not part.is_meta:
            raise ShapeError(f"{site}: the result of the change is on meta, where tensors have no data")
        if new.shape != part.shape:
            raise ShapeError(f"{site}: the change turned {list(part.shape)} into {list(new.shape)}: keep the shape")
        return new

    return checked


@check_arguments
def ablate(*heads: int) -> Change:
    """A change that sets the weights of some heads (of all, if none is named) to 0: they contribute nothing.

    Raises:
        ShapeError: in the forward, where the site has no such head.
    """

    def change(weights: Tensor) -> Tensor:
        if not heads:
            return weights * 0
        count = weights.shape[-3] if weights.ndim > 2 else 0
        wrong = [head for head in heads if not -count <= head < count]
        if wrong:
            there = f"heads 0 to {count - 1}" if count else "no heads"
            raise ShapeError(f"ablate({', '.join(map(str, heads))}): no head {wrong[0]}: this site has {there}")
        kept = weights.clone()
        kept[..., list(heads), :, :] = 0
        return kept

    return change


def uniform(weights: Tensor) -> Tensor:
    """A change that gives every key that has any weight the same (Jain and Wallace 2019; Wiegreffe and Pinter 2019)."""
    some = (weights > 0).to(weights.dtype)
    return some * (weights.sum(-1, keepdim=True) / some.sum(-1, keepdim=True).clamp(min=1))


def permute(weights: Tensor) -> Tensor:
    """A change that shuffles each row's weights among the keys that had any (Jain and Wallace 2019, section 4.2.1).

    Draws from torch's generator.
    """
    some = weights > 0
    # among allowed keys in a random order, the i-th gets the weight of the i-th in their own order
    noise = weights.new_empty(weights.shape).uniform_().masked_fill(~some, 2.0)
    order = noise.argsort(-1)
    own = some.to(weights.dtype).argsort(dim=-1, descending=True, stable=True)
    return weights.new_zeros(weights.shape).scatter(-1, order, weights.gather(-1, own)) * some


def force(rows: Any) -> Change:
    """A change that replaces the model's weights by `rows`, broadcast to their shape.

    Raises:
        ShapeError: rows that are no tensor; in the forward, where they cannot be broadcast.
    """
    if not isinstance(rows, Tensor):
        raise ShapeError(
            f"force: expected a tensor of weights that broadcasts to [heads, T, S]; got {rows!r} (all of row t on key "
            "j is 1 at [t, j], else 0)"
        )

    def change(weights: Tensor) -> Tensor:
        try:
            return rows.to(weights).expand_as(weights)
        except RuntimeError as error:
            raise ShapeError(
                f"force: rows of shape {list(rows.shape)} cannot be broadcast to the weights, {list(weights.shape)}"
            ) from error

    return change
