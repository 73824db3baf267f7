"""Several encoder–decoders with one vocabulary as one: the next token has the mean of their probabilities.

An ensemble is a model: a search, a score or an observation takes its steps and knows nothing of the members.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from regard.attention.maps.map import AttentionMap
from regard.errors import ConfigError
from regard.models.seq2seq import Memory, Seq2Seq, Source, Step
from regard.nn.state import Change, State


class EnsembleConfig(BaseModel):
    """Settings of an ensemble: those of its members, in order."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    kind: Literal["ensemble"] = "ensemble"
    members: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class EnsembleMemory(Memory):
    """Memory of an ensemble: that of the first member, and in `parts` that of every member."""

    parts: tuple[Memory, ...] = ()

    @classmethod
    def of(cls, parts: Sequence[Memory]) -> "EnsembleMemory":
        """The memory of members, each with its own."""
        return cls(parts[0].states, parts[0].allowed, parts=tuple(parts))

    def one(self, source: int) -> "EnsembleMemory":
        return self.of([part.one(source) for part in self.parts])

    @classmethod
    def together(cls, parts: Sequence[Any]) -> "EnsembleMemory":
        return cls.of([some[0].together(some) for some in zip(*(part.parts for part in parts), strict=True)])


@dataclass(frozen=True, eq=False)
class EnsembleState(State):
    """State of an ensemble: that of every member, in order."""

    parts: tuple[Any, ...]

    @property
    def record(self) -> bool:
        """Whether steps record their queries."""
        return bool(self.parts[0].record)

    def map(self, sentence: Change, hypothesis: Change) -> "EnsembleState":
        return EnsembleState(tuple(part.map(sentence, hypothesis) for part in self.parts))

    def plain(self) -> "EnsembleState":
        return EnsembleState(tuple(part.plain() for part in self.parts))

    def one(self, sentence: int, hypothesis: int) -> "EnsembleState":
        return EnsembleState(tuple(part.one(sentence, hypothesis) for part in self.parts))

    def select(self, parents: Int[Tensor, "N K"]) -> "EnsembleState":
        return EnsembleState(tuple(part.select(parents) for part in self.parts))

    def keep(self, sentences: Int[Tensor, "M"]) -> "EnsembleState":
        return EnsembleState(tuple(part.keep(sentences) for part in self.parts))


class _Members:
    """What an ensemble does with its members: `encoders` give memories, `steppers` take steps, both in order."""

    attends_unrecorded = False
    encoders: Any
    steppers: Any

    def encode(self, source: Source, allowed: Bool[Tensor, "B _"] | None = None) -> EnsembleMemory:
        """Every member's memory of a source."""
        return EnsembleMemory.of([encoder.encode(source, allowed) for encoder in self.encoders])

    def start(self, memory: Any, record: bool = False) -> EnsembleState:
        """Every member's state before the first token."""
        pairs = zip(self.steppers, memory.parts, strict=True)
        return EnsembleState(tuple(stepper.start(part, record=record) for stepper, part in pairs))

    def step(self, token: Int[Tensor, "N K"], state: EnsembleState) -> Step:
        """Log-probabilities `[N, K, V]` of the next token after `token`, and the state after it."""
        found = [stepper.step(token, part) for stepper, part in zip(self.steppers, state.parts, strict=True)]
        logits, after = zip(*found, strict=True)
        return Step(log_mean(logits), EnsembleState(after))

    def maps(self, state: EnsembleState) -> dict[str, AttentionMap]:
        """Every member's maps, a site's name behind the number of its member: "0.decoder.layers.1.cross"."""
        pairs = zip(self.steppers, state.parts, strict=True)
        return {
            f"{number}.{site}": one
            for number, (stepper, part) in enumerate(pairs)
            for site, one in stepper.maps(part).items()
        }

    def attended(self, state: EnsembleState, site: str, heads: Sequence[int]) -> Float[Tensor, "N K S"]:
        """The last step's weights of the memory at one member's site, as `Seq2Seq.attended` gives them."""
        number, own = site.split(".", 1)
        found: Tensor = self.steppers[int(number)].attended(state.parts[int(number)], own, heads)
        return found


class Ensemble(_Members, Seq2Seq[EnsembleState]):
    """An encoder–decoder made of others with one vocabulary.

    p(y_t | y_<t, x) = 1/M Σ_m p_m(y_t | y_<t, x)

    Its logits are the logarithm of this mean. Members are its modules "0", "1", …, and sites are named accordingly.

    Args:
        members: M ≥ 1 models, each an encoder–decoder with V output tokens.
    """

    def __init__(self, members: Sequence[Seq2Seq]) -> None:
        super().__init__()
        self.ctc_head = None
        for number, member in enumerate(members):
            self.add_module(str(number), member)

    @property
    def members(self) -> list[Any]:
        """The models."""
        return list(self._modules.values())

    encoders = steppers = members

    def hidden(self, memory: Any, target: Int[Tensor, "B T"]) -> Float[Tensor, "B T h"]:
        """The members' inputs of their own output layers, one after the other."""
        pairs = zip(self.members, memory.parts, strict=True)
        return torch.cat([member.hidden(part, target) for member, part in pairs], -1)

    def step_hidden(
        self, token: Int[Tensor, "N K"], state: EnsembleState
    ) -> tuple[Float[Tensor, "N K h"], EnsembleState]:
        found = [member.step_hidden(token, part) for member, part in zip(self.members, state.parts, strict=True)]
        hidden, after = zip(*found, strict=True)
        return torch.cat(hidden, -1), EnsembleState(after)

    def project(self, hidden: Float[Tensor, "*n h"]) -> Float[Tensor, "*n V"]:
        """Log-probabilities: the logarithm of the mean of the members' probabilities."""
        widths = [member.readout()[0].shape[1] for member in self.members]
        parts = zip(self.members, hidden.split(widths, -1), strict=True)
        return log_mean([member.project(part) for member, part in parts])

    def readout(self) -> tuple[Float[Tensor, "V h"], Float[Tensor, "V"]]:
        """Refused.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("an ensemble has no output layer of its own: look into one of its members, .members[0]")

    def encoder_sites(self) -> list[str]:
        return [f"{number}.{site}" for number, one in enumerate(self.members) for site in one.encoder_sites()]


class PlannedEnsemble(_Members):
    """An ensemble whose members are searched by their plans (`regard.models.planned`).

    Args:
        planned: of each member, what encodes and what takes steps.
    """

    def __init__(self, planned: Sequence[tuple[Any, Any]]) -> None:
        self.encoders, self.steppers = zip(*planned, strict=True)
        self.attends_unrecorded = all(stepper.attends_unrecorded for stepper in self.steppers)

    def parameters(self) -> Iterator[Tensor]:
        """The members'."""
        for stepper in self.steppers:
            yield from stepper.parameters()


def log_mean(logits: Sequence[Float[Tensor, "*n V"]]) -> Float[Tensor, "*n V"]:
    """log (1/M Σ_m softmax(o_m)) of the logits o_1 … o_M, in float32 at least."""
    parts = [one.to(torch.promote_types(one.dtype, torch.float32)).log_softmax(-1) for one in logits]
    return torch.stack(parts).logsumexp(0) - log(len(parts))
