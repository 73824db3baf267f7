"""The blocks of every Transformer: their settings, a stack of them, and a decoding step through the stack.

In an encoder every token attends to all others; in a decoder to earlier ones, and to a memory where there is one.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

from jaxtyping import Bool
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt
from torch import Tensor, nn

from regard.attention.biases import Bias, RelativeBias, alibi
from regard.attention.maps.map import AttentionMap
from regard.attention.masks import Mask, allow, causal, window
from regard.attention.scores import Additive, Concat, Distance, General, Score
from regard.attention.spec import make_spec
from regard.errors import ConfigError
from regard.models.seq2seq import Memory
from regard.nn.blocks import (
    Attend,
    ConformerLayer,
    ConvolutionModule,
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    Residual,
    make_norm,
)
from regard.nn.context import Context, Convolution, Mixed, Recurrence, RunningMean
from regard.nn.dropout import Dropout
from regard.nn.embedding import Embedding, Positions, Rotary, normal
from regard.nn.kv_cache import KVCache
from regard.nn.multihead import MultiHead
from regard.nn.state import BlockState, CrossAttentionState, DecoderState, SelfAttentionState, record_query

Projection = Literal["query", "key", "value", "output"]
LAYERS = ("layers", "encoder_layers", "decoder_layers")  # the settings that count blocks
BLOCK = re.compile(r"(.*\blayers)\.(\d+)\.(.*)")  # the name of a weight of a block: stack, number of the block, weight
FARTHEST = 2**53  # of positions and distances: torch computes with them in 64 bits


class BlocksConfig(BaseModel):
    """Settings of every Transformer."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    width: int = Field(512, gt=0)
    """Width of the states, d_model."""
    heads: int = Field(8, gt=0)
    """Heads of every attention; divides the width, unless head_width is set."""
    key_heads: int | None = Field(None, gt=0)
    """Key and value heads (grouped heads); as many as heads unless set."""
    head_width: int | None = Field(None, gt=0)
    """Width of a head; width / heads unless set."""
    biases: tuple[Projection, ...] = ("query", "key", "value", "output")
    """Which projections of an attention add a vector."""
    ffn_width: int = Field(2048, gt=0)
    """Width inside the feed-forward."""
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "relu"
    """The feed-forward's activation."""
    gated: bool = False
    """The feed-forward has a gate (with silu: SwiGLU)."""
    ffn_biases: bool = True
    """The feed-forward's layers add a vector."""
    norm: Literal["before", "after"] = "before"
    """Norm before each part, or after the residual as in the paper."""
    normalization: Literal["layer", "rms"] = "layer"
    """LayerNorm or RMSNorm."""
    epsilon: float = Field(1e-5, gt=0)
    """The norms' ε."""
    head_norm: bool = False
    """An RMSNorm over every head's queries and keys."""
    positions: Literal["sinusoidal", "sinusoidal_halves", "learned", "rotary", "alibi", "relative", "none"] = (
        "sinusoidal"
    )
    """Positions: added (first three), as a rotation of queries and keys, or in the scores (alibi, relative: T5's)."""
    length: int = Field(1024, gt=0)
    """Number of learned positions; later tokens take the last one."""
    first_position: int = Field(0, ge=0, le=FARTHEST)
    """Position of the first token, for learned positions."""
    rotary_base: float = Field(10000.0, gt=0)
    """The base of rotary positions."""
    rotary_width: int | None = Field(None, gt=0)
    """Number of coordinates of a head that are rotated; all unless set."""
    buckets: int = Field(32, gt=0)
    """Buckets of relative positions."""
    max_distance: int = Field(128, gt=0)
    """The distance from which on relative positions are one bucket."""
    window: int | None = Field(None, gt=0, le=FARTHEST)
    """Number of tokens, itself included, that a decoder's token may attend to; all earlier ones unless set."""
    window_layers: tuple[NonNegativeInt, ...] | None = None
    """The layers that have the window; all unless set."""
    scaled: bool = True
    """Embeddings are multiplied by √width, as in the paper."""
    embedding_norm: bool = False
    """A norm over the embedded tokens."""
    tied: bool = True
    """The output layer uses the embedding's weights (Press and Wolf 2017)."""
    output_bias: bool = True
    """The output layer adds a vector."""
    score: Literal["scaled_dot", "dot", "cosine", "distance", "general", "additive", "concat"] = "scaled_dot"
    """How queries and keys are compared."""
    cross_score: Literal["scaled_dot", "dot", "cosine", "distance", "general", "additive", "concat"] | None = None
    """The same for attention to the memory; as score unless set."""
    normalizer: Literal["softmax", "uniform", "sparsemax", "entmax15", "sigmoid", "softmax1"] = "softmax"
    """How scores become weights, at every site."""
    context: Literal["none", "convolution", "running_mean", "recurrence"] = "none"
    """The context that makes each query from its surroundings, at every site; only an encoder's looks ahead."""
    context_reach: int = Field(2, ge=0)
    """Number of states on each side in a convolution."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """On embeddings, inside the feed-forward, and on the output of each part."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """On the attention weights."""

    @property
    def own_head_width(self) -> int:
        """Width of a head."""
        return self.width // self.heads if self.head_width is None else self.head_width


class Embeds(nn.Module):
    """A model whose input is tokens: the sum of token, position and type embeddings, with a norm where set.

    Args:
        vocabulary: number of tokens.
        config: the settings.
        kinds: number of token types (a BERT's sentences A and B); 0 for none.
    """

    def __init__(self, vocabulary: int, config: BlocksConfig, kinds: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(vocabulary, config.width, scaled=config.scaled)
        added = config.positions in ("sinusoidal", "sinusoidal_halves", "learned")
        self.positions = Positions(
            config.positions if added else "none", config.width, config.length + config.first_position
        )
        self.kinds = normal(kinds, config.width, std=0.1) if kinds else None
        self.embedding_norm = (
            make_norm(config.normalization, config.width, config.epsilon) if config.embedding_norm else None
        )
        self.dropout = Dropout(config.dropout)

    def embed(self, tokens: Tensor, positions: Tensor, kinds: Tensor | None = None) -> Tensor:
        """Vectors `[*n, d]` of token ids, positions and token types (0 unless given), `[*n]` each."""
        x = self.positions(self.embedding(tokens), positions + self.config.first_position)
        if self.kinds is not None:
            x = x + (self.kinds[0] if kinds is None else self.kinds[kinds])
        x = x if self.embedding_norm is None else self.embedding_norm(x)
        result: Tensor = self.dropout(x)
        return result


class Stack(nn.Module):
    """A sequence of blocks, and a final norm where norms stand before the parts.

    Args:
        config: the settings.
        layers: how many blocks.
        direction: "both", or "forward" for a decoder, whose tokens attend to earlier ones only.
        cross: each block attends to a memory too.
        reach: number of states on each side in the convolution of a Conformer's blocks; 0 for a Transformer's.
    """

    layers: Any  # a list of EncoderLayer, ConformerLayer or DecoderLayer

    def __init__(self, config: BlocksConfig, layers: int, direction: str, cross: bool = False, reach: int = 0) -> None:
        super().__init__()
        self.config, self.direction = config, direction
        if config.window_layers is not None and config.window is None:
            raise ConfigError(
                f"model.window_layers = {list(config.window_layers)} needs model.window: the number of tokens seen"
            )
        most = getattr(config, "layers", 0)  # of a model of one stack
        if most and max(config.window_layers or (), default=0) >= most:
            raise ConfigError(
                f"model.window_layers = {list(config.window_layers or ())}: expected numbers of the {most} layers, "
                f"0 to {most - 1}"
            )
        self.layers = nn.ModuleList(_layer(config, direction, cross, reach) for _ in range(layers))
        before = config.norm == "before"
        self.norm = make_norm(config.normalization, config.width, config.epsilon) if before else nn.Identity()
        relative = config.positions == "relative"
        self.relative = (
            RelativeBias(config.heads, config.buckets, config.max_distance, direction == "both") if relative else None
        )

    def forward(
        self, x: Tensor, allowed: Tensor | None, positions: Tensor | None = None, memory: Memory | None = None,
        collect: list[Tensor] | None = None, within: Mask | None = None,
    ) -> Tensor:  # fmt: skip
        """States `[B, n, d]` after all blocks.

        Args:
            x: embedded tokens.
            allowed: `[B, n]`, True = a real token; None: all are.
            positions: of the tokens, for rotary embeddings; 0 … n-1 by default.
            memory: attended to besides, where the stack has cross-attention.
            collect: receives the input of every block, and the output of the stack.
            within: a further mask of every block's self-attention.
        """
        for i, layer in enumerate(self.layers):
            if collect is not None:
                collect.append(x)
            mask = self.mask(i, allowed)
            if within is not None:
                mask = within if mask is None else mask & within
            if memory is None:
                x = layer(x, mask, allowed, self.score_bias(), positions)
            else:
                x = layer(x, memory.states, key_mask(memory.allowed), mask, self.score_bias(), positions)
        x = self.norm(x)
        if collect is not None:
            collect.append(x)
        return x

    def mask(self, layer: int, allowed: Tensor | None) -> Mask | None:
        """The mask of a block's self-attention: padding, earlier tokens only, and the window."""
        parts = [] if allowed is None else [key_mask(allowed)]
        if self.direction == "forward":
            parts.append(causal())
            if self.has_window(layer):
                assert self.config.window is not None  # as has_window() says
                parts.append(window(self.config.window - 1, 0))
        mask: Mask | None = None
        for part in parts:
            mask = part if mask is None else mask & part
        return mask

    def has_window(self, layer: int) -> bool:
        """Whether a block's self-attention has the window."""
        chosen = self.config.window_layers
        return self.config.window is not None and (chosen is None or layer in chosen)

    def score_bias(self) -> Bias | None:
        """The bias that positions add to the scores."""
        return self.relative if self.config.positions != "alibi" else alibi(self.config.heads)

    def start(self, like: Tensor, memory: Memory | None = None, record: bool = False) -> DecoderState:
        """The state before the first token, one hypothesis per sentence.

        Args:
            like: a tensor of one row per sentence, whose dtype and device the caches get.
            memory: attended to besides, where the stack has cross-attention.
            record: keep every step's queries, for `maps`.
        """
        blocks = []
        for layer in self.layers:
            cross = None
            if memory is not None:
                key, value = (part[:, None] for part in layer.cross.keys_values(memory.states))
                cross = CrossAttentionState(key, value, _nothing_yet(layer.cross, like))
            empty = like.new_zeros(like.shape[0], 1, layer.self.key_heads, 0, layer.self.head_width)
            blocks.append(BlockState(SelfAttentionState(KVCache(empty, empty), _nothing_yet(layer.self, like)), cross))
        allowed = None if memory is None else memory.allowed[:, None]
        return DecoderState(tuple(blocks), record=record, memory_allowed=allowed)

    def read(
        self, x: Tensor, allowed: Tensor, positions: Tensor, padded: bool, record: bool = False
    ) -> tuple[BlockState, ...]:
        """The state of every block after a prompt, in one pass.

        Args:
            x: `[N, P, d]`, the embedded tokens.
            allowed: `[N, P]`, True at real tokens.
            positions: `[N, P]`.
            padded: whether some are not real.
            record: later maps need the keys that a window would drop.
        """
        caches: list[KVCache] = []
        for i, layer in enumerate(self.layers):
            mask = self.mask(i, allowed if padded else None)

            def attend(y: Tensor, own: MultiHead = layer.self, mask: Mask | None = mask) -> Tensor:
                key, value = own.keys_values(y, None, positions)
                caches.append(KVCache(key[:, None], value[:, None]))
                return own.attend(own.queries(y, allowed, positions), key, value, mask, self.score_bias())

            x = layer.block(x, attend)
        length = x.shape[1]
        kept = (cache.drop(self.first_kept(i, length, record)) for i, cache in enumerate(caches))
        return tuple(BlockState(SelfAttentionState(cache)) for cache in kept)

    def step(self, x: Tensor, state: DecoderState, positions: Tensor) -> tuple[Tensor, DecoderState]:
        """The states `[N, K, d]` of one more token per hypothesis, and the decoder's state after it.

        Args:
            x: the embedded tokens.
            state: made by `start` or `read`, or returned by another step.
            positions: `[N, K]`, of the tokens.
        """
        blocks = []
        for i, layer in enumerate(self.layers):
            step = _BlockStep(self, i, state, positions[..., None])
            x = layer.block(x, *step.attentions())
            blocks.append(step.after)
        result: Tensor = self.norm(x)
        return result, replace(state, blocks=tuple(blocks), step=state.step + 1)

    def first_kept(self, layer: int, keys: int, record: bool) -> int:
        """Index of the first of `keys` keys that later tokens may attend to; a recorded map needs them all."""
        if record or self.config.window is None or not self.has_window(layer):
            return 0
        return max(0, keys + 1 - self.config.window)

    def step_mask(self, layer: int, state: DecoderState, keys: int) -> Mask | None:
        """Which of the last `keys` keys the next token may attend to in a block's self-attention."""
        real = state.real_keys(keys, state.step + 1)
        mask = None if real is None else allow(real[:, :, None, None])
        if not self.has_window(layer):
            return mask
        return self._window() if mask is None else mask & self._window()

    def maps(self, state: DecoderState, name: str) -> dict[str, AttentionMap]:
        """The maps of every site, `[N, K, heads, T, S]`, of a state that recorded its queries.

        Args:
            state: after some steps.
            name: path of this stack within its model.
        """
        found = {}
        for i, (layer, block) in enumerate(zip(self.layers, state.blocks, strict=True)):
            own, cross = block.self_attention, block.cross_attention
            if own.queries is not None:
                mask: Mask = causal()
                real = state.real_keys(len(own.cache), state.step)
                mask = mask if real is None else mask & allow(real[:, :, None, None])
                mask = mask & self._window() if self.has_window(i) else mask
                spec = make_spec(layer.self.score, layer.self.normalizer, mask, self.score_bias())
                found[f"{name}.layers.{i}.self"] = AttentionMap.from_spec(own.queries, own.cache.key, spec)
            if cross is not None and cross.queries is not None:
                assert state.memory_allowed is not None
                mask = allow(state.memory_allowed[:, :, None, None])
                spec = make_spec(layer.cross.score, layer.cross.normalizer, mask, None)
                found[f"{name}.layers.{i}.cross"] = AttentionMap.from_spec(cross.queries, cross.key, spec)
        return found

    def _window(self) -> Mask:
        assert self.config.window is not None
        return window(self.config.window - 1, 0)


class _BlockStep:
    """The attention calls of one block for one more token of every hypothesis, and the block's state after them."""

    def __init__(self, stack: Stack, number: int, state: DecoderState, positions: Tensor) -> None:
        self.stack, self.number, self.state, self.positions = stack, number, state, positions
        self.layer = stack.layers[number]
        self.after = state.blocks[number]

    def attentions(self) -> list[Attend]:
        """The calls that the layer's `block` takes."""
        return [self.attend] if self.after.cross_attention is None else [self.attend, self.attend_memory]

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention of states `[N, K, d]`; the token's key and value join the cache."""
        own, before, stack = self.layer.self, self.after.self_attention, self.stack
        query, context = own.next_query(x, before.context, self.positions)
        cache = before.cache.append(*own.keys_values(x[:, :, None], None, self.positions))
        keys = cache.key.shape[-2]  # not len(cache), which would fix the number in an exported graph
        mask = stack.step_mask(self.number, self.state, keys)
        found: Tensor = own.attend(query, cache.key, cache.value, mask, stack.score_bias())[:, :, 0]
        kept = cache.drop(stack.first_kept(self.number, keys, self.state.record))
        after = SelfAttentionState(kept, context, self._recorded(before.queries, query))
        self.after = replace(self.after, self_attention=after)
        return found

    def attend_memory(self, x: Tensor) -> Tensor:
        """Attention to the memory: the hypotheses of a sentence are its queries, so no key is copied."""
        cross, before, allowed = self.layer.cross, self.after.cross_attention, self.state.memory_allowed
        assert before is not None
        assert allowed is not None
        query, context = cross.next_query(x, before.context, self.positions)
        after = replace(before, context=context, queries=self._recorded(before.queries, query))
        self.after = replace(self.after, cross_attention=after)
        together = query.squeeze(-2).transpose(1, 2)  # [N, heads, K, d_head]
        found: Tensor = cross.attend(together, before.key[:, 0], before.value[:, 0], key_mask(allowed[:, 0]))
        return found

    def _recorded(self, queries: Tensor | None, query: Tensor) -> Tensor | None:
        return record_query(queries, query) if self.state.record else None


def key_mask(allowed: Bool[Tensor, "B n"]) -> Mask:
    """The mask that lets every query of a sentence attend to its real tokens."""
    return allow(allowed[:, None, None])


def _layer(config: BlocksConfig, direction: str, cross: bool, reach: int) -> nn.Module:
    def residual() -> Residual:
        return Residual(make_norm(config.normalization, config.width, config.epsilon), config.norm, config.dropout)

    own = _attention(config, direction)
    if cross:
        across = _attention(config, direction, across=True)
        return DecoderLayer(own, across, _feed_forward(config), residual(), residual(), residual())
    if reach:
        halves = _feed_forward(config), _feed_forward(config)
        convolution = ConvolutionModule(config.width, reach, config.dropout)
        norm = make_norm(config.normalization, config.width, config.epsilon)
        return ConformerLayer(own, convolution, halves, (residual(), residual(), residual(), residual()), norm)
    return EncoderLayer(own, _feed_forward(config), residual(), residual())


def _attention(config: BlocksConfig, direction: str, across: bool = False) -> MultiHead:
    own = config.own_head_width
    rotary = config.positions == "rotary" and not across
    name = config.cross_score if across and config.cross_score is not None else config.score
    return MultiHead(
        config.width, config.heads, key_heads=config.key_heads, head_width=config.head_width, biases=config.biases,
        score=_score(name, own), normalizer=config.normalizer, dropout=config.attention_dropout,
        context=_context(config, direction),
        rotary=Rotary(config.rotary_width or own, config.rotary_base) if rotary else None,
        head_norm=(lambda width: make_norm("rms", width, config.epsilon)) if config.head_norm else None,
    )  # fmt: skip


def _score(name: str, width: int) -> str | Score:
    match name:
        case "distance":
            return Distance(width**0.25)
        case "general":
            return General(width, width)
        case "additive":
            return Additive(width, width, width)
        case "concat":
            return Concat(width, width, width)
    return name


def _nothing_yet(attention: MultiHead, like: Tensor) -> Tensor | None:
    """The state of a query's context before the first token, `[N, 1, …]`; None without a context."""
    if attention.context is None:
        return None
    return attention.context.start(like.new_zeros(like.shape[0], 1, attention.query.in_features))


def _context(config: BlocksConfig, direction: str) -> Context | None:
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


def _feed_forward(config: BlocksConfig) -> FeedForward:
    return FeedForward(
        config.width, config.ffn_width, config.activation, config.dropout, config.gated, config.ffn_biases
    )


def fewer_layers(weights: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Weights for a model with fewer blocks: those of the first, the last and evenly spaced blocks of the deeper one.

    Block i of n is block i (N - 1) / (n - 1) of N, rounded; a single one is the first (Shleifer and Rush 2020, "shrink
    and fine-tune"). With as many blocks, the weights as they are.

    Args:
        weights: of the deeper model, by name.
        names: of the other model's weights.
    """
    theirs, ours = _depths(weights), _depths(names := list(names))

    def origin(name: str) -> str:
        found = BLOCK.fullmatch(name)
        if found is None or ours[found[1]] == 1:
            return name
        stack, number, rest = found[1], int(found[2]), found[3]
        return f"{stack}.{round(number * (theirs[stack] - 1) / (ours[stack] - 1))}.{rest}"

    return {name: weights[origin(name)] for name in names}


def _depths(names: Iterable[str]) -> dict[str, int]:
    """The number of blocks of every stack whose weights are named."""
    found: dict[str, int] = {}
    for name in names:
        if block := BLOCK.fullmatch(name):
            found[block[1]] = max(found.get(block[1], 0), int(block[2]) + 1)
    return found
