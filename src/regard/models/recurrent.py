"""The recurrent encoder–decoder with attention (Bahdanau et al. 2015; Luong et al. 2015)."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from regard.attention.maps.map import AttentionMap
from regard.attention.masks import allow
from regard.attention.plain import is_plain_linear
from regard.attention.scores import (
    Additive,
    Concat,
    Cosine,
    Distance,
    Dot,
    General,
    LocationAware,
    ScaledDot,
    Score,
    as_score,
)
from regard.attention.spec import make_spec
from regard.attention.watch import Call, calls_by_site
from regard.errors import ConfigError
from regard.models.encoders import EncoderParts, make_encoder
from regard.models.seq2seq import Memory, Seq2Seq, Source
from regard.nn.dropout import Dropout
from regard.nn.embedding import Embedding
from regard.nn.recurrent import AttentionalStep, RecurrentEncoder, as_weights
from regard.nn.state import Change, State, record_query
from regard.shapes import score_dtype

SITE = "decoder.cross"


class RecurrentConfig(BaseModel):
    """Settings of the recurrent encoder–decoder."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["recurrent"]
    source_encoder: EncoderParts | None = None
    """Encoder of pictures or sounds; a recurrent encoder of text unless set."""
    width: int = Field(256, gt=0)
    """Width of the decoder's state, of the context, and of both encoder directions together."""
    embedding: int = Field(256, gt=0)
    """Width of a token's vector."""
    cell: Literal["gru", "lstm"] = "gru"
    """The recurrent unit."""
    encoder_layers: int = Field(1, gt=0)
    """Number of encoder layers."""
    direction: Literal["both", "forward", "backward"] = "both"
    """Directions of the encoder; "both" gives each half the width."""
    score: Literal["additive", "location", "concat", "general", "dot", "scaled_dot", "cosine", "distance", "none"] = (
        "additive"
    )
    """How a decoder state is compared with an encoder state; "location" also takes the weights of the last step
    (Chorowski et al. 2015), for sounds; "none" is no attention."""
    normalizer: Literal["softmax", "uniform", "hard"] = "softmax"
    """How scores become weights; "hard" attends to one state: sampled in training, the best one otherwise."""
    gate: bool = False
    """The context is multiplied by β = σ(w s_{t-1}) (Xu et al. 2015, section 4.2.1)."""
    score_width: int = Field(256, gt=0)
    """Width inside the tanh of the additive, location and concat scores."""
    location_reach: int = Field(20, ge=0)
    """Number of states on each side in the location score's filters."""
    asks: Literal["previous", "new"] = "previous"
    """Which state is the query: the previous one, s_{t-1} (Bahdanau), or the new one, s_t (Luong)."""
    feed: Literal["current", "previous", "none"] = "current"
    """The context that the cell takes as input, along with the previous token."""
    start: Literal["encoder", "zeros"] = "encoder"
    """The first decoder state s_0: tanh(W · summary of the source), or zeros."""
    ctc_head: bool = False
    """Add a layer from the encoder's states to logits of tokens, for CTC beside attention."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on token vectors, and on [s; c] before the output layer."""


@dataclass(frozen=True, eq=False)
class RecurrentState(State):
    """State of the recurrent decoder.

    Attributes:
        memory: states of the encoder `[N, 1, S, d_m]`.
        key: the score's projection of them `[N, 1, S, h]`.
        allowed: `[N, 1, S]`, True at real positions.
        summary: of the whole source `[N, 1, d]`.
        hidden: s_t, `[N, K, d]`.
        cell: the LSTM's cell state, likewise; a GRU leaves it as it is.
        context: c_t, `[N, K, c]`.
        record: whether steps record their queries, which maps need.
        queries: of all steps `[N, K, 1, t, q]`, where they are recorded.
        step: number of steps taken.
    """

    memory: Float[Tensor, "N 1 S d_m"]
    key: Float[Tensor, "N 1 S h"]
    allowed: Bool[Tensor, "N 1 S"]
    summary: Float[Tensor, "N 1 d_s"]
    hidden: Float[Tensor, "N K d"]
    cell: Float[Tensor, "N K d"]
    context: Float[Tensor, "N K c"]
    record: bool = False
    queries: Float[Tensor, "N K 1 t q"] | None = None
    step: int = 0

    def map(self, sentence: Change, hypothesis: Change) -> "RecurrentState":
        return replace(
            self, memory=sentence(self.memory), key=sentence(self.key), allowed=sentence(self.allowed),
            summary=sentence(self.summary), hidden=hypothesis(self.hidden), cell=hypothesis(self.cell),
            context=hypothesis(self.context), queries=None if self.queries is None else hypothesis(self.queries),
        )  # fmt: skip


class RecurrentDecoder(nn.Module):
    """The decoder's parameters: embedding, step, start and o = W [s; c] + b."""

    def __init__(self, vocabulary: int, config: RecurrentConfig, memory_width: int, embedding: Embedding) -> None:
        super().__init__()
        self.embedding = embedding
        self.start = nn.Linear(memory_width, config.width) if config.start == "encoder" else None
        self.cross = AttentionalStep(
            config.cell, config.embedding, config.width, memory_width,
            score=make_score(config, memory_width), normalizer=config.normalizer, asks=config.asks, feed=config.feed,
            gate=config.gate,
        )  # fmt: skip
        self.dropout = Dropout(config.dropout)
        self.output = nn.Linear(config.width + memory_width, vocabulary)


class Recurrent(Seq2Seq[RecurrentState]):
    """Recurrent encoder, recurrent decoder with attention to the encoder's states, o = W [s; c] + b.

    Args:
        vocabulary: number of tokens, source and target together.
        config: the sizes and choices.
    """

    def __init__(self, vocabulary: int, config: RecurrentConfig) -> None:
        super().__init__()
        self.config = config
        embedding = Embedding(vocabulary, config.embedding, dropout=config.dropout)
        if config.source_encoder is None and config.direction == "both" and config.width < 2:
            raise ConfigError(
                f'model.width = {config.width} must be at least 2: model.direction = "both" gives each direction half'
            )
        width = config.width // 2 if config.direction == "both" else config.width
        self.encoder: Any = (
            RecurrentEncoder(
                config.cell, config.embedding, width, config.encoder_layers, config.direction, config.dropout
            )
            if config.source_encoder is None
            else make_encoder(config.source_encoder)
        )
        wide: Any = self.encoder.width if config.source_encoder else self.encoder.output_width
        self.decoder = RecurrentDecoder(vocabulary, config, wide, embedding)
        self.ctc_head = nn.Linear(wide, vocabulary) if config.ctc_head else None
        self.register_buffer("baseline", torch.zeros(())) if config.normalizer == "hard" else None

    def encode(self, source: Source, allowed: Bool[Tensor, "B _"] | None = None) -> Memory:
        if self.config.source_encoder is not None:
            return self.encoder(source, allowed)  # type: ignore[no-any-return]
        allowed = torch.ones_like(source, dtype=torch.bool) if allowed is None else allowed
        states, summary = self.encoder(self.decoder.embedding(source), allowed)
        return Memory(states, allowed, summary)

    def start(self, memory: Memory, record: bool = False) -> RecurrentState:
        first = self._first_state(memory)[:, None]
        assert memory.summary is not None
        return RecurrentState(
            memory.states[:, None], self.decoder.cross.keys(memory.states)[:, None], memory.allowed[:, None],
            memory.summary[:, None], first, torch.zeros_like(first), self._first_context(memory), record,
        )  # fmt: skip

    def hidden(self, memory: Memory, target: Int[Tensor, "B T"]) -> Float[Tensor, "B T h"]:
        embedded = self.decoder.embedding(target)
        state, context = self._first_state(memory)[:, None], self._first_context(memory)
        key = self.decoder.cross.keys(memory.states)
        # kernels compute in float32: half precision is widened once, not at every step
        key, states = (part.to(score_dtype(part)) for part in (key, memory.states))
        attend, steps = self._attention(replace(memory, states=states), key), []
        cell = torch.zeros_like(state)
        for vector in embedded.split(1, 1):
            state, cell, context = self.decoder.cross(vector, state, cell, context, attend)
            steps.append(self._features(state, context))
        result: Tensor = self.decoder.dropout(torch.cat(steps, 1))
        return result

    def step_hidden(
        self, token: Int[Tensor, "N K"], state: RecurrentState
    ) -> tuple[Float[Tensor, "N K h"], RecurrentState]:
        cross = self.decoder.cross
        memory = Memory(state.memory[:, 0], state.allowed[:, 0], state.summary[:, 0])
        s, cell, c = cross(
            self.decoder.embedding(token), state.hidden, state.cell, state.context,
            self._attention(memory, state.key[:, 0]),
        )  # fmt: skip
        queries = state.queries
        if state.record and cross.score is not None:
            query = cross.query(state.hidden if self.config.asks == "previous" else s, state.context)
            queries = record_query(queries, query[:, :, None, None])
        hidden: Tensor = self.decoder.dropout(self._features(s, c))
        return hidden, replace(state, hidden=s, cell=cell, context=c, queries=queries, step=state.step + 1)

    def readout(self) -> tuple[Float[Tensor, "V h"], Float[Tensor, "V"]]:
        if not is_plain_linear(self.decoder.output):
            raise ConfigError("decoder.output is a layer of its own, or has hooks: it is more than a weight and a bias")
        return self.decoder.output.weight, self.decoder.output.bias

    def project(self, hidden: Float[Tensor, "*n h"]) -> Float[Tensor, "*n V"]:
        if is_plain_linear(self.decoder.output):
            return super().project(hidden)
        logits: Tensor = self.decoder.output(hidden)
        return logits

    def maps(self, state: RecurrentState) -> dict[str, AttentionMap]:
        if state.queries is None:
            return {}
        score = self.decoder.cross.score
        assert score is not None
        mask = allow(state.allowed[:, :, None, None])
        spec = make_spec(as_score(score).projected(), as_weights(self.config.normalizer), mask, None)
        return {SITE: AttentionMap.from_spec(state.queries, state.key[:, :, None], spec)}

    def guided(self, calls: list[Call]) -> Float[Tensor, "B T S"]:
        steps = calls_by_site(self, calls).get(SITE, [])
        if not steps:
            raise ConfigError(
                'training.guided_alignment needs an attention to guide: model.score = "none" has none; set it to 0'
            )
        if self.config.normalizer == "hard":  # a map of sampled weights would sample again
            raise ConfigError(
                "training.guided_alignment and training.coverage_loss need soft attention: model.normalizer is hard; "
                "set both to 0"
            )
        maps = [AttentionMap.from_spec(call.query, call.key, call.spec).full(force=True) for call in steps]
        return torch.cat(maps, 1)

    def _first_state(self, memory: Memory) -> Tensor:
        assert memory.summary is not None
        if self.decoder.start is None:
            return memory.summary.new_zeros(memory.summary.shape[0], self.config.width)
        return torch.tanh(self.decoder.start(memory.summary)).to(memory.summary.dtype)

    def _first_context(self, memory: Memory) -> Tensor:
        return self.decoder.cross.first_context(memory.states, memory.allowed)

    def _features(self, state: Tensor, context: Tensor) -> Tensor:
        """[s; c]; weights behind the context are for the next step's score alone."""
        return torch.cat([state, context[..., : self.decoder.cross.memory_width].to(state.dtype)], -1)

    def _attention(self, memory: Memory, key: Tensor):  # type: ignore[no-untyped-def]
        """A function from queries `[N, K, q]` to their contexts `[N, K, c]`."""
        summary = memory.summary
        if self.decoder.cross.score is None:  # no attention: the context is the fixed vector (Sutskever et al. 2014)
            assert summary is not None
            return lambda query: summary[:, None].expand(-1, query.shape[1], -1)
        mask = allow(memory.allowed[:, None])
        return lambda query: self.decoder.cross.attend(query, key, memory.states, mask)


def make_score(config: RecurrentConfig, memory_width: int) -> Score | None:
    """The score that a config names, between states of `config.width` and memory states.

    Raises:
        ConfigError: a score that compares equal widths, where they differ.
    """
    if config.score in ("dot", "scaled_dot", "cosine", "distance") and memory_width != config.width:
        raise ConfigError(
            f"model.score = {config.score!r} needs encoder states as wide as the decoder's, model.width = "
            f'{config.width}; they have width {memory_width}: take an even width, or "general", "additive" or "concat"'
        )
    match config.score:
        case "additive":
            return Additive(config.width, memory_width, config.score_width)
        case "location":
            return LocationAware(config.width, memory_width, config.score_width, reach=config.location_reach)
        case "concat":
            return Concat(config.width, memory_width, config.score_width)
        case "general":
            return General(config.width, memory_width)
        case "dot":
            return Dot()
        case "scaled_dot":
            return ScaledDot()
        case "cosine":
            return Cosine(scale=10.0)  # a plain cosine cannot prefer one key over another by more than e²
        case "distance":
            return Distance(width=config.width**0.5)
        case "none":
            return None
