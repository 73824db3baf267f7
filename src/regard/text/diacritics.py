"""Diacritics that hasty typing leaves out, put back: "ou est la bibliotheque" is read as "où est la bibliothèque".

The training data decide: a word that is hardly ever written without them has them ("bibliothèque"), and where both
spellings are words, the word before and the word after it decide ("où est", "lundi ou").
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from unicodedata import combining, normalize

from regard.errors import BundleError

_WORD = re.compile(r"[^\W\d_]+")
RATIO = 20  # times that a spelling with diacritics is as frequent as the one without, at least
PLAIN_RATIO = 3  # times that two words' spelling is as frequent as all others, for it to speak against a pair
# times that a word is seen, and two words one after the other, at least: rarer ones would also be found in a text that
# lacks nothing ("offense", where only "offensé" was seen)
LEAST_WORDS, LEAST_PAIRS = 5, 3

Phrase = tuple[str, ...]  # one word, or two


def without_diacritics(text: str) -> str:
    """The text without combining marks: "é" is "e", "ç" is "c"; "ø" and "œ" are letters of their own."""
    return normalize("NFC", "".join(letter for letter in normalize("NFD", text) if not combining(letter)))


class Diacritics:
    """How words, and pairs of words, are spelled.

    Args:
        phrases: a word with diacritics, or two words, in lower case, divided by a space.

    Raises:
        BundleError: a phrase is something else.
    """

    def __init__(self, phrases: Iterable[str]) -> None:
        self.phrases = tuple(phrases)
        self._of: dict[Phrase, Phrase] = {}
        for number, phrase in enumerate(self.phrases, 1):
            words = tuple(phrase.split(" "))
            bare = tuple(map(without_diacritics, words))
            if len(words) > 2 or (len(words) == 1 and bare == words) or not all(map(_WORD.fullmatch, words)):
                raise BundleError(
                    f"phrase {number}: expected a word with a diacritic, or two words; got {phrase[:40]!r}"
                )
            self._of[bare] = words

    @classmethod
    def learn(cls, texts: Iterable[str]) -> "Diacritics":
        """From texts as they are."""
        words: Counter[Phrase] = Counter()
        pairs: Counter[Phrase] = Counter()
        for text in texts:
            found = _WORD.findall(normalize("NFC", text).lower())
            words.update((word,) for word in found)
            pairs.update(pairwise(found))
        single = {
            bare: best
            for bare, spellings in _by_bare(words).items()
            if (best := _most(words, spellings)) != bare and words[best] >= max(LEAST_WORDS, RATIO * words[bare])
        }
        return cls(map(" ".join, (*single.values(), *_pairs(pairs, single).values())))

    def restore(self, text: str) -> str:
        """A text that has no diacritic at all, with those that its words have; any other text as it is.

        Where the pairs before and after a word do not agree, it is spelled as it is alone.
        """
        if without_diacritics(text) != normalize("NFC", text):
            return text
        found = list(_WORD.finditer(text))
        words = [one[0].lower() for one in found]
        spelled: list[set[str]] = [set() for _ in words]
        for n, pair in enumerate(pairwise(words)):
            for side, word in enumerate(self._of.get(pair, ())):
                spelled[n + side].add(word)
        parts, end = [], 0
        for one, word, pairs in zip(found, words, spelled, strict=True):
            new = next(iter(pairs)) if len(pairs) == 1 else self._of.get((word,), (word,))[0]
            parts += [text[end : one.start()], one[0] if new == word else _in_case_of(one[0], new)]
            end = one.end()
        return "".join([*parts, text[end:]])


def _by_bare(counts: Counter[Phrase]) -> dict[Phrase, list[Phrase]]:
    """The spellings of each phrase without diacritics."""
    found: defaultdict[Phrase, list[Phrase]] = defaultdict(list)
    for phrase in counts:
        found[tuple(map(without_diacritics, phrase))].append(phrase)
    return found


def _most(counts: Counter[Phrase], spellings: list[Phrase]) -> Phrase:
    return max(spellings, key=lambda phrase: (counts[phrase], phrase))


def _pairs(counts: Counter[Phrase], single: Mapping[Phrase, Phrase]) -> dict[Phrase, Phrase]:
    """The pairs that spell a word in another way than it is alone, and those that speak for that."""
    found, others = {}, {}
    changed: tuple[set[str], set[str]] = set(), set()  # words that are changed as the first, and as the second
    for bare, spellings in _by_bare(counts).items():
        best = _most(counts, spellings)
        plain = tuple(single.get((word,), (word,))[0] for word in bare)
        if counts[best] < LEAST_PAIRS:
            continue
        if best == plain:
            if counts[best] >= PLAIN_RATIO * sum(counts[one] for one in spellings if one != best):
                others[bare] = best
        elif best != bare and counts[best] >= RATIO * sum(counts[phrase] for phrase in {bare, plain}):
            found[bare] = best
            for side in (0, 1):
                if best[side] != plain[side]:
                    changed[side].add(bare[side])
    return found | {bare: best for bare, best in others.items() if bare[0] in changed[1] or bare[1] in changed[0]}


def _in_case_of(word: str, new: str) -> str:
    """A word in lower case with the capitals of another one."""
    if len(word) > 1 and word.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if word[:1].isupper() else new
