"""A Transformer's decoder whose steps are planned: what no step changes is decided and computed before the first one.

`Transformer.step` is the meaning; the tests hold this to it. Queries, keys and values are one product, positions are
rows of a table, and nothing is checked or chosen at a step. Keys and values are written into cells of one buffer:

    cells     one for each token of each hypothesis of a sentence, in the order in which they were computed
    path      for each hypothesis, the cells of its own tokens: the other cells are masked

So a beam that is reordered copies no key: its paths change, and a sentence's hypotheses are the queries of one product.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from regard.attention.maps.map import AttentionMap
from regard.attention.masks import Mask
from regard.attention.plain import has_hooks
from regard.attention.watch import hooks_of_others
from regard.models.planned_recurrent import PlannedRecurrent, recurrent_refusal
from regard.models.recurrent import Recurrent
from regard.models.seq2seq import Memory, Step
from regard.models.transformer import Transformer
from regard.nn.blocks import DecoderLayer, EncoderLayer, FeedForward, Residual, RMSNorm
from regard.nn.dropout import Dropout
from regard.nn.embedding import count_positions
from regard.nn.kv_cache import KVCache
from regard.nn.multihead import MultiHead
from regard.nn.products import Product, joined, make_product
from regard.nn.state import BlockState, CrossAttentionState, DecoderState, SelfAttentionState, State

ROOM = 32  # tokens of a hypothesis that new buffers hold
LEAST_LIVE = 0.75  # share of a buffer's sentences that are still searched, below which it is copied without the others
NUMBERS = 8  # of a parameter that are looked at for changes, or a few more
SETTINGS = ("eps", "activation", "before")  # of modules, which may be set later
METHODS = {"forward", "attend", "queries", "keys_values"}  # of a module
LINEAR = ("query", "key", "value", "output")  # of an attention
States = Callable[[Tensor], Tensor]


class Cells:
    """Keys and values of all layers; a cell that has been written is never written again.

    Attributes:
        key, value: `[N · key_heads, C, d_head]` of each layer.
        filled: number of cells that are written.
    """

    def __init__(self, key: list[Tensor], value: list[Tensor], filled: int) -> None:
        self.key, self.value, self.filled = key, value, filled
        self._lock = Lock()  # two threads may continue the same state

    def with_room(self, filled: int, more: int) -> "Cells":
        """These cells, if `more` can be written behind the first `filled`; else a copy of those, with room. They are
        taken for the caller."""
        with self._lock:
            if self.filled == filled and filled + more <= self.key[0].shape[1]:
                self.filled += more
                return self
        made = self._copied(filled, filled + max(ROOM * more, filled), lambda part: part)
        made.filled += more
        return made

    def of(self, sentences: Tensor, count: int, filled: int) -> "Cells":
        """The cells of some of `count` sentences."""

        def chosen(part: Tensor) -> Tensor:
            found: Tensor = part.unflatten(0, (count, -1)).index_select(0, sentences).flatten(0, 1)
            return found

        return self._copied(filled, self.key[0].shape[1], chosen)

    def _copied(self, filled: int, room: int, change: Callable[[Tensor], Tensor]) -> "Cells":
        def moved(part: Tensor) -> Tensor:
            some = change(part[:, :filled])
            new = some.new_empty(len(some), room, some.shape[-1])
            new[:, :filled] = some
            return new

        key, value = ([moved(part) for part in parts] for parts in (self.key, self.value))
        return Cells(key, value, filled)


class StepQueries(NamedTuple):
    """The queries of one step, as they were computed: no later step touches them.

    Attributes:
        queries: `[N · K, 2 · layers, heads · d_head]`, of each layer's self-attention and attention to the memory.
        beams: K.
        first: the cell of the first hypothesis.
        copies: number of times that the buffers had been copied for some of their sentences.
    """

    queries: Tensor
    beams: int
    first: int
    copies: int


@dataclass(frozen=True, eq=False)
class Crossed:
    """Keys and values of the memory, by layer, and which are real.

    Attributes:
        key: `[N · key_heads, d_head, S]` each.
        value: `[N · key_heads, S, d_head]` each.
        hidden: `[N · key_heads, 1, S]`, 0 at real states and -∞ at padding; None where there is none.
        memory: the encoder's output.
    """

    key: list[Tensor]
    value: list[Tensor]
    hidden: Tensor | None
    memory: Memory


@dataclass(frozen=True, eq=False)
class PlannedState(State):
    """State of a planned decoder: N sentences with K hypotheses each.

    Attributes:
        cells: of all tokens so far.
        filled: number of cells that belong to this state or to those before it.
        path: `[N, K, t]`, the cells of each hypothesis; None while every cell belongs to every hypothesis.
        crossed: keys and values of the memory.
        rows: `[N]`, the sentences that are still searched among those of the cells; None for all.
        count: number of sentences of the cells.
        step: number of steps taken.
        record: whether queries are kept.
        heads: of a query.
        recorded: the queries of all steps, where they are kept.
        sources: for each time that the buffers were copied for some of their sentences, these sentences `[N]`.
        asked: queries `[N · K, heads · d_head]` of the last step's attention to the memory, of each layer; none where
            hypotheses or sentences have been selected since.
    """

    cells: Cells
    filled: int
    path: Int[Tensor, "N K t"] | None
    crossed: Crossed
    rows: Int[Tensor, "N"] | None
    count: int
    step: int
    record: bool
    heads: int
    recorded: tuple[StepQueries, ...] = ()
    sources: tuple[Tensor, ...] = ()
    asked: tuple[Tensor, ...] = ()

    def select(self, parents: Int[Tensor, "N K"]) -> "PlannedState":
        path = self.path
        if path is None and parents.shape[1] == 1:
            return self
        if path is None:
            path = torch.arange(self.filled, device=parents.device).expand(len(parents), 1, -1)
        path = path.gather(1, parents[..., None].expand(-1, -1, path.shape[-1]))
        return replace(self, path=path, asked=())

    def one(self, sentence: int, hypothesis: int) -> "PlannedState":
        rows = torch.tensor([sentence]) if self.rows is None else self.rows[sentence : sentence + 1]
        path = None if self.path is None else self.path[sentence : sentence + 1, hypothesis : hypothesis + 1]
        return replace(self, rows=rows, path=path)

    def companions(self) -> Hashable:
        return id(self.cells), id(self.crossed), id(self.recorded)

    def together(self, states: Sequence["PlannedState"]) -> "PlannedState":
        rows = [one.rows for one in states if one.rows is not None]
        paths = [one.path for one in states if one.path is not None]
        return replace(self, rows=torch.cat(rows), path=torch.cat(paths) if paths else None)

    def keep(self, sentences: Int[Tensor, "M"]) -> "PlannedState":
        rows = sentences if self.rows is None else self.rows[sentences]
        path = None if self.path is None else self.path.index_select(0, sentences)
        if len(rows) >= LEAST_LIVE * self.count:
            return replace(self, path=path, rows=rows, asked=())
        cells = self.cells.of(rows, self.count, self.filled)
        return replace(
            self,
            cells=cells,
            path=path,
            crossed=_chosen(self.crossed, rows, self.count),
            rows=None,
            count=len(rows),
            sources=(*self.sources, rows),
            asked=(),
        )

    def plain(self) -> DecoderState:
        """The same state as `Transformer.step` has it."""
        live = torch.arange(self.count) if self.rows is None else self.rows
        path = torch.arange(self.filled).expand(len(live), 1, -1) if self.path is None else self.path
        queries = self._queries(live, path) if self.record and self.step else None
        blocks = []
        for number in range(len(self.crossed.key)):
            key, value = (
                _picked(part[number].unflatten(0, (self.count, -1)), live, path)
                for part in (self.cells.key, self.cells.value)
            )
            own, cross = (None, None) if queries is None else queries[2 * number : 2 * number + 2]
            crossed = self.crossed.key[number].mT, self.crossed.value[number]
            there = [part.unflatten(0, (self.count, -1))[live][:, None] for part in crossed]
            before = SelfAttentionState(KVCache(key, value), None, own)
            blocks.append(BlockState(before, CrossAttentionState(there[0], there[1], None, cross)))
        allowed = self.crossed.memory.allowed[live][:, None]
        return DecoderState(tuple(blocks), self.step, self.record, allowed)

    def _queries(self, live: Tensor, path: Tensor) -> Tensor:
        """`[2 · layers, M, K, heads, t, d_head]`: the recorded queries of some sentences' hypotheses."""
        steps, copies = [], len(self.sources)
        for number, one in reversed([*enumerate(self.recorded)]):
            while copies > one.copies:
                copies -= 1
                live = self.sources[copies][live]
            places = live[:, None] * one.beams + path[:, :, number] - one.first
            steps.append(one.queries.index_select(0, places.flatten()))
        whole = torch.stack(steps[::-1], 2).unflatten(0, path.shape[:2])  # [M, K, 2 · layers, t, heads · d_head]
        split: Tensor = whole.unflatten(-1, (self.heads, -1))
        return split.permute(2, 0, 1, 4, 3, 5)


def _picked(cells: Tensor, live: Tensor, path: Tensor) -> Tensor:
    """`[M, K, heads, t, d]`: the cells of some sentences' hypotheses among `[N, heads, C, d]`."""
    if path.shape[:2] == (1, 1):  # one hypothesis: one copy
        return cells[int(live[0])].index_select(1, path[0, 0])[None, None]
    return cells.transpose(1, 2)[live[:, None, None], path].transpose(2, 3)


def _chosen(crossed: Crossed, rows: Tensor, count: int) -> Crossed:
    """The keys and values of some of `count` sentences."""

    def own(part: Tensor) -> Tensor:
        found: Tensor = part.unflatten(0, (count, -1)).index_select(0, rows).flatten(0, 1)
        return found

    memory = crossed.memory
    return Crossed(
        [own(key) for key in crossed.key], [own(value) for value in crossed.value],
        None if crossed.hidden is None else own(crossed.hidden),
        Memory(memory.states.index_select(0, rows), memory.allowed.index_select(0, rows)),
    )  # fmt: skip


ROWS = 512  # of states whose feed-forward is computed at once: what is between its two products stays in the cache


class PlannedLayer:
    """The products of a layer's self-attention and feed-forward.

    Args:
        layer: the layer.
        precision: of the products.
        around: the residual connections and norms around its parts.
    """

    def __init__(self, layer: Any, precision: str, around: Sequence[Residual]) -> None:
        own, feed_forward = layer.self, layer.feed_forward
        self.own = own
        self.before = around[0].before
        self.norms = [_norm(part.norm) for part in around]
        self.all = make_product(*joined([own.query, own.key, own.value]), precision)
        self.output = _product(own.output, precision)
        gates = [] if feed_forward.gate is None else [feed_forward.gate]
        self.inner = make_product(*joined([*gates, feed_forward.inner]), precision)
        self.outer = _product(feed_forward.outer, precision)
        self.gated, self.activation = bool(gates), feed_forward.activation

    def around(self, x: Tensor, number: int, part: States) -> Tensor:
        """States after a part of the layer, with the residual connection and the norm around it."""
        norm = self.norms[number]
        return x + part(norm(x)) if self.before else norm(x + part(x))

    def feed_forward(self, x: Tensor) -> Tensor:
        """The feed-forward of states `[n, d]`."""
        if len(x) > ROWS:
            return torch.cat([self.feed_forward(some) for some in x.split(ROWS)])
        inside = self.inner(x)
        if not self.gated:
            return self.outer(self.activation(inside))
        gate, inside = inside.chunk(2, -1)
        return self.outer(self.activation(gate) * inside)

    def split(self, x: Tensor, place: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[n, heads · d_head]` of states `[n, d]`, with head norm and rotation.

        Args:
            x: the states.
            place: of each state, for rotary embeddings.
        """
        own = self.own
        wide, narrow = own.heads * own.head_width, own.key_heads * own.head_width
        query, key, value = self.all(x).split((wide, narrow, narrow), 1)
        if own.rotary is not None or own.query_norm is not None:
            query = own.positioned(query.unflatten(1, (own.heads, 1, -1)), own.query_norm, place).flatten(1)
            key = own.positioned(key.unflatten(1, (own.key_heads, 1, -1)), own.key_norm, place).flatten(1)
        return query, key, value


class PlannedDecoderLayer(PlannedLayer):
    """The products of a decoder layer.

    Args:
        layer: the layer.
        precision: of the products.
        window: number of tokens that a token attends to, itself included; None for all earlier ones.
    """

    def __init__(self, layer: DecoderLayer, precision: str, window: int | None) -> None:
        super().__init__(layer, precision, (layer.around_self, layer.around_cross, layer.around_feed_forward))
        cross = layer.cross
        self.cross, self.window = cross, window
        self.memory = make_product(*joined([cross.key, cross.value]), precision)
        self.query, self.memory_output = _product(cross.query, precision), _product(cross.output, precision)


class PlannedEncoder:
    """A model's encoder of tokens with products in another precision than its weights'.

    Args:
        model: a Transformer for which `refusal` gives no reason.
        precision: of the products.
    """

    def __init__(self, model: Transformer, precision: str) -> None:
        self.model = model
        self.layers = [
            PlannedLayer(layer, precision, (layer.around_self, layer.around_feed_forward))
            for layer in model.encoder.layers
        ]

    def encode(self, source: Int[Tensor, "B S"], allowed: Bool[Tensor, "B S"]) -> Memory:
        """The memory of a source of token ids; `allowed` is True at real positions."""
        model, stack = self.model, self.model.encoder
        positions = count_positions(allowed)
        x = model.embed(source, positions).flatten(0, 1)
        place = positions.flatten()[:, None]
        for number, layer in enumerate(self.layers):
            mask = stack.mask(number, allowed)
            x = layer.around(x, 0, lambda y: self._attend(y, layer, place, allowed.shape, mask))  # noqa: B023
            x = layer.around(x, 1, layer.feed_forward)
        return Memory(stack.norm(x).unflatten(0, allowed.shape), allowed)

    def _attend(self, x: Tensor, layer: PlannedLayer, place: Tensor, shape: torch.Size, mask: Mask | None) -> Tensor:
        parts = zip(layer.split(x, place), (layer.own.heads, layer.own.key_heads, layer.own.key_heads), strict=True)
        query, key, value = (
            part.unflatten(0, shape).unflatten(2, (heads, -1)).transpose(1, 2) for part, heads in parts
        )
        found = layer.own.joined(query, key, value, mask, self.model.encoder.score_bias())
        return layer.output(found.flatten(0, 1))


class PlannedDecoder:
    """A model's decoder, ready to take steps: `start`, `step` and `maps` as those of the model.

    Args:
        model: a Transformer for which `refusal` gives no reason.
        precision: of the products: "float32", "bfloat16" or "int8".
    """

    attends_unrecorded = True

    def __init__(self, model: Transformer, precision: str = "float32") -> None:
        self.model, self.precision = model, precision
        stack = model.decoder
        windows = [model.config.window if stack.has_window(i) else None for i in range(len(stack.layers))]
        layers = zip(stack.layers, windows, strict=True)
        self.layers = [PlannedDecoderLayer(layer, precision, window) for layer, window in layers]
        self.norm = _norm(stack.norm)
        self.readout = make_product(*model.readout(), precision)
        self.embedding, self.scale = model.embedding.weight.detach(), model.embedding.scale
        self.bias: Any = stack.score_bias()
        self.embedding_norm = None if model.embedding_norm is None else _norm(model.embedding_norm)
        self.positions = self.embedding.new_zeros(0, model.config.width)

    def start(self, memory: Memory, record: bool = False) -> PlannedState:
        """The state before the first token, one hypothesis per sentence; `record` keeps every site's queries."""
        count, allowed = len(memory.states), memory.allowed
        keys, values = [], []
        for layer in self.layers:
            heads = layer.cross.key_heads
            both = layer.memory(memory.states.flatten(0, 1)).unflatten(0, (count, -1)).unflatten(-1, (2, heads, -1))
            key, value = both.permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2)
            keys.append(layer.cross.positioned(key, layer.cross.key_norm, None).mT.contiguous())
            values.append(value)
        hidden = None
        if not bool(allowed.all()):
            one = torch.zeros_like(allowed, dtype=keys[0].dtype).masked_fill_(~allowed, -torch.inf)
            hidden = one.repeat_interleave(self.layers[0].cross.key_heads, 0)[:, None]
        own, like = self.layers[0].own, memory.states
        key, value = ([like.new_empty(count * own.key_heads, 0, own.head_width) for _ in self.layers] for _ in range(2))
        crossed, cells = Crossed(keys, values, hidden, memory), Cells(key, value, 0)
        return PlannedState(cells, 0, None, crossed, None, count, 0, record, own.heads)

    def step(self, token: Int[Tensor, "N K"], state: PlannedState) -> Step:
        """Logits `[N, K, V]` of the next token after `token`, and the state after it."""
        beams, rows = token.shape[1], state.rows
        path = state.path
        if rows is not None:  # sentences that have ended are computed until the buffers are copied without them
            token = token.new_zeros(state.count, beams).index_copy_(0, rows, token)
            if path is not None:
                path = path.new_zeros(state.count, *path.shape[1:]).index_copy_(0, rows, path)
        cells = state.cells.with_room(state.filled, beams)
        now = _Now(cells, state.filled, state.count, beams, state.step, path, state.crossed, state.record)
        filled = state.filled + beams
        x = self._embed(token.flatten(), state.step)
        for number, layer in enumerate(self.layers):
            x = layer.around(x, 0, lambda y: self._attend(y, number, now))  # noqa: B023 - called at once
            x = layer.around(x, 1, lambda y: self._attend_memory(y, number, now))  # noqa: B023
            x = layer.around(x, 2, layer.feed_forward)
        x = self.norm(x)
        if self.model.config.scaled_output:
            x = x * self.model.config.width**-0.5
        if rows is not None:
            x = x.view(state.count, beams, -1).index_select(0, rows).flatten(0, 1)
        after = state.path
        if beams > 1 or after is not None:
            mine = torch.arange(state.filled, filled, device=token.device)[:, None]
            before = state.path if state.path is not None else mine[:0].T
            live = state.count if rows is None else len(rows)
            after = torch.cat([before.expand(live, beams, -1), mine.expand(live, -1, 1)], -1)
        logits = self.readout(x).view(-1, beams, len(self.embedding))
        recorded = state.recorded
        if state.record:
            queries = torch.stack([query for pair in zip(now.own, now.asked, strict=True) for query in pair], 1)
            recorded = (*recorded, StepQueries(queries, beams, state.filled, len(state.sources)))
        after_state = replace(
            state, cells=cells, filled=filled, path=after, step=state.step + 1, recorded=recorded,
            asked=tuple(now.asked),
        )  # fmt: skip
        return Step(logits, after_state)

    def maps(self, state: PlannedState) -> dict[str, AttentionMap]:
        """The maps of every decoder site, `[N, K, heads, T, S]`, of a state that was started with `record`."""
        return self.model.maps(state.plain())

    def attended(self, state: PlannedState, site: str, heads: Sequence[int]) -> Float[Tensor, "N K S"]:
        """The last step's weights of the memory, as `Seq2Seq.attended` gives them; of a state as `step` gives it."""
        number = int(site.split(".")[2])
        cross, chosen = self.layers[number].cross, list(heads)
        live = torch.arange(state.count) if state.rows is None else state.rows
        query = state.asked[number].view(state.count, -1, cross.heads, cross.head_width)[live][:, :, chosen]
        groups = [head * cross.key_heads // cross.heads for head in chosen]
        key = state.crossed.key[number].unflatten(0, (state.count, -1))[live][:, groups]
        alpha = cross.head_width**-0.5 if cross.score == "scaled_dot" else 1.0
        scores = alpha * torch.matmul(query.transpose(1, 2), key)
        scores = scores.masked_fill(~state.crossed.memory.allowed[live][:, None, None], -torch.inf)
        return scores.softmax(-1).mean(1)

    def parameters(self) -> Iterator[Tensor]:
        """The model's."""
        return self.model.parameters()

    def _embed(self, tokens: Tensor, step: int) -> Tensor:
        """Vectors `[n, d]` of tokens at one position."""
        if step >= len(self.positions):
            more = torch.zeros(2 * step + ROOM, self.positions.shape[1], dtype=self.embedding.dtype)
            first = self.model.config.first_position
            positions = torch.arange(first, first + len(more), device=tokens.device)
            self.positions = self.model.positions(more.to(tokens.device), positions).detach()
        x = torch.add(self.positions[step], self.embedding.index_select(0, tokens), alpha=self.scale)
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def _attend(self, x: Tensor, number: int, now: "_Now") -> Tensor:
        """Self-attention of states `[n, d]`; their keys and values join the cells."""
        layer, cells = self.layers[number], now.cells
        own = layer.own
        here = slice(now.filled, now.filled + now.beams)
        query, key, value = layer.split(x, now.place)
        for kept, new in ((cells.key, key), (cells.value, value)):
            there = kept[number].view(now.count, own.key_heads, -1, own.head_width)[:, :, here]
            there.copy_(new.reshape(now.count, now.beams, own.key_heads, own.head_width).transpose(1, 2))
        first, mask = now.mask(layer.window, own, self.bias)
        seen = slice(first, here.stop)
        if now.record:
            now.own.append(query)
        query = now.by_heads(query, own)
        return layer.output(now.joined(query, cells.key[number][:, seen].mT, cells.value[number][:, seen], mask, own))

    def _attend_memory(self, x: Tensor, number: int, now: "_Now") -> Tensor:
        """Attention of states `[n, d]` to the memory."""
        layer, crossed = self.layers[number], now.crossed
        query, cross = layer.query(x), layer.cross
        if cross.query_norm is not None:
            query = cross.positioned(query.unflatten(1, (cross.heads, 1, -1)), cross.query_norm, None).flatten(1)
        now.asked.append(query)
        query = now.by_heads(query, cross)
        found = now.joined(query, crossed.key[number], crossed.value[number], crossed.hidden, cross)
        return layer.memory_output(found)


@dataclass(eq=False)
class _Now:
    """What all layers of one step share.

    Attributes:
        cells: with room for the step's.
        filled: number of cells before the step.
        count, beams: N and K.
        step: number of the step.
        path: `[N, K, t]`, as in `PlannedState`, for all sentences of the cells.
        crossed: keys and values of the memory.
        record: whether the queries of self-attention are kept; those of the memory's always are.
    """

    cells: Cells
    filled: int
    count: int
    beams: int
    step: int
    path: Tensor | None
    crossed: Crossed
    record: bool

    def __post_init__(self) -> None:
        self.own: list[Tensor] = []
        self.asked: list[Tensor] = []
        self.masks: dict[int | None, tuple[int, Tensor | None]] = {}
        self.none = self.cells.key[0].new_zeros(1)
        self.place = torch.full((1, 1), self.step, device=self.cells.key[0].device)

    def by_heads(self, query: Tensor, own: MultiHead) -> Tensor:
        """Queries `[N · K, heads · d_head]` as `[N · key_heads, groups · K, d_head]`."""
        if self.beams == 1:
            return query.reshape(self.count * own.key_heads, -1, own.head_width)
        split = query.reshape(self.count, self.beams, own.key_heads, -1, own.head_width)
        return split.permute(0, 2, 3, 1, 4).reshape(self.count * own.key_heads, -1, own.head_width)

    def joined(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, own: MultiHead) -> Tensor:
        """softmax(scale q k + mask) v, the heads joined: `[N · K, heads · d_head]`."""
        alpha = own.head_width**-0.5 if own.score == "scaled_dot" else 1.0
        if mask is None:
            weights = torch.baddbmm(self.none, query, key, beta=0, alpha=alpha).softmax(-1)
        else:
            weights = torch.baddbmm(mask, query, key, alpha=alpha).softmax(-1)
        found = torch.bmm(weights, value)
        if self.beams == 1:
            return found.view(self.count, -1)
        split = found.view(self.count, own.key_heads, -1, self.beams, own.head_width)
        return split.permute(0, 3, 1, 2, 4).reshape(self.count * self.beams, -1)

    def mask(self, window: int | None, own: MultiHead, bias: Any) -> tuple[int, Tensor | None]:
        """The first cell that is seen, and what is added to the scores from there on: the bias of positions, and -∞ at
        cells of other hypotheses and behind the window; None where that is nothing."""
        if window not in self.masks:
            self.masks[window] = self._mask(window, own, bias)
        return self.masks[window]

    def _mask(self, window: int | None, own: MultiHead, bias: Any) -> tuple[int, Tensor | None]:
        tokens = self.step + 1
        seen = tokens if window is None else min(window, tokens)
        key = self.cells.key[0]
        added = None
        if bias is not None:
            distance = torch.arange(1 - seen, 1, device=key.device)
            added = bias.by_distance(distance, (1, own.heads, 1, tokens)).to(key.dtype).expand(own.heads, seen)
        if self.path is None:
            whole = None if added is None else added.expand(self.count, -1, -1)
            return tokens - seen, None if whole is None else whole.reshape(self.count * own.key_heads, -1, seen)
        cells = self.filled + self.beams
        mine = torch.arange(self.filled, cells, device=key.device)[:, None].expand(self.count, -1, 1)
        path = torch.cat([self.path, mine], -1)[..., -seen:]
        heads = own.heads if added is not None else 1
        table = key.new_full((self.count, heads, self.beams, cells), -torch.inf)
        at = path[:, None].expand(-1, heads, -1, -1)
        table = table.scatter_(3, at, 0.0) if added is None else table.scatter_(3, at, added[:, None].expand_as(at))
        return 0, table.expand(-1, own.heads, -1, -1).reshape(self.count * own.key_heads, -1, cells)


def refusal(model: Any) -> str:
    """Why a model's decoder cannot be planned; empty where it can."""
    if not isinstance(model, Transformer | Recurrent):
        return "only encoder-decoders are planned"
    if model.training:
        return "the model is in training"
    if hooks_of_others():
        return "modules of all kinds have hooks, which a planned step would not call"
    for module in _modules(model):
        if type(module).__module__.partition(".")[0] not in ("torch", "regard"):
            return f"a module is a {type(module).__name__}, of which a planned step would call nothing"
        if has_hooks(module):
            return "a module has hooks, which a planned step would not call"
        if type(module._modules.get("dropout")) not in (Dropout, type(None)):
            return "a module stands in the place of a dropout"
        if METHODS & vars(module).keys():
            return "a module has a method of its own, which a planned step would not call"
    if any(part.dtype != torch.float32 or part.device.type != "cpu" for part in _parameters(model)):
        return "steps are planned for float32 on a CPU"
    if isinstance(model, Recurrent):
        return recurrent_refusal(model)
    for layer in model.decoder.layers:
        if type(layer) is not DecoderLayer:
            return f"a layer is a {type(layer).__name__}"
        for part in (layer.self, layer.cross):
            if type(part) is not MultiHead or part.score not in ("scaled_dot", "dot") or part.normalizer != "softmax":
                return "an attention has another score or normalizer than a product and softmax"
            if part.context is not None:
                return "an attention has a context"
        for around in (layer.around_self, layer.around_cross, layer.around_feed_forward):
            if type(around) is not Residual or type(around.norm) not in (nn.LayerNorm, RMSNorm):
                return "a norm is not one of regard's"
        if not _is_plain(layer.feed_forward):
            return "a feed-forward layer is of another kind"
        parts = [module for part in (layer.self, layer.cross, layer.feed_forward) for module in part.children()]
        if any(isinstance(part, nn.Linear) and type(part) is not nn.Linear for part in parts):
            return "a layer of an attention is not linear"
        if any(type(getattr(part, name)) is not nn.Linear for part in (layer.self, layer.cross) for name in LINEAR):
            return "a layer of an attention is not linear"
    return ""


def encoder_refusal(model: Any) -> str:
    """Why the encoder of a model whose decoder is planned is not; empty where it is."""
    if type(model) is not Transformer or model.source_encoder is not None or model.ctc_head is not None:
        return "the encoder reads something else than tokens"
    for layer in model.encoder.layers:
        if type(layer) is not EncoderLayer or type(layer.self) is not MultiHead or layer.self.context is not None:
            return "a layer of the encoder is not a plain one"
        if any(type(around) is not Residual for around in (layer.around_self, layer.around_feed_forward)):
            return "a norm is not one of regard's"
        if not _is_plain(layer.feed_forward) or any(type(getattr(layer.self, one)) is not nn.Linear for one in LINEAR):
            return "a layer of the encoder is not linear"
    return ""


def _is_plain(feed_forward: nn.Module) -> bool:
    """Whether a feed-forward layer is one of regard's, of torch's linear layers."""
    if type(feed_forward) is not FeedForward or type(feed_forward.gate) not in (nn.Linear, type(None)):
        return False
    return type(feed_forward.inner) is nn.Linear and type(feed_forward.outer) is nn.Linear


class Stamp:
    """What a plan was made of: it no longer fits once a module or a parameter is replaced or written to.

    Writing to `.data`, or within `inference_mode`, counts no version, so that some numbers of each parameter are looked
    at, too. A change of others alone, by such a way, is not noticed.

    Args:
        model: the model.
        whole: whether other settings of its modules count too, a swapped normalizer, say.
    """

    def __init__(self, model: nn.Module, whole: bool = False) -> None:
        self.whole = whole
        self.held = [*_modules(model), *_parameters(model)]  # so that no other object gets the id of one
        self.parts = self._parts(model)
        flat = [part.detach().reshape(-1) for part in _parameters(model)]
        self.some = [one[:: max(1, one.numel() // NUMBERS)] for one in flat]
        self.numbers = self._numbers()

    def fits(self, model: nn.Module) -> bool:
        """Whether the model is still what it was."""
        return self.parts == self._parts(model) and torch.equal(self.numbers, self._numbers())

    def _numbers(self) -> Tensor:
        return torch.cat(self.some) if self.some else torch.empty(0)

    def _parts(self, model: nn.Module) -> list[Any]:
        modules: list[Any] = [(id(one), *map(vars(one).get, SETTINGS)) for one in _modules(model)]
        if self.whole:
            modules += [
                (name, value if isinstance(value, str | int | float | None) else id(value))
                for one in _modules(model) for name, value in vars(one).items() if not name.startswith("_")
            ]  # fmt: skip
        versions = [
            (id(part), part.data_ptr(), -1 if part.is_inference() else part._version) for part in _parameters(model)
        ]
        return [*modules, *versions]


def _modules(module: nn.Module) -> Iterator[nn.Module]:
    """The modules of a model, one that stands in several places several times: without their names, which take longer
    to make than all that is done with the modules here."""
    yield module
    for child in module._modules.values():
        if child is not None:
            yield from _modules(child)


def _parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of a model, one that is shared several times."""
    for module in _modules(model):
        yield from (part for part in module._parameters.values() if part is not None)


def _product(layer: nn.Linear, precision: str) -> Product:
    return make_product(layer.weight, layer.bias, precision)


def _norm(norm: nn.Module) -> States:
    """A norm without a module's call around it."""
    if type(norm) is nn.LayerNorm:
        shape, weight, bias, epsilon = norm.normalized_shape, norm.weight, norm.bias, norm.eps
        return lambda x: layer_norm(x, shape, weight, bias, epsilon)
    return norm


class Plans:
    """What a model is searched with: its planned encoder and decoder, kept as long as its parameters stay as they are.

    A copy and a pickle have no plans: they make their own.

    Args:
        precision: of the products: "float32", "bfloat16" or "int8".
    """

    def __init__(self, precision: str = "float32") -> None:
        self.precision = precision
        self.kept: tuple[Stamp, Any, Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Plans, (self.precision,)

    def of(self, model: Any) -> tuple[Any, Any]:
        """What encodes and what takes steps; the model itself where it cannot be planned."""
        if refusal(model):
            return model, model
        if self.kept is None or not self.kept[0].fits(model):
            encoder: Any = model
            if self.precision != "float32" and not encoder_refusal(model):
                encoder = PlannedEncoder(model, self.precision)
            make: Any = PlannedRecurrent if isinstance(model, Recurrent) else PlannedDecoder
            self.kept = Stamp(model), encoder, make(model, self.precision)
        return self.kept[1], self.kept[2]
