"""Attribution patching: the table of `patch` to first order, from two forwards and one backward."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regard.analysis.parts import (
    OF_KEYS,
    AttentionPart,
    Cell,
    Metric,
    Part,
    Parts,
    Recording,
    Sweep,
    by_head,
    check_metrics,
    number_of,
    record,
    rows_of,
)
from regard.analysis.patching import Patches, pair, table_of, tokens_of
from regard.analysis.reuse import deferring
from regard.arguments import check_arguments
from regard.errors import ConfigError


@dataclass(frozen=True)
class Check:
    """One cell of an attribution beside the patch itself: the metric by each."""

    cell: Cell
    attributed: float
    patched: float


@dataclass(frozen=True, eq=False)
class AttributedPatches(Patches):
    """The table of `patch`, linear.

    Attributes:
        checks: the cells that were patched as well, largest attributed change first.
    """

    checks: list[Check] = field(default_factory=list)

    @property
    def error(self) -> float | None:
        """The largest difference between attributed and patched metric over the checked cells; None without any."""
        return max((abs(one.attributed - one.patched) for one in self.checks), default=None)

    @property
    def sentence(self) -> str:
        """What was checked, in one sentence."""
        if self.error is None:
            return "No cell was checked against a patch: ask for check=3."
        span = max(abs(one.patched - self.corrupted) for one in self.checks)
        return (
            f"Over the {len(self.checks)} largest cells the attribution is within {self.error:.3g} of the patch, which "
            f"changes the metric by up to {span:.3g}."
        )

    @property
    def _title(self) -> str:
        return f"{super()._title}: an estimate"

    @property
    def _note(self) -> str:
        error = "not checked against a patch" if self.error is None else f"error of the largest cells: {self.error:.3g}"
        return f"{super()._note}; {error}"


@check_arguments
def attribute_patches(
    model: Any, clean: Any, corrupted: Any, metric: Metric, what: str = "head", *, by_position: bool = False,
    sites: Sequence[str] | None = None, check: int = 3,
) -> AttributedPatches:  # fmt: skip
    """Attribution patching: the table of `patch` to first order, from two forwards and one backward.

        table[s, h] = m(corrupted) + Σ (o'_sh - o_sh) · ∂m/∂o_sh

    o is the output of the site's heads in the corrupted run, o' the same computed anew with the clean part, so that
    only what follows the site is linear. For "head", "value" and "state" this is (a_clean - a_corrupted) · ∂m/∂a; for
    "query" and "key" the softmax is computed anew, which is AtP*'s correction, exact for any score and normalizer.

    Args:
        model, clean, corrupted, what, by_position, sites: as for `patch`. Keys and values by position compute each
            site's attention once for every key.
        metric: as for `patch`; of tensors, differentiable.
        check: so many of the largest cells are patched as well; see `AttributedPatches.checks`.

    Raises:
        ConfigError: a metric without a gradient, or of more than one number; within `torch.inference_mode`.
        ShapeError, ChoiceError, RegardError: as `patch`.

    Source: Nanda 2023; Syed et al. 2023, equation 2; Kramár et al. 2024, section 3.1 (the correction).
    """
    first, second = pair(model, clean, corrupted)
    parts = Parts(model, what, sites)
    if torch.is_inference_mode_enabled() or any(one.is_inference() for one in parts.tracker.model.parameters()):
        raise ConfigError(
            "attribute_patches needs gradients, and torch.inference_mode() has none: build the model and call this "
            "outside of it"
        )
    kept, rows = record(first, parts, metric), rows_of(second.arguments)
    check_metrics([kept.metric])
    reached: list[tuple[str, int, Part]] = []
    probes: list[Tensor] = []

    def probe(site: str, n: int, part: Part) -> Tensor:
        own = part.output()
        reached.append((site, n, part))
        probes.append(torch.zeros_like(own, requires_grad=True))
        return own + probes[-1]

    def forward(deferred: AbstractContextManager[None]) -> Any:
        reached.clear()
        probes.clear()
        with parts.visiting(probe), deferred:
            output = second()
        return metric(output)

    with torch.enable_grad(), _frozen(parts.tracker.model):
        value = deferring(parts.tracker.model, rows, forward)
    number_of(value)
    if not isinstance(value, Tensor) or not value.requires_grad:
        raise ConfigError(
            "the metric has no gradient: compute it from the output's tensors, without float() or detach()"
        )
    gradients = torch.autograd.grad(value, probes, allow_unused=True)
    cells = kept.cells(by_position or what == "state")
    effects = dict.fromkeys(cells, 0.0)
    with torch.no_grad():
        for (site, n, part), gradient in zip(reached, gradients, strict=True):
            if gradient is not None:
                for cell, effect in _effects(kept, site, n, part, gradient, rows, cells[0].position is not None):
                    effects[cell] += effect
    start = float(value.detach())
    checked = sorted(cells, key=lambda cell: -abs(effects[cell]))[:check]
    sweep = Sweep(second, parts, kept, metric)
    patched = sweep([[cell] for cell in checked])
    checks = [Check(cell, start + effects[cell], one) for cell, one in zip(checked, patched, strict=True)]
    table = table_of(kept, cells, [start + effects[cell] for cell in cells])
    tokens = tokens_of(kept, first)
    return AttributedPatches(table, list(kept.kept), what, kept.metric, start, 2 + sweep.forwards, tokens, checks)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Inside the block no parameter asks for a gradient, for which its layer's input would be kept."""
    learned = [one for one in model.parameters() if one.requires_grad]
    for one in learned:
        one.requires_grad_(False)
    try:
        yield
    finally:
        for one in learned:
            one.requires_grad_(True)


def _effects(
    kept: Recording, site: str, n: int, part: Part, gradient: Tensor, rows: int, by_position: bool
) -> Iterator[tuple[Cell, float]]:
    """Σ (o' - o) · ∂m/∂o for every cell of one call; heads do not influence each other's outputs."""
    clean, first, own = kept.part(site, n), kept.first(site, n), part.output()
    groups, size = clean.shape[1], clean.shape[-2]

    def changes(where: slice) -> Tensor:
        """`[rows, groups, T]`, summed over the query heads that share a key head."""

        def put(old: Tensor) -> Tensor:
            new = by_head(old, rows).clone()
            new[:, :, where] = clean[:, :, where].to(new.dtype)
            return new.reshape(rows if old.shape[0] == 1 else old.shape[0], *old.shape[1:])

        # an output that is not finite is of a masked position: the metric, which is finite, does not depend on it
        effect = ((part.changed(put) - own) * gradient).masked_fill(~own.isfinite(), 0)
        change = by_head(effect, rows).double().sum(-1)
        return change.reshape(len(change), groups, -1, change.shape[-1]).sum(2)

    if not by_position:
        for head, effect in enumerate(changes(slice(None)).sum((0, 2)).tolist()):
            yield Cell(site, head), effect
    elif isinstance(part, AttentionPart) and part.what in OF_KEYS:  # a key changes every query's output
        for position in range(size):
            for head, effect in enumerate(changes(slice(position, position + 1)).sum((0, 2)).tolist()):
                yield Cell(site, head, first + position), effect
    else:
        for head, row in enumerate(changes(slice(None)).sum(0).tolist()):
            for position, effect in enumerate(row):
                yield Cell(site, head, first + position), effect
