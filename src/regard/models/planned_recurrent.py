"""A recurrent decoder's step with everything decided before the first one; the state is the model's own.

`Recurrent.step` is the meaning; the tests hold this to it. Products are computed in float32, in bfloat16, or in int8.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.attention.maps.map import AttentionMap
from regard.attention.plain import is_plain_linear
from regard.attention.scores import as_score
from regard.models.recurrent import Recurrent, RecurrentState
from regard.models.seq2seq import Memory, Step
from regard.nn.embedding import Embedding
from regard.nn.products import make_product
from regard.nn.recurrent import AttentionalStep
from regard.nn.state import record_query


class PlannedRecurrent:
    """A model's decoder, ready to take steps: `start`, `step` and `maps` as those of the model.

    Args:
        model: a recurrent encoder–decoder for which `recurrent_refusal` gives no reason.
        precision: of the products: "float32", "bfloat16" or "int8".
    """

    attends_unrecorded = False

    def __init__(self, model: Recurrent, precision: str = "float32") -> None:
        self.model, self.precision = model, precision
        cross = model.decoder.cross
        cell: Any = cross.cell
        self.cross, self.is_lstm = cross, isinstance(cell, nn.LSTMCell)
        self.inputs = make_product(cell.weight_ih, cell.bias_ih, precision)
        self.states = make_product(cell.weight_hh, cell.bias_hh, precision)
        self.readout = make_product(*model.readout(), precision)
        self.embedding, self.scale = model.decoder.embedding.weight.detach(), model.decoder.embedding.scale

    def start(self, memory: Memory, record: bool = False) -> RecurrentState:
        """The model's own state before the first token."""
        return self.model.start(memory, record)

    def step(self, token: Int[Tensor, "N K"], state: RecurrentState) -> Step:
        """Logits `[N, K, V]` of the next token after `token`, and the state after it."""
        sentences, beams = token.shape
        embedded = self.embedding.index_select(0, token.flatten()) * self.scale
        before, inner, context = (part.flatten(0, 1) for part in (state.hidden, state.cell, state.context))
        if self.cross.asks == "previous":
            found = self._attend(before, state)
            hidden, inner = self._move(embedded, before, inner, found if self.cross.feed == "current" else context)
            asking = before
        else:
            hidden, inner = self._move(embedded, before, inner, context)
            found, asking = self._attend(hidden, state), hidden
        logits = self.readout(torch.cat([hidden, found], -1)).view(sentences, beams, -1)
        shape = (sentences, beams, -1)
        queries = state.queries
        if state.record and self.cross.score is not None:
            queries = record_query(queries, asking.view(sentences, beams, 1, 1, -1))
        after = replace(
            state, hidden=hidden.view(shape), cell=inner.view(shape), context=found.view(shape), queries=queries,
            step=state.step + 1,
        )  # fmt: skip
        return Step(logits, after)

    def maps(self, state: RecurrentState) -> dict[str, AttentionMap]:
        """The maps of every decoder site, `[N, K, heads, T, S]`, of a state that was started with `record`."""
        return self.model.maps(state)

    def attended(self, state: RecurrentState, site: str, heads: Sequence[int]) -> Float[Tensor, "N K S"]:
        """The last step's weights of the memory, as `Seq2Seq.attended` gives them."""
        return self.model.attended(state, site, heads)

    def parameters(self) -> Any:
        """The model's."""
        return self.model.parameters()

    def _attend(self, query: Tensor, state: RecurrentState) -> Tensor:
        """The context `[N · K, d_m]` of queries `[N · K, q]`."""
        memory, score = state.memory[:, 0], self.cross.score
        sentences = len(memory)
        if score is None:
            beams = len(query) // sentences
            return state.summary.expand(-1, beams, -1).flatten(0, 1)
        together = score.project_query(query.view(sentences, -1, query.shape[-1]))
        scores = score.compare(together, state.key[:, 0]).masked_fill_(~state.allowed, -torch.inf)
        found: Tensor = torch.bmm(scores.softmax(-1), memory)
        return found.flatten(0, 1)

    def _move(self, embedded: Tensor, state: Tensor, inner: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The next states of the cell, `[N · K, d]` each; a GRU leaves `inner` as it is."""
        x = self.inputs(embedded if self.cross.feed == "none" else torch.cat([embedded, context], -1))
        h = self.states(state)
        if self.is_lstm:
            enter, keep, new, leave = (x + h).chunk(4, -1)
            inner = torch.sigmoid(keep) * inner + torch.sigmoid(enter) * torch.tanh(new)
            return torch.sigmoid(leave) * torch.tanh(inner), inner
        width = state.shape[-1]
        opened = torch.sigmoid(x[:, : 2 * width] + h[:, : 2 * width])
        new = torch.tanh(torch.addcmul(x[:, 2 * width :], opened[:, :width], h[:, 2 * width :]))
        return torch.lerp(new, state, opened[:, width:]), inner


def recurrent_refusal(model: Any) -> str:
    """Why the decoder of a recurrent model cannot be planned; empty where it can."""
    if not isinstance(model, Recurrent):
        return "it is no recurrent encoder–decoder"
    cross = model.decoder.cross
    if type(cross) is not AttentionalStep or type(cross.cell) not in (nn.GRUCell, nn.LSTMCell):
        return "its step is not a plain one"
    if type(model.decoder.embedding) is not Embedding:
        return "its embedding is not a plain one"
    if cross.score is not None and as_score(cross.score) is not cross.score:
        return "its score has a forward of its own, or hooks"
    if not is_plain_linear(model.decoder.output):
        return "its output layer is not a plain one"
    if cross.follows or cross.gate is not None or cross.normalizer != "softmax":
        return "its attention has a gate, follows the last weights, or is normalized by something else than softmax"
    return ""
