"""Word alignment from parallel text: IBM Model 1, agreement of both directions, and phrases aligned word by word."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Link = tuple[int, int]
Sentences = Sequence[tuple[str, str]]

MOST_CELLS = 20_000_000  # pairs of words to learn from: about 1.5 GB
PIECE_CELLS = 2_000_000  # pairs of words that are aligned at a time
ALIKE = 1e-6  # probability of a word that was not learned from to be translated by itself

_EDGES = ' .,!?;:…«»"()\u00a0\u202f'  # stripped from both ends of a phrase


class ModelOne:
    """IBM Model 1's t(target word | source word), and the links that it makes (Brown et al. 1993, section 4.2).

    Words are lower-cased and stripped of punctuation; a null word stands for target words without a counterpart. The
    table is learned once, from at most `MOST_CELLS` pairs of words; sentences are aligned piece by piece, so memory
    does not grow with the corpus.

    Args:
        pairs: (source, target) sentences to learn from; evenly spaced ones, if there are too many.
        iterations: of expectation maximization.
    """

    def __init__(self, pairs: Sentences, iterations: int = 5) -> None:
        self.known: dict[str, int] = {}
        sentences = [self._words(pair, learn=True) for pair in _sampled(pairs)]
        self.size = len(self.known) + 1
        source, target, _, row, _ = _cells(sentences)
        self.cells, where = np.unique(source.astype(np.int64) * self.size + target, return_inverse=True)
        probability = np.ones(len(self.cells))
        for _ in range(iterations):
            p = probability[where]
            share = p / np.bincount(row, p)[row]  # a target word's mass of 1, distributed over its source words
            counts = np.bincount(where, share, len(self.cells))
            totals = np.bincount(self.cells // self.size, counts)
            probability = counts / totals[self.cells // self.size]
        self.probability = probability

    def links(self, pairs: Sentences) -> list[set[Link]]:
        """For each pair the links (target word, source word): every target word's most probable source word.

        A word that was not learned from is linked with its like on the other side, if there is one, as names are.
        """
        found: list[set[Link]] = []
        for piece in _pieces(pairs):
            found += self._aligned([self._words(pair, learn=False) for pair in piece])
        return found

    def _aligned(self, sentences: list[tuple[list[int], list[int]]]) -> list[set[Link]]:
        source, target, column, row, sentence = _cells(sentences)
        wanted = np.where(np.maximum(source, target) < self.size, source.astype(np.int64) * self.size + target, -1)
        at = np.searchsorted(self.cells, wanted).clip(max=max(0, len(self.cells) - 1))
        seen = (self.cells[at] == wanted) if len(self.cells) else np.zeros(len(wanted), bool)
        p = np.where(seen, self.probability[at] if len(self.cells) else 0.0, (source == target) * ALIKE)
        return _best_links(p, column, row, sentence, len(sentences))

    def _words(self, pair: tuple[str, str], learn: bool) -> tuple[list[int], list[int]]:
        """Numbers of the words of both sides; the source begins with the null word, 0. New words are numbered from
        `size` on unless they are learned."""
        known = self.known if learn else _Fresh(self.known)
        source, target = pair
        return [0, *(_word(w, known) for w in source.split())], [_word(w, known) for w in target.split()]


class _Fresh(dict[str, int]):
    """Words of a table, and the new ones of one sentence pair, which are numbered after them."""

    def __init__(self, known: dict[str, int]) -> None:
        super().__init__()
        self.known = known

    def setdefault(self, word: str, _: int = 0) -> int:
        found = self.known.get(word)
        return super().setdefault(word, len(self.known) + 1 + len(self)) if found is None else found


def _sampled(pairs: Sentences) -> Sentences:
    """The pairs, or as many evenly spaced ones as have `MOST_CELLS` pairs of words."""
    cells = sum((s.count(" ") + 2) * (t.count(" ") + 1) for s, t in pairs)
    if cells <= MOST_CELLS:
        return pairs
    count = max(1, int(len(pairs) * MOST_CELLS / cells))
    return [pairs[n * len(pairs) // count] for n in range(count)]


def _pieces(pairs: Sentences) -> Iterator[list[tuple[str, str]]]:
    """Consecutive pairs with about `PIECE_CELLS` pairs of words together."""
    piece: list[tuple[str, str]] = []
    cells = 0
    for pair in pairs:
        piece.append(pair)
        cells += (pair[0].count(" ") + 2) * (pair[1].count(" ") + 1)
        if cells > PIECE_CELLS:
            yield piece
            piece, cells = [], 0
    if piece:
        yield piece


def model_one(pairs: Sentences, test: Sentences = (), iterations: int = 5) -> list[set[Link]]:
    """Model 1's links of `test`, learned from `pairs` and `test` together.

    Args:
        pairs: (source, target) sentences to learn from.
        test: the sentences to align; `pairs` themselves, if there are none.
        iterations: of expectation maximization.

    Returns:
        for each test pair the links (target word, source word) between words of `str.split()`.
    """
    return ModelOne([*pairs, *test], iterations).links(test if len(test) else pairs)


def _word(word: str, known: dict[str, int]) -> int:
    return known.setdefault(word.lower().strip(".,!?;:«»\"'") or word, len(known) + 1)


def _cells(sentences: list[tuple[list[int], list[int]]]) -> Iterator[NDArray[Any]]:
    """All (source word, target word) cells of all sentences as flat arrays: words, place, target row, sentence."""
    parts: tuple[list[Any], ...] = ([], [], [], [], [])
    rows = 0
    for number, (s, t) in enumerate(sentences):
        parts[0].append(np.tile(s, len(t)))
        parts[1].append(np.repeat(t, len(s)))
        parts[2].append(np.tile(np.arange(len(s)) - 1, len(t)))  # -1 is the null word
        parts[3].append(np.repeat(rows + np.arange(len(t)), len(s)))
        parts[4].append(np.full(len(s) * len(t), number))
        rows += len(t)
    return (np.concatenate(part).astype(np.int32) if part else np.zeros(0, np.int32) for part in parts)


def _best_links(p: Any, column: Any, row: Any, sentence: Any, count: int) -> list[set[Link]]:
    links: list[set[Link]] = [set() for _ in range(count)]
    starts: list[int] = np.flatnonzero(np.r_[True, row[1:] != row[:-1]]).tolist() if len(row) else []
    first_row: dict[int, int] = {}
    for a, b in pairwise([*starts, len(row)]):
        best = a + int(p[a:b].argmax())
        number = int(sentence[a])
        word = int(row[a]) - first_row.setdefault(number, int(row[a]))
        if column[best] >= 0 and p[best] > 0:
            links[number].add((word, int(column[best])))
    return links


def scores(
    found: Sequence[set[Link]], sure: Sequence[set[Link]], possible: Sequence[set[Link]] | None = None
) -> dict[str, float]:
    """Precision |A∩P|/|A|, recall |A∩S|/|S| and alignment error rate 1 - (|A∩S| + |A∩P|)/(|A| + |S|).

    Args:
        found: A, the links of each sentence.
        sure: S, those that must be there.
        possible: P, those that may; S is always part of it, and all of it by default.

    Source: Och and Ney 2003, section 2.5.
    """
    allowed = sure if possible is None else [s | p for s, p in zip(sure, possible, strict=True)]
    a_s = sum(len(a & s) for a, s in zip(found, sure, strict=True))
    a_p = sum(len(a & p) for a, p in zip(found, allowed, strict=True))
    a, s = sum(map(len, found)), sum(map(len, sure))
    error = 1 - (a_s + a_p) / (a + s) if a + s else 0.0  # no links expected, none found
    return {"precision": a_p / max(1, a), "recall": a_s / max(1, s), "aer": error}


class Aligner:
    """Links between single words on which both directions of Model 1 agree.

    Args:
        pairs: (source, target) sentences to learn from.
    """

    def __init__(self, pairs: Sentences) -> None:
        self.there = ModelOne(pairs)
        self.back = ModelOne([(target, source) for source, target in pairs])

    def links(self, pairs: Sentences) -> list[set[Link]]:
        """The links (target word, source word) of each pair, whether it was learned from or not."""
        there = self.there.links(pairs)
        back = self.back.links([(target, source) for source, target in pairs])
        return [a & {(i, j) for j, i in b} for a, b in zip(there, back, strict=True)]


def phrase_links(pairs: Sentences) -> list[set[Link]]:
    """The links of pairs that an aligner makes which was learned from them."""
    return Aligner(pairs).links(pairs)


def phrases(
    source: list[str],
    target: list[str],
    links: set[Link],
    longest: int = 4,
    turned: bool = False,
    crossed: bool = False,
) -> list[tuple[str, str]]:
    """Runs of 2 … `longest` words aligned one to one with a run of as many words, in any order.

    A special case of Och and Ney 2004, section 4: consistent with the alignment, and nothing left over.
    A phrase loses the punctuation at its ends; one that has nothing else is none. With `turned`, only phrases
    whose words change their order, if there are any ("chat noir", "black cat"); with `crossed`, only those.
    """
    partner = dict(links)
    found = []
    for length in range(2, longest + 1):
        for start in range(len(target) - length + 1):
            order = [partner.get(i, -1) for i in range(start, start + length)]
            positions = sorted(order)
            if positions[0] >= 0 and positions == list(range(positions[0], positions[0] + length)):
                here = " ".join(source[positions[0] : positions[0] + length]).strip(_EDGES)
                there = " ".join(target[start : start + length]).strip(_EDGES)
                if here and there:
                    found.append((here, there, order != positions))
    only = crossed or (turned and any(changed for _, _, changed in found))
    return [(here, there) for here, there, changed in found if changed or not only]
