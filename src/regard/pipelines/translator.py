"""A trained model that is ready to use: what `load` returns, and what it makes of a text."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from regard.attention.maps.map import AttentionMap
from regard.attention.spec import Spec
from regard.attention.watch import Call, announce, has_search_listeners, unwatched, watching
from regard.bundle import Bundle
from regard.data.batching import lengths_mask, pad
from regard.decoding.search import Hypothesis, SearchConfig, search
from regard.pipelines.base import InputError, Pipeline

SEARCH_TOKENS = 4096  # source tokens searched at a time


class DecodingConfig(BaseModel):
    """Default settings of the search."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    beam: int = Field(4, gt=0, le=100)
    """Hypotheses kept per sentence; 1 is greedy."""
    length_penalty: float = 0.6
    """α of the length penalty (Wu et al. 2016, equation 14)."""
    length_ratio: float = Field(2.0, gt=0)
    """An output has at most length_ratio · source tokens + length_extra tokens."""
    length_extra: int = Field(10, ge=0)
    """See length_ratio."""
    longest_source: int = Field(300, gt=0)
    """A source with more tokens is refused."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """Words with words: where each output word looked.

    Sub-words are joined (sum over the source pieces, mean over the output pieces), the row and column
    of EOS are dropped, and rows are divided by their sum.

    Attributes:
        matrix: `[output words, source words]`.
        source, target: the words, as `str.split()` gives them.
        site, heads: whose attention this is; the heads' mean is read.
    """

    matrix: torch.Tensor
    source: list[str]
    target: list[str]
    site: str
    heads: list[int]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(output word, source word), 0-based: every output word with the source word it looked at most."""
        if not self.matrix.numel():
            return []
        return [(i, int(row.argmax())) for i, row in enumerate(self.matrix) if float(row.sum()) > 0]

    def plot(self, path: str | Path) -> None:
        """Draw the heatmap; the ending of `path` (.png, .svg, .pdf) says how."""
        from regard.figures.heatmap import save_heatmap

        save_heatmap(
            self.matrix.tolist(), self.target, self.source, path, title=f"{self.site}, {name_heads(self.heads)}"
        )


@dataclass(frozen=True, eq=False)
class Generation:
    """What a model made of one source.

    Attributes:
        text: the output.
        source: the input.
        tokens: the output's tokens, without BOS, with EOS if it was produced.
        ids: their ids.
        score: what ranked the beam.
        log_prob: the sum of the tokens' log-probabilities, in nats.
        source_tokens: the input's tokens, with EOS.
        alternatives: the other hypotheses asked for with n_best, best first.
        attention: {site: map `[heads, T, S]`}, rows are output tokens.
    """

    text: str
    source: str
    tokens: list[str]
    ids: list[int]
    score: float
    log_prob: float
    source_tokens: list[str]
    source_ids: list[int]
    alternatives: "list[Generation]"
    attention: dict[str, AttentionMap]
    translator: "Translator"

    @cached_property
    def alignment(self) -> Alignment:
        """Words with words, read from the site and heads that were chosen when the model was trained."""
        from regard.analysis.alignment import join_words

        chosen = self.translator.bundle.alignment
        site, heads = chosen.get("site", ""), list(chosen.get("heads", []))
        source, target = self.source.split(), self.text.split()
        if site not in self.attention:
            return Alignment(torch.zeros(len(target), len(source)), source, target, site, heads)
        weights = self.attention[site].full()[heads].mean(0)
        tokenizer = self.translator.tokenizer
        matrix = join_words(
            weights, tokenizer.target_spans(self.ids), self.text, tokenizer.source_spans(self.source), self.source
        )
        return Alignment(matrix, source, target, site, heads)

    @cached_property
    def trace(self) -> "Any":
        """The decoding worked through, step by step (`regard.analysis.trace.Trace`)."""
        from regard.analysis.trace import trace

        return trace(self.translator.bundle, self.source, self.source_ids, self.ids)

    def as_json(self) -> dict[str, Any]:
        """Everything that `--json` prints."""
        alignment = self.alignment
        return {
            "source": self.source, "text": self.text, "tokens": self.tokens, "source_tokens": self.source_tokens,
            "score": self.score, "log_prob": self.log_prob,
            "alternatives": [{"text": a.text, "score": a.score, "log_prob": a.log_prob} for a in self.alternatives],
            "alignment": {
                "source": alignment.source, "target": alignment.target, "pairs": alignment.pairs,
                "matrix": [[round(float(x), 6) for x in row] for row in alignment.matrix],
                "site": alignment.site, "heads": alignment.heads,
            },
        }  # fmt: skip


def name_heads(heads: Sequence[int]) -> str:
    """“head 3”, or “mean of heads 0, 2”."""
    return f"head {heads[0]}" if len(heads) == 1 else f"mean of heads {', '.join(map(str, heads))}"


class Translator(Pipeline[str, Generation]):
    """A translator that is ready to use: one text or a list of them in, a `Generation` or a list out."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        super().__init__(bundle, name)
        self.decoding = DecodingConfig(**bundle.decoding)

    def many(
        self,
        sources: list[str],
        *,
        beam: int | None = None,
        length_penalty: float | None = None,
        n_best: int = 1,
        record: bool = True,
    ) -> list[Generation]:
        """Translate texts.

        Args:
            sources: the texts.
            beam: hypotheses kept; the model's own number by default.
            length_penalty: α (Wu et al. 2016, equation 14); the model's own by default.
            n_best: alternatives kept, at most the beam.
            record: keep the attention.

        Raises:
            ConfigError: a setting that makes no sense.
            Refused: a text longer than the model takes.
        """
        beam = self.decoding.beam if beam is None else beam
        penalty = self.decoding.length_penalty if length_penalty is None else length_penalty
        config = SearchConfig(beam, penalty, n_best)
        encoded = [self.encode(source) for source in sources]
        results: dict[int, Generation] = {i: self._nothing(sources[i]) for i, ids in enumerate(encoded) if not ids}
        read_maps: dict[int, dict[str, AttentionMap]] = {}
        with torch.inference_mode():
            for group in _groups([len(ids) for ids in encoded], SEARCH_TOKENS // beam):
                read, found = self._search([encoded[i] for i in group], config, record or has_search_listeners())
                for row, (i, hypotheses) in enumerate(zip(group, found, strict=True)):
                    results[i] = self._generation(sources[i], encoded[i], hypotheses)
                    read_maps[i] = {site: self._read(call, row, encoded[i]) for site, call in read.items()}
        for i in sorted(read_maps) if has_search_listeners() else ():
            for returned in (results[i], *results[i].alternatives):
                announce(self.model, read_maps[i] | returned.attention)
        return [results[i] for i in range(len(sources))]

    def _read(self, call: Call, row: int, ids: list[int]) -> AttentionMap:
        """Where the encoder looked in one sentence of a batch `[heads, S, S]`."""
        n = len(ids) + 1
        query, key = (t[row, :, :n].clone() for t in (call.query, call.key))
        tokens = self.tokenizer.tokens([*ids, self.tokenizer.eos])
        spec = Spec(call.spec.score, call.spec.normalizer)
        return AttentionMap.from_spec(query, key, spec, query_tokens=tokens, key_tokens=tokens)

    def encode(self, source: str) -> list[int]:
        """The source's ids without EOS; none for an empty text.

        Raises:
            Refused: it has more tokens than the model takes.
        """
        limit = self.decoding.longest_source
        if len(source) > 50 * limit:
            raise InputError(
                f"a text of {len(source):,} characters is too long: this model takes {limit:,} tokens; "
                "cut it into sentences"
            )
        ids = self.tokenizer.encode(source) if source.strip() else []
        if len(ids) > limit:
            raise InputError(
                f"a text of {len(ids):,} tokens is too long: this model takes {limit:,}; cut it into sentences"
            )
        return ids

    def limit(self, source_tokens: int) -> int:
        """The most tokens of an output; it depends on this source alone."""
        return int(self.decoding.length_ratio * source_tokens) + self.decoding.length_extra

    def _search(
        self, sources: list[list[int]], config: SearchConfig, record: bool
    ) -> tuple[dict[str, Call], list[list[Hypothesis]]]:
        """The encoder's attentions, where somebody listens, and the hypotheses; a search's own are announced later."""
        tokenizer = self.tokenizer
        rows = [[*ids, tokenizer.eos] for ids in sources]
        calls: list[Call] = []
        with unwatched():
            with watching(calls.append) if has_search_listeners() else nullcontext():
                memory = self.model.encode(pad(rows, tokenizer.pad), lengths_mask(rows))
            state = self.model.start(memory, record=record)
            limits = [self.limit(len(row)) for row in rows]
            found = search(self.model.step, state, limits, config, tokenizer.bos, tokenizer.eos)
        return dict(zip(self.model.encoder_sites(), calls, strict=False)), found

    def _generation(self, source: str, ids: list[int], found: list[Hypothesis]) -> Generation:
        best, *others = found
        return self._one(source, ids, best, [self._one(source, ids, other, []) for other in others])

    def _one(self, source: str, ids: list[int], found: Hypothesis, alternatives: list[Generation]) -> Generation:
        ids = [*ids, self.tokenizer.eos]
        source_tokens = self.tokenizer.tokens(ids)
        tokens = self.tokenizer.tokens(found.tokens)
        maps = {}
        for site, whole in self.model.maps(found.state).items():
            own = site.endswith(".self")
            width = whole.shape[-1] if own else len(source_tokens)
            weights = whole.select(0, 0).full()[..., :width]
            keys = [*self.tokenizer.tokens([self.tokenizer.bos]), *tokens[:-1]] if own else source_tokens
            maps[site] = AttentionMap.from_weights(weights, query_tokens=tokens, key_tokens=keys)
        return Generation(
            self.tokenizer.decode(found.tokens).strip(), source, tokens, found.tokens, found.score, found.log_prob,
            source_tokens, ids, alternatives, maps, self,
        )  # fmt: skip

    def _nothing(self, source: str) -> Generation:
        return Generation("", source, [], [], 0.0, 0.0, [], [], [], {}, self)


def _groups(lengths: list[int], tokens: int) -> Iterator[list[int]]:
    """Indices of non-empty sentences in groups of about equal length and at most `tokens` places."""
    group: list[int] = []
    for i in sorted((i for i, n in enumerate(lengths) if n), key=lambda i: lengths[i]):
        if group and (lengths[i] + 1) * (len(group) + 1) > tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
