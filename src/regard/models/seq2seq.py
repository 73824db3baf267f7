"""The interface of every model that turns a source into a target, token by token.

    encode(source, allowed) -> Memory          once per source
    start(memory) -> State                     before the first token
    step(token, state) -> Step(logits, state)  once per token
    forward(source, target) -> logits          all steps at once, the true previous tokens given

`forward = project(hidden(…))` and `step` likewise, so a loss may work on chunks without building all logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import TypeVar

from regard.attention.maps.map import AttentionMap
from regard.attention.watch import Call
from regard.nn.state import State

StateT = TypeVar("StateT", bound=State, default=Any)
Source = Int[Tensor, "B S"] | Float[Tensor, "B C H W"] | Float[Tensor, "B F C H W"] | Float[Tensor, "B bands frames"]


@dataclass(frozen=True, eq=False)
class Memory:
    """Output of an encoder, input of a decoder.

    Attributes:
        states: `[B, S, d]`.
        allowed: `[B, S]`, True = a real position.
        summary: `[B, d]`, one vector of the whole source, where the encoder gives one.
        positions: `[B, S, c]`, coordinates of the states, for memories that are grids or time lines.
        halfway: `[B, S, d]`, the states after half of the encoder's blocks, for a CTC loss there.
    """

    states: Float[Tensor, "B S d"]
    allowed: Bool[Tensor, "B S"]
    summary: Float[Tensor, "B d"] | None = None
    positions: Float[Tensor, "B S c"] | None = None
    halfway: Float[Tensor, "B S d"] | None = None

    def one(self, source: int) -> "Memory":
        """The memory of one source, without the padding behind it."""
        end = int(self.allowed[source].nonzero().max()) + 1

        def own(name: str) -> Tensor | None:
            part = getattr(self, name)
            chosen = None if part is None else part[source : source + 1]
            return chosen if chosen is None or name == "summary" else chosen[:, :end]

        return Memory(*(own(part.name) for part in fields(self)))  # type: ignore[arg-type]

    @classmethod
    def together(cls, parts: Sequence["Memory"]) -> "Memory":
        """The memory of several sources, padded to the longest."""

        def joined(name: str) -> Tensor | None:
            some = [getattr(part, name) for part in parts]
            if some[0] is None or name == "summary":
                return None if some[0] is None else torch.cat(some)
            return pad_sequence([one for part in some for one in part], batch_first=True)

        return cls(*(joined(field.name) for field in fields(cls)))  # type: ignore[arg-type]


class Step(NamedTuple):
    """One decoder step: logits `[N, K, V]` of the next token, and the state after it."""

    logits: Tensor
    state: Any


class Seq2Seq(nn.Module, Generic[StateT]):
    """An encoder–decoder. Subclasses give `encode`, `start`, `hidden`, `step_hidden`, `readout` and `maps`."""

    attends_unrecorded = False  # `attended` takes a state that was started without `record`
    ctc_head: nn.Linear | None  # from states of the memory to logits of tokens, for CTC

    def encode(self, source: Source, allowed: Bool[Tensor, "B _"] | None = None) -> Memory:
        """The memory of a source: token ids, pictures or spectrograms; `allowed` is True at real positions."""
        raise NotImplementedError

    def start(self, memory: Memory, record: bool = False) -> StateT:
        """The state before the first token, one hypothesis per sentence; `record` keeps every site's queries."""
        raise NotImplementedError

    def hidden(self, memory: Memory, target: Int[Tensor, "B T"]) -> Float[Tensor, "B T h"]:
        """Input of `project` at every position of a target that begins with BOS."""
        raise NotImplementedError

    def step_hidden(self, token: Int[Tensor, "N K"], state: StateT) -> tuple[Float[Tensor, "N K h"], StateT]:
        """Input of `project` for one more token of every hypothesis, and the state after it."""
        raise NotImplementedError

    def readout(self) -> tuple[Float[Tensor, "V h"], Float[Tensor, "V"]]:
        """Weight and bias of o = W h + b."""
        raise NotImplementedError

    def maps(self, state: StateT) -> dict[str, AttentionMap]:
        """The maps of every decoder site, `[N, K, heads, T, S]`, of a state that was started with `record`."""
        raise NotImplementedError

    def attended(self, state: StateT, site: str, heads: Sequence[int]) -> Float[Tensor, "N K S"]:
        """The last step's weights of the memory, averaged over heads, of a state that was started with `record`.

        Args:
            state: after at least one step.
            site: where the memory is attended to.
            heads: of the site.
        """
        whole = self.maps(state)[site]
        last = slice(whole.shape[-2] - 1, whole.shape[-2])
        return whole.tile(last, slice(None))[:, :, list(heads), 0].mean(2)

    def encoder_sites(self) -> list[str]:
        """Paths of the encoder's attentions."""
        return []

    def guided(self, calls: list[Call]) -> Float[Tensor, "B T S"]:
        """Weights of the attention that guided alignment trains.

        Args:
            calls: recorded while the model ran; those of other sites are ignored.
        """
        raise NotImplementedError

    def project(self, hidden: Float[Tensor, "*n h"]) -> Float[Tensor, "*n V"]:
        """Logits o = W h + b."""
        weight, bias = self.readout()
        return linear(hidden, weight, bias)

    def step(self, token: Int[Tensor, "N K"], state: StateT) -> Step:
        """Logits of the next token after `token` `[N, K]`, and the state after it."""
        hidden, state = self.step_hidden(token, state)
        return Step(self.project(hidden), state)

    def forward(
        self,
        source: Source,
        target: Int[Tensor, "B T"],
        source_allowed: Bool[Tensor, "B _"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits at every position of a target that begins with BOS, the true previous tokens given."""
        return self.project(self.hidden(self.encode(source, source_allowed), target))
