"""Translation: from a text to a `Generation`."""

import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, cached_property
from math import inf
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from regard.analysis.base import ForwardPass
from regard.arguments import check_settings, check_whole
from regard.attention.maps.map import know_origin
from regard.attention.watch import announce, has_search_listeners, unwatched
from regard.bundle import Bundle
from regard.data.batching import lengths_mask, pad
from regard.decoding.forced import Forced, forced
from regard.decoding.phrases import Spelling, folded
from regard.decoding.sample import SampleConfig, sample_config
from regard.decoding.search import DIVERSITY, LENGTH_PENALTY, Hypothesis, SearchConfig
from regard.errors import ConfigError
from regard.pipelines.base import (
    BATCH_TOKENS,
    Encoded,
    InputError,
    Pipeline,
    as_inputs,
    check_characters,
    check_text,
    check_tokens,
    decoder_maps,
    length_groups,
)
from regard.pipelines.demands import Demands, check_glossary, is_same, spelling_of
from regard.pipelines.generation import Generation, Scored
from regard.pipelines.stream import Streamed, whole_words
from regard.pipelines.text_search import TextSearch
from regard.text.normalize import clean, sentence_case
from regard.training.objective import token_nll

FURTHER = 1_000_003  # between the indices of two sentences of a text, for their draws
ONE_LINE = {ord("\n"): " ", ord("\r"): " "}
UNENFORCED = "force and glossary need a search: leave out sample"
COUNTS = ("mbr", "n_best", "groups")  # settings that are whole numbers, and are computed with before a search begins
DRAW = 1_000_000_007  # between the indices of two draws of a sentence
SETTINGS = (
    "beam",
    "length_penalty",
    "n_best",
    "groups",
    "diversity",
    "record",
    "batch_tokens",
    "prefix",
    "force",
    "forbid",
    "glossary",
    "split",
    "protect",
    "sample",
    "mbr",
)  # of a translation


class DecodingConfig(BaseModel):
    """Default settings of the search."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    beam: int = Field(4, gt=0, le=100)
    """Hypotheses kept per sentence; 1 is greedy."""
    length_penalty: float = LENGTH_PENALTY
    """α of the length penalty (Wu et al. 2016, equation 14)."""
    length_ratio: float = Field(2.0, gt=0, le=100)
    """An output has at most length_ratio · source tokens + length_extra tokens."""
    length_extra: int = Field(10, ge=0, le=10_000)
    """Tokens that an output may have beyond length_ratio · source tokens."""
    longest_source: int = Field(300, gt=0, le=100_000)
    """A source with more tokens is refused."""
    sentence_case: bool = False
    """Read a source of several words in capitals as if only its first letter were one."""
    diacritics: bool = False
    """Read a source without diacritics as if it had those of its words; which these are is learned from the training
    data."""


class PairError(InputError):
    """A pair that cannot be scored.

    Attributes:
        number: of the pair, from 1.
        side: "source" or "target".
        reason: what is wrong with it.
    """

    def __init__(self, number: int, side: str, reason: str) -> None:
        super().__init__(number, side, reason)
        self.number, self.side, self.reason = number, side, reason

    def __str__(self) -> str:
        return f"score: pair {self.number}: the {self.side} {self.reason}"


@contextmanager
def _side(number: int, side: str) -> Iterator[None]:
    """What is refused within is a side of a pair.

    Raises:
        PairError: it is refused.
    """
    try:
        yield
    except InputError as error:
        raise PairError(number, side, f"cannot be scored: {error}") from error


class Translator(Pipeline[str, Generation]):
    """A translator ready to use: one text or a list of them in, a `Generation` or a list out."""

    task = "translate"
    draws = True
    protects = True  # takes protect
    follows = True  # its search can be followed step by step
    result: type[Generation] = Generation
    measure = staticmethod(token_nll)  # of a batch, for its loss

    def __init__(self, bundle: Bundle, name: str) -> None:
        super().__init__(bundle, name)
        self.decoding = DecodingConfig(**bundle.decoding)

    def prepare(self, source: str) -> Encoded:
        """The source and its ids without EOS; no ids for an empty text.

        Raises:
            InputError: it has more tokens than the model takes.
            ConfigError: the model's folder names no token that begins or ends an output.
        """
        if self.tokenizer.bos is None or self.tokenizer.eos is None:
            raise ConfigError(f"{self.name} names no decoder_start_token_id or no eos_token_id: it translates nothing")
        read = clean(source)
        if self.decoding.sentence_case:
            read = sentence_case(read, lambda word: len(self.tokenizer.encode(word)))
        if self.decoding.diacritics and self.bundle.diacritics is not None:
            read = self.bundle.diacritics.restore(read)
        return Encoded(source, self.encode(read), read)

    def encode(self, source: str) -> list[int]:
        """A cleaned source's ids without EOS; none for an empty text.

        Raises:
            InputError: it has more tokens than the model takes.
        """
        limit = self.decoding.longest_source
        check_characters(source, limit)
        ids = list(self.tokenizer.encode(source)) if source.strip() else []
        check_tokens(ids, limit)
        return ids

    def encode_target(self, target: str) -> list[int]:
        """A given output's ids without EOS.

        Raises:
            InputError: it is no text, or has more tokens than any output may have.
        """
        longest = self.limit(self.decoding.longest_source)
        check_characters(target, longest)
        ids = list(self.tokenizer.encode_target(target))
        check_tokens(ids, longest)
        return ids

    def many(
        self, sources: Iterable[str], *, split: bool = True, protect: bool = False, **settings: Any
    ) -> list[Generation]:
        """The translations of many texts; further settings as in `run`.

        Args:
            sources: the texts.
            split: a text of several sentences is translated sentence by sentence (`regard.pipelines.sentences`), but
                as one where its output has a prefix or forced phrases.
            protect: numbers, addresses, placeholders and markup survive (`regard.pipelines.protect`); with a search.

        Raises:
            InputError: the first text that cannot be worked on.
        """
        found = self.each(as_inputs(sources), split=split, protect=protect, **settings)
        for one in found:
            if isinstance(one, InputError):
                raise one
        return found  # type: ignore[return-value]

    def each(
        self, sources: Iterable[str], *, split: bool = True, protect: bool = False, **settings: Any
    ) -> list[Generation | InputError]:
        """The translation of every text, in their order; where one cannot be worked on, the error that says why.

        Args:
            sources: the texts.
            split, protect: as `many` takes them.
            settings: as `run` takes them.

        Raises:
            InputError: an input that is no text at all.
        """
        from regard.pipelines.sentences import cut, join

        check_settings({"split": split, "protect": protect, **settings})
        sources = as_inputs(sources)
        for text in sources:
            check_text(text)
        if protect:
            return self._protected(sources, split, settings)
        split = split and not (settings.get("prefix") or settings.get("force"))
        pieces = [(cut(text, self.bundle.languages[0]) if split else []) or [text] for text in sources]
        pieces = [some if len(some) > 1 else [text] for some, text in zip(pieces, sources, strict=True)]
        first, given = settings.pop("first_index", 0), settings.pop("indices", None)
        _check_counts(first_index=first)
        numbers = range(first, first + len(pieces)) if given is None else given
        if len(numbers) != len(pieces):
            raise ConfigError(f"indices: expected one for each of the {len(pieces)} texts; got {len(numbers)}")
        indices = [number + n * FURTHER for number, some in zip(numbers, pieces, strict=True) for n in range(len(some))]
        flat = [one for some in pieces for one in some]
        made = iter(super().each(flat, indices=indices, **settings))
        found: list[Generation | InputError] = []
        for text, some in zip(sources, pieces, strict=True):
            parts = [next(made) for _ in some]
            wrong = next((part for part in parts if isinstance(part, InputError)), None)
            good = [part for part in parts if not isinstance(part, InputError)]
            whole = good[0] if len(good) == 1 else None
            found.append(wrong or whole or join(text, good, settings.get("n_best", 1)))
        return found

    def _protected(
        self, sources: Sequence[str], split: bool, settings: dict[str, Any]
    ) -> list[Generation | InputError]:
        """`each` of texts whose protected parts survive.

        Raises:
            ConfigError: draws, which have no goal.
        """
        from regard.pipelines.protect import has_markup, translate_protected

        if settings.get("sample"):
            raise ConfigError("protect needs a search: leave out sample")
        check_glossary(settings.get("glossary"))
        if settings.get("groups", 1) != 1:
            raise ConfigError("a diverse beam search cannot enforce phrases: leave out groups, or protect")
        record = settings.get("record", True) or any(map(has_markup, sources))
        own = {**settings, "record": record, "split": split}

        def translate(texts: list[str], terms: Mapping[str, str]) -> list[Generation | InputError]:
            return self.each(texts, **{**own, "glossary": {**(settings.get("glossary") or {}), **terms}})

        own_words = set(re.findall(r"\w+", folded(" ".join(_texts_of(settings)))))

        def spells(word: str) -> bool:
            if folded(word) in own_words:  # it stands for nothing else
                return False
            return any(is_same(one, spelling_of(self.tokenizer, one)[1]) for one in (word, word.lower()))

        return translate_protected(sources, translate, cache(spells))

    def run(
        self, prepared: Sequence[Encoded], *, beam: int | None = None, length_penalty: float | None = None,
        n_best: int = 1, record: bool = True, batch_tokens: int = BATCH_TOKENS, sample: bool = False,
        first_index: int = 0, indices: Sequence[int] | None = None, prefix: str = "", force: Sequence[str] = (),
        forbid: Sequence[str] = (), glossary: Mapping[str, str] | None = None, mbr: int = 1, groups: int = 1,
        diversity: float | None = None, **drawing: Any,
    ) -> list[Generation]:  # fmt: skip
        """Translate texts.

        Args:
            prepared: of `prepare`.
            beam: hypotheses kept; the model's own number by default. Where a text is searched again for a forced phrase
                at least 8, for terms of a glossary at least 4.
            length_penalty: α (Wu et al. 2016, equation 14); the model's own by default.
            n_best: outputs returned per text, at most the beam; all but the best as `alternatives`.
            record: keep the attention.
            batch_tokens: source tokens searched at a time, hypotheses counted.
            sample: draw the output's tokens instead of searching; the score is then the log-probability.
            first_index: index of the first text among all texts of a seed.
            indices: of every text among them; first_index and those that follow by default.
            prefix: what every output begins with; it ends at a word's end. `log_prob` counts its tokens.
            force: phrases that every output must contain, as whole words in whatever case.
            forbid: phrases that no output has, as whole words in whatever case.
            glossary: {a term of the source language: what stands for it in the output of a text that has the term}.
                It is written where the alignment's attention reads the term.
            mbr: outputs drawn for each text, of which the one nearest to the others is returned; its score is then
                their mean chrF. The next ones are `alternatives`, `n_best` - 1 at most. With sample.
            groups: of the beam's hypotheses, equally large, that are to differ (diverse beam search, Vijayakumar et al.
                2018); the beam is at least as large as n_best, and all outputs are ranked together. Not with force,
                glossary or protect.
            diversity: λ of the groups, in nats for each earlier group's hypothesis with the same token; 0.5 by default.
            drawing: settings of `SampleConfig`: temperature, top_k, top_p, min_p, typical_p, repetition, no_repeat,
                seed.

        Raises:
            ConfigError: a setting that is unknown, outside its range, or for searching only or drawing only.
        """
        check_whole("batch_tokens", batch_tokens)
        if batch_tokens < 1:
            raise ConfigError(f"batch_tokens must be at least 1; got {batch_tokens}")
        _check_counts(first_index=first_index, mbr=mbr, n_best=n_best, groups=groups)
        numbers = range(first_index, first_index + len(prepared)) if indices is None else indices
        if len(numbers) != len(prepared):
            raise ConfigError(f"indices: expected one for each of the {len(prepared)} texts; got {len(numbers)}")
        if mbr > 1 and sample and groups == 1 and diversity is None:
            if force or glossary:
                raise ConfigError(UNENFORCED)
            if n_best < 1:
                raise ConfigError(f"n_best must be at least 1; got {n_best}")
            if beam is not None or length_penalty is not None:
                raise ConfigError("mbr draws its outputs and searches for none: leave out beam and length_penalty")
            settings = {"record": record, "batch_tokens": batch_tokens, "prefix": prefix, "forbid": forbid, **drawing}
            return self._least_risk(prepared, numbers, mbr, n_best, settings)
        config, demands = self._asked(
            beam=beam, length_penalty=length_penalty, n_best=n_best, sample=sample, prefix=prefix, force=force,
            forbid=forbid, glossary=glossary, mbr=mbr, groups=groups, diversity=diversity, **drawing,
        )  # fmt: skip
        goals = demands.goals([one.read for one in prepared])
        filled = [i for i, one in enumerate(prepared) if one.ids]
        results = {i: self.result(text="", source=one.text, translator=self) for i, one in enumerate(prepared)}
        listening = has_search_listeners()
        search = TextSearch(
            self, [prepared[i].ids for i in filled], [numbers[i] for i in filled], [goals[i] for i in filled], demands,
            record or listening, n_best, batch_tokens,
        )  # fmt: skip
        with torch.inference_mode(), unwatched():
            for n, found in search.run(config):
                i = filled[n]
                results[i] = self._generation(prepared[i], found, search.record, n_best)
        for n, i in enumerate(filled) if listening else ():
            know_origin(search.encoder_maps[n], results[i].forward_pass, results[i].title)
            for returned in (results[i], *results[i].alternatives):
                announce(self.model, {**search.encoder_maps[n], **returned.attention})
        return [results[i] for i in range(len(prepared))]

    def _asked(
        self, *, beam: int | None = None, length_penalty: float | None = None, n_best: int = 1, sample: bool = False,
        prefix: str = "", force: Sequence[str] = (), forbid: Sequence[str] = (),
        glossary: Mapping[str, str] | None = None, mbr: int = 1, groups: int = 1, diversity: float | None = None,
        **drawing: Any,
    ) -> tuple[SearchConfig | SampleConfig, Demands]:  # fmt: skip
        """How to choose tokens, and what outputs are to have, from settings of `run`."""
        if sample and (groups != 1 or diversity is not None):
            raise ConfigError("groups and diversity are for a search: leave them out, or sample")
        if mbr < 1:
            raise ConfigError(f"mbr must be at least 1; got mbr = {mbr}")
        if mbr != 1:
            raise ConfigError(
                f"mbr = {mbr} chooses among sampled outputs: set sample=True (--sample), or leave out mbr"
            )
        config: SearchConfig | SampleConfig
        if sample:
            if beam is not None or length_penalty is not None or n_best != 1:
                raise ConfigError(
                    "sample draws one output a text: leave out beam, length_penalty and n_best, or set mbr"
                )
            if force or glossary:
                raise ConfigError(UNENFORCED)
            config = sample_config(drawing, SETTINGS)
        elif drawing:
            named = ", ".join(sorted(drawing))
            sample_config(drawing, SETTINGS)
            raise ConfigError(f"sampling settings ({named}) need sample=True (--sample): set it, or leave them out")
        else:
            beam = self.decoding.beam if beam is None else beam
            penalty = self.decoding.length_penalty if length_penalty is None else length_penalty
            if groups == 1 and diversity is not None:
                raise ConfigError(
                    f"diversity = {diversity} is a penalty between groups of the beam: give groups too, 2 or more"
                )
            if groups != 1 and (force or glossary):
                raise ConfigError(
                    "a diverse beam search cannot enforce phrases: leave out groups, or force, glossary and protect"
                )
            strength = DIVERSITY if diversity is None else float(diversity)
            config = SearchConfig(beam, penalty, n_best if n_best == 1 else max(n_best, beam), groups, strength)
        longest = self.limit(self.decoding.longest_source)
        demands = Demands(self.tokenizer, lambda: self.spelling, prefix, force, forbid, glossary or {}, longest)
        return config, demands

    def stream(
        self, source: str, *, split: bool = True, protect: bool = False, first_index: int = 0, **settings: Any
    ) -> Streamed[Generation]:
        """The translation of one text in pieces; joined they are its text, and `.result` is its `Generation`.

        A word comes when it is final: when all hypotheses that may still become the output have it. Where outputs
        must have phrases (force, glossary, protect), where the best of several draws is taken (mbr), with another
        engine or while the model is observed, a piece is a whole sentence.

        Args:
            source: the text.
            split, protect: as `many` takes them; with protect the text is one piece.
            first_index: index of the text among all texts of a seed.
            settings: as `run` takes them.

        Raises:
            InputError: it is no text; or a text that cannot be worked on, when it is read.
            ConfigError: as in `run`.
        """
        check_settings({"split": split, "protect": protect, **settings})
        check_text(source)
        _check_counts(first_index=first_index, **{name: settings[name] for name in COUNTS if name in settings})
        return Streamed(self._pieces(source, split, protect, first_index, settings))

    def _pieces(
        self, source: str, split: bool, protect: bool, index: int, settings: dict[str, Any]
    ) -> Generator[str, None, Generation]:
        from regard.pipelines.sentences import between, cut, join, wider

        cuts = split and not protect and not (settings.get("prefix") or settings.get("force"))
        sentences = cut(source, self.bundle.languages[0]) if cuts else []
        if len(sentences) < 2:
            sentences = [source]
        parts: list[Generation] = []
        written = lead = ""
        for n, (sentence, gap) in enumerate(zip(sentences, ["", *between(source, sentences)], strict=True)):
            own, shown, lead = index + n * FURTHER, "", wider(gap, lead)
            before = lead if written else ""
            steps = self._followed(sentence, own, settings) if not protect else None
            while steps is not None:
                try:
                    tokens = next(steps)
                except StopIteration as end:
                    parts.append(end.value)
                    break
                sure = whole_words(str(self.tokenizer.decode(tokens)).strip())
                if len(sure) > len(shown):
                    yield (before if not shown else "") + sure[len(shown) :]
                    shown = sure
            else:
                parts += self.many([sentence], split=split and protect, protect=protect, indices=[own], **settings)
            text = parts[-1].text
            if len(text) > len(shown):
                yield (before if not shown else "") + text[len(shown) :]
            if text:
                written, lead = text, ""
        return parts[0] if len(parts) == 1 else join(source, parts, settings.get("n_best", 1))

    def _followed(
        self, sentence: str, index: int, settings: dict[str, Any]
    ) -> Generator[list[int], None, Generation] | None:
        """The search of a sentence, followed step by step; None where its output is known only when all is done."""
        given, own = self.prepare(sentence), dict(settings)
        record, n_best = own.pop("record", True), own.get("n_best", 1)
        batch_tokens = own.pop("batch_tokens", BATCH_TOKENS)
        if not self.follows or own.get("mbr", 1) != 1 or not given.ids or has_search_listeners():
            return None
        config, demands = self._asked(**own)
        if demands.goals([given.read]) != [None]:
            return None
        search = TextSearch(self, [given.ids], [index], [None], demands, record, n_best, batch_tokens)

        def steps() -> Generator[list[int], None, Generation]:
            found = yield from search.follow(config)
            return self._generation(given, found, record, n_best)

        return steps()

    def score(
        self, sources: Sequence[str], targets: Sequence[str | Generation], batch_tokens: int = BATCH_TOKENS
    ) -> list[Scored]:
        """The log-probabilities of given targets, EOS counted; of a `Generation` they add up to its `log_prob`.

        Args:
            sources: the texts.
            targets: a text or a `Generation` for each; one of another source, or of a model with other tokens, counts
                as its text.
            batch_tokens: source tokens worked on at a time.

        Raises:
            PairError: a source or target that is empty or no text; a source with more tokens than the model takes; a
                target with more than any output may have.
            ConfigError: not as many targets as sources.
        """
        for name, given in (("sources", sources), ("targets", targets)):
            if isinstance(given, str | bytes) or not isinstance(given, Sequence):
                raise ConfigError(f"score: expected a list of {name}; got a {type(given).__name__}")
        check_whole("batch_tokens", batch_tokens)
        if len(sources) != len(targets):
            raise ConfigError(
                f"score: {len(sources)} sources and {len(targets)} targets: every source needs one target"
            )
        pairs: list[list[tuple[str, str | Generation]]] = [
            [(one.source, one) for one in target.searched]
            if isinstance(target, Generation) and self._has_made(target, source)
            else [(source, target.text if isinstance(target, Generation) else target)]
            for source, target in zip(sources, targets, strict=True)
        ]
        numbered = [(number, *pair) for number, some in enumerate(pairs, 1) for pair in some]
        made = iter(self._score(numbered, batch_tokens))
        found = []
        for own in pairs:
            some = [next(made) for _ in own]
            log_probs = [number for one in some for number in one.token_log_probs]
            found.append(Scored(sum(log_probs), log_probs, [token for one in some for token in one.tokens]))
        return found

    def _has_made(self, target: Generation, source: str) -> bool:
        """Whether a result's tokens are those of this model's output for a source."""
        own = [self.tokenizer.tokens(one.ids) == list(one.tokens) for one in target.searched]
        return isinstance(source, str) and target.source == source and all(own)

    def _score(self, pairs: Sequence[tuple[int, str, str | Generation]], batch_tokens: int) -> list[Scored]:
        """The log-probabilities of targets, each with the number of its pair and its source."""
        tokenizer = self.tokenizer
        rows, outputs = [], []
        for number, source, target in pairs:
            with _side(number, "source"):
                check_text(source)
                rows.append(list(self.prepare(source).ids))
            if isinstance(target, Generation):
                outputs.append(list(target.ids))
            else:
                with _side(number, "target"):
                    check_text(target)
                    outputs.append([*self.encode_target(clean(target)), tokenizer.eos])
            if not rows[-1]:
                raise PairError(number, "source", "is empty")
            if not (target.ids if isinstance(target, Generation) else clean(target).strip()):
                raise PairError(number, "target", "is empty")
        made: dict[int, Scored] = {}
        for group in length_groups([max(len(s) + 1, len(t)) for s, t in zip(rows, outputs, strict=True)], batch_tokens):
            found = self.forced([[*rows[i], tokenizer.eos] for i in group], [outputs[i] for i in group])
            for i, one in zip(group, found, strict=True):
                made[i] = Scored(sum(one.log_probs), one.log_probs, tokenizer.tokens(outputs[i]))
        return [made[i] for i in range(len(rows))]

    def forced(self, sources: Sequence[list[int]], outputs: Sequence[list[int]]) -> list[Forced]:
        """The log-probabilities of given outputs under the search's own step and rules.

        Args:
            sources: ids with EOS.
            outputs: ids without BOS.
        """
        encoder, stepper = self.searched()
        device, filler = self.device, self.tokenizer.pad
        rows = list(sources)
        with torch.inference_mode(), unwatched():
            memory = encoder.encode(pad(rows, filler).to(device), lengths_mask(rows).to(device))
            before = [[self.tokenizer.bos]] * len(rows)
            # an output that is longer than its source allows had room for phrases: it was not cut where others are
            limits = [self.limit(len(row)) for row in rows]
            limits = [n if len(own) <= n else len(own) + 1 for n, own in zip(limits, outputs, strict=True)]
            rules = self.rule_constraints(before, limits)
            return forced(stepper, stepper.start(memory), before, outputs, rules)

    def read_words(self, generations: Sequence[Generation], batch_tokens: int = BATCH_TOKENS) -> None:
        """Compute the words of many outputs together, where each would compute its own when it is asked for them.

        Args:
            generations: of this translator; those that a search found are read.
            batch_tokens: source tokens worked on at a time.
        """
        parts = [part for one in generations for part in one.searched]
        unread = [part for part in parts if part.ids and "words" not in vars(part)]
        for group in length_groups([max(len(one.source_ids), len(one.ids)) for one in unread], batch_tokens):
            some = [unread[i] for i in group]
            found = self.forced([one.source_ids for one in some], [one.ids for one in some])
            for one, numbers in zip(some, found, strict=True):
                vars(one)["words"] = one.words_of(numbers)  # where cached_property keeps it

    def forward_pass(self, source: str) -> ForwardPass:
        """The pass over a text and its own translation: logits `[1, T, V]`, one position for each of its tokens.

        Raises:
            InputError: an empty text, or one with more tokens than the model takes.
        """
        (made,) = self.many([source], record=False, split=False)
        if not made.ids:
            raise InputError("an empty text has no translation to look into")
        return made.forward_pass()

    def limit(self, source_tokens: int) -> int:
        """The most tokens of an output; it depends on this source alone."""
        return int(self.decoding.length_ratio * source_tokens) + self.decoding.length_extra

    def _least_risk(
        self, prepared: Sequence[Encoded], numbers: Sequence[int], draws: int, n_best: int, settings: dict[str, Any]
    ) -> list[Generation]:
        """Of several draws for each text the one with the least expected risk."""
        from regard.decoding.risk import utilities

        many = [one for one in prepared for _ in range(draws)]
        indices = [number + k * DRAW for number in numbers for k in range(draws)]
        drawn = self.run(many, sample=True, indices=indices, **settings)
        found = []
        for first in range(0, len(drawn), draws):
            some = drawn[first : first + draws]
            scores = utilities([one.text for one in some])
            ranked = sorted({one.text: (score, one) for score, one in zip(scores, some, strict=True)}.values(),
                            key=lambda pair: -pair[0])  # fmt: skip
            best, *others = [replace(one, score=score) for score, one in ranked[:n_best]]
            best.alternatives.extend(others)
            found.append(best)
        return found

    @cached_property
    def spelling(self) -> Spelling:
        """What the tokens add to a text, computed once."""
        return Spelling(self.tokenizer.decode, len(self.tokenizer), self.ends())

    def _generation(self, source: Encoded, found: list[Hypothesis], recorded: bool, most: int) -> Generation:
        """The best output, and up to `most` - 1 others whose texts differ from it and from each other."""
        if not found:  # nothing that is allowed has any probability
            self.check_finite()
            return self.result(
                text="", source=source.text, score=-inf, log_prob=-inf, recorded=recorded, translator=self
            )
        best = self._one(source, found[0], recorded)
        seen = {best.text}
        for one in found[1:]:
            text = self.text_of(one)
            if text not in seen and len(seen) < most:
                seen.add(text)
                best.alternatives.append(self._one(source, one, recorded))
        return best

    def text_of(self, found: Hypothesis) -> str:
        """The text of an output, on one line as its source was read."""
        return str(self.tokenizer.decode(found.tokens)).translate(ONE_LINE).strip()

    def _one(self, source: Encoded, found: Hypothesis, recorded: bool) -> Generation:
        tokenizer = self.tokenizer
        ids = [*source.ids, tokenizer.eos]
        source_tokens, tokens = tokenizer.tokens(ids), tokenizer.tokens(found.tokens)
        maps = decoder_maps(self.model, found, tokenizer, source_tokens) if recorded else {}
        return self.result(
            text=self.text_of(found), source=source.text, tokens=tokens, ids=found.tokens,
            score=found.score, log_prob=found.log_prob, source_tokens=source_tokens, source_ids=ids, read=source.read,
            attention=maps, recorded=recorded, translator=self,
        )  # fmt: skip


def _check_counts(**counts: object) -> None:
    """Refuse settings that are no whole numbers before anything is computed with them."""
    for name, value in counts.items():
        check_whole(name, value)


def _texts_of(settings: Mapping[str, Any]) -> Iterator[str]:
    """The texts that outputs are to have, to begin with or not to have, and the terms of a glossary."""
    yield str(settings.get("prefix") or "")
    for name in ("force", "forbid"):
        yield from map(str, settings.get(name) or ())
    for term, meant in (settings.get("glossary") or {}).items():
        yield from (str(term), str(meant))
