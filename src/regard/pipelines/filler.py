"""Filling gaps with an encoder alone; its vectors, and the meaning of words in context."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard.analysis.base import ForwardPass
from regard.analysis.meaning import Candidates, Contribution, Meaning, contributions, meaning
from regard.analysis.vectors import Vectors, vectors
from regard.arguments import check_whole
from regard.attention.watch import is_changing
from regard.data.batching import lengths_mask, pad
from regard.decoding.sample import NOT_FINITE
from regard.errors import ConfigError, RegardError
from regard.models.planned import Stamp
from regard.pipelines.base import LONGEST, InputError, Pipeline, check_characters, check_tokens
from regard.pipelines.result import Result
from regard.text.normalize import clean
from regard.text.tokenizer import Span, words

GAP = re.compile(r"\[MASK\]|<mask>", re.IGNORECASE)
PLACEHOLDER = "it"
CANDIDATES = 4000  # words of the vocabulary that a meaning is compared with
AT_ONCE = 256  # texts encoded at a time


@dataclass(frozen=True, eq=False, kw_only=True)
class Filling(Result):
    """A text whose gaps are filled.

    Attributes:
        text: the source with the most probable token in each gap; nothing else changes.
        source: the text with its gaps.
        log_prob, score: the sum of the log-probabilities of the tokens in the gaps; the other gaps are masked.
        gaps: for each gap, the most probable tokens with their probabilities, best first.
        filler: what filled them.
    """

    gaps: list[list[tuple[str, float]]] = field(default_factory=list)
    filler: Any = field(default=None, repr=False)

    def details(self) -> dict[str, Any]:
        """The gaps."""
        return {"gaps": self.gaps}

    def look(self, path: str | Path | None = None) -> Any:
        """The interactive page of the attention in the text with its gaps; a notebook displays it.

        Args:
            path: an .html file to write, which needs no network; None only makes the page.

        Returns:
            the `regard.figures.page.Page`.
        """
        from regard.pipelines.page import look_at

        return look_at([self.filler], [self.source]).written(path)


class Gapped(NamedTuple):
    """A text, its ids with the mask token in every gap, and where the gaps stand in the text."""

    text: str
    ids: list[int]
    gaps: list[Span]


class StatesPass(ForwardPass):
    """The pass of an encoder that has no head: it gives states."""

    def __call__(self) -> Any:
        """The model's `Memory`."""
        return self.module.encode(**self.arguments)  # type: ignore[operator]


class Filler(Pipeline[str, Filling]):
    """An encoder alone: what `regard.load` returns for a BERT, a RoBERTa, or a run with task = "fill".

    Called, it fills the gaps of one text or of a list of them.
    """

    task = "fill"
    _read_at: tuple[Stamp, Candidates] | None = None  # the words of the vocabulary, and the model that read them

    def prepare(self, source: str) -> Gapped:
        """The text with its gaps found.

        Raises:
            InputError: there is no gap; the text is too long.
            ConfigError: the model has no head that predicts tokens, or no mask token.
        """
        mask = self.tokenizer.mask
        if self.model.head is None or mask is None:
            missing = "mask token" if self.model.head else "head that predicts words"
            raise ConfigError(f"{self.name} cannot fill gaps: it has no {missing}")
        check_characters(source, self._longest())
        read = clean(source)
        if len(GAP.findall(read)) != len(GAP.findall(source)):  # an invisible character stands within a gap's name
            source = read
        gaps = [match.span() for match in GAP.finditer(source)]
        if not gaps:
            raise InputError("there is no gap: write [MASK] where a word is missing")
        return Gapped(source, self._with_gaps(read, mask), gaps)

    def run(self, prepared: Sequence[Gapped], *, top: int = 5) -> list[Filling]:
        """The most probable tokens for each [MASK] (or <mask>) of each text.

        Args:
            prepared: of `prepare`.
            top: how many tokens are listed for a gap.

        Raises:
            ConfigError: top below 1.
        """
        check_whole("top", top)
        if top < 1:
            raise ConfigError(f"top must be at least 1; got {top}")
        return [self._fill(one, top) for one in prepared]

    def fill(self, source: str, top: int = 5) -> Filling:
        """`run` for one text."""
        return self.run([self.prepare(source)], top=top)[0]

    def _fill(self, one: Gapped, top: int) -> Filling:
        ids = list(one.ids)
        with torch.inference_mode():
            logits = self.model(torch.tensor([ids], device=self.device))[0]
        found, total, chosen = [], 0.0, []
        if not bool(logits.isfinite().all()):
            raise RegardError(NOT_FINITE)
        for row in logits[[n for n, i in enumerate(ids) if i == self.tokenizer.mask]].cpu():
            best, tokens = row.softmax(-1).topk(min(top, logits.shape[-1]))
            found.append([(self._word(int(i)), float(p)) for p, i in zip(best, tokens, strict=True)])
            total += float(best[0].log())
            chosen.append(int(tokens[0]))
        text = one.text
        for (start, end), candidates in reversed(list(zip(one.gaps, found, strict=False))):
            text = text[:start] + candidates[0][0] + text[end:]
        return Filling(
            text=text, source=one.text, tokens=self.tokenizer.tokens(chosen), ids=chosen, score=total, log_prob=total,
            gaps=found, filler=self,
        )  # fmt: skip

    def forward_pass(self, source: str) -> ForwardPass:
        """The pass over a text, in which [MASK] marks gaps: logits `[1, S, V]` of the token at each position.

        Of a model without a head that predicts tokens, the states (`Memory`).

        Raises:
            InputError: it has no token, or is too long.
        """
        check_characters(source, self._longest())
        ids = self._with_gaps(clean(source), self.tokenizer.mask) if GAP.search(source) else self.encode(source)[0]
        if not ids:
            raise InputError("an empty text: this model needs at least one token to look at")
        kind = StatesPass if self.model.head is None else ForwardPass
        return kind(self.model, {"tokens": torch.tensor([ids], device=self.device)}, self.tokenizer.tokens(ids))

    def embed(self, text: str) -> Vectors:
        """Static and contextual vectors of a text's tokens, layer by layer; `.sentence` is one vector of the text."""
        ids, spans = self.encode(text)
        return vectors(self.model, ids, spans, text, self.tokenizer)

    def meaning(self, word: str, texts: Sequence[str], layer: int | None = None) -> Meaning:
        """How a word's vector moves from layer to layer in each text, and toward which words.

        Args:
            word: the word.
            texts: texts in which it stands; the first place counts.
            layer: where its neighbors are looked for, 0 before the first block; two thirds of the way up by default,
                for the last layers of an encoder turn to what it was trained for (Ethayarajh 2019; Liu et al. 2019).

        Raises:
            ConfigError: fewer than one text; the word stands in none of them.
        """
        return meaning(self, word, texts, layer)

    def contributions(self, text: str, word: str) -> list[Contribution]:
        """Which words of a text moved one of its words, the strongest first."""
        return contributions(self, text, word)

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """A text's ids with the special tokens around it, and where each stands in it.

        Raises:
            InputError: it is longer than the model knows places for.
        """
        check_characters(text, self._longest())
        ids, spans = self.tokenizer.marked(text)
        check_tokens(ids, self._longest())
        return list(ids), list(spans)

    def states(self, rows: Sequence[list[int]]) -> list[Tensor]:
        """The states of token ids behind every layer, `[L + 1, S, d]` each, on the CPU."""
        found: list[Tensor] = []
        for start in range(0, len(rows), AT_ONCE):
            some = list(rows[start : start + AT_ONCE])
            layers: list[Tensor] = []
            with torch.inference_mode():
                tokens, allowed = pad(some, self.tokenizer.pad), lengths_mask(some)
                self.model.encode(tokens.to(self.device), allowed.to(self.device), collect=layers)
            joint = torch.stack(layers, 1).cpu()
            found += [one[:, : len(row)] for one, row in zip(joint, some, strict=True)]
        return found

    @property
    def candidates(self) -> Candidates:
        """Whole words of the vocabulary, each read on its own: what meanings are compared with.

        They are read again once the model is another, by its weights or by its modules' settings.

        Raises:
            ConfigError: the vocabulary has none.
        """
        if is_changing():
            return self._candidates()
        if self._read_at is None or not self._read_at[0].fits(self.model):
            self._read_at = Stamp(self.model, whole=True), self._candidates()
        return self._read_at[1]

    def _candidates(self) -> Candidates:
        chosen = []
        names = self.tokenizer.tokens(range(len(self.tokenizer)))
        begins = next((mark for mark in ("▁", "Ġ") if sum(name.startswith(mark) for name in names) > 1), "")
        for i, name in enumerate(names):
            word = name.removeprefix(begins)
            whole = name.startswith(begins) and word.isalpha() and word.isascii() and len(word) > 2
            if whole and self.tokenizer.decode([i]).strip() == word:
                chosen.append(word)
            if len(chosen) == CANDIDATES:
                break
        if not chosen:
            raise ConfigError(
                "meaning compares with whole words, and this model's vocabulary has none of 3 letters or more"
            )
        chosen = list(dict.fromkeys(chosen))
        encoded = [self.encode(word) for word in chosen]
        states = self.states([ids for ids, _ in encoded])
        layers = [
            one[:, [n for n, (a, b) in enumerate(spans) if b > a]].mean(1)
            for one, (_, spans) in zip(states, encoded, strict=True)
        ]
        return Candidates(chosen, torch.stack(layers))

    def words(self, text: str) -> list[str]:
        """The words of a text without the punctuation around them, in small letters."""
        return [text[a:b].strip(".,;:!?\"'()[]").lower() for a, b in words(text)]

    def _with_gaps(self, source: str, mask: int) -> list[int]:
        if self.tokenizer.parses_specials:
            (name,) = self.tokenizer.tokens([mask])
            return self.encode(GAP.sub(name, source))[0]
        # a word stands in the gap while the text is cut, so that what is around it is cut as it always is
        pieces = GAP.split(source)
        text = PLACEHOLDER.join(pieces)
        starts = [end + n * len(PLACEHOLDER) for n, end in enumerate(accumulate(map(len, pieces[:-1])))]
        found = self.tokenizer.encode(text)
        check_tokens(found, self._longest())
        ids, last, gap = [self.tokenizer.bos], -1, 0
        for i, (a, b) in zip(found, self.tokenizer.source_spans(text), strict=True):
            while gap < len(starts) and a >= starts[gap] + len(PLACEHOLDER):  # both are in the text's order
                gap += 1
            if gap == len(starts) or b <= starts[gap]:
                ids.append(i)
            elif gap != last:
                ids.append(mask)
                last = gap
        return [*ids, self.tokenizer.eos]

    def _longest(self) -> int:
        """Tokens that the model takes."""
        config: Any = self.bundle.model_config
        return int(config.length) if config.positions == "learned" else LONGEST

    def _word(self, i: int) -> str:
        return str(self.tokenizer.decode([i]).strip() or self.tokenizer.tokens([i])[0])
