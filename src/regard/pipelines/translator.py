"""Translation: from a text to a `Generation`."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from regard.attention.maps.map import AttentionMap
from regard.attention.watch import Call, announce, calls_by_site, has_search_listeners, unwatched, watching
from regard.bundle import Bundle
from regard.data.batching import lengths_mask, pad
from regard.decoding.constraints import Constraint, ForcedPrefix
from regard.decoding.forced import Forced, forced
from regard.decoding.generate import generate
from regard.decoding.sample import SampleConfig, sample_config
from regard.decoding.search import LENGTH_PENALTY, Hypothesis, SearchConfig
from regard.errors import ConfigError
from regard.pipelines.base import BATCH_TOKENS, Encoded, InputError, Pipeline, decoder_maps, length_groups
from regard.pipelines.result import Result, name_heads, reading_site
from regard.text.normalize import clean
from regard.text.protocol import Span
from regard.text.tokenizer import word_of_each
from regard.text.tokenizer import words as word_spans

FURTHER = 1_000_003  # between the indices of two sentences of a text, for their draws
SETTINGS = (
    "beam",
    "length_penalty",
    "n_best",
    "record",
    "batch_tokens",
    "prefix",
    "split",
    "sample",
)  # of a translation


class DecodingConfig(BaseModel):
    """Default settings of the search."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    beam: int = Field(4, gt=0, le=100)
    """Hypotheses kept per sentence; 1 is greedy."""
    length_penalty: float = LENGTH_PENALTY
    """α of the length penalty (Wu et al. 2016, equation 14)."""
    length_ratio: float = Field(2.0, gt=0)
    """An output has at most length_ratio · source tokens + length_extra tokens."""
    length_extra: int = Field(10, ge=0)
    """See length_ratio."""
    longest_source: int = Field(300, gt=0)
    """A source with more tokens is refused."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """Word alignment: the attention of output words to source words.

    Sub-words are joined (sum over the source pieces, mean over the output pieces), the row and column
    of EOS are dropped, and rows are divided by their sum.

    Attributes:
        matrix: `[output words, source words]`.
        source, target: the words, as `str.split()` gives them.
        site, heads: the attention that is read, averaged over these heads.
    """

    matrix: torch.Tensor
    source: list[str]
    target: list[str]
    site: str
    heads: list[int]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(output word, source word), 0-based: every output word with the source word of its greatest weight."""
        if not self.matrix.numel():
            return []
        return [(i, int(row.argmax())) for i, row in enumerate(self.matrix) if float(row.sum()) > 0]

    def plot(self, path: str | Path) -> None:
        """Draw the heatmap; the ending of `path` (.png, .svg, .pdf) gives the format.

        Raises:
            ConfigError: the model does not attend to its source: there is nothing to draw.
        """
        from regard.figures.heatmap import save_heatmap

        if self.target and not self.site:
            raise ConfigError("the model does not attend to its source: there is no alignment to show")

        save_heatmap(
            self.matrix.tolist(), self.target, self.source, path, title=f"{self.site}, {name_heads(self.heads)}"
        )

    def as_json(self) -> dict[str, Any]:
        """The alignment as plain data."""
        return {
            "source": self.source,
            "target": self.target,
            "pairs": self.pairs,
            "matrix": [[round(float(x), 6) for x in row] for row in self.matrix],
            "site": self.site,
            "heads": self.heads,
        }


@dataclass(frozen=True)
class Word:
    """A word of an output, as `str.split()` gives it.

    Attributes:
        text: the word.
        log_prob: the sum of its tokens' log-probabilities, in nats; white space belongs to the word that follows.
        entropy: the mean of the entropies of the distributions that its tokens were taken from, in nats.
        span: its first character in the output, and the one behind its last.
    """

    text: str
    log_prob: float
    entropy: float
    span: Span


@dataclass(frozen=True)
class Scored:
    """A target under a model, given its source.

    Attributes:
        log_prob: the sum over its tokens, in nats.
        token_log_probs: of each token, EOS counted.
        tokens: the tokens, EOS last.
    """

    log_prob: float
    token_log_probs: list[float]
    tokens: list[str]


@dataclass(frozen=True, eq=False, kw_only=True)
class Generation(Result):
    """The translation of one source.

    Attributes:
        source_tokens: the input's tokens, with EOS.
        source_ids: their ids.
        read: the source as the tokenizer was given it: uniform white space, no invisible characters.
        recorded: whether the attention was kept.
        translator: the pipeline it came from.
    """

    source_tokens: list[str] = field(default_factory=list, repr=False)
    source_ids: list[int] = field(default_factory=list, repr=False)
    read: str = field(default="", repr=False)
    recorded: bool = field(default=True, repr=False)
    translator: "Translator" = field(repr=False)

    @cached_property
    def alignment(self) -> Alignment:
        """Word alignment, read from the site and heads chosen when the model was trained (`reading_site`).

        Its matrix is zero, and there are no pairs, where the model does not attend to its source.

        Raises:
            ConfigError: the attention was not kept.
        """
        source, target = self.read.split(), self.text.split()
        site, heads = reading_site(self.translator.bundle.alignment, self.attention)
        if not self.recorded and self.ids:
            raise ConfigError("the attention of this translation was not kept: translate with record=True")
        if not site:
            return Alignment(torch.zeros(len(target), len(source)), source, target, site, heads)
        from regard.analysis.alignment import join_words

        weights = self.attention[site].full(force=True)[heads].mean(0).cpu()
        tokenizer = self.translator.tokenizer
        matrix = join_words(
            weights, tokenizer.target_spans(self.ids), self.text, tokenizer.source_spans(self.read), self.read
        )
        return Alignment(matrix, source, target, site, heads)

    @cached_property
    def words(self) -> list[Word]:
        """The output's words with their log-probabilities and entropies, computed when they are asked for."""
        (found,) = self.translator.forced([self.source_ids], [self.ids]) if self.ids else [Forced([], [])]
        return self.words_of(found)

    def words_of(self, found: Forced) -> list[Word]:
        """The output's words, from what the model gives its tokens."""
        spans, owners = word_spans(self.text), word_of_each(self.translator.tokenizer.target_spans(self.ids), self.text)
        made: list[Word] = []
        following: int | None = len(spans) - 1
        for place in reversed(range(len(owners) - (self.ids[-1:] == [self.translator.tokenizer.eos]))):
            following = owners[place] = following if owners[place] is None else owners[place]
        for number, (first, end) in enumerate(spans):
            own = [place for place, owner in enumerate(owners) if owner == number]
            log_prob = sum(found.log_probs[place] for place in own)
            entropy = sum(found.entropies[place] for place in own) / max(1, len(own))
            made.append(Word(self.text[first:end], log_prob, entropy, (first, end)))
        return made

    @cached_property
    def trace(self) -> Any:
        """The decoding worked through, step by step (`regard.analysis.trace.Trace`)."""
        from regard.analysis.trace import trace

        site, heads = reading_site(self.translator.bundle.alignment, self.attention)
        return trace(self.translator.bundle, self.source, self.source_ids, self.ids, site, heads)

    def details(self) -> dict[str, Any]:
        """The source's tokens and the word alignment; null where the attention was not kept."""
        alignment = self.alignment.as_json() if self.recorded or not self.ids else None
        return {"source_tokens": self.source_tokens, "alignment": alignment}


class Translator(Pipeline[str, Generation]):
    """A translator ready to use: one text or a list of them in, a `Generation` or a list out."""

    task = "translate"
    draws = True

    def __init__(self, bundle: Bundle, name: str) -> None:
        super().__init__(bundle, name)
        self.decoding = DecodingConfig(**bundle.decoding)

    def prepare(self, source: str) -> Encoded:
        """The source and its ids without EOS; no ids for an empty text.

        Raises:
            InputError: it has more tokens than the model takes.
        """
        read = clean(source)
        return Encoded(source, self.encode(read), read)

    def encode(self, source: str) -> list[int]:
        """A cleaned source's ids without EOS; none for an empty text.

        Raises:
            InputError: it has more tokens than the model takes.
        """
        limit = self.decoding.longest_source
        if len(source) > 50 * limit:
            raise InputError(
                f"a text of {len(source):,} characters is too long: this model takes {limit:,} tokens; "
                "cut it into sentences"
            )
        ids = list(self.tokenizer.encode(source)) if source.strip() else []
        if len(ids) > limit:
            raise InputError(
                f"a text of {len(ids):,} tokens is too long: this model takes {limit:,}; cut it into sentences"
            )
        return ids

    def many(self, sources: Sequence[str], *, split: bool = True, **settings: Any) -> list[Generation]:
        """The translations of many texts; further settings as in `run`.

        Args:
            sources: the texts.
            split: a text of several sentences is translated sentence by sentence (`regard.pipelines.sentences`).

        Raises:
            InputError: the first text that cannot be worked on.
        """
        found = self.each(sources, split=split, **settings)
        for one in found:
            if isinstance(one, InputError):
                raise one
        return found  # type: ignore[return-value]

    def each(self, sources: Sequence[str], *, split: bool = True, **settings: Any) -> list[Generation | InputError]:
        """The translation of every text, in their order; where one cannot be worked on, the error that says why.

        Args:
            sources: the texts.
            split: as `many` takes it.
            settings: as `run` takes them.
        """
        from regard.pipelines.sentences import cut, join

        pieces = [(cut(text, self.bundle.languages[0]) if split else []) or [text] for text in sources]
        pieces = [some if len(some) > 1 else [text] for some, text in zip(pieces, sources, strict=True)]
        first, given = settings.pop("first_index", 0), settings.pop("indices", None)
        places = range(first, first + len(pieces)) if given is None else given
        indices = [place + n * FURTHER for place, some in zip(places, pieces, strict=True) for n in range(len(some))]
        made = iter(super().each([one for some in pieces for one in some], indices=indices, **settings))
        found: list[Generation | InputError] = []
        for text, some in zip(sources, pieces, strict=True):
            parts = [next(made) for _ in some]
            wrong = next((part for part in parts if isinstance(part, InputError)), None)
            good = [part for part in parts if not isinstance(part, InputError)]
            whole = good[0] if len(good) == 1 else None
            found.append(wrong or whole or join(text, good, settings.get("n_best", 1)))
        return found

    def run(
        self, prepared: Sequence[Encoded], *, beam: int | None = None, length_penalty: float | None = None,
        n_best: int = 1, record: bool = True, batch_tokens: int = BATCH_TOKENS, sample: bool = False,
        first_index: int = 0, indices: Sequence[int] | None = None, prefix: str = "", **drawing: Any,
    ) -> list[Generation]:  # fmt: skip
        """Translate texts.

        Args:
            prepared: of `prepare`.
            beam: hypotheses kept; the model's own number by default.
            length_penalty: α (Wu et al. 2016, equation 14); the model's own by default.
            n_best: outputs returned per text, at most the beam; all but the best as `alternatives`.
            record: keep the attention.
            batch_tokens: source tokens searched at a time, hypotheses counted.
            sample: draw the output's tokens instead of searching; the score is then the log-probability.
            first_index: index of the first text among all texts of a seed.
            indices: of every text among them; first_index and those that follow by default.
            prefix: what every output begins with; it ends at a word's end. `log_prob` counts its tokens.
            drawing: settings of `SampleConfig`: temperature, top_k, top_p, min_p, repetition, no_repeat, seed.

        Raises:
            ConfigError: a setting that is unknown, outside its range, or for searching only or drawing only.
        """
        if batch_tokens < 1:
            raise ConfigError(f"batch_tokens must be at least 1; got {batch_tokens}")
        places = range(first_index, first_index + len(prepared)) if indices is None else indices
        config: SearchConfig | SampleConfig
        if sample:
            if beam is not None or length_penalty is not None or n_best != 1:
                raise ConfigError("sample draws one output a text: leave out beam, length_penalty and n_best")
            beam, config = 1, sample_config(drawing, SETTINGS)
        elif drawing:
            named = ", ".join(sorted(drawing))
            sample_config(drawing, SETTINGS)
            raise ConfigError(f"a beam search draws nothing: leave out {named}, or set sample=True")
        else:
            beam = self.decoding.beam if beam is None else beam
            penalty = self.decoding.length_penalty if length_penalty is None else length_penalty
            config = SearchConfig(beam, penalty, n_best if n_best == 1 else max(n_best, beam))
        begun = self._prefix(prefix)
        filled = [i for i, one in enumerate(prepared) if one.ids]
        results = {i: Generation(text="", source=one.text, translator=self) for i, one in enumerate(prepared)}
        listening = has_search_listeners()
        encoder_maps: dict[int, dict[str, AttentionMap]] = {}
        with torch.inference_mode(), unwatched():
            for group in length_groups([len(prepared[i].ids) + 1 for i in filled], batch_tokens // beam):
                some = [prepared[filled[k]] for k in group]
                own = [places[filled[k]] for k in group]
                calls, found = self._search([one.ids for one in some], config, record or listening, own, begun)
                for row, (k, hypotheses) in enumerate(zip(group, found, strict=True)):
                    results[filled[k]] = self._generation(some[row], hypotheses, record or listening, n_best)
                    encoder_maps[filled[k]] = self._encoder_maps(calls, row, some[row].ids)
        for i in filled if listening else ():
            for returned in (results[i], *results[i].alternatives):
                announce(self.model, {**encoder_maps[i], **returned.attention})
        return [results[i] for i in range(len(prepared))]

    def score(
        self, sources: Sequence[str], targets: Sequence[str | Generation], batch_tokens: int = BATCH_TOKENS
    ) -> list[Scored]:
        """The log-probabilities of given targets, EOS counted; of a `Generation` they add up to its `log_prob`.

        Args:
            sources: the texts.
            targets: a text or a `Generation` for each.
            batch_tokens: source tokens worked on at a time.

        Raises:
            InputError: a source or target that is empty, or a source with more tokens than the model takes.
            ConfigError: not as many targets as sources.
        """
        if len(sources) != len(targets):
            raise ConfigError(
                f"score: {len(sources)} sources and {len(targets)} targets: every source needs one target"
            )
        parts = [list(getattr(target, "parts", [])) for target in targets]  # of a text of several sentences
        flat = [
            pair
            for source, target, own in zip(sources, targets, parts, strict=True)
            for pair in ([(part.source, part) for part in own] or [(source, target)])
        ]
        made = iter(self._score(flat, batch_tokens))
        found = []
        for own in parts:
            some = [next(made) for _ in own or [None]]
            log_probs = [number for one in some for number in one.token_log_probs]
            found.append(Scored(sum(log_probs), log_probs, [token for one in some for token in one.tokens]))
        return found

    def _score(self, pairs: Sequence[tuple[str, str | Generation]], batch_tokens: int) -> list[Scored]:
        tokenizer = self.tokenizer
        rows = [self.prepare(source).ids for source, _ in pairs]
        outputs = [
            list(one.ids) if isinstance(one, Generation) else [*tokenizer.encode_target(clean(one)), tokenizer.eos]
            for _, one in pairs
        ]
        for number, (row, (_, target)) in enumerate(zip(rows, pairs, strict=True), 1):
            if not row or not (target.ids if isinstance(target, Generation) else target.strip()):
                raise InputError(f"score: pair {number}: the {'target' if row else 'source'} is empty")
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
            rules = self.rule_constraints(before, [self.limit(len(row)) for row in rows])
            return forced(stepper, stepper.start(memory), before, outputs, rules)

    def read_words(self, generations: Sequence[Generation], batch_tokens: int = BATCH_TOKENS) -> None:
        """Compute the words of many outputs together, where each would compute its own when it is asked for them.

        Args:
            generations: of this translator; of a text of several sentences its parts are read.
            batch_tokens: source tokens worked on at a time.
        """
        parts: list[Generation] = [part for one in generations for part in getattr(one, "parts", None) or [one]]
        unread = [part for part in parts if part.ids and "words" not in vars(part)]
        for group in length_groups([max(len(one.source_ids), len(one.ids)) for one in unread], batch_tokens):
            some = [unread[i] for i in group]
            found = self.forced([one.source_ids for one in some], [one.ids for one in some])
            for one, numbers in zip(some, found, strict=True):
                vars(one)["words"] = one.words_of(numbers)  # where cached_property keeps it

    def limit(self, source_tokens: int) -> int:
        """The most tokens of an output; it depends on this source alone."""
        return int(self.decoding.length_ratio * source_tokens) + self.decoding.length_extra

    def _search(
        self,
        sources: list[list[int]],
        config: SearchConfig | SampleConfig,
        record: bool,
        indices: list[int],
        begun: list[Constraint],
    ) -> tuple[Mapping[str, list[Call]], list[list[Hypothesis]]]:
        """The encoder's calls by site, recorded while the model is observed, and the hypotheses."""
        tokenizer = self.tokenizer
        rows = [[*ids, tokenizer.eos] for ids in sources]
        calls: list[Call] = []
        encoder, stepper = self.searched()
        with watching(calls.append) if has_search_listeners() else nullcontext():
            memory = encoder.encode(pad(rows, tokenizer.pad).to(self.device), lengths_mask(rows).to(self.device))
        state = stepper.start(memory, record=record)
        limits = [self.limit(len(row)) for row in rows]
        before = [[tokenizer.bos]] * len(rows)
        rules = self.rule_constraints(before, limits)
        found = generate(
            stepper, state, before, limits, config, self.ends(), constraints=[*rules, *begun], indices=indices
        )
        return calls_by_site(self.model, calls), found

    def _encoder_maps(self, calls: Mapping[str, list[Call]], row: int, ids: list[int]) -> dict[str, AttentionMap]:
        """The encoder's maps `[heads, S, S]` of one sentence of a padded batch."""
        tokens = self.tokenizer.tokens([*ids, self.tokenizer.eos])
        n = len(tokens)
        maps = {site: AttentionMap.from_spec(c.query, c.key, c.spec) for site, (c, *_) in calls.items()}
        return {site: whole.select(row).frozen().crop(n, 0, n, tokens, tokens) for site, whole in maps.items()}

    def _prefix(self, text: str) -> list[Constraint]:
        """The constraint that outputs begin with a text.

        Raises:
            ConfigError: the model's vocabulary cannot spell it.
        """
        tokens = self.tokenizer.encode_target(clean(text)) if text.strip() else []
        if not tokens:
            return []
        spelled = str(self.tokenizer.decode(tokens))
        if "".join(spelled.split()).lower() != "".join(text.split()).lower():
            raise ConfigError(
                f"prefix: this model's vocabulary spells {text!r} as {spelled!r}: choose other characters"
            )
        ends = spelled[-1:].isalnum()
        return [ForcedPrefix(tokens, self._continuing if ends else torch.zeros_like(self._continuing))]

    @cached_property
    def _continuing(self) -> torch.Tensor:
        """`[V]`, True at tokens that continue a word when they follow one, and at those that add nothing to a text."""
        decode, count, ends = self.tokenizer.decode, len(self.tokenizer), self.ends()
        probe = next((n for n in range(count) if str(decode([n]))[-1:].isalnum()), 0)
        before = len(str(decode([probe])))
        added = [str(decode([probe, token]))[before:] for token in range(count)]
        return torch.tensor([text[:1].isalnum() or not (text or n in ends) for n, text in enumerate(added)])

    def _generation(self, source: Encoded, found: list[Hypothesis], recorded: bool, most: int) -> Generation:
        """The best output, and up to `most` - 1 others whose texts differ from it and from each other."""
        best, *others = [self._one(source, one, recorded) for one in found]
        seen = {best.text}
        for one in others:
            if one.text not in seen and len(seen) < most:
                seen.add(one.text)
                best.alternatives.append(one)
        return best

    def _one(self, source: Encoded, found: Hypothesis, recorded: bool) -> Generation:
        tokenizer = self.tokenizer
        ids = [*source.ids, tokenizer.eos]
        source_tokens, tokens = tokenizer.tokens(ids), tokenizer.tokens(found.tokens)
        return Generation(
            text=str(tokenizer.decode(found.tokens)).strip(), source=source.text, tokens=tokens, ids=found.tokens,
            score=found.score, log_prob=found.log_prob, source_tokens=source_tokens, source_ids=ids, read=source.read,
            attention=decoder_maps(self.model, found, tokenizer, source_tokens), recorded=recorded, translator=self,
        )  # fmt: skip
