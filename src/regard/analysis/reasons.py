"""Why this output: what each of its words came from, through which heads, and whether this may be believed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import factorial, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from regard.analysis.contributions import ids_of
from regard.analysis.erasure import Erasure
from regard.analysis.explanations import Explainer
from regard.analysis.faithfulness import LEVEL, Faithfulness, of_steps
from regard.arguments import check_arguments
from regard.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWS = 1000  # of one random order for each word
SHOWN = 0.1  # share from which a word of the input or a head is named
ATTENTION, CONTRIBUTIONS = "attention", "contributions"
Head = tuple[str, int]


@dataclass(frozen=True, eq=False)
class WordReasons:
    """What one word of an output came from.

    Attributes:
        word: the word.
        steps: indices of its tokens.
        sources: words of the input, each with what it gave to the word's logits (`contributions`, summed over tokens).
        heads: {(site, head): what it gave}, of the sites that attend to the input.
        found: the explanations of this word, measured; None where the input has no word to take out before it.
    """

    word: str
    steps: list[int]
    sources: list[tuple[str, float]]
    heads: dict[Head, float]
    found: Faithfulness | None

    def shares(self) -> list[float]:
        """Each source's share of the sum of all positive contributions; a negative contribution has share 0."""
        return _shares([given for _, given in self.sources])

    def head_shares(self) -> dict[Head, float]:
        """The same of the heads, largest first."""
        found = zip(self.heads, _shares(list(self.heads.values())), strict=True)
        return dict(sorted(found, key=lambda one: -one[1]))


@dataclass(frozen=True, eq=False)
class Verdict:
    """One explanation over all words of an output: its mean gain, and those of random orders.

    Attributes:
        gain: mean over the words.
        interval: 95 % of the mean gains of random orders, drawn for each word by itself.
        p: share of these that reach the gain, (1 + k) / (1 + n).
    """

    gain: float
    interval: tuple[float, float]
    p: float


@dataclass(frozen=True, eq=False)
class Reasons:
    """What an output came from, word by word.

    Attributes:
        text, source: output and input.
        words: of the output.
        verdicts: {explanation: over all words}; empty where no word could be tested.
    """

    text: str
    source: str
    words: list[WordReasons]
    verdicts: dict[str, Verdict]

    @property
    def heads(self) -> dict[Head, float]:
        """Each head's mean share over the words, largest first."""
        found: dict[Head, float] = {}
        for one in self.words:
            for head, share in one.head_shares().items():
                found[head] = found.get(head, 0.0) + share / len(self.words)
        return dict(sorted(found.items(), key=lambda one: -one[1]))

    @property
    def decidable(self) -> bool:
        """Whether any orders could beat random ones: two words in and two out have four, each of them a quarter."""
        sizes = [len(one.found.parts) for one in self.words if one.found is not None]
        return prod(factorial(min(size, 9)) for size in sizes) * LEVEL >= 1

    @property
    def sentence(self) -> str:
        """Whether these contributions, and attention, may be believed."""
        tested = sum(one.found is not None for one in self.words)
        if not self.verdicts:
            return "Nothing says whether this may be believed: the input has no words that could be taken out."
        own = self.verdicts[CONTRIBUTIONS]
        over = f"over {tested} word{'s' if tested != 1 else ''}"
        if not self.decidable:
            return (
                "Whether contributions or attention may be believed stays open: input and output have too few words to "
                f"tell (gain {own.gain:.2f} and {self.verdicts[ATTENTION].gain:.2f})."
            )
        best = max(self.verdicts, key=lambda name: self.verdicts[name].gain)
        better = self.verdicts[best].gain > own.gain  # the same order has the same gain
        also = f"best: {best}, {self.verdicts[best].gain:.2f}" if better else "no explanation does better"
        return (
            f"{self._says(CONTRIBUTIONS)} (gain {own.gain:.2f} {over}; 95 % of random orders: {own.interval[0]:.2f} … "
            f"{own.interval[1]:.2f}; p = {own.p:.2g}), {self._says(ATTENTION)} "
            f"({self.verdicts[ATTENTION].gain:.2f}; p = {self.verdicts[ATTENTION].p:.2g}); {also}."
        )

    def _says(self, name: str) -> str:
        believed = self.verdicts[name].p <= LEVEL
        return f"{name} may be believed" if believed else f"{name} did no better than a random order"

    def __str__(self) -> str:
        return "\n".join([self.text, *self.lines()])

    def lines(self) -> list[str]:
        """A line for each word, one of the heads, and the sentence; none of an empty output."""
        if not self.words:
            return []
        wide = max((len(one.word) for one in self.words), default=0)
        found = []
        for one in self.words:
            named = sorted(zip(one.shares(), one.sources, strict=True), key=lambda pair: -pair[0])
            given = ", ".join(f"{word} {share:.0%}" for share, (word, _) in named[:3] if share >= SHOWN)
            best, share = next(iter(one.head_shares().items()), (("", 0), 0.0))
            through = f"   {best[0]} head {best[1]} {share:.0%}" if share else ""
            found.append(f"  {one.word:<{wide}} ← {given or 'nothing of the input'}{through}")
        heads = [f"{site} head {head} {share:.0%}" for (site, head), share in self.heads.items() if share >= SHOWN]
        return [*found, f"heads: {', '.join(heads[:4]) or 'none with a tenth of it'}", self.sentence]

    def as_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "source": self.source,
            "text": self.text,
            "words": [
                {
                    "word": one.word,
                    "sources": [
                        {"word": word, "contribution": given, "share": share}
                        for (word, given), share in zip(one.sources, one.shares(), strict=True)
                    ],
                    "heads": [
                        {"site": site, "head": head, "contribution": one.heads[site, head], "share": share}
                        for (site, head), share in one.head_shares().items()
                    ],
                    "faithfulness": None if one.found is None else one.found.as_json(),
                }
                for one in self.words
            ],
            "heads": [{"site": site, "head": head, "share": share} for (site, head), share in self.heads.items()],
            "verdicts": {
                name: {
                    "gain": one.gain,
                    "interval": list(one.interval),
                    "p": one.p,
                    "believed": self.decidable and one.p <= LEVEL,
                }
                for name, one in self.verdicts.items()
            },
            "sentence": self.sentence,
        }

    @check_arguments
    def plot(self, path: str | Path | None = None, theme: str = "light") -> "Figure":
        """A figure of what came from where, and of the gains of all explanations.

        Args:
            path: a .png, .svg or .pdf file; None only makes the figure.
            theme: "light" or "dark".
        """
        from regard.figures.faithfulness import draw_reasons

        columns = max((one.sources for one in self.words), key=len, default=[])
        shares = [one.shares() + [0.0] * (len(columns) - len(one.sources)) for one in self.words]
        gains = {name: (one.gain, one.p <= LEVEL) for name, one in self.verdicts.items()}
        interval = self.verdicts[CONTRIBUTIONS].interval if self.verdicts else (0.0, 0.0)
        return draw_reasons(
            shares, [one.word for one in self.words], [word for word, _ in columns], gains, interval, path,
            title="Which input words each output word came from", theme=theme,
        )  # fmt: skip


@check_arguments
@torch.inference_mode(False)  # within such a block of the caller's there would be no gradient
def reasons(
    generation: Any, draws: int | None = None, seed: int = 0, *, done: Callable[[int, int], None] | None = None
) -> Reasons:
    """What every word of an output came from, through which heads, and whether this may be believed.

    Shares are those of `contributions`, of what the words of the input gave to the logits of the word's tokens; of a
    decoder alone the input is the text so far. The test is that of `faithfulness`, over all words together: the mean
    gain beside the mean of one random order for each word.

    Args:
        generation: a translation or a completion of what `load` returns; of several sentences, each by itself.
        draws: random orders of each word, as for `faithfulness`; by default 100 of a source, whose probabilities serve
            all words, and 20 of the text before a word, which is each word's own.
        seed: of the draws.
        done: called before each word with the number of words that are done, and that of all words of the sentence.

    Raises:
        ConfigError: an output of another kind; a model without attention; draws below 20.
    """
    if draws is not None and draws < 20:
        raise ConfigError(f"draws must be at least 20: a test at 5 % needs as many random orders; got {draws}")
    words: list[WordReasons] = []
    for part in getattr(generation, "searched", [generation]):
        words += _of_one(part, draws, seed, done) if ids_of(part) else []
    return Reasons(generation.text, generation.source, words, _verdicts([one.found for one in words], seed))


def _of_one(
    generation: Any, draws: int | None, seed: int, done: Callable[[int, int], None] | None
) -> list[WordReasons]:
    explainer = Explainer(generation)
    given, attribution = explainer.given, explainer.attribution
    erasure = Erasure.of(given) if explainer.crossing else None
    draws = (100 if explainer.crossing else 20) if draws is None else draws
    if not attribution(0).parts:
        raise ConfigError(f"this {type(given.module).__name__} has no attention whose contributions could be shown")
    found = []
    of_words = generation.word_tokens()
    for number, (word, steps) in enumerate(of_words):
        if done is not None:
            done(number, len(of_words))
        taken = [attribution(step) for step in steps]
        heads: dict[Head, float] = {}
        for one in taken:
            for (site, head), part in one.parts.items():
                if site in one.sites():
                    heads[site, head] = heads.get((site, head), 0.0) + float(part.sum())
        try:
            measured = of_steps(generation, explainer, steps, {}, draws, seed, erasure)
        except ConfigError:  # no word before the first
            found.append(WordReasons(word, steps, [], heads, None))
            continue
        gave = measured.explanations[CONTRIBUTIONS].tolist()
        found.append(WordReasons(word, steps, list(zip(measured.parts, gave, strict=True)), heads, measured))
    return found


def _verdicts(found: Sequence[Faithfulness | None], seed: int) -> dict[str, Verdict]:
    tested = [one for one in found if one is not None]
    if not tested:
        return {}
    generator = torch.Generator().manual_seed(seed % 2**63)
    means = torch.zeros(DRAWS, dtype=torch.float64)
    for one in tested:
        random = torch.tensor(one.random, dtype=torch.float64)
        means += random[torch.randint(len(random), (DRAWS,), generator=generator)] / len(tested)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    names = [name for name in tested[0].curves if all(name in one.curves for one in tested)]
    verdicts = {}
    for name in names:
        gain = sum(one.curves[name].gain for one in tested) / len(tested)
        p = (1 + int((means >= gain - 1e-9).sum())) / (1 + DRAWS)
        verdicts[name] = Verdict(gain, (low, high), p)
    return verdicts


def _shares(given: Sequence[float]) -> list[float]:
    positive = [max(0.0, one) for one in given]
    total = sum(positive)
    return [one / total if total else 0.0 for one in positive]
