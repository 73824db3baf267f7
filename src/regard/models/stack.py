"""The blocks of every Transformer: their settings, a stack of them, and one more token through it.

An encoder is a stack that looks everywhere, a decoder one that looks back, with attention to a memory or without.
"""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from regard.attention.biases import Bias, RelativeBias, alibi
from regard.attention.maps.map import AttentionMap
from regard.attention.masks import Mask, allow, causal, window
from regard.attention.scores import Additive, Concat, Distance, General, Score
from regard.attention.spec import make_spec
from regard.models.seq2seq import Memory
from regard.nn.blocks import (
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
from regard.nn.embedding import Embedding, Positions, Rotary
from regard.nn.kv_cache import append
from regard.nn.multihead import MultiHead
from regard.nn.state import State

Projection = Literal["query", "key", "value", "output"]
Tensors = dict[str, Tensor]


class BlocksConfig(BaseModel):
    """Settings that every Transformer has."""

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
    """How places enter: added (first three), by turning queries and keys, or in the scores (alibi, relative: T5's)."""
    length: int = Field(1024, gt=0)
    """How many places learned positions know."""
    first_position: int = Field(0, ge=0)
    """Where the first token stands, for learned positions."""
    rotary_base: float = Field(10000.0, gt=0)
    """The base of rotary positions."""
    rotary_width: int | None = Field(None, gt=0)
    """How many coordinates of a head turn; all unless set."""
    buckets: int = Field(32, gt=0)
    """Buckets of relative positions."""
    max_distance: int = Field(128, gt=0)
    """The distance from which on relative positions are one bucket."""
    window: int | None = Field(None, gt=0)
    """A decoder's token looks at so many tokens at most, itself among them; at all before it unless set."""
    window_layers: tuple[int, ...] | None = None
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
    """What makes each query from its surroundings, at every site; only an encoder's may look ahead."""
    context_reach: int = Field(2, ge=0)
    """How many states to a side a convolution sees."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """On embeddings, inside the feed-forward, and on what each part adds."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """On the attention weights."""

    @property
    def own_head_width(self) -> int:
        """Width of a head."""
        return self.width // self.heads if self.head_width is None else self.head_width


class Embeds(nn.Module):
    """A model that begins with tokens: their vectors, places and kinds added up, normed where that is wanted.

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
        self.kinds = nn.Parameter(torch.randn(kinds, config.width) * 0.1) if kinds else None
        self.embedding_norm = (
            make_norm(config.normalization, config.width, config.epsilon) if config.embedding_norm else None
        )
        self.dropout = Dropout(config.dropout)

    def embed(self, tokens: Tensor, positions: Tensor, kinds: Tensor | None = None) -> Tensor:
        """Vectors `[*n, d]` of token ids, places and kinds (0 unless given), `[*n]` each."""
        x = self.positions(self.embedding(tokens), positions + self.config.first_position)
        if self.kinds is not None:
            x = x + (self.kinds[0] if kinds is None else self.kinds[kinds])
        x = x if self.embedding_norm is None else self.embedding_norm(x)
        result: Tensor = self.dropout(x)
        return result


class Stack(nn.Module):
    """Blocks on top of each other, and the norm behind them where norms stand before the parts.

    Args:
        config: the settings.
        layers: how many blocks.
        direction: "both", or "forward" for one that may only look back.
        cross: each block looks at a memory too.
        reach: blocks of an encoder mix each state with so many to a side (Conformer's); 0: they do not.
    """

    layers: Any  # a list of EncoderLayer, ConformerLayer or DecoderLayer

    def __init__(self, config: BlocksConfig, layers: int, direction: str, cross: bool = False, reach: int = 0) -> None:
        super().__init__()
        self.config, self.direction = config, direction
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
        """States `[B, n, d]` behind all blocks.

        Args:
            x: embedded tokens.
            allowed: `[B, n]`, True = a real token; None: all are.
            places: where they stand, for rotary positions; 0 … n-1 by default.
            memory: what the blocks look at besides, where they do.
            every: gets the states before every block, and what this returns.
            within: one more mask for every block's self-attention.
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
                x = layer(x, memory.states, may_look(memory.allowed), mask, self.score_bias(), positions)
        x = self.norm(x)
        if collect is not None:
            collect.append(x)
        return x

    def mask(self, layer: int, allowed: Tensor | None) -> Mask | None:
        """Who may look at whom in a block's self-attention, beside what a decoder layer says of itself."""
        parts = [] if allowed is None else [may_look(allowed)]
        if self.direction == "forward":
            parts.append(causal())
            if self.has_window(layer):
                assert self.config.window is not None  # has_window() has looked
                parts.append(window(self.config.window - 1, 0))
        mask: Mask | None = None
        for part in parts:
            mask = part if mask is None else mask & part
        return mask

    def has_window(self, layer: int) -> bool:
        """Whether a block's self-attention looks back so far only."""
        chosen = self.config.window_layers
        return self.config.window is not None and (chosen is None or layer in chosen)

    def score_bias(self) -> Bias | None:
        """What places add to the scores."""
        return self.relative if self.config.positions != "alibi" else alibi(self.config.heads)

    def start(self, states: Tensor, name: str, memory: Memory | None = None) -> tuple[Tensors, Tensors]:
        """What belongs to each sentence, and empty caches of one hypothesis each; `states` gives dtype and device."""
        sentence: dict[str, Tensor] = {}
        hypothesis: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            site = f"{name}.layers.{i}"
            if memory is not None:
                parts = layer.cross.remember(memory.states)
                sentence[f"{site}.cross.key"], sentence[f"{site}.cross.value"] = parts
            empty = states.new_zeros(len(states), 1, layer.self.key_heads, 0, layer.self.head_width)
            hypothesis[f"{site}.self.key"] = hypothesis[f"{site}.self.value"] = empty
        if memory is not None:
            sentence["allowed"] = memory.allowed
        return {key: tensor[:, None] for key, tensor in sentence.items()}, hypothesis

    def step(self, x: Tensor, state: State, name: str, positions: Tensor) -> tuple[Tensor, State]:
        """The states `[N, K, d]` of one more token per hypothesis, and the state after it.

        Args:
            x: the embedded tokens.
            state: made by `start`, or after another step.
            name: of this stack within its model, as in the state.
            places: `[N, K]`, where the tokens stand.
        """
        taken = _Step(state, positions[..., None])
        for i, layer in enumerate(self.layers):
            site = f"{name}.layers.{i}"
            calls = [partial(taken.look_back, site=f"{site}.self", attention=layer.self, stack=self, layer=i)]
            if isinstance(layer, DecoderLayer):
                calls.append(partial(taken.look_across, site=f"{site}.cross", attention=layer.cross))
            x = layer.block(x, *calls)
        result: Tensor = self.norm(x)
        return result, state.advance(taken.caches, taken.queries)

    def first_kept(self, layer: int, keys: int, record: bool) -> int:
        """The first of so many keys that a block's later tokens may look at; a recorded map needs them all."""
        if record or self.config.window is None or not self.has_window(layer):
            return 0
        return max(0, keys + 1 - self.config.window)

    def maps(self, state: State) -> dict[str, AttentionMap]:
        """The maps of every site, `[N, K, heads, T, S]`, of a state that recorded its queries."""
        found = {}
        for site, query in (state.asked or {}).items():
            layer = self.layers[int(site.split(".")[-2])]
            own = site.endswith(".self")
            attention = layer.self if own else layer.cross
            key = (state.hypothesis if own else state.sentence)[f"{site}.key"]
            mask = causal() if own else allow(state.sentence["allowed"][:, :, None, None])
            real = seen(replace(state, step=state.step - 1), key.shape[-2]) if own else None
            mask = mask if real is None else mask & real
            if own and self.has_window(int(site.split(".")[-2])):
                mask = mask & window(self.config.window - 1, 0)  # type: ignore[operator]
            spec = make_spec(attention.score, attention.normalizer, mask, self.score_bias() if own else None)
            found[site] = AttentionMap.from_spec(query, key, spec)
        return found


class _Step:
    """One token of every hypothesis on its way through the blocks."""

    def __init__(self, state: State, positions: Tensor) -> None:
        self.state, self.positions = state, positions
        self.caches: dict[str, Tensor] = {}
        self.queries: dict[str, Tensor] = {}

    def look_back(self, x: Tensor, site: str, attention: MultiHead, stack: Stack, layer: int) -> Tensor:
        """Self-attention; the token's key and value join the cache."""
        query = self._ask(x, site, attention)
        new = attention.remember(x[:, :, None], None, self.positions)
        key, value = (
            append(self.state.hypothesis[f"{site}.{part}"], n) for part, n in zip(("key", "value"), new, strict=True)
        )
        mask = seen(self.state, key.shape[-2])
        if stack.has_window(layer):
            near = window(stack.config.window - 1, 0)  # type: ignore[operator]
            mask = near if mask is None else mask & near
        first = stack.first_kept(layer, key.shape[-2], self.state.asked is not None)
        kept = (key, value) if not first else (key[..., first:, :], value[..., first:, :])
        self.caches[f"{site}.key"], self.caches[f"{site}.value"] = kept
        return attention.look(query, key, value, mask, stack.score_bias())[:, :, 0]

    def look_across(self, x: Tensor, site: str, attention: MultiHead) -> Tensor:
        """Attention to the memory: the hypotheses of a sentence are its queries, so no key is copied."""
        query = self._ask(x, site, attention).squeeze(-2).transpose(1, 2)  # [N, heads, K, d]
        sentence = self.state.sentence
        key, value, allowed = (sentence[n][:, 0] for n in (f"{site}.key", f"{site}.value", "allowed"))
        return attention.look(query, key, value, may_look(allowed))

    def _ask(self, x: Tensor, site: str, attention: MultiHead) -> Tensor:
        """The query `[N, K, heads, 1, d]`; what its context remembers joins the cache."""
        query, remembered = attention.ask_next(x, self.state.hypothesis.get(f"{site}.context"), self.positions)
        if remembered is not None:
            self.caches[f"{site}.context"] = remembered
        self.queries[site] = query
        return query


def seen(state: State, keys: int) -> Mask | None:
    """Which of the last `keys` keys of a cache are real: a beginning may be padded, what came later is not."""
    beginning = state.sentence.get("seen")
    if beginning is None:
        return None
    later = max(0, state.step + 1)
    real = torch.cat([beginning, beginning.new_ones(*beginning.shape[:-1], later)], -1)
    return allow(real[..., -keys:][:, :, None, None])


def may_look(allowed: Bool[Tensor, "B n"]) -> Mask:
    """Any query of a sentence at its real tokens."""
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
