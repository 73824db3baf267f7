"""The ways of words through an encoder's layers, as the page shows them: of every word what `regard meaning` finds."""

from collections.abc import Mapping
from typing import Any

from regard.analysis.meaning import Meaning

WORDS = 24  # that have a way; those of several texts first
TEXTS = 6  # of one word
NEAREST = 6  # words named for each text
MOVERS = 5


def ways_of(encoder: Any, texts: Mapping[int, str]) -> list[dict[str, Any]]:
    """The ways of the words of some texts.

    Args:
        encoder: what `regard.load` returns for an encoder.
        texts: by the number of their run.

    Returns:
        for each word its runs, and of each run its way in the plane, its nearest words, and the words that moved it.
    """
    stand: dict[str, list[int]] = {}
    for number, text in texts.items():
        for word in dict.fromkeys(encoder.words(text)):
            if word:
                stand.setdefault(word, []).append(number)
    chosen = sorted(stand, key=lambda word: -len(stand[word]))[:WORDS]
    return [
        _plain(encoder.meaning(word, [texts[n] for n in runs]), runs)
        for word in chosen
        if (runs := stand[word][:TEXTS])
    ]


def _plain(found: Meaning, runs: list[int]) -> dict[str, Any]:
    def short(pairs: list[tuple[str, float]]) -> list[list[Any]]:
        return [[word, round(value, 4)] for word, value in pairs[:NEAREST]]

    return {
        "word": found.word, "runs": runs, "layer": found.layer, "explained": list(found.explained),
        "paths": found.projection.tolist(), "before": short(found.before),
        "after": [short(one) for one in found.after], "towards": [short(one) for one in found.towards],
        "moved_by": [[[one.word, round(one.change, 4)] for one in some[:MOVERS]] for some in found.moved_by],
        "cosines": found.standardised.tolist(),
    }  # fmt: skip
