"""What the outputs of a translator are to have and not to have: a prefix, phrases, the terms of a glossary."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from regard.decoding.constraints import Constraint, ForcedPrefix
from regard.decoding.phrases import (
    Forbidden,
    Glossary,
    Goal,
    Phrase,
    Spelling,
    folded,
    has_phrase,
    words_within,
)
from regard.errors import ConfigError
from regard.pipelines.base import half_character
from regard.text.normalize import clean
from regard.text.protocol import Span
from regard.text.tokenizer import words as word_spans

CHARACTERS = 32  # of a token, at most: a phrase with more is refused before it is tokenized


def spelling_of(tokenizer: Any, text: str) -> tuple[list[int], str]:
    """The tokens of a phrase in the target language, and what they are decoded to."""
    tokens = list(tokenizer.encode_target(clean(text)))
    return tokens, str(tokenizer.decode(tokens))


def is_same(text: str, spelled: str) -> bool:
    """Whether a phrase was spelled as it is, whatever its case and white space."""
    return bool(spelled) and folded("".join(spelled.split())) == folded("".join(text.split()))


def check_glossary(glossary: object) -> None:
    """Refuse what is no dict of terms.

    Raises:
        ConfigError: the sentence.
    """
    if not isinstance(glossary, Mapping | None):
        raise ConfigError(f"glossary must be terms with their translations, as a dict; got {glossary!r}")


@dataclass(frozen=True)
class Demands:
    """What outputs are to have and not to have.

    Attributes:
        tokenizer: of the model.
        spelling: gives what its tokens add to a text; called where it is needed.
        prefix: what every output begins with.
        force: phrases that every output must contain.
        forbid: phrases that no output has.
        glossary: {a term of the source language: what stands for it in an output}.
        longest: tokens of all that one output must have, at most.

    Raises:
        ConfigError: a phrase that is empty, or not a text; one that outputs are to have and that has a forbidden one.
    """

    tokenizer: Any
    spelling: Callable[[], Spelling]
    prefix: str = ""
    force: Sequence[str] = ()
    forbid: Sequence[str] = ()
    glossary: Mapping[str, str] = field(default_factory=dict)
    longest: int = 1_000

    def __post_init__(self) -> None:
        if not isinstance(self.prefix, str):
            raise ConfigError(f"prefix must be a text; got {self.prefix!r}")
        for setting in ("force", "forbid"):
            phrases = getattr(self, setting)
            one_text = isinstance(phrases, str) or not isinstance(phrases, Sequence | Set)
            if one_text or not all(isinstance(one, str) and one.strip() for one in phrases):
                raise ConfigError(f"{setting} must be a list of words or phrases, none of them empty; got {phrases!r}")
        check_glossary(self.glossary)
        for term, translation in self.glossary.items():
            if not all(isinstance(one, str) and one.strip() for one in (term, translation)):
                raise ConfigError(
                    f"glossary: a term and its translation are texts that are not empty; got {term!r}: {translation!r}"
                )
        wanted = [("prefix", self.prefix), *(("force", one) for one in self.force)]
        wanted += [("glossary", one) for one in self.glossary.values()]
        others = [*(("forbid", one) for one in self.forbid), *(("glossary", one) for one in self.glossary)]
        for setting, text in (*wanted, *others):
            if half := half_character(text):
                raise ConfigError(f"{setting}: {text!r} is no text in Unicode: {half}")
        for setting, text in wanted:
            for one in self.forbid:
                if has_phrase(text, one):
                    raise ConfigError(
                        f"{setting}: {text!r} contains {one!r}, which forbid names: leave out one of them"
                    )

    def constraints(self, limits: Sequence[int]) -> list[Constraint]:
        """The constraints that outputs begin with the prefix, and do not have what is forbidden.

        Args:
            limits: output tokens at most.

        Raises:
            ConfigError: the vocabulary cannot spell the prefix.
        """
        made: list[Constraint] = []
        if tokens := self._prefix:
            spelling = self.spelling()
            banned = spelling.begins | spelling.empty
            in_word = str(self.tokenizer.decode(tokens))[-1:].isalnum()
            made.append(ForcedPrefix(tokens, banned if in_word else torch.zeros_like(banned)))
        return [*made, Forbidden(self.forbid, self.spelling(), limits)] if self.forbid else made

    def goals(self, sources: Sequence[str]) -> list[Goal | None]:
        """What the output of each source must have; None for nothing.

        Raises:
            ConfigError: the vocabulary cannot spell a phrase; together they have too many tokens.
        """
        forced = [self._phrase("force", one) for one in self.force]
        known: dict[str, Phrase] = {}
        goals: list[Goal | None] = []
        for source in sources:
            positions: dict[Phrase, tuple[int, ...]] = dict.fromkeys(forced, ())
            for translation, span in self._terms.terms(source):
                if translation not in known:
                    known[translation] = self._phrase("glossary", translation)
                if known[translation] not in forced:
                    positions[known[translation]] = (
                        *positions.get(known[translation], ()),
                        *self._tokens(source, span),
                    )
            demanded = (*forced, *(phrase for phrase in positions if phrase not in forced))
            size = sum(len(phrase.tokens) for phrase in demanded)
            if size > self.longest:  # the search goes on for as many steps more, each of which looks at all of them
                raise ConfigError(
                    f"force, glossary: the phrases that one output must have are {size:,} tokens; expected at most "
                    f"{self.longest:,}: ask for fewer or shorter ones"
                )
            own = tuple(positions[phrase] for phrase in demanded)
            goals.append(Goal(demanded, self.spelling(), own) if demanded else None)
        return goals

    def _tokens(self, source: str, span: Span) -> list[int]:
        """Numbers of the source's tokens that have a character in a span of the folded text."""
        spans = list(self.tokenizer.source_spans(source))
        if len(folded(source)) != len(source):  # a character that is two when it is folded: by words
            words = word_spans(source)
            own = [words[n] for n in words_within(source, span)]
            span = (own[0][0], own[-1][1])
        return [n for n, (first, end) in enumerate(spans) if first < span[1] and end > span[0] and end > first]

    @property
    def room(self) -> int:
        """Tokens that the prefix takes of every output.

        Raises:
            ConfigError: the vocabulary cannot spell it; it has more tokens than an output may have.
        """
        return len(self._prefix)

    @cached_property
    def _prefix(self) -> list[int]:
        """The tokens of the prefix."""
        if not self.prefix.strip():
            return []
        self._check_length("prefix", self.prefix)
        tokens, _ = self._spell("prefix", self.prefix)
        if len(tokens) > self.longest:
            raise ConfigError(
                f"prefix has {len(tokens):,} tokens; expected at most {self.longest:,}: give a shorter one"
            )
        return tokens

    def _check_length(self, setting: str, text: str) -> None:
        """Refuse a text that is too long before it is tokenized.

        Raises:
            ConfigError: it has more characters than the tokens of an output.
        """
        if len(text) > CHARACTERS * self.longest:
            raise ConfigError(
                f"{setting}: a phrase of {len(text):,} characters is too long: expected at most {self.longest:,} tokens"
            )

    @cached_property
    def _terms(self) -> Glossary:
        return Glossary(self.glossary)

    def _spell(self, setting: str, *texts: str) -> tuple[list[int], str]:
        """The first of some texts that the vocabulary can spell: its tokens and itself.

        Raises:
            ConfigError: it can spell none of them.
        """
        for text in texts:
            tokens, spelled = spelling_of(self.tokenizer, text)
            if is_same(text, spelled):
                return tokens, text
        raise ConfigError(
            f"{setting}: this model's vocabulary spells {texts[0]!r} as {spelled!r}: choose other characters"
        )

    def _phrase(self, setting: str, text: str) -> Phrase:
        """A phrase that outputs must have, in lower case where the vocabulary cannot spell it otherwise.

        Raises:
            ConfigError: the vocabulary cannot spell it.
        """
        given = " ".join(clean(text).split())
        self._check_length(setting, given)
        _, read = self._spell(setting, given, given.lower())
        first, _ = self._spell(setting, read[:1].upper() + read[1:], read)
        letter = self.tokenizer.encode_target("a")
        behind = self.tokenizer.encode_target(f"a {read}")
        tokens = behind[len(letter) :] if behind[: len(letter)] == letter else self.tokenizer.encode_target(read)
        return Phrase(folded(read), tuple(tokens), tuple(first))
