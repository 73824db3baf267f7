"""The Transformer encoder–decoder (Vaswani et al. 2017)."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from regard.attention.map import AttentionMap
from regard.attention.masks import Mask, allow, causal
from regard.attention.spec import make_spec
from regard.attention.watch import Call
from regard.models.seq2seq import Memory, Seq2Seq
from regard.nn.blocks import DecoderLayer, EncoderLayer, FeedForward
from regard.nn.context import Context, Convolution, Mixed, Recurrence, RunningMean
from regard.nn.dropout import Dropout
from regard.nn.embedding import Embedding, Positions, count_places
from regard.nn.multihead import MultiHead
from regard.nn.state import State


class TransformerConfig(BaseModel):
    """Settings of the Transformer encoder–decoder."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["transformer"]
    width: int = Field(512, gt=0)
    """Width of the states, d_model."""
    encoder_layers: int = Field(6, gt=0)
    """Blocks in the encoder."""
    decoder_layers: int = Field(6, gt=0)
    """Blocks in the decoder."""
    heads: int = Field(8, gt=0)
    """Heads of every attention; divides the width."""
    key_heads: int | None = Field(None, gt=0)
    """Key and value heads (grouped heads); as many as heads unless set."""
    inner: int = Field(2048, gt=0)
    """Width inside the feed-forward."""
    activation: Literal["relu", "gelu"] = "relu"
    """The feed-forward's activation."""
    norm: Literal["before", "after"] = "before"
    """LayerNorm before each part, or after the residual as in the paper."""
    positions: Literal["sinusoidal", "learned", "none"] = "sinusoidal"
    """How places enter."""
    length: int = Field(1024, gt=0)
    """How many places learned positions know."""
    tied: bool = True
    """The output layer uses the embedding's weights (Press and Wolf 2017)."""
    score: Literal["scaled_dot", "dot", "cosine"] = "scaled_dot"
    """How queries and keys are compared, at every site."""
    normalizer: Literal["softmax", "uniform"] = "softmax"
    """How scores become weights, at every site."""
    context: Literal["none", "convolution", "running_mean", "recurrence"] = "none"
    """What makes each query from its surroundings, at every site; only the encoder's may look ahead."""
    context_reach: int = Field(2, ge=0)
    """How many states to a side a convolution sees."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """On embeddings, inside the feed-forward, and on what each part adds."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """On the attention weights."""


class Encoder(nn.Module):
    """A stack of encoder layers over embedded tokens."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(_attention(config, "both"), _feed_forward(config), config.width, config.norm, config.dropout)
            for _ in range(config.encoder_layers)
        )
        self.norm = nn.LayerNorm(config.width) if config.norm == "before" else nn.Identity()


class Decoder(nn.Module):
    """A stack of decoder layers over embedded tokens, and the output's bias."""

    def __init__(self, vocabulary: int, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(
                _attention(config, "forward"),
                _attention(config, "forward"),
                _feed_forward(config),
                config.width,
                config.norm,
                config.dropout,
            )
            for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(config.width) if config.norm == "before" else nn.Identity()
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.output = None if config.tied else nn.Parameter(torch.randn(vocabulary, config.width) * config.width**-0.5)


class Transformer(Seq2Seq):
    """Encoder and decoder of attention blocks; 6 + 6 layers by default, every size a setting.

    Args:
        vocabulary: number of tokens, source and target together.
        config: the sizes and choices.
    """

    def __init__(self, vocabulary: int, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(vocabulary, config.width, scaled=True)
        self.positions = Positions(config.positions, config.width, config.length)
        self.dropout = Dropout(config.dropout)
        self.encoder = Encoder(config)
        self.decoder = Decoder(vocabulary, config)

    def encode(self, source: Int[Tensor, "B S"], allowed: Bool[Tensor, "B S"] | None = None) -> Memory:
        allowed = torch.ones_like(source, dtype=torch.bool) if allowed is None else allowed
        x = self._embed(source, count_places(allowed))
        mask = _may_look(allowed)
        for layer in self.encoder.layers:
            x = layer(x, mask, allowed)
        return Memory(self.encoder.norm(x), allowed)

    def start(self, memory: Memory, record: bool = False) -> State:
        sentence = {"allowed": memory.allowed}
        hypothesis = {}
        for name, layer in self._named_layers():
            sentence[f"{name}.cross.key"], sentence[f"{name}.cross.value"] = layer.cross.remember(memory.states)
            empty = memory.states.new_zeros(len(memory.states), 1, layer.self.key_heads, 0, layer.self.head_width)
            hypothesis[f"{name}.self.key"] = hypothesis[f"{name}.self.value"] = empty
        return State({name: tensor[:, None] for name, tensor in sentence.items()}, hypothesis, {} if record else None)

    def hidden(self, memory: Memory, target: Int[Tensor, "B T"]) -> Float[Tensor, "B T h"]:
        x = self._embed(target, torch.arange(target.shape[1], device=target.device).expand_as(target))
        mask = _may_look(memory.allowed)
        for layer in self.decoder.layers:
            x = layer(x, memory.states, mask)
        result: Tensor = self.decoder.norm(x)
        return result

    def step_hidden(self, token: Int[Tensor, "N K"], state: State) -> tuple[Float[Tensor, "N K h"], State]:
        x = self._embed(token, torch.full_like(token, state.step))
        caches: dict[str, Tensor] = {}
        queries: dict[str, Tensor] = {}
        for name, layer in self._named_layers():
            x = layer.around_self(x, lambda y, n=name, a=layer.self: _look_back(y, n, a, state, caches, queries))
            x = layer.around_cross(x, lambda y, n=name, a=layer.cross: _look_across(y, n, a, state, caches, queries))
            x = layer.around_feed_forward(x, layer.feed_forward)
        hidden: Tensor = self.decoder.norm(x)
        return hidden, state.advance(caches, queries)

    def readout(self) -> tuple[Float[Tensor, "V h"], Float[Tensor, "V"]]:
        weight = self.embedding.weight if self.decoder.output is None else self.decoder.output
        return weight, self.decoder.bias

    def maps(self, state: State) -> dict[str, AttentionMap]:
        maps = {}
        source = allow(state.sentence["allowed"][:, :, None, None])
        for site, query in (state.asked or {}).items():
            own = site.endswith(".self")
            key = (state.hypothesis if own else state.sentence)[f"{site}.key"]
            spec = make_spec(self.config.score, self.config.normalizer, causal() if own else source, None)
            maps[site] = AttentionMap.from_spec(query, key, spec)
        return maps

    def encoder_sites(self) -> list[str]:
        return [f"encoder.layers.{i}.self" for i in range(self.config.encoder_layers)]

    def guided(self, calls: list[Call]) -> Float[Tensor, "B T S"]:
        """Head 0 of the last layer but one, as Garg et al. 2019 do."""
        call = calls[2 * max(0, self.config.decoder_layers - 2) + 1]
        return AttentionMap.from_spec(call.query[:, :1], call.key[:, :1], call.spec).full(force=True)[:, 0]

    def _embed(self, tokens: Tensor, places: Tensor) -> Tensor:
        result: Tensor = self.dropout(self.positions(self.embedding(tokens), places))
        return result

    def _named_layers(self) -> list[tuple[str, DecoderLayer]]:
        return [(f"decoder.layers.{i}", layer) for i, layer in enumerate(self.decoder.layers)]  # type: ignore[misc]


def _look_back(
    x: Tensor, name: str, attention: MultiHead, state: State, caches: dict[str, Tensor], queries: dict[str, Tensor]
) -> Tensor:
    """Self-attention of one new token per hypothesis; its key and value join the cache."""
    query = _ask_next(x, f"{name}.self", attention, state, caches)
    new = attention.remember(x[:, :, None])
    key, value = (
        torch.cat([state.hypothesis[f"{name}.self.{part}"].to(n.dtype), n], -2)
        for part, n in zip(("key", "value"), new, strict=True)
    )
    caches[f"{name}.self.key"], caches[f"{name}.self.value"] = key, value
    queries[f"{name}.self"] = query
    return attention.look(query, key, value, None)[:, :, 0]


def _look_across(
    x: Tensor, name: str, attention: MultiHead, state: State, caches: dict[str, Tensor], queries: dict[str, Tensor]
) -> Tensor:
    """Attention to the memory: the hypotheses of a sentence are its queries, so no key is copied."""
    asked = _ask_next(x, f"{name}.cross", attention, state, caches)
    queries[f"{name}.cross"] = asked
    query = asked.squeeze(-2).transpose(1, 2)  # [N, heads, K, d]
    key, value, allowed = (state.sentence[n][:, 0] for n in (f"{name}.cross.key", f"{name}.cross.value", "allowed"))
    return attention.look(query, key, value, _may_look(allowed))


def _ask_next(x: Tensor, site: str, attention: MultiHead, state: State, caches: dict[str, Tensor]) -> Tensor:
    """The query `[N, K, heads, 1, d]` of one new token per hypothesis; what its context remembers joins the cache."""
    query, remembered = attention.ask_next(x, state.hypothesis.get(f"{site}.context"))
    if remembered is not None:
        caches[f"{site}.context"] = remembered
    return query


def _may_look(allowed: Tensor) -> Mask:
    return allow(allowed[:, None, None])


def _attention(config: TransformerConfig, direction: str) -> MultiHead:
    return MultiHead(
        config.width, config.heads, key_heads=config.key_heads,
        score=config.score, normalizer=config.normalizer, dropout=config.attention_dropout,
        context=_context(config, direction),
    )  # fmt: skip


def _context(config: TransformerConfig, direction: str) -> Context | None:
    """The context that a config names: looking back only ("forward") or, where it can, "both" ways."""
    match config.context:
        case "none":
            return None
        case "convolution":
            reach = config.context_reach
            return Convolution(config.width, reach, reach if direction == "both" else 0, groups=config.width)
        case "running_mean":
            return Mixed(config.width, RunningMean())
        case "recurrence":
            return Mixed(config.width, Recurrence(config.width, direction))


def _feed_forward(config: TransformerConfig) -> FeedForward:
    return FeedForward(config.width, config.inner, config.activation, config.dropout)
