"""Path patching: the effect of one head through one other head, all others frozen; and its linear approximation."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import ForwardPass
from regard.analysis.parts import (
    MOST,
    AttentionPart,
    Cell,
    Metric,
    Part,
    Parts,
    Recording,
    by_head,
    check_metrics,
    number_of,
    record,
    repeated,
    rows_from,
    rows_of,
)
from regard.analysis.patching import Patches, pair, table_of, tokens_of
from regard.errors import ConfigError, shown, unknown

WHAT = ("query", "key", "value")


@dataclass(frozen=True, eq=False)
class PathPatches(Patches):
    """The metric with one path patched, by the head at which it begins.

    Attributes:
        receiver: (site, head) at which the paths end; of "key" and "value" a key head.
        approximate: the same table, where what the receiver gives on is linear: m + (r' - r) · ∂m/∂r.
    """

    receiver: tuple[str, int] = ("", 0)
    approximate: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def error(self) -> float:
        """Largest difference of the two tables, as a share of the largest change of the metric by a path."""
        largest = float((self.table - self.corrupted).abs().nan_to_num().max())
        difference = float((self.table - self.approximate).abs().nan_to_num().max())
        return difference / largest if largest else 0.0

    @property
    def _title(self) -> str:
        site, head = self.receiver
        return f"Clean path from each head to {site}, head {head}, in the corrupted run"


def path_patches(
    model: Any, clean: Any, corrupted: Any, metric: Metric, receiver: tuple[str, int], what: str = "query", *,
    sites: Sequence[str] | None = None, batch: int = MOST,
) -> PathPatches:  # fmt: skip
    """Path patching: the metric when one head's clean output reaches one other head alone, and from there everything.

        table[s, h] = m(f(corrupted; r ← r')),   r' = r(corrupted; o_sh ← o_sh(clean), all other heads as corrupted)

    r is the receiver's query, key or value. Attentions between the two heads are held at what they gave in the
    corrupted run, so the path is direct; feed-forwards on the way compute (Wang et al. 2023, appendix B). Two batched
    forwards serve all senders.

    Args:
        model, clean, corrupted, metric: as for `patch`; the metric of tensors, differentiable.
        receiver: (site, head): where the paths end.
        what: which of its inputs: "query", "key" or "value".
        sites: sites of the senders, by path or pattern; by default every one that runs before the receiver.
        batch: senders of one forward.

    Raises:
        ConfigError: a metric without a gradient, or that is NaN; no attention before the receiver; a receiver without
            that head, or that runs more than once (a recurrent decoder's).
        ShapeError, ChoiceError, RegardError: as `patch`.

    Source: Wang et al. 2023, section 3 and appendix B; Goldowsky-Dill et al. 2023, "Localizing model behavior with path
    patching", section 2.
    """
    if what not in WHAT:
        raise unknown("part", what, WHAT)
    if batch < 1:
        raise ConfigError(f"batch must be at least 1; got {batch}")
    if len(receiver) != 2:
        raise ConfigError(f"expected the receiver's site and head; got {len(receiver)} values")
    first, second = pair(model, clean, corrupted)
    heads, receiving = Parts(model, "head"), Parts(model, what, [receiver[0]])
    own, old = record(first, heads, metric), record(second, heads, metric)
    check_metrics([own.metric, old.metric])
    received = record(second, receiving)
    site, head = _receiver(received, receiver)
    order = list(old.kept)
    before = order[: order.index(site)]
    if sites is not None:
        chosen = list(record(second, Parts(model, "head", sites)).kept)
        before = [one for one in before if one in chosen]
    if not before:
        raise ConfigError(
            f"no attention runs before {shown(site)}: no head could send it anything; name a later receiver"
        )
    cells = [cell for cell in own.cells(False) if cell.site in before]
    with torch.no_grad():
        ends = own.metric, old.metric
        slope = _slope(second, receiving, metric, head)
        values, linear, forwards = [], [], 5
        for start in range(0, len(cells), max(1, batch)):
            some = cells[start : start + max(1, batch)]
            told = _told(second, heads, own, old, some, site, what)
            change = told[:, :, head] - received.part(site, 0)[:, head]
            linear += [ends[1] + float(one) for one in (change * slope).double().flatten(1).sum(-1)]
            values += _answered(second, receiving, metric, told, head)
            forwards += 2
    kept = replace(own, kept={one: own.kept[one] for one in before})
    return PathPatches(
        table_of(kept, cells, values), before, "head", *ends, forwards, tokens_of(kept, first), (site, head),
        table_of(kept, cells, linear),
    )  # fmt: skip


def _receiver(received: Recording, receiver: tuple[str, int]) -> tuple[str, int]:
    site, head = next(iter(received.kept)), receiver[1]
    if len(received.kept) > 1 or len(received.kept[site]) > 1:
        raise ConfigError(f"{receiver[0]} runs more than once: a path ends at one attention that runs once")
    if not 0 <= head < received.heads(site):
        raise ConfigError(f"{site} has {received.heads(site)} heads for its {received.what}: there is no head {head}")
    return site, head


def _told(
    run: ForwardPass, parts: Parts, own: Recording, old: Recording, cells: Sequence[Cell], site: str, what: str
) -> Tensor:
    """What the receiver is given for each sender `[senders, rows, heads, n, d]`."""
    count, rows = len(cells), rows_of(run.arguments)
    found: list[Tensor] = []

    def visit(at: str, n: int, part: Part) -> Tensor:
        assert isinstance(part, AttentionPart)
        if at == site:
            given = by_head(getattr(part.call, what), count * rows)
            found.append(given.reshape(count, rows, *given.shape[1:]))
        frozen = old.part(at, n).expand(count, -1, -1, -1, -1).clone()
        for row, cell in enumerate(cells):
            if cell.site == at:
                frozen[row, :, cell.head] = own.part(at, n)[:, cell.head]
        like = part.output()
        return frozen.reshape(like.shape).to(like.dtype)

    with parts.visiting(visit):
        replace(run, arguments=repeated(run.arguments, rows, count))()
    return found[0]


def _answered(run: ForwardPass, parts: Parts, metric: Metric, told: Tensor, head: int) -> list[float]:
    """The metric for each sender, with the receiver's patched input."""
    count, rows = told.shape[:2]
    whole = count * rows

    def visit(_: str, __: int, part: Part) -> Tensor:
        def put(current: Tensor) -> Tensor:
            new = by_head(current, whole).clone()
            new[:, head] = told[:, :, head].flatten(0, 1).to(new.dtype)
            return new.reshape(whole if current.shape[0] == 1 else current.shape[0], *current.shape[1:])

        return part.changed(put)

    with parts.visiting(visit):
        output = replace(run, arguments=repeated(run.arguments, rows, count))()
    return [number_of(metric(rows_from(output, whole, slice(i * rows, (i + 1) * rows)))) for i in range(count)]


def _slope(run: ForwardPass, parts: Parts, metric: Metric, head: int) -> Tensor:
    """∂m/∂r of the receiver's head in the corrupted run `[rows, n, d]`."""
    probes: list[Tensor] = []

    def visit(_: str, __: int, part: Part) -> Tensor:
        def probed(current: Tensor) -> Tensor:
            probes.append(torch.zeros_like(current, requires_grad=True))
            return current + probes[-1]

        return part.changed(probed)

    with torch.enable_grad(), parts.visiting(visit):
        value = metric(run())
        number_of(value)
        if not isinstance(value, Tensor) or not value.requires_grad:
            raise ConfigError(
                "the metric has no gradient: compute it from the output's tensors, without float() or detach()"
            )
        (gradient,) = torch.autograd.grad(value, probes)
    return by_head(gradient, rows_of(run.arguments))[:, head]
