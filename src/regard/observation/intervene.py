"""intervene: what becomes of a model when its attention is another."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from regard.attention.maps.map import AttentionMap
from regard.attention.watch import Call, changing
from regard.errors import RegardError, ShapeError
from regard.observation.observe import known_sites, module_of
from regard.observation.sites import Tracker
from regard.observation.transformers_calls import interface_notified
from regard.shapes import share_heads

Change = Callable[[Tensor], Tensor]


def intervene(model: Any, site: str, change: Change) -> AbstractContextManager[None]:
    """Inside the block, `site` uses change(weights) instead of its weights: output_i = Σ_j change(α)_ij v_j.

    Works wherever `observe` sees. Gradients flow through the change. An intervened site drops no weights, and
    computes the whole map, and returns no weights where the model asks for them. With gradient checkpointing,
    the backward pass belongs into the block too: it computes the forward again.

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
    known_sites([site], tracker.names.values())
    return _intervening(tracker, site, change)


@contextmanager
def _intervening(tracker: Tracker, site: str, change: Change) -> Iterator[None]:
    applied = ran = False

    def started(_: nn.Module) -> None:
        nonlocal ran
        ran = True

    def changed(call: Call) -> Tensor | None:
        nonlocal applied
        here = tracker.path(call.owner)
        if here is None or not fnmatchcase(here, site):
            return None
        applied = True
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
    """A change that takes some heads' weights away (all heads, if none is named): they contribute nothing."""

    def change(weights: Tensor) -> Tensor:
        if not heads:
            return weights * 0
        kept = weights.clone()
        kept[..., list(heads), :, :] = 0
        return kept

    return change


def uniform(weights: Tensor) -> Tensor:
    """A change that looks at every key with any weight equally (Jain and Wallace 2019; Wiegreffe and Pinter 2019)."""
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
    """A change that puts given weights in the place of the model's; broadcast to them."""
    return lambda weights: rows.to(weights).expand_as(weights)
