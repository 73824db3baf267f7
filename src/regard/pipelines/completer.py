"""Text completion: from a beginning to a `Completion`, by a decoder alone."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from regard.analysis.base import ForwardPass
from regard.analysis.vectors import Vectors, vectors
from regard.arguments import check_settings, check_texts, check_whole
from regard.attention.maps.map import AttentionMap
from regard.attention.watch import announce, has_search_listeners, unwatched
from regard.decoding.generate import generate, maps_of, stream
from regard.decoding.sample import SampleConfig, Stop, sample_config
from regard.decoding.search import Hypothesis, SearchConfig
from regard.errors import ConfigError
from regard.pipelines.base import (
    BATCH_TOKENS,
    LONGEST,
    Encoded,
    InputError,
    Pipeline,
    check_characters,
    check_tokens,
    length_groups,
)
from regard.pipelines.result import Result
from regard.pipelines.stream import Streamed
from regard.text.tokenizer import tokens_of_words, word_of_each

LENGTH = 200  # tokens of a completion by default
LONGEST_ADDED = 1_000_000  # tokens of one: more would take days
SETTINGS = ("length", "stop", "beam", "n_best", "record")  # beside those of drawing
STREAMED = ("length", "stop", "record")


@dataclass(frozen=True, eq=False, kw_only=True)
class Completion(Result):
    """The continuation of one beginning.

    Attributes:
        text: the added text.
        source: the beginning.
        score, log_prob: the sum of the tokens' log-probabilities under the model itself, in nats.
        source_tokens: the beginning's tokens.
        source_ids: their ids.
        completer: the pipeline it came from.
        attention: {site: map `[heads, T, P + T - 1]`}: row t is the query that predicts the t-th added token.
    """

    source_tokens: list[str] = field(default_factory=list, repr=False)
    source_ids: list[int] = field(default_factory=list, repr=False)
    completer: "Completer" = field(repr=False)

    def forward_pass(self) -> ForwardPass:
        """The pass over beginning and continuation: logits `[1, P + T - 1, V]` of the token after each."""
        if not self.ids:
            raise ConfigError("an empty completion has no forward pass to look into")
        return self.completer.pass_over([*self.source_ids, *self.ids[:-1]], self.ids)

    def word_tokens(self) -> list[tuple[str, list[int]]]:
        tokenizer, ids = self.completer.tokenizer, [*self.source_ids, *self.ids]
        text, spans = tokenizer.decode(ids), list(tokenizer.target_spans(ids))[len(self.source_ids) :]
        owned = tokens_of_words(word_of_each(spans, text)).values()
        return [(text[spans[own[0]][0] : spans[own[-1]][1]].strip(), own) for own in owned]


class Completer(Pipeline[str, Completion]):
    """A decoder alone: what `regard.load` returns for a GPT-2, a Llama, or a run with task = "complete".

    One beginning or a list of them in, a `Completion` or a list out.
    """

    task = "complete"
    draws = True

    def prepare(self, source: str) -> Encoded:
        """The beginning and its ids.

        Raises:
            InputError: as in `encode`.
        """
        return Encoded(source, self.encode(source))

    def run(
        self, prepared: Sequence[Encoded], *, length: int = LENGTH, stop: Sequence[str] = (), record: bool = True,
        beam: int | None = None, n_best: int = 1, batch_tokens: int = BATCH_TOKENS, first_index: int = 0,
        indices: Sequence[int] | None = None,
        **drawing: Any,
    ) -> list[Completion]:  # fmt: skip
        """Continue each beginning.

        Args:
            prepared: of `prepare`.
            length: tokens added at most.
            stop: strings that end the text and are left out of it.
            record: keep the attention.
            beam, n_best: beam search instead of sampling, and the outputs it returns.
            batch_tokens: tokens of beginnings continued at a time.
            first_index: index of the first beginning among all texts of a seed.
            indices: of every beginning among them; first_index and those that follow by default.
            drawing: settings of `SampleConfig`: temperature, top_k, top_p, min_p, typical_p, repetition,
                no_repeat, seed.

        Raises:
            ConfigError: a setting that is unknown or outside its range.
        """
        if beam is not None and drawing:
            raise ConfigError(f"a beam search does not sample: leave out {', '.join(drawing)}, or leave out beam")
        check_whole("batch_tokens", batch_tokens)
        if batch_tokens < 1:
            raise ConfigError(f"batch_tokens must be at least 1; got {batch_tokens}")
        places = range(first_index, first_index + len(prepared)) if indices is None else indices
        if len(places) != len(prepared):
            raise ConfigError(f"indices: expected one for each of the {len(prepared)} texts; got {len(places)}")
        if beam is None and n_best != 1:
            raise ConfigError(f"n_best = {n_best} needs a search: give beam too, or leave out n_best")
        none = beam is None or length == 0  # a search goes at least one step
        how = sample_config(drawing, SETTINGS) if none else SearchConfig(beam or 1, 0.0, n_best)
        limits = [self._limit(one.ids, length) for one in prepared]
        found: dict[int, list[Hypothesis]] = {}
        padding: dict[int, int] = {}
        recorded = record or has_search_listeners()
        with torch.inference_mode(), unwatched():
            for group in self._groups(prepared, batch_tokens):
                rows = [prepared[i].ids for i in group]
                longest, own = max(map(len, rows)), [limits[i] for i in group]
                outputs = generate(
                    self.model, self._read(rows, recorded), rows, own, how, self.ends(),
                    constraints=self.rule_constraints(rows, own), stop=self._stop(rows, stop),
                    indices=[places[i] for i in group],
                )  # fmt: skip
                found |= dict(zip(group, outputs, strict=True))
                padding |= {i: longest - len(prepared[i].ids) for i in group}
        results = [self._completion(one, found[i], padding[i], stop) for i, one in enumerate(prepared)]
        for made in results if has_search_listeners() else ():
            for returned in (made, *made.alternatives):
                announce(self.model, returned.attention)
        return results

    def stream(
        self, source: str, *, length: int = LENGTH, stop: Sequence[str] = (), record: bool = True, **drawing: Any
    ) -> Streamed[Completion]:
        """The added text in pieces, each as soon as it is final.

        Args:
            source: the beginning.
            length, stop, record, drawing: as in `run`; there is no search.

        Raises:
            InputError, ConfigError: as in `run`.
        """
        check_settings({"record": record, **drawing})
        check_texts("stop", stop)
        given, config = self.prepare(source), sample_config(drawing, STREAMED)
        return Streamed(self._pieces(given, self._limit(given.ids, length), stop, record, config))

    def _pieces(
        self, given: Encoded, limit: int, stop: Sequence[str], record: bool, config: SampleConfig
    ) -> Generator[str, None, Completion]:
        ids, shown, longest = given.ids, "", max(map(len, stop), default=0)
        record = record or has_search_listeners()
        steps = stream(
            self.model, self._read([ids], record), ids, limit, config, self.ends(), stop=self._stop([ids], stop),
            constraints=self.rule_constraints([ids], [limit]),
        )  # fmt: skip
        while True:
            try:
                added = next(steps)
            except StopIteration as end:
                made = self._completion(given, end.value, 0, stop)
                if has_search_listeners():
                    announce(self.model, made.attention)
                break
            text = _cut(self._added(ids, added), stop)
            # a character may be incomplete, and a stop string too
            sure = text[: max(len(shown), len(text) - longest)] if not text.endswith("\ufffd") else shown
            if len(sure) > len(shown):
                yield sure[len(shown) :]
                shown = sure
        if len(made.text) > len(shown):
            yield made.text[len(shown) :]
        return made

    def embed(self, text: str) -> Vectors:
        """Static and contextual vectors of a text's tokens, layer by layer."""
        ids = self.encode(text)
        spans = self.tokenizer.source_spans(text)
        return vectors(self.model, ids, [(0, 0)] * (len(ids) - len(spans)) + spans, text, self.tokenizer)

    def forward_pass(self, source: str) -> ForwardPass:
        """The pass over a text: logits `[1, T, V]` of the token after each of its tokens.

        Raises:
            InputError: it is empty and no token begins a text; or it is too long.
        """
        return self.pass_over(self.encode(source))

    def pass_over(self, ids: list[int], predicted: Sequence[int] = ()) -> ForwardPass:
        """The pass over token ids, the last of which were followed by those that were `predicted`."""
        tokenizer = self.tokenizer
        arguments = {"tokens": torch.tensor([ids], device=self.device)}
        spans = list(tokenizer.target_spans(ids))
        return ForwardPass(
            self.model, arguments, tokenizer.tokens(ids), predicted=list(predicted), text=tokenizer.decode(ids),
            spans=spans,
        )  # fmt: skip

    def encode(self, source: str) -> list[int]:
        """The beginning's ids, BOS first where the model's texts begin with it.

        Raises:
            InputError: it is empty and no token begins a text; or it has more tokens than the model has positions.
        """
        check_characters(source, min(self._positions(), LONGEST))
        ids = self.tokenizer.encode(source)
        several = self.bundle.decoding.get("begins", False) or not ids
        if several and self.tokenizer.bos is not None:
            ids = [self.tokenizer.bos, *ids]
        if not ids:
            raise InputError("an empty beginning: this model needs at least one token to continue")
        check_tokens(ids, min(self._positions(), LONGEST))
        return list(ids)

    def _groups(self, prepared: Sequence[Encoded], tokens: int) -> Iterator[list[int]]:
        """Indices of beginnings that are continued together, in the order of the texts within a group.

        A group is padded on the left, so that distances between tokens stay what they are; a model with a context
        reads beginnings of one length only.
        """
        config: Any = self.bundle.model_config
        for group in length_groups([len(one.ids) for one in prepared], tokens):
            if getattr(config, "context", "none") == "none":
                yield group
                continue
            by_length: dict[int, list[int]] = {}
            for i in group:
                by_length.setdefault(len(prepared[i].ids), []).append(i)
            yield from by_length.values()

    def _read(self, rows: Sequence[list[int]], record: bool) -> Any:
        """The state before each beginning's last token."""
        longest = max(map(len, rows))
        filler = self.tokenizer.pad or 0
        tokens = torch.tensor([[filler] * (longest - len(row)) + row[:-1] for row in rows], dtype=torch.long)
        tokens = tokens.reshape(len(rows), longest - 1)
        allowed = torch.arange(longest - 1) >= torch.tensor([[longest - len(row)] for row in rows])
        return self.model.read(tokens.to(self.device), allowed.to(self.device), record=record)

    def _stop(self, rows: Sequence[list[int]], stop: Sequence[str]) -> Stop:
        """Whether a text holds a stop string."""
        check_texts("stop", stop)
        strings = [one for one in stop if one]
        if not strings:
            return lambda _row, _tokens: False
        return lambda row, tokens: any(one in self._added(rows[row], tokens) for one in strings)

    def _limit(self, ids: list[int], length: int) -> int:
        """Tokens that may be added."""
        check_whole("length", length, LONGEST_ADDED)
        if length < 0:
            raise ConfigError(f"length must be 0 or more; got {length}")
        return min(length, self._positions() - len(ids) + 1)

    def _positions(self) -> int:
        """How many positions the model can tell apart."""
        config: Any = self.bundle.model_config
        return int(config.length) if config.positions == "learned" else 2**31

    def _added(self, ids: list[int], added: list[int]) -> str:
        """The text that tokens add to a beginning."""
        whole, before = self.tokenizer.decode([*ids, *added]), self.tokenizer.decode(ids)
        return str(whole[len(before) :] if whole.startswith(before) else self.tokenizer.decode(added))

    def _completion(self, source: Encoded, found: list[Hypothesis], padding: int, stop: Sequence[str]) -> Completion:
        if not found:
            self.check_finite()
            return Completion(
                text="", source=source.text, source_tokens=self.tokenizer.tokens(source.ids), source_ids=source.ids,
                completer=self,
            )  # fmt: skip
        best, *others = [self._one(source, one, padding, stop) for one in found]
        best.alternatives.extend(others)
        return best

    def _one(self, source: Encoded, found: Hypothesis, padding: int, stop: Sequence[str]) -> Completion:
        tokens = self.tokenizer.tokens(found.tokens)
        return Completion(
            text=_cut(self._added(source.ids, found.tokens), stop), source=source.text, tokens=tokens,
            ids=found.tokens, score=found.score, log_prob=found.log_prob,
            source_tokens=self.tokenizer.tokens(source.ids), source_ids=source.ids, completer=self,
            attention=self._maps(found, source.ids, tokens, padding),
        )  # fmt: skip

    def _maps(self, found: Hypothesis, ids: list[int], tokens: list[str], padding: int) -> dict[str, AttentionMap]:
        columns = self.tokenizer.tokens([*ids, *found.tokens[:-1]])
        return {
            site: whole.crop(len(tokens), padding, whole.shape[-1], tokens, columns)
            for site, whole in maps_of(self.model, found).items()
        }


def _cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string."""
    places = [place for place in (text.find(one) for one in stop if one) if place >= 0]
    return text[: min(places)] if places else text
