"""Does an output depend on the attention at one site? Its change when the weights are changed, beside the weights.

Attention is not explanation: weights can often be changed without changing the answer (Jain and Wallace 2019), and
whether that matters depends on the question (Wiegreffe and Pinter 2019). Here the question is put, and the answer
is a number and a sentence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regard.arguments import check_arguments
from regard.errors import ConfigError, ShapeError, shown
from regard.observation.intervene import Change, intervene, permute, refuse_intervened, uniform
from regard.observation.observe import module_of
from regard.shapes import described

Output = Callable[[], Tensor]
Outputs = Callable[[int], Tensor]


@dataclass(frozen=True)
class Dependence:
    """The dependence of one output on the attention at a site.

    Attributes:
        site: whose attention.
        output: what was asked for, with the model's own weights.
        uniform: the output when the site looks at everything equally.
        permuted: the output when each row's weights are shuffled, for each draw.
        attention: the weight on every key, summed over heads and queries `[S]`.
        gradient: gradient × attention of every key, summed likewise `[S]` (Chefer et al. 2021, equation 5, without
            the cut at 0).
        zeroed: by how much the output falls when the key's value is taken away `[S]` (value zeroing: Mohebbi et al.
            2023, section 3).
        unit: of the output, for the sentence: "nats", say.
    """

    site: str
    output: float
    uniform: float
    permuted: list[float]
    attention: Float[Tensor, "S"]
    gradient: Float[Tensor, "S"]
    zeroed: Float[Tensor, "S"]
    unit: str = ""

    @property
    def agreement(self) -> float:
        """Spearman's rank correlation between the weight on a key and the drop of the output without it."""
        return spearman(self.attention, self.zeroed)

    @property
    def sentence(self) -> str:
        """The answer in one sentence."""
        changed = (
            f"Shuffling the weights at {self.site} changes the output by {f'{self.change:.3g} {self.unit}'.rstrip()} "
            f"(equal weights by {abs(self.uniform - self.output):.3g})"
        )
        agreement = f"(rank correlation {self.agreement:.2f})"
        if self.holds:
            return (
                f"{changed}, and the keys with the largest weights are {_how_much(self.agreement)} those that the "
                f"output needs {agreement}: this map may be believed for this output."
            )
        if self.matters:
            return (
                f"{changed}, so where it attends matters, but its weights do not rank the keys by how much the output "
                f"needs them {agreement}: this map does not show what this output needs most."
            )
        return f"{changed}, little beside taking a key's value away: this map explains little of this output."

    @property
    def change(self) -> float:
        """Mean absolute change of the output over the shuffles."""
        return sum(abs(other - self.output) for other in self.permuted) / len(self.permuted)

    @property
    def holds(self) -> bool:
        """Whether the map may be believed for this output: it matters, and the rank correlation is at least 0.5."""
        return self.agreement >= 0.5 and self.matters

    @property
    def matters(self) -> bool:
        """Whether shuffling changes the output by at least a tenth of the largest drop without a key's value."""
        biggest = float(self.zeroed.abs().max()) if len(self.zeroed) else 0.0
        return self.change >= 0.1 * max(biggest, 1e-12)


@check_arguments
def dependence(
    model: Any, site: str, output: Output, draws: int = 8, *, copies: Outputs | None = None, at_once: int = 32,
    unit: str = "",
) -> Dependence:  # fmt: skip
    """Test how much one output depends on the attention at one site.

    Args:
        model: an nn.Module, or what `regard.load` returns.
        site: one site of one forward, as in `observe`.
        output: runs the model and gives one number, differentiable: the log-probability of a prediction, say.
        draws: how many shuffles; they come from torch's generator.
        copies: runs the model on n copies of the input in one batch and gives the numbers `[n]`: changes are then tried
            together, a row each, where without it each has a run of its own.
        at_once: how many copies at most.
        unit: of the number, for the sentence.

    Raises:
        ConfigError: draws or at_once below 1.
        ConfigError: `output` runs no attention at the site, or gives no number, or one without a gradient.
    """
    if draws < 1 or at_once < 1:
        raise ConfigError(f"dependence needs draws and at_once of at least 1; got draws {draws} and at_once {at_once}")
    refuse_intervened(module_of(model), "dependence")
    own = _number(output())
    kept: list[Tensor] = []

    def keep(weights: Tensor) -> Tensor:
        weights = weights.detach().requires_grad_()
        kept.append(weights)
        return weights

    with torch.enable_grad(), intervene(model, site, keep):
        changed = output()
        _number(changed)
        if not kept:
            raise ConfigError(
                f"output ran no attention at {shown(site)}: name a site that attends when output is called; "
                "regard.observe(model) lists the sites, and names a module that computes attention by hand"
            )
        if not isinstance(changed, Tensor) or not changed.requires_grad:
            raise ConfigError("output has no gradient: compute it from the model's tensors, without item() or float()")
        gradients = torch.autograd.grad(changed.sum(), kept, allow_unused=True)
    attention = sum(_by_key(weights.detach()) for weights in kept)
    gradient = sum(
        _by_key(weights.detach() * grad) for weights, grad in zip(kept, gradients, strict=True) if grad is not None
    )
    size = kept[0].shape[-1]
    with torch.no_grad():
        changes = [uniform, *[permute] * draws, *map(_without, range(size))]
        step = at_once if copies else 1
        some = [changes[first : first + step] for first in range(0, len(changes), step)]
        equal, *others = [number for these in some for number in _numbers(model, site, output, copies, these)]
        differences = own - torch.tensor(others[draws:], dtype=torch.float64)  # of numbers that may be large
        zeroed = differences.to(changed.dtype).to(kept[0].device)
        return Dependence(
            site, own, equal, others[:draws],
            torch.as_tensor(attention), torch.as_tensor(gradient, device=kept[0].device).expand(size).clone(), zeroed,
            unit,
        )  # fmt: skip


def leave_one_out(score: Callable[[Sequence[Any]], float], parts: Sequence[Any]) -> list[float]:
    """The drop of a score without each part of the input (Li et al. 2016, "erasure").

    Args:
        score: of an input with some of its parts missing, the log-probability of the same output, say.
        parts: of the input: its tokens or words.
    """
    whole = score(parts)
    return [whole - score([*parts[:i], *parts[i + 1 :]]) for i in range(len(parts))]


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two series, ties by their mean rank; 0 where one of them is constant.

    Args:
        a, b: `[n]` each; a NaN has no rank, and gives NaN.

    Raises:
        ShapeError: series of two lengths, or of more axes.
    """
    if a.ndim != 1 or a.shape != b.shape:
        raise ShapeError(f"expected two series [n] of one length; got {list(a.shape)} and {list(b.shape)}")
    if bool(a.isnan().any() or b.isnan().any()):
        return nan
    x, y = (_ranks(series) - (len(series) - 1) / 2 for series in (a, b))
    norm = float(x.norm() * y.norm())
    return float(x @ y) / norm if norm else 0.0


def _ranks(series: Tensor) -> Tensor:
    less = (series[:, None] > series).sum(1)
    equal = (series[:, None] == series).sum(1)
    return less + (equal - 1) / 2


def _by_key(weights: Tensor) -> Tensor:
    return weights.sum(tuple(range(weights.ndim - 1)))


def _without(key: int) -> Change:
    def change(weights: Tensor) -> Tensor:
        weights = weights.clone()
        weights[..., key] = 0  # the same output as if the key's value were zero
        return weights

    return change


def _numbers(model: Any, site: str, output: Output, copies: Outputs | None, changes: Sequence[Change]) -> list[float]:
    """The output under one change of the weights, or with each copy of the input under its own."""
    if copies is None:
        with intervene(model, site, changes[0]):
            return [_number(output())]

    def each(weights: Tensor) -> Tensor:
        if len(weights) != len(changes):
            raise ConfigError(f"copies gave {len(weights)} inputs to the model, not {len(changes)}")
        return torch.stack([change(row) for change, row in zip(changes, weights, strict=True)])

    with intervene(model, site, each):
        found = copies(len(changes))
        if not isinstance(found, Tensor) or found.shape != (len(changes),):
            raise ConfigError(f"copies gave {described(found)} for {len(changes)} inputs: expected a number for each")
        return [_number(number) for number in found]


def _number(given: Any) -> float:
    """A finite number of one element.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(given, Tensor) and given.numel() == 1 and not given.is_complex():
        number = float(given.detach())
    elif isinstance(given, Real):
        number = float(given)
    else:
        raise ConfigError(f"output must give one number; got {described(given)}")
    if not isfinite(number):
        raise ConfigError(f"output must give a finite number; got {number}")
    return number


def _how_much(agreement: float) -> str:
    return "mostly" if agreement >= 0.7 else "partly"
