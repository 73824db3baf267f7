"""Words and phrases that an output must, or must not, have: whole words, whatever their case.

A phrase is found in a text where it stands between characters that belong to no word, so "cat" is in "The Cat." and not
in "cats". What is forbidden is a constraint of the step; what is wanted is a goal, for which a search keeps hypotheses
that have made different progress (grid beam search: Hokamp and Liu 2017; the division of the beam: Post and Vilar
2018).
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from unicodedata import combining, normalize

import torch
from torch import Tensor

from regard.decoding.constraints import StepFunction
from regard.text.protocol import Span

ATTENDED = 0.3  # attention that the place of a phrase has got from which the phrase may begin
AHEAD = 8  # most probable tokens of a step behind which one more is looked at
GOES_ON = 0.5  # probability from which a word is expected to go on
_UNFINISHED = "\ufffd"  # what a part of a character's bytes is decoded to


class Spelling:
    """What the tokens of a vocabulary add to a text.

    Args:
        decode: gives the text of token ids.
        size: number of tokens of the vocabulary.
        ends: tokens that end an output.

    Attributes:
        pieces: what each token adds to a text that ends with a word, folded.
        continues: whether each token continues a word that it follows.
        begins: `[V]`, the same as a tensor.
        adds_up: whether the pieces of a text make the text.
        empty: `[V]`, True at tokens that add nothing to a text and do not end it.
        mixed: tokens that hold a word's end and what follows it.
    """

    def __init__(self, decode: Callable[[list[int]], str], size: int, ends: Collection[int]) -> None:
        self._decode, self.ends = decode, frozenset(ends)
        texts = [decode([token]) for token in range(size)]
        probe = next((n for n, text in enumerate(texts) if text[-1:].isalnum()), 0)
        before = len(texts[probe])
        self.pieces = [folded(decode([probe, token])[before:]) for token in range(size)]
        self.adds_up = not any(_UNFINISHED in piece or combining(piece[:1] or " ") for piece in self.pieces)
        self.continues = [_is_word(piece[:1]) for piece in self.pieces]
        self.begins = torch.tensor(self.continues)
        self.empty = torch.tensor([not piece and n not in self.ends for n, piece in enumerate(self.pieces)])
        self.mixed = {n for n, piece in enumerate(self.pieces) if re.search(r"\w\W", piece)}

    def extended(self, text: str, tokens: Sequence[int]) -> str:
        """The folded text of tokens; `text` is that of all but the last one."""
        return text + self.pieces[tokens[-1]] if self.adds_up else folded(self._decode(list(tokens)))


def _is_word(character: str) -> bool:
    return bool(re.match(r"\w", character))


def folded(text: str) -> str:
    """A text without differences of case and of composition."""
    return normalize("NFC", text).casefold()


def _pattern(phrases: Iterable[str], behind: str) -> "re.Pattern[str]":
    """Any of some folded phrases that end in the same kind of character, in a folded text.

    Args:
        phrases: what is looked for.
        behind: a regular expression of what follows.
    """
    each = (("(?<!\\w)" if _is_word(one[:1]) else "") + "\\s+".join(map(re.escape, one.split())) for one in phrases)
    return re.compile(f"(?:{'|'.join(each)}){behind}" if phrases else r"(?!)")


def has_phrase(text: str, phrase: str) -> bool:
    """Whether a text has a phrase as whole words, whatever its case."""
    return bool(spans_of(text, phrase))


@dataclass(frozen=True, eq=False)
class TextState:
    """A state beside the texts of its hypotheses.

    Attributes:
        inner: the state.
        limits: output tokens of each sentence at most.
        rows: the tokens so far of every hypothesis of every sentence, and their folded text; None before the first
            step.
    """

    inner: Any
    limits: list[int]
    rows: list[list[tuple[tuple[int, ...], str]]] | None = None

    def select(self, parents: Tensor) -> "TextState":
        """The state in which hypothesis k of sentence n continues hypothesis `parents[n, k]`."""
        rows = self.rows or []
        chosen = [[own[k] for k in some] for own, some in zip(rows, parents.tolist(), strict=True)]
        return replace(self, inner=self.inner.select(parents), rows=chosen)

    def keep(self, sentences: Tensor) -> "TextState":
        """The state of some of the sentences."""
        some = sentences.tolist()
        rows = None if self.rows is None else [self.rows[n] for n in some]
        return TextState(self.inner.keep(sentences), [self.limits[n] for n in some], rows)


@dataclass(frozen=True, eq=False)
class Forbidden:
    """Phrases that no output has. Scores are the model's own log-probabilities, -inf at what is forbidden.

    A word may begin like a forbidden one: behind "cat", what continues the word is allowed and what ends it is not. A
    step looks one token ahead, so that "cat" is written only where the word goes on with a probability of 1/2.

    Attributes:
        phrases: at least one.
        spelling: of the model's vocabulary.
        limits: output tokens of each sentence at most: an output that is cut there does not end with one either.
    """

    phrases: Sequence[str]
    spelling: Spelling
    limits: Sequence[int]
    scored: bool = True

    def begin(self, state: Any, sentences: int) -> TextState:  # noqa: ARG002 - of as many limits
        """The state before the first token."""
        return TextState(state, list(self.limits))

    def around(self, step: StepFunction) -> StepFunction:
        """The step with -inf at tokens that would end a forbidden phrase."""
        spelling, phrases = self.spelling, [" ".join(folded(one).split()) for one in self.phrases]
        of_words = [one for one in phrases if _is_word(one[-1:])]
        others = [one for one in phrases if one not in of_words]
        saying = _pattern(of_words, r"\Z")  # a word's end is known when the next token is
        said = _pattern(of_words, r"(?=\W)"), _pattern(others, "")
        last, final = ({one[-1:] for one in some} for some in (others, of_words))
        tried = [n for n, piece in enumerate(spelling.pieces) if n in spelling.mixed or last.intersection(piece)]
        finishing = [n for n, piece in enumerate(spelling.pieces) if piece[-1:] in final]
        ends_word = (~spelling.begins).nonzero()[:, 0].tolist()

        def banned(own: tuple[int, ...], text: str, limit: int) -> list[int]:
            """Tokens that may not follow a text."""
            found = list(ends_word) if saying.search(text) else []
            made = ((t, spelling.extended(text, (*own, t))) for t in tried)
            found += [t for t, longer in made if any(one.search(longer) for one in said)]
            if len(own) + 1 == limit:
                found += [t for t in finishing if saying.search(spelling.extended(text, (*own, t)))]
            return found

        def allowed(token: Tensor, state: TextState) -> tuple[Tensor, TextState]:
            given, inner = step(token, state.inner)
            scores = given.clone()
            rows = state.rows and [
                [self._after(own, new) for own, new in zip(some, news, strict=True)]
                for some, news in zip(state.rows, token.tolist(), strict=True)
            ]
            rows = rows or [[((), "") for _ in some] for some in token.tolist()]  # the first token is not of the output
            top = scores.topk(min(AHEAD, scores.shape[-1])).indices.tolist()
            beginning: list[tuple[int, int, int]] = []  # tokens that write a forbidden word, which may go on
            for n, hypotheses in enumerate(rows):
                for k, (own, text) in enumerate(hypotheses):
                    scores[n, k, banned(own, text, state.limits[n])] = -torch.inf
                    longer = ((t, spelling.extended(text, (*own, t))) for t in top[n][k])
                    beginning += [(n, k, t) for t, made in longer if saying.search(made)]
            for some in _rounds(beginning):
                tokens = token.clone()
                for n, k, t in some:
                    tokens[n, k] = t
                following = step(tokens, inner)[0].float().softmax(-1)
                goes_on = (following * spelling.begins.to(following.device)).sum(-1).tolist()
                for n, k, t in some:
                    if goes_on[n][k] < GOES_ON:
                        scores[n, k, t] = -torch.inf
            return scores, replace(state, inner=inner, rows=rows)

        return allowed

    def _after(self, before: tuple[tuple[int, ...], str], token: int) -> tuple[tuple[int, ...], str]:
        tokens = (*before[0], token)
        return tokens, self.spelling.extended(before[1], tokens)


def _rounds(triples: Sequence[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """(sentence, hypothesis, token) in lists that name every hypothesis at most once."""
    left = list(triples)
    while left:
        now = {(n, k): (n, k, t) for n, k, t in left}
        yield list(now.values())
        left = [one for one in left if one not in now.values()]


@dataclass(frozen=True)
class Phrase:
    """A phrase that an output must have.

    Attributes:
        text: the phrase, folded.
        tokens: its tokens behind a space.
        first: its tokens where it begins a text.
    """

    text: str
    tokens: tuple[int, ...]
    first: tuple[int, ...]

    def ends(self, text: str) -> bool:
        """Whether a folded text ends with it, and not within a word."""
        before = text[: -len(self.text)][-1:]
        return text.endswith(self.text) and not (_is_word(before) and _is_word(self.text[:1]))

    def begun(self, tokens: Sequence[int]) -> tuple[int, int]:
        """Number of its tokens that an output ends with, and the token that comes next; not all of them."""
        for own in (self.tokens, self.first):
            for size in range(min(len(own) - 1, len(tokens)), 0, -1):
                if tuple(tokens[len(tokens) - size :]) == own[:size] and (own is self.tokens or size == len(tokens)):
                    return size, own[size]
        return 0, (self.tokens if tokens else self.first)[0]


@dataclass(slots=True)  # not frozen, which makes building one three times as long
class GoalProgress:
    """How far an output has come toward its goal; phrases are numbers of the goal's.

    Attributes:
        tokens: of the output.
        text: its folded text.
        left: phrases that it does not have.
        written: phrases that end with it: it has them unless the next token continues their last word.
        whole: number of tokens of the phrases that it has.
        made: the same, with those of the phrase that it has begun.
        begun: {phrase of which the output ends with some tokens, not all: the token that comes next}.
        astray: of each phrase with a place, how much of it is not there: the attention that its place got while other
            tokens were written, and the rest of the attention where it began.
    """

    tokens: tuple[int, ...]
    text: str
    left: tuple[int, ...]
    written: tuple[int, ...]
    whole: int
    made: int
    begun: Mapping[int, int]
    astray: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Goal:
    """The phrases that the outputs of one sentence must have.

    Attributes:
        phrases: in any order; one that is listed twice must be there twice.
        spelling: of the model's vocabulary.
        positions: of each phrase, those of the source that it translates; none where it may stand anywhere. All
            phrases may by default.
    """

    phrases: tuple[Phrase, ...]
    spelling: Spelling
    positions: tuple[tuple[int, ...], ...] = ()

    @cached_property
    def room(self) -> int:
        """Number of tokens of all phrases."""
        return sum(self._sizes)

    @cached_property
    def _sizes(self) -> list[int]:
        return [len(phrase.tokens) for phrase in self.phrases]

    @cached_property
    def _anywhere(self) -> frozenset[int]:
        """Phrases without a place."""
        return frozenset(n for n in range(len(self.phrases)) if not (self.positions and self.positions[n]))

    @cached_property
    def placed(self) -> bool:
        """Whether all phrases have a place."""
        return not self._anywhere

    def met(self, text: str) -> bool:
        """Whether a text has all phrases."""
        counts = Counter(phrase.text for phrase in self.phrases)
        return all(len(spans_of(text, phrase)) >= count for phrase, count in counts.items())

    def start(self) -> GoalProgress:
        """Before the first token."""
        every = range(len(self.phrases))
        return GoalProgress((), "", tuple(every), (), 0, 0, {}, (0.0,) * len(self.phrases))

    def wanted(self, before: GoalProgress, attended: Sequence[float], ending: bool) -> list[int]:
        """Tokens that would bring an output further: the next one of each phrase that is begun, and the first of each
        whose place is attended, or was.

        Args:
            before: progress of the output.
            attended: attention that the place of each phrase gets.
            ending: every phrase may begin.
        """
        ripe = (n for n in before.left if ending or n in self._anywhere or attended[n] + before.astray[n] >= ATTENDED)
        first = ((self.phrases[n].tokens if before.tokens else self.phrases[n].first)[0] for n in ripe)
        return list(dict.fromkeys([*before.begun.values(), *first]))

    def passing(self, before: GoalProgress, attended: Sequence[float]) -> tuple[float, ...]:
        """`astray` of an output behind one more token that belongs to no phrase."""
        if not self.positions:
            return before.astray
        return tuple(
            some if n in self._anywhere else some + (1.0 if n in before.begun else attended[n])
            for n, some in enumerate(before.astray)
        )

    def concerns(self, before: GoalProgress, token: int) -> bool:
        """Whether a token behind an output begins, continues or ends a phrase, or takes one back."""
        if before.written:
            return True
        if not self._relevant[token]:
            return False
        if token in self._firsts or not self.spelling.adds_up or (before.begun and token in self._tokens):
            return True
        return (before.text + self.spelling.pieces[token]).endswith(self._texts)

    @cached_property
    def _firsts(self) -> frozenset[int]:
        """Tokens with which a phrase begins."""
        return frozenset(some[0] for one in self.phrases for some in (one.tokens, one.first))

    @cached_property
    def _tokens(self) -> frozenset[int]:
        """Tokens of the phrases."""
        return frozenset(token for one in self.phrases for token in (*one.tokens, *one.first))

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        """The phrases, each once."""
        return tuple(dict.fromkeys(one.text for one in self.phrases))

    @cached_property
    def _relevant(self) -> "_Relevant":
        """Tokens that may begin, continue or end a phrase; any, where the pieces of a text do not make the text."""
        return _Relevant(self)

    def after(self, before: GoalProgress, token: int, attended: Sequence[float] = ()) -> GoalProgress:
        """The progress with one more token.

        Args:
            before: progress of the output.
            token: that follows.
            attended: attention that the place of each phrase gets where it is chosen; all of it by default.
        """
        tokens = (*before.tokens, token)
        text = self.spelling.extended(before.text, tokens)
        attended = attended or (1.0,) * len(self.phrases)
        if not self.concerns(before, token):
            astray = self.passing(before, attended)
            return GoalProgress(tokens, text, before.left, (), before.whole, before.whole, {}, astray)
        open_ = (*before.left, *before.written) if self.spelling.continues[token] else before.left
        written: list[int] = []
        left: list[int] = []
        for n in open_:
            phrase = self.phrases[n]
            again = any(self.phrases[m] == phrase for m in written)
            (written if phrase.ends(text) and not again else left).append(n)
        starts = {n: self.phrases[n].begun(tokens) for n in left}
        whole = self.room - sum(self._sizes[n] for n in left)
        made = whole + max((size for size, _ in starts.values()), default=0)
        begun = {n: following for n, (size, following) in starts.items() if size}
        own = {*begun, *written}  # phrases that the token is of
        outside = list(before.astray)
        for n in set(range(len(outside))) - self._anywhere:
            if n in before.begun:
                outside[n] += token != before.begun[n]  # a phrase that is broken off was no use
            else:
                outside[n] += 1 - attended[n] if n in own else attended[n]
        return GoalProgress(tokens, text, tuple(left), tuple(written), whole, made, begun, tuple(outside))


class _Relevant(dict[int, bool]):
    """{token: whether it may begin, continue or end a phrase of a goal}, found where it is asked for."""

    def __init__(self, goal: Goal) -> None:
        super().__init__()
        self.goal = goal

    def __missing__(self, token: int) -> bool:
        goal = self.goal
        piece = goal.spelling.pieces[token]
        within = bool(piece) and any(text.endswith(piece) or piece.endswith(text) for text in goal._texts)
        self[token] = found = within or token in goal._tokens or not goal.spelling.adds_up
        return found


class Glossary:
    """Terms of a source language and what each is to become.

    Args:
        terms: {term: its translation}.
    """

    def __init__(self, terms: Mapping[str, str]) -> None:
        self._terms: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for term, translation in terms.items():
            words = tuple(word for word, _ in _words(term))
            if words:
                self._terms.setdefault(words[0], []).append((words, translation))
        for some in self._terms.values():
            some.sort(key=lambda one: -len(one[0]))

    def terms(self, source: str) -> list[tuple[str, Span]]:
        """The terms in a text, in its order: the translation of each, and its span in the folded text. Where terms
        overlap, the first and longest counts."""
        if not self._terms:
            return []
        words, at, found = _words(source), 0, []
        while at < len(words):
            behind = [word for word, _ in words[at:]]
            fitting = (one for one in self._terms.get(behind[0], ()) if tuple(behind[: len(one[0])]) == one[0])
            term, translation = next(fitting, ((behind[0],), ""))
            if translation:
                found.append((translation, (words[at][1][0], words[at + len(term) - 1][1][1])))
            at += len(term)
        return found

    def of(self, source: str) -> list[str]:
        """The translations that the terms in a text demand, in its order, each once however often its term occurs."""
        return list(dict.fromkeys(translation for translation, _ in self.terms(source)))


def _words(text: str) -> list[tuple[str, Span]]:
    """The words and signs of a text, folded, and their spans."""
    return [(found[0], found.span()) for found in re.finditer(r"\w+|[^\w\s]", folded(text))]


def words_within(text: str, span: Span) -> list[int]:
    """Numbers of the words of `text.split()` that have a character in a span of the folded text."""
    first, end = span
    return [
        n for n, found in enumerate(re.finditer(r"\S+", folded(text))) if found.start() < end and found.end() > first
    ]


def spans_of(text: str, phrase: str) -> list[Span]:
    """Where a text has a phrase as whole words, in the folded text."""
    behind = r"(?!\w)" if _is_word(phrase.strip()[-1:]) else ""
    return [found.span() for found in _pattern([folded(phrase)], behind).finditer(folded(text))]
