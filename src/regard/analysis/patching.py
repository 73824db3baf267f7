"""Patching: which part of a run carries the answer? The corrupted run with one clean part in it, for every part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard.analysis.base import ForwardPass, as_pass
from regard.analysis.parts import OF_KEYS, Cell, Metric, Parts, Recording, Sweep, check_metrics, record
from regard.arguments import check_arguments
from regard.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGET = "target"  # the decoder's input, which both runs take from the clean one


@dataclass(frozen=True, eq=False)
class Patches:
    """The metric with one clean part in the corrupted run.

    Attributes:
        table: `[sites, heads]`, or `[sites, heads, positions]`; NaN where a site has fewer heads or positions.
        sites: names of the rows: attentions, or blocks for states.
        what: which part: "head", "query", "key", "value", "weights" or "state".
        clean: the metric of the clean run.
        corrupted: the metric of the corrupted run.
        forwards: how many forward passes the table took.
        tokens: of the positions of each site, clean and corrupted, where they are known.
    """

    table: Tensor
    sites: list[str]
    what: str
    clean: float
    corrupted: float
    forwards: int = 0
    tokens: dict[str, list[str]] = field(default_factory=dict)

    @property
    def restored(self) -> Tensor:
        """The share of the difference that each part restores: 0 as the corrupted run, 1 as the clean one.

        (patched - corrupted) / (clean - corrupted) (Heimersheim and Nanda 2024, section 4); NaN where both are equal.
        """
        return (self.table - self.corrupted) / (self.clean - self.corrupted or float("nan"))

    @check_arguments
    def top(self, k: int = 10) -> list[tuple[Cell, float]]:
        """The k cells that change the corrupted metric most, with the metric there; largest change first."""
        if k < 1:
            raise ConfigError(f"top needs k of at least 1; got {k}")
        effect = (self.table - self.corrupted).abs().nan_to_num(nan=-1.0).flatten()
        found = []
        for index in effect.argsort(descending=True, stable=True)[:k].tolist():
            place = [int(n) for n in torch.unravel_index(torch.tensor(index), self.table.shape)]
            if effect[index] >= 0:
                cell = Cell(self.sites[place[0]], place[1], place[2] if len(place) > 2 else None)
                found.append((cell, float(self.table[tuple(place)])))
        return found

    @check_arguments
    def plot(
        self, path: str | Path | None = None, theme: str = "light", *, tokens: Sequence[str] | None = None
    ) -> "Figure":
        """A figure of the change of the metric by part, blue where it grows; the file's ending gives its format.

        Sites down and heads across; by position a panel for each site, states in one panel.

        Args:
            path: a .png, .svg or .pdf file; None only makes the figure.
            theme: "light" or "dark".
            tokens: names of the positions, for a model that does not name its own.

        Raises:
            ShapeError: another number of tokens than of positions.
        """
        from regard.figures.tables import draw_tables

        effect = self.table - self.corrupted
        title, label = self._title, "change of the metric"
        how = {"note": self._note, "label": label, "theme": theme}
        if tokens is not None and effect.shape[2:] != (len(tokens),):
            positions = effect.shape[2] if effect.ndim > 2 else "no"
            raise ShapeError(f"tokens: got {len(tokens)} names, and the table has {positions} positions")
        if effect.ndim == 2:
            heads = [str(n) for n in range(effect.shape[1])]
            return draw_tables({"": effect}, self.sites, heads, ("site ↓", "head →"), title, path, **how)
        count = effect.shape[-1]
        known = [tokens or self.tokens.get(site) for site in self.sites]
        alike = known[0] is not None and len(known[0]) == count and all(one == known[0] for one in known)
        names = known[0] if known[0] is not None and alike else [str(n) for n in range(count)]  # the panels share them
        if effect.shape[1] == 1:
            return draw_tables({"": effect[:, 0]}, self.sites, names, ("site ↓", "position →"), title, path, **how)
        panels = dict(zip(self.sites, effect, strict=True))
        heads = [str(n) for n in range(effect.shape[1])]
        return draw_tables(panels, heads, names, ("head ↓", "position →"), title, path, **how)

    @property
    def _title(self) -> str:
        return f"Clean {self.what} in the corrupted run"

    @property
    def _note(self) -> str:
        return f"metric: {self.corrupted:.3g} corrupted, {self.clean:.3g} clean"


@check_arguments
def patch(
    model: Any, clean: Any, corrupted: Any, metric: Metric, what: str = "head", *, by_position: bool = False,
    sites: Sequence[str] | None = None, batch: int | None = None,
) -> Patches:  # fmt: skip
    """Activation patching: for every site and head, the metric of the corrupted run with one clean part in it.

        table[s, h] = metric(f(corrupted; a_sh ← a_sh(clean)))

    Where it is near the clean metric, that part alone carries what was corrupted; near the corrupted one, it does not.
    Many cells run in one batched forward: the corrupted input is repeated, and each row gets another patch.

    Args:
        model: an nn.Module, or what `load` returns; any model that `observe` sees.
        clean: a text for what `load` returns, else the arguments of the module's forward as a dict, batch axis first.
        corrupted: the same with another answer and equally many tokens. Of texts, both runs take the clean run's
            decoder input, where there is a decoder: positions agree.
        metric: from what the module's forward returns (logits, or a transformers model's output with `.logits`) to one
            number, the difference of two logits, say.
        what: "head", a head's output before the output projection; "query", "key", "value", as they enter the score;
            "weights", the clean run's attention map with the corrupted run's values; "state", the residual stream after
            each block, always by position: table `[blocks, 1, positions]`. A block is the outermost item of a list of
            modules around a site; of a decoder without blocks (a recurrent one) it is the site itself, whose
            first output is the decoder's state.
        by_position: patch one position at a time: of the queries, for "key" and "value" of the keys. A recurrent
            decoder's steps are its positions.
        sites: which sites, by path or pattern; all by default.
        batch: cells of one forward; chosen from the sizes of outputs and attentions by default.

    Raises:
        ShapeError: inputs of different shapes; inputs whose first axis is not the batch.
        ChoiceError: an unknown part or site, nearest spelling first.
        ConfigError: a text for a bare module; a metric that gives more than one number.
        RegardError: no attention was seen; the model mixes the rows of a batch, and several cells were to run in one.

    Source: Meng et al. 2022, section 2.1; Wang et al. 2023, section 3; Heimersheim and Nanda 2024.
    """
    first, second = pair(model, clean, corrupted)
    parts = Parts(model, what, sites)
    kept = record(first, parts, metric)
    check_metrics([kept.metric])
    sweep = Sweep(second, parts, kept, metric, batch)
    cells = kept.cells(by_position or what == "state")
    table = table_of(kept, cells, sweep([[cell] for cell in cells]))
    tokens = tokens_of(kept, first)
    return Patches(table, list(kept.kept), what, kept.metric, sweep.unpatched, sweep.forwards, tokens)


def pair(model: Any, clean: Any, corrupted: Any) -> tuple[ForwardPass, ForwardPass]:
    """The passes of both inputs; of texts, with the clean run's decoder input.

    Raises:
        ShapeError: their arguments have different shapes.
        ConfigError: one is a text and the other is not, or they have different arguments.
    """
    if isinstance(clean, Mapping) != isinstance(corrupted, Mapping):
        raise ConfigError("clean and corrupted must both be texts, or both be arguments of the module's forward")
    first, second = as_pass(model, clean), as_pass(model, corrupted)
    if not isinstance(clean, Mapping) and TARGET in first.arguments:
        second = replace(second, arguments=second.arguments | {TARGET: first.arguments[TARGET]})
    if first.arguments.keys() != second.arguments.keys():
        raise ConfigError(f"clean has the arguments {sorted(first.arguments)} and corrupted {sorted(second.arguments)}")
    for name, one in first.arguments.items():
        other = second.arguments[name]
        if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape != other.shape:
            raise ShapeError(
                f"{name} has shape {list(one.shape)} in the clean input and {list(other.shape)} in the corrupted one: "
                "a patch is applied at the same position, so replace words by others with as many tokens"
            )
    return first, second


def table_of(kept: Recording, cells: Sequence[Cell], values: Sequence[float]) -> Tensor:
    """`[sites, heads(, positions)]` of the cells' values, NaN where there is no cell."""
    sites = list(kept.kept)
    shape = [len(sites), max(map(kept.heads, sites))]
    if cells[0].position is not None:
        shape.append(max(map(kept.positions, sites)))
    table = torch.full(shape, float("nan"), dtype=torch.float64)
    rows = {site: n for n, site in enumerate(sites)}
    for cell, value in zip(cells, values, strict=True):
        place = (rows[cell.site], cell.head, *(() if cell.position is None else (cell.position,)))
        table[place] = value
    return table


def tokens_of(kept: Recording, run: ForwardPass) -> dict[str, list[str]]:
    """The tokens at each site's positions of a text: the source's in an encoder and for a memory's keys."""
    found = {}
    for site in kept.kept:
        of_source = "encoder" in site.split(".") or (kept.what in OF_KEYS and site.endswith("cross"))
        tokens = run.source_tokens if of_source and run.source_tokens else run.tokens
        if len(tokens) == kept.positions(site):
            found[site] = tokens
    return found
