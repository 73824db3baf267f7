"""Faithfulness of explanations: deletion and insertion curves of the input's words, against random orders.

Attention is not explanation (Jain and Wallace 2019): whether a prediction depends on the positions of large weight is
tested on the model, by removing words from the input in the order in which an explanation ranks them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from math import factorial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regard.analysis.base import ForwardPass, check_step
from regard.analysis.contributions import Generated
from regard.analysis.dependence import spearman
from regard.analysis.erasure import TOKENS, Erasure
from regard.analysis.explanations import Explainer
from regard.arguments import check_arguments
from regard.errors import ChoiceError, ConfigError, ShapeError, nearest, shown
from regard.shapes import check_tensors, described

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVEL = 0.05  # of the test against random orders
CUTS = 16  # steps of a curve, about, where there are more words
EXACT = 5  # words up to which every order is tried
LEAVE_ONE_OUT = "leave one out"

Probability = Callable[[Tensor], Tensor]
"""Which parts are kept (bool `[n, parts]`) -> probability of the prediction `[n]`."""


@dataclass(frozen=True, eq=False)
class Curves:
    """The probability of a prediction while parts of the input are taken out, or put in, in one order.

    Attributes:
        shares: share of the parts removed, or added, at each point: from 0 to 1.
        deletion: probability without that share of the parts, in the order of the explanation.
        insertion: probability with only that share of the parts, in the order of the explanation.
    """

    shares: list[float]
    deletion: list[float]
    insertion: list[float]

    @property
    def gain(self) -> float:
        """Area under the insertion curve less that under the deletion curve: between -1 and 1.

        Its mean over all orders is 0: every set of parts is kept equally often by deletion and by insertion.
        """
        higher = [one - other for one, other in zip(self.insertion, self.deletion, strict=True)]
        return float(torch.trapezoid(*(torch.tensor(one, dtype=torch.float64) for one in (higher, self.shares))))

    @property
    def comprehensiveness(self) -> float:
        """Mean drop of the probability over the points of the deletion curve (AOPC: Samek et al. 2017, equation 12)."""
        return self.deletion[0] - sum(self.deletion) / len(self.deletion)

    @property
    def sufficiency(self) -> float:
        """Mean drop of the probability over the points of the insertion curve: the smaller, the better (DeYoung et al.
        2020, section 4.1)."""
        return self.deletion[0] - sum(self.insertion) / len(self.insertion)


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Explanations of one prediction, measured.

    Attributes:
        token: the prediction.
        parts: of the input, that are taken out: its words.
        probability: of the prediction, with the whole input.
        explanations: {name: `[parts]`}, what each says that the part gave; those that were given to be tested first.
        curves: {name: its curves}.
        random: gains of random orders; of all orders, where there are few.
        exhaustive: whether these are all orders.
    """

    token: str
    parts: list[str]
    probability: float
    explanations: dict[str, Float[Tensor, "parts"]]
    curves: dict[str, Curves]
    random: list[float]
    exhaustive: bool = False

    def p(self, name: str) -> float:
        """Share of random orders whose gain is at least the explanation's: a permutation test, of it alone.

        (1 + k) / (1 + n) for k of n drawn orders (Phipson and Smyth 2010); k / n where these are all orders.
        """
        own = self.curves[self._known(name)].gain - 1e-9
        reached = sum(gain >= own for gain in self.random)
        return reached / len(self.random) if self.exhaustive else (1 + reached) / (1 + len(self.random))

    def believed(self, name: str) -> bool:
        """Whether the explanation beats random orders at the level of 5 %."""
        return self.p(name) <= LEVEL

    @property
    def decidable(self) -> bool:
        """Whether any order could beat random ones: three words have six orders, of which the best is one in six."""
        return factorial(min(len(self.parts), 9)) * LEVEL >= 1

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the gains of random orders."""
        low, high = torch.tensor(self.random, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975]).double())
        return float(low), float(high)

    @property
    def agreement(self) -> Float[Tensor, "explanations explanations"]:
        """Spearman's rank correlation of every explanation with every other, over the parts."""
        rows = list(self.explanations.values())
        return torch.tensor([[spearman(one, other) for other in rows] for one in rows], dtype=torch.float64)

    @property
    def best(self) -> str:
        """The explanation of the largest gain."""
        return max(self.curves, key=lambda name: self.curves[name].gain)

    def verdict(self, name: str) -> str:
        """What the test says of one explanation: a sentence."""
        name, (low, high) = self._known(name), self.interval
        gain = self.curves[name].gain
        measured = f"gain {gain:.2f}; 95 % of random orders: {low:.2f} … {high:.2f}; p = {self.p(name):.2g}"
        if not self.decidable:
            few = f"{len(self.parts)} {'part' if len(self.parts) == 1 else 'parts'} of the input are too few to tell"
            return f"Whether {name} may be believed for {self.token!r} stays open: {few} ({measured})."
        if self.believed(name):
            return f"{name} may be believed for {self.token!r} ({measured})."
        worse = sum(one > gain + 1e-9 for one in self.random) > (1 - LEVEL) * len(self.random)
        how = "worse than most random orders" if worse else "no better than a random order"
        return f"{name} did {how} for {self.token!r} ({measured})."

    @property
    def sentence(self) -> str:
        """The answer in one sentence: of the explanation that was given, or attention; and which one does best."""
        first = next(iter(self.curves))
        best = (
            "no explanation does better"
            if first == self.best
            else f"best: {self.best}, {self.curves[self.best].gain:.2f}"
        )
        failed = [name for name in self.curves if not self.believed(name)]
        chance = f"{len(failed)} {'does' if len(failed) == 1 else 'do'} no better than chance"
        told = self.decidable and len(self.curves) > 1
        others = f"; of {len(self.curves)} explanations {chance}" if told else ""
        return f"{self.verdict(first).removesuffix('.')}; {best}{others}."

    def __str__(self) -> str:
        return self.sentence

    def as_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "token": self.token,
            "parts": self.parts,
            "probability": self.probability,
            "explanations": {
                name: {
                    "values": self.explanations[name].tolist(),
                    "gain": curves.gain,
                    "p": self.p(name),
                    "believed": self.decidable and self.believed(name),
                    "comprehensiveness": curves.comprehensiveness,
                    "sufficiency": curves.sufficiency,
                    "deletion": curves.deletion,
                    "insertion": curves.insertion,
                }
                for name, curves in self.curves.items()
            },
            "shares": next(iter(self.curves.values())).shares,
            "random": {"orders": len(self.random), "exhaustive": self.exhaustive, "interval": list(self.interval)},
            "agreement": self.agreement.tolist(),
            "sentence": self.sentence,
        }

    @check_arguments
    def plot(self, path: str | Path | None = None, theme: str = "light") -> "Figure":
        """A figure of the curves, and the gains beside those of random orders.

        Args:
            path: a .png, .svg or .pdf file; None only makes the figure.
            theme: "light" or "dark".
        """
        from regard.figures.faithfulness import draw_faithfulness

        curves = {name: (one.shares, one.deletion, one.insertion) for name, one in self.curves.items()}
        gains = {name: (one.gain, self.believed(name)) for name, one in self.curves.items()}
        title = f"Explanations of {self.token} (p = {self.probability:.2f}), tested against random orders"
        return draw_faithfulness(curves, gains, self.interval, title, path, theme)

    def _known(self, name: str) -> str:
        if name not in self.curves:
            expected = ", ".join(map(repr, nearest(name, list(self.curves))))
            raise ChoiceError(f"unknown explanation {name!r}: expected one of {expected}")
        return name


@check_arguments
@torch.inference_mode(False)  # within such a block of the caller's there would be no gradient
def faithfulness(
    prediction: Generated | Probability, step: int | Sequence[int] = -1, *,
    explanations: Mapping[str, Any] | None = None, parts: Sequence[str] | None = None, draws: int = 100,
    seed: int = 0,
) -> Faithfulness:  # fmt: skip
    """Deletion and insertion curves of every explanation of one prediction, against random orders.

        gain = ∫ p(only the first x) dx - ∫ p(without the first x) dx,   x the share of the input's words

    The words are ordered by what the explanation says they gave, most first. Where it is right, the probability falls
    as soon as these words are taken out of the input (deletion), and is back as soon as they are put into an empty one
    (insertion). A random order has gain 0 on average; an explanation may be believed where its gain is among the
    5 % highest of random orders.

    The explanations of a result: those of `regard.analysis.explanations`, and leave one out, the drop of log p without
    each word by itself (Li et al. 2016). A sub-word's numbers are summed to its word's.

    Limits: a text without some of its words is unlike the training data (Hooker et al. 2019), and a prediction may
    depend on several words jointly, which no order shows. Words are removed from the input only: the previous output
    tokens of a decoder stay.

    Args:
        prediction: a translation or completion of what `load` returns; or, of any model, a function from what is kept
            of the input (bool `[n, parts]`) to the probability of the prediction `[n]`.
        step: index of the token in `generation.ids`, negative ones from the end; or those of a word's tokens.
        explanations: further ones, tested first: {name: one number for each position of the input}, as a row of a map
            (a tensor, an array or a list);
            of a function, for each part. It needs at least one.
        parts: names of a function's parts; their numbers by default.
        draws: random orders, of which half are the others reversed; up to five words all orders are tried.
        seed: of the draws.

    Raises:
        ConfigError: no such step; an output without a forward pass; an input without words; an explanation that is not
            finite; no explanation of a function; draws below 20, too few for a test at 5 %.
        ShapeError: an explanation of another size; a function that gives another number of probabilities.

    Source: Samek et al. 2017, section 3 (deletion); Petsiuk et al. 2018, section 3.3 (both); DeYoung et al. 2020,
    section 4 (words of a text).
    """
    if draws < 20:
        raise ConfigError(f"draws must be at least 20: a test at 5 % needs as many random orders; got {draws}")
    given = {name: _numbers(name, values) for name, values in (explanations or {}).items()}
    if isinstance(prediction, Generated):
        steps = _steps(prediction, step)
        return of_steps(prediction, Explainer(prediction), steps, given, draws, seed)
    if not given:
        raise ConfigError("faithfulness of a function needs explanations: {name: one number for each part}")
    first = next(iter(given.values()))
    if first.ndim != 1 or not len(first):
        raise ShapeError(f"an explanation needs a number for each part; got shape {list(first.shape)}")
    size = len(first)
    names = [str(n) for n in range(size)] if parts is None else list(parts)
    _check(given, len(names))
    return _measured(prediction, "the prediction", names, given, draws, seed)


def of_steps(
    generation: Generated, explainer: Explainer, steps: Sequence[int], given: Mapping[str, Tensor], draws: int,
    seed: int, erasure: Erasure | None = None,
) -> Faithfulness:  # fmt: skip
    """`faithfulness` of a result, for the tokens of some steps together.

    Args:
        generation: the result.
        explainer: of this result.
        steps: indices of the tokens.
        given: further explanations, of positions.
        draws, seed: of random orders.
        erasure: of this result's own pass, which keeps what it computed for other steps.
    """
    own = explainer(steps)
    _check(given, len(next(iter(own.values()))))
    if erasure is None:
        erasure = _erasure(explainer.given, steps)
    chosen = list(steps) if explainer.crossing else list(range(len(steps)))
    if not erasure.words:
        raise ConfigError("the input has no words to take out before this token")

    def log_probability(kept: Tensor) -> Tensor:
        return erasure(kept)[:, chosen].sum(-1)

    by_word = {name: _by_word(row, erasure) for name, row in {**given, **own}.items()}
    whole = torch.ones(1 + len(erasure.words), len(erasure.words), dtype=torch.bool)
    whole[1:][torch.eye(len(erasure.words), dtype=torch.bool)] = False
    logs = log_probability(whole)
    by_word[LEAVE_ONE_OUT] = logs[0] - logs[1:]
    token = "".join(generation.tokens[step] for step in steps)
    names = [word for word, _ in erasure.words]
    return _measured(lambda kept: log_probability(kept).exp(), token, names, by_word, draws, seed)


def _steps(generation: Generated, step: int | Sequence[int]) -> list[int]:
    count, asked = len(generation.ids), list(step) if isinstance(step, Sequence) else [step]
    for one in asked:
        check_step(one, count)
    steps = sorted({one % count for one in asked})
    if not steps or steps[-1] - steps[0] != len(steps) - 1:
        raise ConfigError(f"steps must be one token or those of one word, that follow each other; got {asked}")
    return steps


def _erasure(given: ForwardPass, steps: Sequence[int]) -> Erasure:
    """Of the pass up to the last of the steps."""
    if TOKENS not in given.arguments:
        return Erasure.of(given)
    tokens = given.arguments[TOKENS]
    first = tokens.shape[1] - len(given.predicted) + steps[0]
    last = first + len(steps)
    cut = replace(
        given, arguments={TOKENS: tokens[:, :last]}, predicted=[given.predicted[step] for step in steps],
        spans=given.spans[:last],
    )  # fmt: skip
    return Erasure.of(cut, before=first + 1)


def _by_word(row: Tensor, erasure: Erasure) -> Tensor:
    return torch.stack([row.detach().cpu().double()[places].sum() for _, places in erasure.words])


def _numbers(name: object, values: Any) -> Tensor:
    if not isinstance(name, str):
        raise ConfigError(f"the name of an explanation must be a text; got {shown(name)}")
    if isinstance(values, Tensor):
        check_tensors(**{f"explanation {name!r}": values})
    try:
        if isinstance(values, Tensor):
            if not values.is_complex() and not values.is_meta:
                return values
            raise TypeError("complex numbers have no order, and tensors on meta no numbers")
        return torch.from_numpy(np.array(values, dtype=np.float64))
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"explanation {name!r} must be numbers; got {shown(values)}") from error


def _check(given: Mapping[str, Tensor], size: int) -> None:
    for name, values in given.items():
        if values.shape != (size,):
            raise ShapeError(
                f"explanation {name!r} has shape {list(values.shape)}: expected [{size}], a number for each"
            )
        if not bool(values.isfinite().all()):
            raise ConfigError(f"explanation {name!r} has numbers that are not finite")


def _measured(
    probability: Probability, token: str, parts: list[str], explained: Mapping[str, Tensor], draws: int, seed: int
) -> Faithfulness:
    size = len(parts)
    orders = {name: values.argsort(descending=True, stable=True) for name, values in explained.items()}
    exhaustive = size <= EXACT
    if exhaustive:
        drawn = [torch.tensor(order) for order in permutations(range(size))]
    else:
        generator = torch.Generator().manual_seed(seed % 2**63)
        drawn = [torch.randperm(size, generator=generator) for _ in range((draws + 1) // 2)]
    cuts = _cuts(size)
    found = _curves(probability, [*orders.values(), *drawn], cuts)
    curves = dict(zip(orders, found, strict=False))
    gains = [one.gain for one in found[len(orders) :]]
    if not exhaustive:  # a set that one order keeps by insertion, its reverse keeps by deletion: the opposite gain
        gains = [sign * gain for gain in gains for sign in (1, -1)][:draws]
    whole = next(iter(curves.values())).deletion[0]
    return Faithfulness(token, parts, whole, dict(explained), curves, gains, exhaustive)


def _cuts(size: int) -> list[int]:
    """How many parts are taken out at each point: evenly spaced, and the same from either end."""
    if size <= CUTS:
        return list(range(size + 1))
    half = [round(n * size / CUTS) for n in range(CUTS // 2 + 1)]
    return sorted({*half, *(size - one for one in half)})


def _curves(probability: Probability, orders: Sequence[Tensor], cuts: Sequence[int]) -> list[Curves]:
    size = cuts[-1]
    ranks = torch.stack([order.argsort() for order in orders])  # [orders, parts]
    at = torch.tensor(cuts)[:, None]
    kept: Bool[Tensor, "orders two cuts parts"] = torch.stack([ranks[:, None] >= at, ranks[:, None] < at], 1)
    rows, index = kept.reshape(-1, size).unique(dim=0, return_inverse=True)
    found = probability(rows)
    if not isinstance(found, Tensor) or found.is_complex() or found.shape != (len(rows),):
        raise ShapeError(
            f"the function gave {described(found)} for {len(rows)} rows: expected a tensor of a probability each"
        )
    if not bool(found.isfinite().all()):
        raise ConfigError("the function gave a probability that is not finite: no order of the parts can be measured")
    values = found.detach().double().cpu()[index].reshape(len(orders), 2, len(cuts))
    shares = [cut / size for cut in cuts]
    return [Curves(shares, deletion.tolist(), insertion.tolist()) for deletion, insertion in values]
