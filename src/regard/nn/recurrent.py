"""Recurrence with attention: the bidirectional encoder, and one step of a decoder with attention."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch._higher_order_ops import scan
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from regard.attention.masks import MaskLike
from regard.attention.normalizers import Hard, Normalizer
from regard.attention.operator import attend
from regard.attention.scores import Score, as_score
from regard.attention.tracing import are_hidden, goes_forward, is_transformed
from regard.attention.watch import owned
from regard.errors import ConfigError, ShapeError, unknown

CELLS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
    "gru": (nn.GRU, nn.GRUCell),
    "lstm": (nn.LSTM, nn.LSTMCell),
}


class RecurrentEncoder(nn.Module):
    """h_i = f(h_{i-1}, x_i), forwards, backwards or both; states of both directions are concatenated.

    Args:
        cell: "gru" or "lstm".
        input_width: of the input vectors.
        width: of one direction's state.
        layers: number of layers.
        direction: "both", "forward" or "backward".
        dropout: between layers.

    Source: Bahdanau et al. 2015, section 3.2.
    """

    def __init__(
        self, cell: str, input_width: int, width: int, layers: int = 1, direction: str = "both", dropout: float = 0.0
    ) -> None:
        super().__init__()
        if cell not in CELLS:
            raise unknown("cell", cell, CELLS)
        if direction not in ("both", "forward", "backward"):
            raise unknown("direction", direction, ("both", "forward", "backward"))
        if min(input_width, width, layers) < 1:
            raise ShapeError(
                "a recurrent encoder needs input_width, width and layers of at least 1; "
                f"got input_width {input_width}, width {width}, layers {layers}"
            )
        self.direction = direction
        self.output_width = 2 * width if direction == "both" else width
        self.rnn = RecurrentLayers(
            cell, input_width, width, layers, direction == "both", dropout if layers > 1 else 0.0
        )

    def forward(
        self, x: Float[Tensor, "B S e"], allowed: Bool[Tensor, "B S"]
    ) -> tuple[Float[Tensor, "B S d"], Float[Tensor, "B d"]]:
        """States `[B, S, d]` (0 at padding, on either side) and the last layer's final state `[B, d]`."""
        if not x.shape[0] or not x.shape[1]:  # torch packs no empty tensor
            return x.new_zeros(*x.shape[:2], self.output_width), x.new_zeros(x.shape[0], self.output_width)
        lengths = allowed.sum(-1)
        back = torch.where(allowed, allowed.cumsum(-1), lengths[:, None] + (~allowed).cumsum(-1)) - 1
        order = _inverse(back)  # real tokens first, in their order
        if self.direction == "backward":
            order = _flip(order, lengths)
            back = _inverse(order)
        # packed vectors have no forward derivative
        read = self._padded if are_hidden(x, allowed) or goes_forward(x, also=self.parameters) else self._packed
        states, summary = read(_pick(x, order), lengths)  # [B, S, d] and [B, d]
        alive = (lengths > 0)[:, None]
        return _pick(states, back) * allowed[..., None].to(states.dtype), summary * alive.to(summary.dtype)

    def _packed(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """States and the final state of the first `lengths` vectors of every row; the others are not computed."""
        packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        states, final = self.rnn.packed(packed)
        padded, _ = pad_packed_sequence(states, batch_first=True, total_length=x.shape[1])
        return padded, final[-self.rnn.sides :].transpose(0, 1).flatten(1)

    def _padded(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The same by shapes alone, layer by layer: padding is computed too, behind the vectors that count."""
        backwards = _flip(torch.arange(x.shape[1], device=x.device).expand(x.shape[:2]), lengths)
        last = (lengths - 1).clamp(min=0)[:, None]
        finals: list[Tensor] = []
        for layer in range(self.rnn.num_layers):
            if layer and self.rnn.dropout:
                x = nn.functional.dropout(x, self.rnn.dropout, self.training)
            states = [self.rnn.one(x, layer)]
            finals = [_pick(states[0], last)[:, 0]]
            if self.rnn.sides == 2:
                other = self.rnn.one(_pick(x, backwards), layer, "_reverse")
                finals.append(_pick(other, last)[:, 0])
                states.append(_pick(other, backwards))
            x = torch.cat(states, -1)
        return x, torch.cat(finals, -1)


class RecurrentLayers(nn.Module):
    """The weights of `torch.nn.GRU` or `torch.nn.LSTM` under their names, in a module that a graph can hold.

    Dynamo breaks its graph at every `torch.nn.GRU` and `torch.nn.LSTM`, and not at the functions that compute them.

    Args:
        cell: "gru" or "lstm".
        input_width: of the input vectors.
        width: of one direction's state.
        layers: number of layers.
        both: both directions; else forwards alone.
        dropout: between layers.
    """

    def __init__(self, cell: str, input_width: int, width: int, layers: int, both: bool, dropout: float) -> None:
        super().__init__()
        self.is_lstm, self.dropout = cell == "lstm", dropout
        self.input_size, self.hidden_size, self.num_layers, self.bidirectional = input_width, width, layers, both
        self.sides = 2 if both else 1
        made = CELLS[cell][0](input_width, width, layers, batch_first=True, bidirectional=both)
        self.names = [name for name, _ in made.named_parameters()]
        for name, weight in made.named_parameters():
            self.register_parameter(name, weight)

    def packed(self, x: PackedSequence) -> tuple[PackedSequence, Tensor]:
        """States of packed vectors, and the final states `[layers · sides, B, width]`."""
        weights = [getattr(self, name) for name in self.names]
        first = x.data.new_zeros(self.num_layers * self.sides, int(x.batch_sizes[0]), self.hidden_size)
        how = (True, self.num_layers, self.dropout, self.training, self.sides == 2)
        if self.is_lstm:
            states, final, _ = torch.lstm(x.data, x.batch_sizes, (first, first), weights, *how)
        else:
            states, final = torch.gru(x.data, x.batch_sizes, first, weights, *how)
        ordered = final if x.unsorted_indices is None else final.index_select(1, x.unsorted_indices)
        return PackedSequence(states, x.batch_sizes, x.sorted_indices, x.unsorted_indices), ordered

    def one(self, x: Tensor, layer: int, side: str = "", first: Tensor | None = None) -> Tensor:
        """States `[B, S, width]` of one layer and direction ("" or "_reverse"), after `first` `[1, B, width]` or 0."""
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = [getattr(self, f"{kind}_l{layer}{side}") for kind in kinds]
        first = x.new_zeros(1, x.shape[0], self.hidden_size) if first is None else first
        # in an exported graph torch.gru and torch.lstm would fix the length and the batch; they have no rule for vmap,
        # and torch.lstm has no forward derivative
        if torch.compiler.is_exporting() or is_transformed() or goes_forward(x, first, *weights):
            return scanned(x, first[0], weights)
        how = (True, 1, 0.0, self.training, False, True)
        if self.is_lstm:
            return torch.lstm(x, (first, first), weights, *how)[0]
        return torch.gru(x, first, weights, *how)[0]


class AttentionalStep(nn.Module):
    """One step of a recurrent decoder with attention to a memory.

        asks = "previous" (Bahdanau et al. 2015, section 3.1):  c_t = attend(s_{t-1}),  s_t = f(s_{t-1}, [y_{t-1}; fed])
        asks = "new" (Luong et al. 2015, section 3):            s_t = f(s_{t-1}, [y_{t-1}; fed]),  c_t = attend(s_t)

    Args:
        cell: "gru" or "lstm".
        input_width: of the embedded previous token y_{t-1}.
        width: of the state s.
        memory_width: of a memory state, and so of the context c.
        score: compares a state with a memory state; None is no attention (c is always the memory's summary).
            With a score that `follows`, a context is [c; α]: the weights are an input of the next step's score.
        normalizer: a name; "hard" is a one-hot weight, sampled in training and the best one otherwise.
        asks: which state is the query, "previous" or "new".
        feed: which context is an input of the cell: "current" (c_t, only where the query is s_{t-1}), "previous"
            (c_{t-1}, c_0 = 0; Luong's input feeding) or "none".
        gate: the context is multiplied by β = σ(w · s + b) of the query's state, a scalar (Xu et al. 2015, 4.2.1).

    Raises:
        ConfigError: feed "current" where the query is s_t: c_t does not exist yet.
    """

    def __init__(
        self,
        cell: str,
        input_width: int,
        width: int,
        memory_width: int,
        *,
        score: Score | None,
        normalizer: str = "softmax",
        asks: str = "previous",
        feed: str = "current",
        gate: bool = False,
    ) -> None:
        super().__init__()
        if cell not in CELLS:
            raise unknown("cell", cell, CELLS)
        if asks not in ("previous", "new"):
            raise unknown("asks", asks, ("previous", "new"))
        if feed not in ("current", "previous", "none"):
            raise unknown("feed", feed, ("current", "previous", "none"))
        if asks == "new" and feed == "current":
            raise ConfigError(
                'feed = "current" needs asks = "previous": with asks = "new" its context does not exist yet; '
                'use feed = "previous" or "none"'
            )
        self.asks, self.feed, self.normalizer = asks, feed, normalizer
        self.score, self.memory_width = score, memory_width
        self.follows = score is not None and score.follows
        self.gate = nn.Linear(width, 1) if gate else None
        self.cell = CELLS[cell][1](input_width + (0 if feed == "none" else memory_width), width)

    def keys(self, memory: Float[Tensor, "N S d_m"]) -> Float[Tensor, "N S h"]:
        """The keys: the score's projection of the memory, computed once per sentence."""
        return memory if self.score is None else as_score(self.score).project_key(memory)

    def first_context(self, memory: Float[Tensor, "N S d_m"], allowed: Bool[Tensor, "N S"]) -> Float[Tensor, "N 1 c"]:
        """c_0 = 0; with a score that `follows`, [c_0; α_0] with uniform weights α_0."""
        nothing = torch.zeros_like(memory[:, :1])
        if not self.follows:
            return nothing
        even = allowed / allowed.sum(-1, keepdim=True).clamp(min=1)
        return torch.cat([nothing, even[:, None].to(nothing.dtype)], -1)

    def query(self, state: Float[Tensor, "N K d"], context: Float[Tensor, "N K c"]) -> Float[Tensor, "N K q"]:
        """The query of a state: the state, and the previous weights if the score `follows`."""
        if not self.follows:
            return state
        return torch.cat([state, context[..., self.memory_width :].to(state.dtype)], -1)

    def attend(
        self,
        query: Float[Tensor, "N K q"],
        key: Float[Tensor, "N S h"],
        memory: Float[Tensor, "N S d_m"],
        mask: MaskLike,
    ) -> Float[Tensor, "N K c"]:
        """The context of queries `[N, K, q]`: the hypotheses of a sentence share one memory, which is not copied."""
        assert self.score is not None
        value = memory
        if self.follows:  # Σ_i α_i [h_i; onehot(i)] = [c; α]
            onehot = torch.eye(memory.shape[1], dtype=memory.dtype, device=memory.device)
            value = torch.cat([memory, onehot.expand(memory.shape[0], -1, -1)], -1)
        normalizer = as_weights(self.normalizer, draw=self.training)
        with owned(self):
            found = attend(query, key, value, score=as_score(self.score).projected(), normalizer=normalizer, mask=mask)
        if self.gate is None:
            return found
        context, weights = found.split([self.memory_width, found.shape[-1] - self.memory_width], -1)
        opened = torch.sigmoid(self.gate(query[..., : self.gate.in_features])).to(found.dtype)
        return torch.cat([context * opened, weights], -1)

    def forward(
        self,
        embedded: Float[Tensor, "N K e"],
        state: Float[Tensor, "N K d"],
        inner: Float[Tensor, "N K d"],
        context: Float[Tensor, "N K c"],
        attend: Callable[[Tensor], Tensor],
    ) -> tuple[Float[Tensor, "N K d"], Float[Tensor, "N K d"], Float[Tensor, "N K c"]]:
        """The next (state s_t, inner state of an LSTM, context c_t).

        Args:
            embedded: the previous token y_{t-1}.
            state: s_{t-1}.
            inner: the LSTM's cell state; a GRU passes it through.
            context: c_{t-1}.
            attend: from a query to its context.
        """
        if self.asks == "previous":
            found = attend(self.query(state, context))
            state, inner = self._move(embedded, state, inner, found if self.feed == "current" else context)
            return state, inner, found
        state, inner = self._move(embedded, state, inner, context)
        return state, inner, attend(self.query(state, context))

    def _move(self, embedded: Tensor, state: Tensor, inner: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        read = context[..., : self.memory_width].to(embedded.dtype)
        x = embedded if self.feed == "none" else torch.cat([embedded, read], -1)
        x, s = x.flatten(0, 1), state.flatten(0, 1)
        if isinstance(self.cell, nn.LSTMCell):
            s, c = self.cell(x, (s, inner.flatten(0, 1)))
            return s.view_as(state), c.view_as(inner)
        return self.cell(x, s).view_as(state), inner


def as_weights(normalizer: str, draw: bool = False) -> str | Normalizer:
    """A normalizer by its name; "hard" is one-hot, sampled if `draw`, else the best key."""
    return Hard(sample=draw) if normalizer == "hard" else normalizer


def scanned(
    x: Float[Tensor, "B S e"], first: Float[Tensor, "B d"], weights: Sequence[Tensor]
) -> Float[Tensor, "B S d"]:
    """The states of a recurrent unit over vectors of any number, step by step: in a graph, as one loop.

    Args:
        x: the vectors.
        first: the state before them; an LSTM's cell state begins with 0.
        weights: of inputs and states, then their biases, as torch orders them: three gates for a GRU, four for an LSTM.
    """
    to_gates, of_state, to_bias, of_bias = weights
    gates = nn.functional.linear(x, to_gates, to_bias).transpose(0, 1)  # [S, B, gates]

    def gru(state: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        reset, update, new = gate.chunk(3, -1)
        reset_h, update_h, new_h = nn.functional.linear(state, of_state, of_bias).chunk(3, -1)
        new = torch.tanh(new + torch.sigmoid(reset + reset_h) * new_h)
        state = torch.lerp(new, state, torch.sigmoid(update + update_h))
        return state, state.clone()

    def lstm(states: tuple[Tensor, Tensor], gate: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        enter, keep, new, leave = (gate + nn.functional.linear(states[0], of_state, of_bias)).chunk(4, -1)
        inner = torch.sigmoid(keep) * states[1] + torch.sigmoid(enter) * torch.tanh(new)
        state = torch.sigmoid(leave) * torch.tanh(inner)
        return (state, inner), state.clone()

    is_lstm = len(of_state) == 4 * first.shape[-1]
    start: Any = (first, torch.zeros_like(first)) if is_lstm else first
    step: Any = lstm if is_lstm else gru
    _, states = (scan if torch.compiler.is_exporting() else _looped)(step, start, gates)
    return states.transpose(0, 1)


def _looped(step: Callable[[Any, Tensor], tuple[Any, Tensor]], state: Any, inputs: Tensor) -> tuple[Any, Tensor]:
    """What torch's `scan` gives, by a loop of Python's, through which every transform goes."""
    found = []
    for one in inputs:
        state, output = step(state, one)
        found.append(output)
    return state, torch.stack(found)


def _pick(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))


def _inverse(order: Tensor) -> Tensor:
    """The inverse of every row, a permutation."""
    index = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.zeros_like(order).scatter(1, order, index)


def _flip(order: Tensor, lengths: Tensor) -> Tensor:
    """The first `lengths` entries of every row in reverse."""
    index = torch.arange(order.shape[1], device=order.device).expand_as(order)
    mirrored = lengths[:, None] - 1 - index
    return order.gather(1, torch.where(mirrored >= 0, mirrored, index))
