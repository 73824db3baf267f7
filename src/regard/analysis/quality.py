"""What an output's quality owes to each head: outputs are searched for anew without it, and compared to references."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard.analysis.ablations import means_of
from regard.analysis.base import as_inputs, as_pass
from regard.analysis.parts import Parts, record
from regard.analysis.roles import bootstrap
from regard.arguments import check_arguments
from regard.errors import ConfigError, unknown
from regard.observation.intervene import intervene

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("zero", "mean")
Measure = Callable[[str, str], float]
"""From an output and its reference to a number."""


def chrf(output: str, reference: str) -> float:
    """chrF of one sentence, 0 to 100 (Popović 2015, equation 1; sacreBLEU's)."""
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(output, [reference]).score)


@dataclass(frozen=True, eq=False)
class LostQuality:
    """The change of an output's quality without each head.

    Attributes:
        table: `[sites, heads]`, mean over the inputs of measure(without the head) - measure(whole); NaN where a site
            has fewer heads than others.
        intervals: `[sites, heads, 2]`, 95 % of that mean (percentile bootstrap over the inputs, Efron 1979).
        sites: names of the rows.
        whole: mean measure of the model as it is.
    """

    table: Tensor
    intervals: Tensor
    sites: list[str]
    whole: float

    @check_arguments
    def plot(self, path: str | Path | None = None, theme: str = "light") -> "Figure":
        """A figure of the table, red where quality falls without a head; the file's ending gives its format."""
        from regard.figures.tables import draw_tables

        heads = [str(n) for n in range(self.table.shape[1])]
        return draw_tables(
            {"": self.table}, self.sites, heads, ("site ↓", "head →"), "Change of the quality without each head", path,
            note=f"with all heads it is {self.whole:.3g}", label="change of the quality", theme=theme,
        )  # fmt: skip


@check_arguments
def lost_quality(
    model: Any, inputs: Sequence[Any], references: Sequence[str], kind: str = "mean", *,
    sites: Sequence[str] | None = None, measure: Measure = chrf, **settings: Any,
) -> LostQuality:  # fmt: skip
    """What the quality of the output owes to every head: each is ablated during the whole search.

        table[s, h] = 1/N Σ_n measure(ŷ_n without head h of s, y_n) - measure(ŷ_n, y_n)

    `ablations` measures the probability of given outputs; here the model finds its own, and an error at one step has
    its effect on the later ones. Take inputs that the model was not trained on. One search of all inputs a head.

    Args:
        model: a translator, captioner or transcriber that `load` returns.
        inputs: its inputs, at least two.
        references: what is expected of each.
        kind: "zero", or "mean" over all inputs and positions, as in `ablations`.
        sites: which sites, by path or pattern; all by default.
        measure: the quality of an output; chrF by default.
        settings: of the search, as the model takes them (`beam=1`); where outputs are drawn, every search draws with
            the same random numbers.

    Returns:
        the table, with an interval for each head.

    Raises:
        ConfigError: fewer than two inputs, another number of references, or a model whose results have no text, or
            whose search another engine runs.
        ChoiceError: an unknown kind or site, nearest spelling first.

    Source: Voita et al. 2019, "Analyzing multi-head self-attention", section 6; Michel et al. 2019, section 3.2.
    """
    if kind not in KINDS:
        raise unknown("ablation", kind, KINDS)
    inputs, references = as_inputs(inputs), as_inputs(references)
    if len(inputs) < 2 or len(inputs) != len(references):
        raise ConfigError(
            f"{len(inputs)} inputs and {len(references)} references: lost_quality needs two inputs or more, and a "
            "reference for each"
        )

    state = torch.get_rng_state()

    def measured() -> Tensor:
        torch.set_rng_state(state)  # or the table would be of the draws, and not of the heads
        found = model(inputs, **settings)
        if not all(isinstance(getattr(one, "text", None), str) for one in found):
            raise ConfigError(f"{type(model).__name__} gives results without a text that could be compared")
        pairs = zip(found, references, strict=True)
        return torch.tensor([measure(one.text, wanted) for one, wanted in pairs], dtype=torch.float64)

    parts = Parts(model, "head", sites)
    recordings = [record(as_pass(model, one), parts) for one in inputs]
    means, whole = means_of(recordings), measured()
    names = list(recordings[0].kept)
    table = torch.full((len(names), max(map(recordings[0].heads, names))), float("nan"), dtype=torch.float64)
    intervals = table[..., None].repeat(1, 1, 2)
    for row, site in enumerate(names):
        for head in range(recordings[0].heads(site)):
            mean = torch.zeros_like(means[site]) if kind == "zero" else means[site]
            with intervene(model, site, _without(head, mean), "output"):
                changes = measured() - whole
            table[row, head] = changes.mean()
            intervals[row, head] = torch.tensor(bootstrap(changes.tolist()), dtype=torch.float64)
    return LostQuality(table, intervals, names, float(whole.mean()))


def _without(head: int, mean: Tensor) -> Callable[[Tensor], Tensor]:
    """A change of outputs `[*batch, heads, n, d]` to the mean `[1, heads, 1, d]` of one head."""

    def change(output: Tensor) -> Tensor:
        new = output.clone(memory_format=torch.contiguous_format)
        heads = mean.shape[1]
        rows = prod(output.shape[:-2]) // heads  # outputs may be empty: -1 would not be known
        new.view(rows, heads, *output.shape[-2:])[:, head] = mean[0, head].to(new)
        return new

    return change
