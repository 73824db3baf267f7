"""A text of several sentences: cut into them, and their translations joined again."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
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


def cut(text: str, language: str) -> list[str]:
    """The sentences of a text, in order, without the white space between them.

    A sentence ends before white space, or after a full-width mark ("。"): "v2?x" and "one.Two" stay whole, since a text
    without spaces is as likely to be a name, an address or a sequence of symbols.

    Args:
        text: any text.
        language: its code ("fr"); rules that most languages share where it is unknown or empty.
    """
    if SURROGATE.search(text):
        return [text]  # no text in Unicode: the model refuses it
    found: list[str] = []
    for piece in segment(language or "en", text):
        if found and not (piece[:1].isspace() or found[-1][-1:].isspace() or found[-1][-1:] in FULL_WIDTH):
            found[-1] += piece
        else:
            found.append(piece)
    return [one.strip() for one in found if one.strip()]


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
    """

    parts: list[Generation] = field(default_factory=list, repr=False)

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
        """The words of all parts, with their places in the whole text."""
        made: list[Word] = []
        start = 0
        for part in self.parts:
            made += [replace(word, span=(start + word.span[0], start + word.span[1])) for word in part.words]
            start += len(part.text) + bool(part.text)
        return made

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
    return Joined(
        text=" ".join(part.text for part in parts if part.text), source=text,
        tokens=[part.tokens[place] for part, some in zip(parts, kept, strict=True) for place in some],
        ids=[part.ids[place] for part, some in zip(parts, kept, strict=True) for place in some],
        score=sum(part.score for part in parts), log_prob=sum(part.log_prob for part in parts),
        attention=NoMaps(),
        source_tokens=[token for part in parts for token in part.source_tokens],
        source_ids=[token for part in parts for token in part.source_ids],
        read=" ".join(part.read for part in parts), recorded=all(part.recorded for part in parts),
        translator=translator, parts=parts,
    )  # fmt: skip
