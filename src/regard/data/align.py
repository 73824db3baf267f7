"""Word alignment from parallel text: IBM Model 1, agreement of both directions, and phrases aligned word by word."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Link = tuple[int, int]
Sentences = Sequence[tuple[str, str]]

_EDGES = ' .,!?;:…«»"()\u00a0\u202f'  # stripped from both ends of a phrase


def model_one(pairs: Sentences, test: Sentences = (), iterations: int = 5) -> list[set[Link]]:
    """IBM Model 1's most probable source word for each target word of `test` (Brown et al. 1993).

    t(target word | source word) is learned by expectation maximisation over `pairs` and `test` together,
    with a null word for target words without a counterpart. Words are lower-cased and stripped of punctuation.

    Args:
        pairs: (source, target) sentences to learn from.
        test: the sentences to align; `pairs` themselves, if there are none.
        iterations: of expectation maximisation.

    Returns:
        for each test pair the links (target word, source word) between words of `str.split()`.
    """
    known: dict[str, int] = {}
    both = [*pairs, *test]
    sentences = [
        ([0, *(_word(w, known) for w in source.split())], [_word(w, known) for w in target.split()])
        for source, target in both
    ]
    size = len(known) + 1
    source, target, column, row, sentence = _cells(sentences)
    cells, where = np.unique(source * size + target, return_inverse=True)
    probability = np.ones(len(cells))
    for _ in range(iterations):
        p = probability[where]
        share = p / np.bincount(row, p)[row]  # a target word's mass of 1, distributed over its source words
        counts = np.bincount(where, share, len(cells))
        probability = counts / np.bincount(cells // size, counts)[cells // size]
    p = probability[where]
    before = len(pairs) if len(test) else 0
    first = int(np.searchsorted(sentence, before))
    return _best_links(p[first:], column[first:], row[first:], sentence[first:] - before, len(both) - before)


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
    return (np.concatenate(part).astype(np.int64) if part else np.zeros(0, np.int64) for part in parts)


def _best_links(p: Any, column: Any, row: Any, sentence: Any, count: int) -> list[set[Link]]:
    links: list[set[Link]] = [set() for _ in range(count)]
    starts: list[int] = np.flatnonzero(np.r_[True, row[1:] != row[:-1]]).tolist() if len(row) else []
    first_row: dict[int, int] = {}
    for a, b in pairwise([*starts, len(row)]):
        best = a + int(p[a:b].argmax())
        number = int(sentence[a])
        word = int(row[a]) - first_row.setdefault(number, int(row[a]))
        if column[best] >= 0:
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


def phrase_links(pairs: Sentences) -> list[set[Link]]:
    """Links between single words on which both directions of Model 1 agree."""
    there = model_one(pairs)
    back = model_one([(target, source) for source, target in pairs])
    return [a & {(i, j) for j, i in b} for a, b in zip(there, back, strict=True)]


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
