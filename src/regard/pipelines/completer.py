"""A decoder alone that is ready to use: it goes on with a text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from regard.analysis.vectors import Vectors, vectors
from regard.attention.maps.map import AttentionMap
from regard.attention.watch import announce, has_search_listeners, unwatched
from regard.decoding.sample import Drawn, SampleConfig, sample
from regard.decoding.search import SearchConfig, search
from regard.errors import ConfigError
from regard.pipelines.base import InputError, Pipeline

LENGTH = 200  # tokens of a completion, unless said otherwise


@dataclass(frozen=True, eq=False)
class Completion:
    """What a decoder made of a beginning.

    Attributes:
        text: what it added.
        source: the beginning.
        tokens: the added tokens, with the end token if it was produced.
        ids: their ids.
        score, log_prob: the sum of the tokens' log-probabilities under the model itself, in nats.
        source_tokens: the beginning's tokens.
        alternatives: other completions, best first (beam search's).
        attention: {site: map `[heads, T, P + T]`}: what each added token's state before it looked at.
    """

    text: str
    source: str
    tokens: list[str]
    ids: list[int]
    score: float
    log_prob: float
    source_tokens: list[str]
    alternatives: "list[Completion]"
    attention: dict[str, AttentionMap]

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "source": self.source, "text": self.text, "tokens": self.tokens, "log_prob": self.log_prob,
            "alternatives": [{"text": one.text, "log_prob": one.log_prob} for one in self.alternatives],
        }  # fmt: skip


class Completer(Pipeline[str, Completion]):
    """A decoder alone: what `regard.load` returns for a GPT-2, a Llama, or a run with task = "complete".

    One beginning or a list of them in, a `Completion` or a list out.
    """

    def many(self, sources: list[str], *args: Any, **settings: Any) -> list[Completion]:
        """Go on with each beginning; settings as in `complete`."""
        return [self.complete(one, *args, **settings) for one in sources]

    def complete(
        self, source: str, *, length: int = LENGTH, stop: Sequence[str] = (), record: bool = True,
        beam: int | None = None, n_best: int = 1, **drawing: Any,
    ) -> Completion:  # fmt: skip
        """Go on with one beginning.

        Args:
            source: the beginning.
            length: tokens at most.
            stop: strings that end the text and are left out of it.
            record: keep the attention.
            beam, n_best: beam search instead of drawing.
            drawing: settings of `SampleConfig`: temperature, top_k, top_p, min_p, repetition, no_repeat, seed.

        Raises:
            ConfigError: a setting that is unknown or makes no sense.
            Refused: a beginning that is longer than the model knows places for.
        """
        if beam is not None and drawing:
            raise ConfigError(f"beam searches and draws nothing: leave out {', '.join(drawing)}, or beam")
        ids = self.encode(source)
        with torch.inference_mode(), unwatched():
            if beam is not None:
                made = self._search(source, ids, length, stop, beam, n_best, record or has_search_listeners())
            else:
                drawn = list(self._draw(ids, length, stop, _config(drawing), record or has_search_listeners()))
                made = self._made(source, ids, drawn, stop)
        if has_search_listeners():
            announce(self.model, made.attention)
        return made

    def stream(self, source: str, *, length: int = LENGTH, stop: Sequence[str] = (), **drawing: Any) -> Iterator[str]:
        """The added text in pieces, each as soon as it is known; settings as in `complete`."""
        ids, config = self.encode(source), _config(drawing)
        shown, added = "", []
        longest = max(map(len, stop), default=0)
        with torch.inference_mode(), unwatched():
            for one in self._draw(ids, length, stop, config, record=False):
                added.append(one.token)
                text = _cut(self._added(ids, added), stop)
                # a character may be half there, and a stop string half
                sure = text[: max(len(shown), len(text) - longest)] if not text.endswith("\ufffd") else shown
                if len(sure) > len(shown):
                    yield sure[len(shown) :]
                    shown = sure
        text = _cut(self._added(ids, added), stop)
        if len(text) > len(shown):
            yield text[len(shown) :]

    def embed(self, text: str) -> Vectors:
        """Static and contextual vectors of a text's tokens, layer by layer."""
        ids = self.encode(text)
        spans = self.tokenizer.source_spans(text)
        return vectors(self.model, ids, [(0, 0)] * (len(ids) - len(spans)) + spans, text, self.tokenizer)

    def encode(self, source: str) -> list[int]:
        """The beginning's ids, with what the model begins texts with.

        Raises:
            Refused: it is empty and nothing begins a text; or it is longer than the model knows places for.
        """
        ids = self.tokenizer.encode(source)
        several = self.bundle.decoding.get("begins", False) or not ids
        if several and self.tokenizer.bos is not None:
            ids = [self.tokenizer.bos, *ids]
        if not ids:
            raise InputError("an empty beginning: this model needs at least one token to go on from")
        if len(ids) > self._places():
            raise InputError(
                f"a beginning of {len(ids):,} tokens is too long: this model knows {self._places():,} places"
            )
        return list(ids)

    def _limit(self, ids: list[int], length: int) -> int:
        """Tokens that may be added."""
        if length < 0:
            raise ConfigError(f"length must be 0 or more; got {length}")
        return min(length, self._places() - len(ids) + 1)

    def _places(self) -> int:
        """How many places the model can tell apart."""
        config: Any = self.bundle.model_config
        return int(config.length) if config.positions == "learned" else 2**31

    def _draw(
        self, ids: list[int], length: int, stop: Sequence[str], config: SampleConfig, record: bool
    ) -> Iterator[Drawn]:
        state = self.model.read(torch.tensor([ids[:-1]], dtype=torch.long).reshape(1, -1), record=record)
        limit = self._limit(ids, length)
        added: list[int] = []
        ends = () if self.tokenizer.eos is None else (self.tokenizer.eos,)
        for one in sample(self.model.step, state, ids[-1], ids, limit, config, ends):
            yield one
            added.append(one.token)
            if any(s in self._added(ids, added) for s in stop if s):
                return

    def _added(self, ids: list[int], added: list[int]) -> str:
        """The text that tokens add to a beginning."""
        whole, before = self.tokenizer.decode([*ids, *added]), self.tokenizer.decode(ids)
        return str(whole[len(before) :] if whole.startswith(before) else self.tokenizer.decode(added))

    def _made(self, source: str, ids: list[int], drawn: list[Drawn], stop: Sequence[str]) -> Completion:
        added = [one.token for one in drawn]
        total = sum((one.log_prob for one in drawn), 0.0)
        text = _cut(self._added(ids, added), stop)
        maps = self._maps(drawn[-1].state, ids, added) if drawn else {}
        return Completion(
            text, source, self.tokenizer.tokens(added), added, total, total, self.tokenizer.tokens(ids), [], maps
        )

    def _search(
        self, source: str, ids: list[int], length: int, stop: Sequence[str], beam: int, n_best: int, record: bool
    ) -> Completion:
        config = SearchConfig(beam, 0.0, n_best)
        state = self.model.read(torch.tensor([ids[:-1]], dtype=torch.long).reshape(1, -1), record=record)
        eos = -1 if self.tokenizer.eos is None else self.tokenizer.eos
        limit = self._limit(ids, length)
        (found,) = search(self.model.step, state, [limit], config, ids[-1], eos)
        made = [
            Completion(
                _cut(self._added(ids, one.tokens), stop), source, self.tokenizer.tokens(one.tokens), one.tokens,
                one.score, one.log_prob, self.tokenizer.tokens(ids), [], self._maps(one.state, ids, one.tokens),
            )
            for one in found
        ]  # fmt: skip
        best = made[0]
        best.alternatives.extend(made[1:])
        return best

    def _maps(self, state: Any, ids: list[int], added: list[int]) -> dict[str, AttentionMap]:
        rows = self.tokenizer.tokens(added)
        columns = self.tokenizer.tokens([*ids, *added[:-1]])
        maps = {}
        for site, whole in self.model.maps(state).items():
            one = whole.select(0, 0)
            maps[site] = AttentionMap(one.shape, one.source, query_tokens=rows, key_tokens=columns)
        return maps


def _cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string."""
    positions = [place for place in (text.find(one) for one in stop if one) if place >= 0]
    return text[: min(positions)] if positions else text


def _config(drawing: dict[str, Any]) -> SampleConfig:
    unknown = sorted(set(drawing) - set(SampleConfig.__dataclass_fields__))
    if unknown:
        known = ", ".join(["length", "stop", "beam", "n_best", "record", *SampleConfig.__dataclass_fields__])
        raise ConfigError(f"unknown setting {unknown[0]!r}: known are {known}")
    floats = ("temperature", "top_p", "min_p", "repetition")
    values: dict[str, Any] = {
        name: float(value) if name in floats and value is not None else value for name, value in drawing.items()
    }
    return SampleConfig(**values)
