"""What a loss may have beside cross-entropy, a function each: from one pass of a model over a batch to a number.

`TERMS` says which of them a setting turns on; `regard.training.loop.batch_loss` adds them up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regard.attention.watch import Call
from regard.data.batching import Batch
from regard.errors import ConfigError
from regard.training.reinforce import Draws, estimator, move_baseline

if TYPE_CHECKING:
    from regard.training.loop import TrainingConfig


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass of a model over a batch.

    Attributes:
        model: that went over it.
        batch: what it was given.
        config: the settings, with every term's weight.
        pad: the id of PAD.
        hidden: `[B, T, h]`, what the logits are read from.
        memory: what its encoder made, if it has one.
        calls: its attentions, where a term asks for them.
        draws: of a hard attention that learns by REINFORCE.
    """

    model: Any
    batch: Batch
    config: "TrainingConfig"
    pad: int
    hidden: Tensor
    memory: Any
    calls: list[Call]
    draws: Draws | None

    @cached_property
    def real(self) -> Tensor:
        """`[B, T]`, where there is something to predict."""
        return self.batch.target != self.pad

    @cached_property
    def weights(self) -> Tensor:
        """`[B, T, S]`, of the attention that is guided."""
        found: Tensor = self.model.guided(self.calls)
        return found


def guided_alignment(one: Pass) -> Tensor:
    """-Σ a_ts log α_ts, the cross-entropy of the links where words are known to belong together (Garg et al. 2019)."""
    links = one.batch.links
    assert links is not None
    return -one.config.guided_alignment * (links * one.weights.clamp(min=1e-6).log()).sum()


def coverage_loss(one: Pass) -> Tensor:
    """λ Σ_i (1 - Σ_t α_ti)² (Xu et al. 2015, equation 14)."""
    seen = one.weights.masked_fill(~one.real[..., None], 0.0).sum(1)
    return one.config.coverage_loss * (1 - seen).masked_fill(~one.memory.allowed, 0.0).square().sum()


def reinforce(one: Pass) -> Tensor:
    """What `regard.training.reinforce` says of the draws, and their entropy; the model's baseline moves on."""
    assert one.draws is not None
    with torch.no_grad():
        logits = one.model.project(one.hidden).float()
        log_p = logits.log_softmax(-1).gather(-1, one.batch.target[..., None])[..., 0]
    gained, entropy = estimator(one.draws, log_p, one.real, one.model.baseline)
    move_baseline(one.model.baseline, log_p, one.real)
    return -gained - one.config.entropy * entropy


def ctc(one: Pass) -> Tensor:
    """Σ -log p(y | memory states, each of which says one token or nothing) (Graves et al. 2006), without EOS.

    With `ctc_halfway` = w: (1 - w) of it, and w of the same for the states behind half of the encoder's blocks
    (Lee and Watanabe 2021, intermediate CTC). A sound too short for its text counts nothing.

    Raises:
        ConfigError: the model reads no tokens off its memory, or has no blocks of which half are some.
    """
    if one.model.ctc_head is None:
        raise ConfigError("training.ctc needs model.ctc_head = true: a layer that reads tokens off the memory")
    share, memory = one.config.ctc_halfway, one.memory
    if not share:
        return _ctc(one, memory.states)
    if memory.halfway is None:
        raise ConfigError('training.ctc_halfway needs model.kind = "transformer": an encoder of blocks')
    return (1 - share) * _ctc(one, memory.states) + share * _ctc(one, memory.halfway)


def _ctc(one: Pass, states: Tensor) -> Tensor:
    log_p = one.model.ctc_head(states.float()).log_softmax(-1).transpose(0, 1)
    lengths = one.memory.allowed.sum(1), one.real.sum(1) - 1
    loss: Tensor = nn.functional.ctc_loss(
        log_p, one.batch.target, *lengths, one.pad, reduction="sum", zero_infinity=True
    )
    return loss


TERMS: tuple[tuple[Callable[[Pass], bool], Callable[[Pass], Tensor]], ...] = (
    (lambda one: one.batch.links is not None, guided_alignment),
    (lambda one: one.config.coverage_loss > 0, coverage_loss),
    (lambda one: one.draws is not None, reinforce),
)
