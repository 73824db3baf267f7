"""Ablations: what the output owes to each head, over a set of inputs, and the fewest heads that suffice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard.analysis.base import as_inputs, as_pass
from regard.analysis.parts import Cell, Metric, Parts, Recording, Sweep, check_metrics, record
from regard.analysis.roles import bootstrap
from regard.arguments import check_arguments
from regard.errors import ConfigError, shown, unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("zero", "mean", "resample")
Heads = Sequence[tuple[str, int]]


@dataclass(frozen=True, eq=False)
class Sufficient:
    """A set of heads that keeps a share of the metric while all others are ablated.

    Attributes:
        heads: (site, head) of each, in the order of the sites.
        share: of the difference between the whole model and the model without any head.
        metric: the mean metric with these heads alone.
        ablated: the mean metric without any head.
    """

    heads: list[tuple[str, int]]
    share: float
    metric: float
    ablated: float


@dataclass(frozen=True, eq=False)
class HeadPairs:
    """What every two heads are worth together, beside what each is worth alone.

    With c(S) the mean change of the metric without the heads S, the interaction of two heads is
    c({a, b}) - c({a}) - c({b}): 0 where they act apart, of the sign of c where one stands in for the other (each alone
    is missed less than both), of the other sign where one is worth nothing without the other.

    Attributes:
        heads: (site, head) of the rows and columns.
        table: `[heads, heads]`, c of both; on the diagonal c of one.
        interaction: `[heads, heads]`; NaN on the diagonal.
        intervals: `[heads, heads, 2]`, 95 % of the interaction over the inputs, as those of `Ablations`; NaN likewise.
    """

    heads: list[tuple[str, int]]
    table: Tensor
    interaction: Tensor
    intervals: Tensor

    @check_arguments
    def strongest(self, count: int = 10) -> list[tuple[tuple[str, int], tuple[str, int], float, tuple[float, float]]]:
        """The pairs with the largest interactions whose intervals leave out 0: (head, head, interaction, interval)."""
        found = []
        for a, b in combinations(range(len(self.heads)), 2):
            low, high = self.intervals[a, b].tolist()
            if low > 0 or high < 0:
                found.append((self.heads[a], self.heads[b], float(self.interaction[a, b]), (low, high)))
        return sorted(found, key=lambda one: -abs(one[2]))[:count]

    @check_arguments
    def plot(self, path: str | Path | None = None, theme: str = "light") -> "Figure":
        """A figure of the interactions; the file's ending gives its format."""
        from regard.figures.tables import draw_tables

        names = [f"{site}, head {head}" for site, head in self.heads]
        return draw_tables(
            {"": self.interaction}, names, names, ("head ↓", "head →"), "What two heads share", path,
            note="change without both, less the changes without each", label="interaction", theme=theme,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Ablations:
    """What each head is worth: the change of the metric without it.

    Attributes:
        table: {kind: `[sites, heads]`}, mean over the inputs of metric(ablated) - metric(whole); NaN where a site has
            fewer heads than others.
        intervals: {kind: `[sites, heads, 2]`}, 95 % of that mean over 1,000 draws of the inputs with replacement
            (percentile bootstrap, Efron 1979).
        sites: names of the rows.
        whole: mean metric of the model as it is.
    """

    table: dict[str, Tensor]
    intervals: dict[str, Tensor]
    sites: list[str]
    whole: float
    _sweeps: dict[str, list[Sweep]] = field(repr=False)
    _wholes: list[float] = field(repr=False)
    _counts: list[int] = field(repr=False)

    @check_arguments
    def together(self, heads: Heads, kind: str = "mean") -> tuple[float, tuple[float, float]]:
        """The change of the metric without these heads together, and its 95 % interval; `pairs` takes every two.

        Args:
            heads: (site, head) of each.
            kind: "zero", "mean" or "resample".

        Raises:
            ConfigError: a head that was not ablated.
        """
        changes = self._changes([[Cell(site, head) for site, head in self._ablated(heads)]], self._kind(kind))[:, 0]
        return float(changes.mean()), bootstrap(changes.tolist())

    @check_arguments
    def pairs(self, heads: Heads | None = None, kind: str = "mean") -> HeadPairs:
        """Every two of some heads ablated together: H (H + 1) / 2 ablations of each input, many in one forward.

        Args:
            heads: (site, head) of each; all by default.
            kind: "zero", "mean" or "resample".

        Raises:
            ConfigError: fewer than two heads, the same one twice, or one that was not ablated.

        Source: Michel et al. 2019 ablate one head at a time; that others then stand in for it is the "hydra effect"
        (McGrath et al. 2023), which pairs show.
        """
        chosen = self._ablated(heads)
        if len(set(chosen)) < max(2, len(chosen)):
            raise ConfigError(f"pairs needs two different heads or more; got {chosen}")
        cells = [Cell(site, head) for site, head in chosen]
        places = list(combinations_with_replacement(range(len(cells)), 2))
        changes = self._changes([[cells[k] for k in {*place}] for place in places], self._kind(kind))
        found = dict(zip(places, changes.T, strict=True))
        count = len(cells)
        table, interaction = (torch.full((count, count), float("nan"), dtype=torch.float64) for _ in range(2))
        intervals = torch.full((count, count, 2), float("nan"), dtype=torch.float64)
        for (a, b), both in found.items():
            table[a, b] = table[b, a] = both.mean()
            if a != b:
                shared = both - found[a, a] - found[b, b]
                interaction[a, b] = interaction[b, a] = shared.mean()
                intervals[a, b] = intervals[b, a] = torch.tensor(bootstrap(shared.tolist()), dtype=torch.float64)
        return HeadPairs(chosen, table, interaction, intervals)

    @check_arguments
    def smallest(self, keep: float = 0.9, kind: str = "mean") -> Sufficient:
        """The fewest heads that keep a share of the metric, greedily: all others are ablated at once.

        share(S) = (m(S) - m(∅)) / (m(all) - m(∅)). Heads are taken out in the order of their own effects, the least
        first; each stays out if what is left keeps the share. One pass, as in Conmy et al. 2023, section 3.

        Args:
            keep: the share to keep, of the mean metric over the inputs.
            kind: how heads are taken out: "zero", "mean" or "resample".

        Raises:
            ConfigError: the metric is the same without any head; `keep` is not above 0 and at most 1.
        """
        if not 0 < keep <= 1:
            raise ConfigError(f"keep must be a share above 0 and at most 1; got {keep}")
        table = self.table[self._kind(kind)]
        heads = [Cell(site, n) for site in self.sites for n in range(self.heads(site))]
        nothing = float(self._changes([heads], kind).mean())
        if not nothing:
            raise ConfigError("the metric is the same with every head ablated: it does not depend on attention")

        def share(out: Sequence[Cell]) -> float:
            return 1 - float(self._changes([out], kind).mean()) / nothing if out else 1.0

        rows = {site: i for i, site in enumerate(self.sites)}
        out: list[Cell] = []
        for cell in sorted(heads, key=lambda one: abs(float(table[rows[one.site], one.head]))):
            if share([*out, cell]) >= keep:
                out.append(cell)
        kept, found = [cell for cell in heads if cell not in set(out)], share(out)
        return Sufficient(
            [(cell.site, cell.head) for cell in kept], found,
            self.whole + nothing * (1 - found), self.whole + nothing,
        )  # fmt: skip

    @check_arguments
    def plot(self, path: str | Path | None = None, theme: str = "light") -> "Figure":
        """A figure of the tables, red where the metric falls without a head; the file's ending gives its format."""
        from regard.figures.tables import draw_tables

        heads = [str(n) for n in range(next(iter(self.table.values())).shape[1])]
        return draw_tables(
            self.table, self.sites, heads, ("site ↓", "head →"), "Change of the metric without each head", path,
            note=f"with all heads it is {self.whole:.3g}", label="change of the metric", theme=theme,
        )  # fmt: skip

    def _ablated(self, heads: Heads | None) -> list[tuple[str, int]]:
        """Some of the heads that were ablated; all by default."""
        known = [(site, n) for site in self.sites for n in range(self.heads(site))]
        try:
            chosen = known if heads is None else [(site, head) for site, head in heads]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"heads must be pairs (site, head); got {shown(heads)}") from error
        strange = [one for one in chosen if one not in known]
        if strange:
            raise ConfigError(f"{shown(strange[0])} was not ablated: expected (site, head) of {', '.join(self.sites)}")
        return chosen

    def heads(self, site: str) -> int:
        """The number of heads of a site."""
        return self._counts[self.sites.index(site)]

    def _kind(self, kind: str) -> str:
        if kind not in self._sweeps:
            raise unknown("ablation", kind, self._sweeps)
        return kind

    def _changes(self, patches: Sequence[Sequence[Cell]], kind: str) -> Tensor:
        return _changes(self._sweeps[kind], self._wholes, patches)


@check_arguments
def ablations(
    model: Any, inputs: Sequence[Any], metric: Metric | Sequence[Metric], kinds: Sequence[str] = KINDS, *,
    sites: Sequence[str] | None = None, batch: int | None = None, seed: int = 0,
) -> Ablations:  # fmt: skip
    """What every head is worth: the change of the metric when its output is replaced, with intervals over the inputs.

    "zero" replaces a head's output by 0; "mean" by its mean over all inputs and positions; "resample" by its output at
    the same position of another input (beyond that input's end, at its last position), which keeps every statistic
    of the layer.

    Args:
        model: an nn.Module, or what `load` returns.
        inputs: as the inputs of `patch`, at least two; without padding, which would enter the means.
        metric: from the output of the module's forward to a number; one for all inputs, or one for each.
        kinds: which ablations.
        sites: which sites, by path or pattern; all by default.
        batch: cells of one forward; chosen from the sizes of outputs and attentions by default.
        seed: of the draws of other inputs.

    Raises:
        ConfigError: fewer than two inputs, or another number of metrics.
        ChoiceError, ShapeError, RegardError: as `patch`.

    Source: Michel et al. 2019, section 3.2 (zero); Wang et al. 2023, section 3 (mean); Chan et al. 2022 (resample).
    """
    inputs = as_inputs(inputs)
    metrics = list(metric) if isinstance(metric, Sequence) else [metric] * len(inputs)
    if len(inputs) < 2 or len(metrics) != len(inputs):
        raise ConfigError(
            f"{len(inputs)} inputs and {len(metrics)} metrics: ablations needs two inputs or more, and one metric "
            "for all or one for each"
        )
    if not kinds:
        raise ConfigError(f"kinds: expected one ablation or more, of {', '.join(KINDS)}")
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("ablation", kind, KINDS)
    parts, passes = Parts(model, "head", sites), [as_pass(model, one) for one in inputs]
    recordings = [record(one, parts, own) for one, own in zip(passes, metrics, strict=True)]
    wholes = [kept.metric for kept in recordings]
    check_metrics(wholes)
    sweeps = {
        kind: [
            Sweep(run, parts, kept, own, batch)
            for run, kept, own in zip(passes, _replacements(kind, recordings, seed), metrics, strict=True)
        ]
        for kind in kinds
    }
    table, intervals = {}, {}
    longest = max(recordings, key=lambda kept: len(kept.kept))
    names = list(longest.kept)
    cells = longest.cells(False)
    places = {site: i for i, site in enumerate(names)}
    counts = list(map(longest.heads, names))
    size = (len(names), max(counts))
    for kind, own in sweeps.items():
        changes = _changes(own, wholes, [[cell] for cell in cells])
        table[kind] = torch.full(size, float("nan"), dtype=torch.float64)
        intervals[kind] = torch.full((*size, 2), float("nan"), dtype=torch.float64)
        for cell, column in zip(cells, changes.T, strict=True):
            place = places[cell.site], cell.head
            table[kind][place] = column.mean()
            intervals[kind][place] = torch.tensor(bootstrap(column.tolist()), dtype=torch.float64)
    return Ablations(table, intervals, names, sum(wholes) / len(wholes), sweeps, wholes, counts)


def _changes(sweeps: Sequence[Sweep], wholes: Sequence[float], patches: Sequence[Sequence[Cell]]) -> Tensor:
    """`[inputs, patches]`: metric(ablated) - metric(whole)."""
    values = torch.tensor([sweep(patches) for sweep in sweeps], dtype=torch.float64)
    return values - torch.tensor(wholes, dtype=torch.float64)[:, None]


def _replacements(kind: str, recordings: Sequence[Recording], seed: int) -> list[Recording]:
    """What each input's heads are replaced by."""
    if kind == "zero":
        return [_replaced(kept, lambda _, part: torch.zeros_like(part)) for kept in recordings]
    _check_widths(recordings, kind)
    if kind == "mean":
        means = means_of(recordings)
        return [_replaced(kept, lambda site, part: means[site].expand_as(part)) for kept in recordings]
    generator = torch.Generator().manual_seed(seed % 2**63)
    count = len(recordings)
    away = [1 + int(torch.randint(count - 1, (), generator=generator)) for _ in recordings]
    others = [recordings[(i + step) % count] for i, step in enumerate(away)]
    return [_resampled(kept, other) for kept, other in zip(recordings, others, strict=True)]


def _check_widths(recordings: Sequence[Recording], kind: str) -> None:
    """Refuse outputs that one input's cannot stand in for: those of an attention that follows its last weights."""
    widths: dict[str, int] = {}
    for kept in recordings:
        for site, found in kept.kept.items():
            for part in (kept.part(site, n) for n in range(len(found))):
                if widths.setdefault(site, part.shape[-1]) != part.shape[-1]:
                    raise ConfigError(
                        f"{kind}: {site} gives outputs of {widths[site]} and of {part.shape[-1]} numbers, one for each "
                        'key among them: take inputs of one length, or kinds = ("zero",)'
                    )


def _replaced(kept: Recording, change: Any) -> Recording:
    return replace(kept, kept={site: [change(site, part) for part in found] for site, found in kept.kept.items()})


def means_of(recordings: Sequence[Recording]) -> Mapping[str, Tensor]:
    """{site: `[1, heads, 1, d]`}, over inputs and positions."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    kinds: dict[str, torch.dtype] = {}
    for kept in recordings:
        for site, found in kept.kept.items():
            for part in (kept.part(site, n) for n in range(len(found))):
                wide = torch.promote_types(part.dtype, torch.float32)  # a sum of many may be beyond float16
                sums[site] = sums.get(site, 0) + part.sum((0, 2), keepdim=True, dtype=wide)
                kinds[site] = part.dtype
                counts[site] = counts.get(site, 0) + part.shape[0] * part.shape[2]
    return {site: (whole / counts[site]).to(kinds[site]) for site, whole in sums.items()}


def _resampled(kept: Recording, other: Recording) -> Recording:
    """The outputs of another input at the same positions, its last one beyond its end."""
    resampled: dict[str, list[Any]] = {}
    for site, found in kept.kept.items():
        if site not in other.kept:
            raise ConfigError(
                f"resample: an input attends at {site}, and the one that stands in for it does not: ablate sites that "
                "all inputs have (sites), or by another kind"
            )
        pool = torch.cat([other.part(site, n) for n in range(len(other.kept[site]))], 2)
        for n, part in enumerate(found):
            index = (torch.arange(part.shape[-2]) + kept.first(site, n)).clamp(max=pool.shape[2] - 1)
            rows = torch.arange(part.shape[0]) % pool.shape[0]
            resampled.setdefault(site, []).append(pool[rows][:, :, index.to(pool.device)])
    return replace(kept, kept=resampled)
