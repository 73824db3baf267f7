"""What a word means in context: how its vector moves from layer to layer, toward which words, and what moved it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regard.arguments import check_arguments
from regard.attention.maps.map import AttentionMap
from regard.errors import ConfigError, nearest
from regard.text.tokenizer import word_of_each

ROGUE = 3  # dimensions that are named
NEIGHBOURS = 8
NEAR = 60  # nearest words among which a word is said to move toward some


@dataclass(frozen=True, eq=False)
class Candidates:
    """Words, each encoded on its own.

    Attributes:
        words: the words.
        layers: `[words, L + 1, d]`.
    """

    words: list[str]
    layers: Float[Tensor, "W L d"]

    def standardised(self, vectors: Float[Tensor, "n d"], layer: int) -> Float[Tensor, "n d"]:
        """Vectors in units of the words' spread: a few rogue dimensions no longer decide every cosine.

        Source: Timkey and van Schijndel 2021, section 5.
        """
        own = self.layers[:, layer]
        return (vectors - own.mean(0)) / own.std(0).clamp(min=1e-9)


@dataclass(frozen=True)
class Contribution:
    """The contribution of a word to the vector of another.

    Attributes:
        word: the word.
        place: which word of the text it is, from 0.
        change: 1 - cosine of the other word's last vector with and without this one (leave-one-out).
        attention: how much of the other word's vector comes from it through attention and residuals
            (Abnar and Zuidema 2020, section 3).
    """

    word: str
    place: int
    change: float
    attention: float


@dataclass(frozen=True, eq=False)
class Meaning:
    """The vectors of one word in several texts.

    Attributes:
        word: the word.
        texts: the texts.
        layer: where its neighbors are looked for.
        layers: `[texts, L + 1, d]`, its vector before the first block and behind each.
        projection: `[texts, L + 1, 2]`, these at length 1, in the plane in which they differ most, fitted jointly.
        explained: share of the variance that each of the two holds.
        cosines: `[L + 1, texts, texts]`.
        standardised: the same of standardized vectors.
        rogue: for the last layer, (dimension, its share of the mean squared length), the largest first.
        before: the words nearest to the word on its own, in that layer.
        after: for each text, the words nearest to it there.
        towards: for each text, those of the nearest words that it is nearer to than in the other texts on average (of a
            single text: than on its own), and by how much; words of the texts are left out.
        moved_by: for each text, which words moved it.
    """

    word: str
    texts: list[str]
    layer: int
    layers: Float[Tensor, "n L d"]
    projection: Float[Tensor, "n L two"]
    explained: tuple[float, float]
    cosines: Float[Tensor, "L n n"]
    standardised: Float[Tensor, "L n n"]
    rogue: list[tuple[int, float]]
    before: list[tuple[str, float]]
    after: list[list[tuple[str, float]]]
    towards: list[list[tuple[str, float]]]
    moved_by: list[list[Contribution]]

    @check_arguments
    def plot(self, path: str | Path | None = None, theme: str = "light") -> Any:
        """Draw the word's way through the layers in every text.

        Args:
            path: a .png, .svg or .pdf file; None only makes the figure.
            theme: "light" or "dark".

        Returns:
            the matplotlib figure.
        """
        from regard.figures.meaning import draw_meaning

        return draw_meaning(self, path, theme)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        from regard.figures.files import as_png

        return as_png(self.plot())

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "word": self.word, "texts": self.texts, "layer": self.layer, "explained": self.explained,
            "projection": self.projection.tolist(), "cosines": self.cosines.tolist(),
            "standardised": self.standardised.tolist(), "rogue": self.rogue, "before": self.before,
            "after": self.after, "towards": self.towards,
            "moved_by": [[vars(one) for one in some] for some in self.moved_by],
        }  # fmt: skip

    def lines(self) -> list[str]:
        """The table that the command prints."""
        shown = [f"in layer {self.layer}, {self.word} on its own is nearest to: {_list(self.before)}"]
        for n, text in enumerate(self.texts):
            shown += [
                "", f"[{n + 1}] {text}",
                f"    nearest words   {_list(self.after[n])}",
                f"    moved toward    {_list(self.towards[n])}",
                "    moved by        "
                + ", ".join(f"{one.word} ({one.change:.3f})" for one in self.moved_by[n][:5]),
            ]  # fmt: skip
            if len(self.texts) > 1:
                others = self.standardised[self.layer, n].clone()
                others[n] = -torch.inf
                best = int(others.argmax())
                shown.append(f"    nearest sense   [{best + 1}] {self.texts[best]} (cosine {float(others[best]):.2f})")
        if len(self.texts) > 1:
            shown += ["", f"cosines of {self.word} between the texts, layer by layer: raw | standardized"]
            pairs = [(a, b) for a in range(len(self.texts)) for b in range(a + 1, len(self.texts))][:8]
            shown.append("    layer  " + "  ".join(f"{f'{a + 1}–{b + 1}':^13}" for a, b in pairs))
            for layer in range(self.layers.shape[1]):
                cells = (f"{self.cosines[layer, a, b]:5.2f} | {self.standardised[layer, a, b]:5.2f}" for a, b in pairs)
                shown.append(f"    {layer:>5}  " + "  ".join(cells))
        named = ", ".join(f"{dimension} ({share:.0%})" for dimension, share in self.rogue)
        return [*shown, "", f"rogue dimensions of the last layer (share of the squared length): {named}"]


def _list(pairs: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{word} ({value:.2f})" for word, value in pairs)


@check_arguments
def meaning(encoder: Any, word: str, texts: Sequence[str], layer: int | None = None) -> Meaning:
    """See `Filler.meaning`."""
    if not texts:
        raise ConfigError("meaning needs at least one text in which the word stands")
    encoded = [encoder.encode(text) for text in texts]
    positions = [_place(encoder, text, word) for text in texts]
    states = encoder.states([ids for ids, _ in encoded])
    layers = torch.stack(
        [
            one[:, [n for n, w in enumerate(word_of_each(spans, text)) if w == place]].mean(1)
            for one, (_, spans), text, place in zip(states, encoded, texts, positions, strict=True)
        ]
    )
    candidates: Candidates = encoder.candidates
    ids, spans = encoder.encode(word)
    (alone,) = encoder.states([ids])
    own = alone[:, [n for n, (a, b) in enumerate(spans) if b > a]].mean(1)
    projection, explained = _project(layers)
    depth = layers.shape[1] - 1
    layer = round(2 / 3 * depth) if layer is None else layer
    if not 0 <= layer <= depth:
        raise ConfigError(f"layer must be between 0 and {depth}; got {layer}")
    table = candidates.standardised(candidates.layers[:, layer], layer)
    before = _cosine(candidates.standardised(own[None, layer], layer), table)[0]
    after = _cosine(candidates.standardised(layers[:, layer], layer), table)
    alike = {word.lower()}
    squares = layers[:, -1].square().mean(0)
    share, dimension = (squares / squares.sum()).topk(min(ROGUE, len(squares)))
    left_out = {word.lower(), *(w for text in texts for w in encoder.words(text))}
    standard = torch.stack([_self_cosine(candidates.standardised(layers[:, n], n)) for n in range(layers.shape[1])])
    return Meaning(
        word, list(texts), layer, layers, projection, explained,
        torch.stack([_self_cosine(layers[:, n]) for n in range(layers.shape[1])]), standard,
        [(int(d), float(s)) for d, s in zip(dimension, share, strict=True)],
        _best(before, candidates.words, alike), [_best(one, candidates.words, alike) for one in after],
        [_best(_gain(one, _other(after, n, before)), candidates.words, left_out) for n, one in enumerate(after)],
        [contributions(encoder, text, word) for text in texts],
    )  # fmt: skip


def contributions(encoder: Any, text: str, word: str) -> list[Contribution]:
    """See `Filler.contributions`."""
    from regard.observation.observe import observe

    ids, spans = encoder.encode(text)
    place = _place(encoder, text, word)
    of = word_of_each(spans, text)
    own = [n for n, w in enumerate(of) if w == place]
    with observe(encoder.model) as seen:
        whole = encoder.states([ids])[0][-1][own].mean(0)
    flow = AttentionMap.rollout([one.select(0) for (one,) in seen.values()]).full()[own].mean(0).cpu()
    names = text.split()
    others = [w for w in range(len(names)) if w != place and any(w == x for x in of)]
    if not others:
        return []
    mask = encoder.tokenizer.mask
    changed = []
    for other in others:
        kept = [n for n, w in enumerate(of) if w != other] if mask is None else range(len(ids))
        row = [mask if mask is not None and of[n] == other else ids[n] for n in kept]
        changed.append((row, [m for m, n in enumerate(kept) if of[n] == place]))
    states = encoder.states([row for row, _ in changed])
    found = [
        Contribution(
            names[other], other, float(1 - _cosine(whole[None], states[n][-1][chosen].mean(0)[None])[0, 0]),
            float(flow[[m for m, w in enumerate(of) if w == other]].sum()),
        )
        for n, (other, (_, chosen)) in enumerate(zip(others, changed, strict=True))
    ]  # fmt: skip
    return sorted(found, key=lambda one: -one.change)


def _place(encoder: Any, text: str, word: str) -> int:
    """The index of the first occurrence of a word in a text."""
    listed = encoder.words(text)
    if word.lower() not in listed:
        close = ", ".join(nearest(word.lower(), listed)[:3])
        raise ConfigError(f"the word {word!r} does not stand in the text {text!r} (nearest: {close})")
    return int(listed.index(word.lower()))


def _project(layers: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Two principal components of the vectors of all layers and texts together, and their shares of the variance.

    The vectors have length 1 first: in a pre-norm model they grow from block to block, and the final norm makes them
    short again, which would put the last beside the first, whatever their directions.
    """
    flat = torch.nn.functional.normalize(layers.flatten(0, 1).double(), dim=-1)
    centred = flat - flat.mean(0)
    _, sizes, directions = torch.linalg.svd(centred, full_matrices=False)
    shares = sizes.square() / sizes.square().sum().clamp(min=1e-12)
    points = (centred @ directions[:2].T).float().unflatten(0, layers.shape[:2])
    return points, (float(shares[0]), float(shares[1]) if len(shares) > 1 else 0.0)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.normalize(a, dim=-1) @ torch.nn.functional.normalize(b, dim=-1).T


def _self_cosine(a: Tensor) -> Tensor:
    return _cosine(a, a)


def _other(after: Tensor, n: int, before: Tensor) -> Tensor:
    """The cosines of the other texts on average; of the word on its own, if there is no other."""
    return before if len(after) == 1 else (after.sum(0) - after[n]) / (len(after) - 1)


def _gain(after: Tensor, before: Tensor) -> Tensor:
    """The gain in cosine of each of the nearest words; -inf for words outside them."""
    near = after >= after.topk(min(NEAR, len(after))).values[-1]
    return (after - before).masked_fill(~near, -torch.inf)


def _best(values: Tensor, words: list[str], left_out: set[str]) -> list[tuple[str, float]]:
    order = values.argsort(descending=True, stable=True).tolist()
    chosen = [n for n in order if words[n].lower() not in left_out][:NEIGHBOURS]
    return [(words[n], float(values[n])) for n in chosen]
