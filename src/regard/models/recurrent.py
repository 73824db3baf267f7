"""The recurrent encoder–decoder with attention (Bahdanau et al. 2015; Luong et al. 2015)."""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from regard.attention.maps.map import AttentionMap
from regard.attention.masks import allow
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
)
from regard.attention.spec import make_spec
from regard.attention.watch import Call
from regard.errors import ConfigError
from regard.models.encoders import EncoderParts, make_encoder
from regard.models.seq2seq import Memory, Seq2Seq, Source
from regard.nn.dropout import Dropout
from regard.nn.embedding import Embedding
from regard.nn.recurrent import AttentionalStep, RecurrentEncoder, as_weights
from regard.nn.state import State

SITE = "decoder.cross"


class RecurrentConfig(BaseModel):
    """Settings of the recurrent encoder–decoder."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["recurrent"]
    source_encoder: EncoderParts | None = None
    """What reads the source, where it is a picture or a sound; a recurrent encoder of text unless set."""
    width: int = Field(256, gt=0)
    """Width of the decoder's state, of the context, and of both encoder directions together."""
    embedding: int = Field(256, gt=0)
    """Width of a token's vector."""
    cell: Literal["gru", "lstm"] = "gru"
    """The recurrent unit."""
    encoder_layers: int = Field(1, gt=0)
    """Encoder layers on top of each other."""
    direction: Literal["both", "forward", "backward"] = "both"
    """How the encoder reads; "both" gives each direction half the width."""
    score: Literal["additive", "location", "concat", "general", "dot", "scaled_dot", "cosine", "distance", "none"] = (
        "additive"
    )
    """How a decoder state is compared with an encoder state; "location" knows where the last step looked (Chorowski
    et al. 2015), for sounds; "none" is the ladder's lowest rung, no attention."""
    normalizer: Literal["softmax", "uniform", "hard"] = "softmax"
    """How scores become weights; "hard" looks at one place: one drawn in training, the best one afterwards."""
    gate: bool = False
    """The context is multiplied by β = σ(w s_{t-1}) (Xu et al. 2015, section 4.2.1)."""
    score_width: int = Field(256, gt=0)
    """Width inside the tanh of the additive, location and concat scores."""
    location_reach: int = Field(20, ge=0)
    """How many states to a side the location score's filters see."""
    asks: Literal["previous", "new"] = "previous"
    """Which state asks: s_{t-1} (Bahdanau) or s_t (Luong)."""
    feed: Literal["current", "previous", "none"] = "current"
    """Which context the cell reads besides the previous token."""
    start: Literal["encoder", "zeros"] = "encoder"
    """Where s_0 comes from: tanh(W · summary of the source), or zeros."""
    ctc_head: bool = False
    """A layer that reads tokens off the memory's states, for CTC beside attention."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """On token vectors and on [s; c] before the output layer."""

    @model_validator(mode="after")
    def _halves_are_equal(self) -> "RecurrentConfig":
        if self.source_encoder is None and self.direction == "both" and self.width % 2:
            raise ValueError(
                f'model.width = {self.width} must be even: with model.direction = "both" each direction has half of it'
            )
        return self


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


class Recurrent(Seq2Seq):
    """Recurrent encoder, recurrent decoder that looks at the encoder's states, o = W [s; c] + b.

    Args:
        vocabulary: number of tokens, source and target together.
        config: the sizes and choices.
    """

    def __init__(self, vocabulary: int, config: RecurrentConfig) -> None:
        super().__init__()
        self.config = config
        embedding = Embedding(vocabulary, config.embedding, dropout=config.dropout)
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

    def start(self, memory: Memory, record: bool = False) -> State:
        first = self._first_state(memory)[:, None]
        kept = {"memory": memory.states, "key": self.decoder.cross.remember(memory.states), "allowed": memory.allowed}
        assert memory.summary is not None
        kept["summary"] = memory.summary
        return State(
            sentence={name: tensor[:, None] for name, tensor in kept.items()},
            hypothesis={"state": first, "inner": torch.zeros_like(first), "context": self._first_context(memory)},
            asked={} if record else None,
        )

    def hidden(self, memory: Memory, target: Int[Tensor, "B T"]) -> Float[Tensor, "B T h"]:
        embedded = self.decoder.embedding(target)
        state, context = self._first_state(memory)[:, None], self._first_context(memory)
        inner, look, steps = torch.zeros_like(state), self._look(memory, self.decoder.cross.remember(memory.states)), []
        for vector in embedded.split(1, 1):
            state, inner, context = self.decoder.cross(vector, state, inner, context, look)
            steps.append(self._seen(state, context))
        result: Tensor = self.decoder.dropout(torch.cat(steps, 1))
        return result

    def step_hidden(self, token: Int[Tensor, "N K"], state: State) -> tuple[Float[Tensor, "N K h"], State]:
        kept = {name: tensor[:, 0] for name, tensor in state.sentence.items()}
        memory = Memory(kept["memory"], kept["allowed"], kept["summary"])
        before = state.hypothesis
        s, inner, c = self.decoder.cross(
            self.decoder.embedding(token),
            before["state"],
            before["inner"],
            before["context"],
            self._look(memory, kept["key"]),
        )
        asking = self.decoder.cross.query(before["state"] if self.config.asks == "previous" else s, before["context"])
        queries = {} if self.config.score == "none" else {SITE: asking[:, :, None, None]}
        hidden: Tensor = self.decoder.dropout(self._seen(s, c))
        return hidden, state.advance({"state": s, "inner": inner, "context": c}, queries)

    def readout(self) -> tuple[Float[Tensor, "V h"], Float[Tensor, "V"]]:
        return self.decoder.output.weight, self.decoder.output.bias

    def maps(self, state: State) -> dict[str, AttentionMap]:
        if not state.asked:
            return {}
        score = self.decoder.cross.score
        assert score is not None
        key, allowed = state.sentence["key"], state.sentence["allowed"]
        spec = make_spec(score.projected(), as_weights(self.config.normalizer), allow(allowed[:, :, None, None]), None)
        return {SITE: AttentionMap.from_spec(state.asked[SITE], key[:, :, None], spec)}

    def guided(self, calls: list[Call]) -> Float[Tensor, "B T S"]:
        if not calls:
            raise ConfigError(
                'training.guided_alignment needs an attention to guide: model.score = "none" has none; set guide = 0'
            )
        if self.config.normalizer == "hard":  # asking a drawn map draws anew
            raise ConfigError(
                "training.guided_alignment and training.coverage_loss need soft attention: model.normalizer is hard; "
                "set both to 0"
            )
        steps = [AttentionMap.from_spec(call.query, call.key, call.spec).full(force=True) for call in calls]
        return torch.cat(steps, 1)

    def _first_state(self, memory: Memory) -> Tensor:
        assert memory.summary is not None
        if self.decoder.start is None:
            return memory.summary.new_zeros(len(memory.summary), self.config.width)
        return torch.tanh(self.decoder.start(memory.summary)).to(memory.summary.dtype)

    def _first_context(self, memory: Memory) -> Tensor:
        return self.decoder.cross.first_context(memory.states, memory.allowed)

    def _seen(self, state: Tensor, context: Tensor) -> Tensor:
        """[s; c]; weights that come behind the context are for the next look alone."""
        return torch.cat([state, context[..., : self.decoder.cross.memory_width].to(state.dtype)], -1)

    def _look(self, memory: Memory, key: Tensor):  # type: ignore[no-untyped-def]
        """From queries `[N, K, q]` to their contexts `[N, K, c]`."""
        summary = memory.summary
        if self.decoder.cross.score is None:  # no attention: the fixed vector is all there is (Sutskever et al. 2014)
            assert summary is not None
            return lambda query: summary[:, None].expand(-1, query.shape[1], -1)
        mask = allow(memory.allowed[:, None])
        return lambda query: self.decoder.cross.look(query, key, memory.states, mask)


def make_score(config: RecurrentConfig, memory_width: int) -> Score | None:
    """The score that a config names, between states of `config.width` and memory states."""
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
