"""intervene: replace the attention weights of a site, to measure what the model's output owes to them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from regard.attention.maps.map import AttentionMap
from regard.attention.watch import Call, changing
from regard.errors import RegardError, ShapeError
from regard.observation.observe import known_sites, matches, module_of
from regard.observation.sites import Tracker
from regard.observation.torch_calls import is_tracing, refuse_mapped
from regard.observation.transformers_calls import interface_notified
from regard.shapes import share_heads

Change = Callable[[Tensor], Tensor]


def intervene(model: Any, site: str, change: Change) -> AbstractContextManager[None]:
    """Inside the block, `site` uses change(weights) instead of its weights: output_i = Σ_j change(α)_ij v_j.

    Works at every site that `observe` records. Gradients flow through the change. An intervened site applies no
    dropout and computes the whole map; `nn.MultiheadAttention` returns the changed weights where it is asked for
    them, transformers' models none. With gradient checkpointing, the backward pass belongs inside the block too: it
    repeats the forward.

    An observation of the same model records what the site's own score and normaliser gave: the weights before the
    change, whichever of the two blocks is entered first; so does `generation.attention`. Of nested interventions at
    one site, the innermost acts.

    Args:
        model: an nn.Module, or what `regard.load` returns.
        site: a site's path or a pattern, as in `observe`.
        change: from weights `[*batch, heads, T, S]`, after the normaliser, to weights of the same shape;
            `regard.observation.intervene` has `ablate`, `uniform` and `permute`.

    Raises:
        ChoiceError: a site that the model has not, nearest spelling first.
        ShapeError: a change that returns another shape.
        RegardError: at the end of the block, if the model ran and the site did not attend.
    """
    module = module_of(model)
    tracker = Tracker(module, discreet=False)
    known_sites([site], tracker.paths)
    return _intervening(tracker, site, change)


@contextmanager
def _intervening(tracker: Tracker, site: str, change: Change) -> Iterator[None]:
    applied = ran = False

    def started(_: nn.Module) -> None:
        nonlocal ran
        ran = True

    def changed(call: Call) -> Tensor | None:
        nonlocal applied
        attending = tracker.module(call.owner)
        if attending is None or is_tracing() or not matches(tracker.paths[attending], site):
            return None
        refuse_mapped()
        applied, here = True, tracker.names[attending]
        seen = AttentionMap.from_spec(call.query, call.key, call.spec)
        weights = (seen if call.through is None else seen.through(call.through)).full(force=True)
        new = change(weights)
        if new.shape != weights.shape:
            raise ShapeError(f"{here}: the change turned {list(weights.shape)} into {list(new.shape)}: keep the shape")
        value = share_heads(call.query, call.value)
        result: Tensor = (new @ value.to(new.dtype)).to(value.dtype)
        return result

    with ExitStack() as stack:
        stack.enter_context(interface_notified())
        stack.enter_context(tracker.tracking())
        stack.enter_context(changing(changed))
        tracker.started = started
        yield
    if ran and not applied:
        raise RegardError(f"nothing was changed: {site!r} ran no attention of its own; observe tells which sites do")


def ablate(*heads: int) -> Change:
    """A change that sets the weights of some heads (of all, if none is named) to 0: they contribute nothing."""

    def change(weights: Tensor) -> Tensor:
        if not heads:
            return weights * 0
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


def force(rows: Tensor) -> Change:
    """A change that replaces the model's weights by `rows`, broadcast to their shape."""
    return lambda weights: rows.to(weights).expand_as(weights)
