"""A text of several sentences: cut into them, and their translations joined again."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
from sentencex import segment

from regard.analysis.base import ForwardPass
from regard.attention.maps.map import AttentionMap
from regard.errors import ConfigError
from regard.pipelines.generation import Alignment, Generation, Word

# the marks that end a sentence in scripts without spaces between words
FULL_WIDTH = "。！？｡"
SURROGATE = re.compile("[\ud800-\udfff]")
WINDOW = 2_000  # characters
_BREAK = re.compile(r"\r?\n")
_BEFORE_PERIOD = re.compile(r"(?<!\s)\s++(?=\.)")
_WIDE_SPACE = re.compile(r"[^\S\x00-\x7f]")  # of several bytes


def cut(text: str, language: str) -> list[str]:
    """The sentences of a text, in order, without the white space between them.

    A sentence ends at a line break, before white space, or after a full-width mark ("。"): "v2?x" and "one.Two" stay
    whole, since a text without spaces is as likely to be a name, an address or a sequence of symbols.

    Args:
        text: any text.
        language: its code ("fr"); rules that most languages share where it is unknown or empty.
    """
    if SURROGATE.search(text):
        return [text]  # no text in Unicode: the model refuses it
    return [sentence for line in _BREAK.split(text) for sentence in _cut_line(line, language or "en")]


def between(text: str, sentences: Sequence[str]) -> list[str]:
    """What stands between the translations of two sentences: the line breaks between them, or a space.

    Args:
        text: the text.
        sentences: as `cut` gives them.
    """
    found, end = [], 0
    for sentence in sentences:
        start = max(end, text.find(sentence, end))
        found.append("".join(_BREAK.findall(text, end, start)) or " ")
        end = start + len(sentence)
    return found[1:]


def laid_out(texts: Sequence[str], gaps: Sequence[str]) -> tuple[str, list[int]]:
    """Texts with gaps between them, and where each begins; an empty one leaves the gap with more line breaks."""
    whole, positions, lead = "", [], ""
    for text, gap in zip(texts, ["", *gaps], strict=True):
        lead = wider(gap, lead)
        if text and whole:
            whole += lead
        positions.append(len(whole))
        if text:
            whole, lead = whole + text, ""
    return whole, positions


def wider(one: str, other: str) -> str:
    """Of two gaps, the one with more line breaks."""
    return max(one, other, key=lambda gap: gap.count("\n"))


def _cut_line(text: str, language: str) -> list[str]:
    found: list[list[str]] = []  # the pieces of each sentence
    for piece, continues in _segments(text, language):
        last = found[-1][-1][-1:] if found else " "
        if not continues and (piece[:1].isspace() or last.isspace() or last in FULL_WIDTH):
            found.append([])
        found[-1].append(piece)
    return [one for pieces in found if (one := "".join(pieces).strip())]


def _segments(text: str, language: str) -> Iterator[tuple[str, bool]]:
    """The sentences that sentencex finds, and whether each continues the one before it.

    A long text is read in windows, since the time of sentencex may grow with the square of a text's length (0.8 s for
    60,000 characters). The last two sentences of a window, which more text may change, begin the next one.
    """
    start, continues = 0, False
    while start < len(text):
        some = _segmented(text[start : start + WINDOW], language)
        is_last = start + WINDOW >= len(text)
        for piece in some if is_last else some[:-2] or some:
            yield piece, continues
            start, continues = start + len(piece), False
        continues = len(some) < 3


def _segmented(text: str, language: str) -> list[str]:
    """What sentencex makes of a text; the text as one where it fails.

    It takes white space before a period for one byte, and panics at "A\u00a0.": it gets plain spaces there.
    """
    read = _BEFORE_PERIOD.sub(lambda found: _WIDE_SPACE.sub(" ", found[0]), text)
    try:
        pieces = segment(language, read)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # a class that cannot be imported
            raise
        return [text]
    ends = list(accumulate(map(len, pieces)))
    return [text[a:b] for a, b in pairwise([0, *ends])] if ends[-1:] == [len(text)] else [text]


class NoMaps(Mapping[str, AttentionMap]):
    """The attention of several sentences together, which does not exist; asking for it says where it is."""

    def __getitem__(self, site: str) -> AttentionMap:
        raise self._refusal()

    def __iter__(self) -> Iterator[str]:
        raise self._refusal()

    def __len__(self) -> int:
        return 0

    @staticmethod
    def _refusal() -> ConfigError:
        return ConfigError(
            "a text of several sentences was translated sentence by sentence: each of .parts has its own attention; "
            "split=False translates the text as one"
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Joined(Generation):
    """The translation of a text of several sentences.

    Attributes:
        parts: the sentences' own translations, in order.
        positions: where the text of each begins in the whole text.
    """

    parts: list[Generation] = field(default_factory=list, repr=False)
    positions: list[int] = field(default_factory=list, repr=False)

    @cached_property
    def alignment(self) -> Alignment:
        """Word alignment of the whole text: that of each part, and nothing between parts.

        Raises:
            ConfigError: the attention was not kept.
        """
        own = [part.alignment for part in self.parts]
        first = next((one for one in own if one.site), own[0])
        source, target = ([word for one in own for word in getattr(one, side)] for side in ("source", "target"))
        matrix = torch.block_diag(*[one.matrix for one in own])
        return Alignment(matrix, source, target, first.site, first.heads, self.title, first.chosen)

    @cached_property
    def words(self) -> list[Word]:
        """The words of all parts, with their positions in the whole text."""
        return [
            replace(word, span=(start + word.span[0], start + word.span[1]))
            for part, start in zip(self.parts, self.positions, strict=True)
            for word in part.words
        ]

    @property
    def searched(self) -> list[Generation]:
        """The translations of the sentences."""
        return self.parts

    def forward_pass(self) -> ForwardPass:
        """Refused.

        Raises:
            ConfigError: always.
        """
        raise NoMaps._refusal()

    @cached_property
    def trace(self) -> Any:
        """Refused.

        Raises:
            ConfigError: always.
        """
        raise NoMaps._refusal()


def join(text: str, parts: Sequence[Generation], n_best: int) -> Joined:
    """The translation of a text from those of its sentences.

    Args:
        text: the text.
        parts: of its sentences.
        n_best: outputs returned, at most: the k-th is made of the k-th outputs of all parts, the best where one has
            fewer.
    """
    best = _join(text, list(parts))
    seen = {best.text}
    for number in range(n_best - 1):
        some = [part.alternatives[number] if number < len(part.alternatives) else part for part in parts]
        other = _join(text, some)
        if other.text not in seen:
            seen.add(other.text)
            best.alternatives.append(other)
    return best


def _join(text: str, parts: list[Generation]) -> Joined:
    translator = parts[0].translator
    eos = translator.tokenizer.eos
    last = len(parts) - 1
    kept = [
        [place for place, token in enumerate(part.ids) if token != eos or number == last]
        for number, part in enumerate(parts)
    ]
    whole, positions = laid_out([part.text for part in parts], between(text, [part.source for part in parts]))
    return Joined(
        text=whole, positions=positions, source=text,
        tokens=[part.tokens[place] for part, some in zip(parts, kept, strict=True) for place in some],
        ids=[part.ids[place] for part, some in zip(parts, kept, strict=True) for place in some],
        score=sum(part.score for part in parts), log_prob=sum(part.log_prob for part in parts),
        attention=NoMaps(),
        source_tokens=[token for part in parts for token in part.source_tokens],
        source_ids=[token for part in parts for token in part.source_ids],
        read=" ".join(part.read for part in parts), recorded=all(part.recorded for part in parts),
        translator=translator, parts=parts,
    )  # fmt: skip
