"""The training objective: one forward pass of a model over a batch, and a weighted sum of loss terms.

`TERMS` is the whole loss: every term with its weight, the condition under which it applies and its function.
`token_nll` is the measure of evaluations: negative log-likelihood alone.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regard.attention.tracing import is_traced
from regard.attention.watch import Call, changing, watching
from regard.data.batching import Batch, some_rows
from regard.errors import ConfigError
from regard.training.config import TrainingConfig
from regard.training.loss import cross_entropy, smoothing
from regard.training.reinforce import Draws, estimator, move_baseline

ROWS = 512  # positions whose logits are held at a time


class Loss(NamedTuple):
    """The objective of one batch, summed over its target tokens."""

    loss: Tensor
    """The weighted sum of all terms, differentiable."""
    nll: Tensor
    """Negative log-likelihood of the target tokens in nats, without gradient."""
    tokens: int | Tensor
    """Number of target tokens; a tensor in a graph, which has no numbers yet."""


@dataclass(frozen=True, eq=False)
class TrainingPass:
    """One forward pass of a model over a batch.

    Attributes:
        model: the model.
        batch: its input.
        config: the settings, with the weight of every term.
        pad: the id of PAD.
        half: matrix products are computed in bfloat16.
        hidden: `[B, T, h]`, the input of the output layer.
        memory: the encoder's output, if the model has an encoder.
        calls: the attention calls of the pass, recorded if a term needs them.
        draws: the sampled positions of hard attention trained by REINFORCE.
        token_losses: label-smoothed cross-entropy (with R-Drop's term) and negative log-likelihood of the target
            tokens, each summed.
    """

    model: Any
    batch: Batch
    config: TrainingConfig
    pad: int
    half: bool
    hidden: Tensor
    memory: Any
    calls: list[Call]
    draws: Draws | None
    token_losses: tuple[Tensor, Tensor]

    @property
    def real(self) -> Tensor:
        """`[B, T]`, True where there is a target token."""
        return self.batch.target_allowed

    @property
    def weights(self) -> Tensor:
        """`[B, T, S]`, the weights of the attention that guided alignment supervises; a dense map for each term.

        Raises:
            ConfigError: the model is no encoder-decoder.
        """
        if not hasattr(self.model, "guided"):
            raise ConfigError("training.coverage_loss needs an encoder-decoder: its decoder attends to the source")
        found: Tensor = self.model.guided(self.calls)
        return found


def token_loss(one: TrainingPass) -> Tensor:
    """Cross-entropy with label smoothing, and R-Drop's weighted divergence of the two passes where it is on."""
    return one.token_losses[0]


def guided_alignment(one: TrainingPass) -> Tensor:
    """-Σ a_ts log α_ts, the cross-entropy between word links a and attention weights α (Garg et al. 2019)."""
    links = one.batch.links
    assert links is not None  # the term applies only where there are links
    return -(links * one.weights.clamp(min=1e-6).log()).sum()


def coverage_loss(one: TrainingPass) -> Tensor:
    """Σ_i (1 - Σ_t α_ti)² over the memory's real positions i (Xu et al. 2015, equation 14)."""
    received = one.weights.masked_fill(~one.real[..., None], 0.0).sum(1)
    return (1 - received).masked_fill(~one.memory.allowed, 0.0).square().sum()


def reinforce(one: TrainingPass) -> Tensor:
    """The surrogate loss of `regard.training.reinforce` and its entropy bonus; updates the model's baseline."""
    assert one.draws is not None  # the term applies only where positions are sampled
    with torch.no_grad():
        logits = one.model.project(one.hidden).float()
        log_p = logits.log_softmax(-1).gather(-1, one.batch.target[..., None])[..., 0]
    gained, entropy = estimator(one.draws, log_p, one.real, one.model.baseline)
    move_baseline(one.model.baseline, log_p, one.real)
    return -gained - one.config.entropy * entropy


def ctc(one: TrainingPass) -> Tensor:
    """-Σ log p(y | memory) under CTC (Graves et al. 2006), the target without EOS; PAD is the blank.

    With `ctc_halfway` = w: (1 - w) of it, and w of the same loss computed from the states after half of the encoder's
    blocks (Lee and Watanabe 2021, intermediate CTC). A recording with fewer states than its text needs counts 0.

    Raises:
        ConfigError: the model has no `ctc_head`, or no blocks after half of which states could be read.
    """
    if getattr(one.model, "ctc_head", None) is None:
        raise ConfigError("training.ctc needs model.ctc_head = true: a linear layer from memory states to tokens")
    share, memory = one.config.ctc_halfway, one.memory
    if not share:
        return _ctc(one, memory.states)
    if memory.halfway is None:
        raise ConfigError('training.ctc_halfway needs model.kind = "transformer": an encoder of blocks')
    return (1 - share) * _ctc(one, memory.states) + share * _ctc(one, memory.halfway)


def _ctc(one: TrainingPass, states: Tensor) -> Tensor:
    log_p = one.model.ctc_head(states.float()).log_softmax(-1).transpose(0, 1)
    lengths = one.memory.allowed.sum(1), one.real.sum(1) - 1
    loss: Tensor = nn.functional.ctc_loss(
        log_p, one.batch.target, *lengths, one.pad, reduction="sum", zero_infinity=True
    )
    return loss


class Term(NamedTuple):
    """One term of the loss: its weight, whether it applies to a pass, and its value, summed over target tokens."""

    weight: Callable[[TrainingConfig], float]
    applies: Callable[[TrainingPass], bool]
    value: Callable[[TrainingPass], Tensor]


TERMS = (
    Term(lambda c: 1 - c.ctc, lambda _: True, token_loss),
    Term(lambda c: (1 - c.ctc) * c.guided_alignment, lambda one: one.batch.links is not None, guided_alignment),
    Term(lambda c: (1 - c.ctc) * c.coverage_loss, lambda one: one.config.coverage_loss > 0, coverage_loss),
    Term(lambda c: 1 - c.ctc, lambda one: one.draws is not None, reinforce),
    Term(lambda c: c.ctc, lambda one: one.config.ctc > 0, ctc),
)


class Objective(nn.Module):
    """A model and its training loss as one module, whose forward is the loss.

    DistributedDataParallel prepares its reducer and FSDP gathers weights in the wrapped module's forward, so the loss
    must be computed inside it.

    Args:
        model: the model that is trained.
        config: the settings.
        pad: the id of PAD.
    """

    def __init__(self, model: Any, config: TrainingConfig, pad: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.pad = pad

    def forward(self, batch: Batch) -> Loss:
        """The loss of a batch; word dropout is applied to it in training mode."""
        if self.training and self.config.word_dropout:
            batch = _with_word_dropout(batch, self.config.word_dropout, self.pad)
        return batch_loss(self.model, batch, self.config, self.pad)


def batch_loss(model: Any, batch: Batch, config: TrainingConfig, pad: int) -> Loss:
    """The weighted sum of all terms that apply to a batch.

    With R-Drop, the mean of two passes with different dropout, which are computed as one batch.
    """
    twice = bool(config.r_drop) and model.training
    passes = 2 if twice else 1
    if twice:
        batch = some_rows(batch, torch.arange(len(batch.target)).repeat(2))
    half = used_precision(config, batch.target.device.type) == "bfloat16"
    calls: list[Call] = []
    draws = Draws() if model.training and config.hard == "reinforce" and hasattr(model, "baseline") else None
    with (
        _autocast(batch, half),
        watching(calls.append) if batch.links is not None or config.coverage_loss else nullcontext(),
        changing(draws) if draws else nullcontext(),
    ):
        hidden, memory = batch.hidden(model)
    losses = _token_losses(model, batch, config, pad, half, hidden, config.r_drop if twice else 0.0)
    one = TrainingPass(model, batch, config, pad, half, hidden, memory, calls, draws, losses)
    terms = [term.weight(config) * term.value(one) for term in TERMS if term.applies(one)]
    tokens = one.real.sum() // passes
    loss, nll = sum(terms[1:], terms[0]) / passes, one.token_losses[1] / passes
    return Loss(loss, nll, tokens if is_traced(tokens) else int(tokens))


def _token_losses(
    model: Any, batch: Batch, config: TrainingConfig, pad: int, half: bool, hidden: Tensor, r_drop: float
) -> tuple[Tensor, Tensor]:
    """Label-smoothed cross-entropy, R-Drop's term with it, and negative log-likelihood of the target tokens, summed."""
    weight, bias = model.readout()
    smooth = smoothing(config.smoothing, config.label_smoothing, len(bias), pad)
    target, keep = batch.target.flatten(), batch.target_allowed.flatten()
    dtype = torch.bfloat16 if half else None
    return cross_entropy(hidden.flatten(0, 1), weight, bias, target, smooth, dtype, keep, r_drop)


@torch.no_grad()
def token_nll(model: Any, batch: Batch, precision: str = "float32") -> tuple[Tensor, int]:
    """Negative log-likelihood of a batch's target tokens in nats, summed; and their number."""
    half = precision_on(batch.target.device.type, precision) == "bfloat16"
    with _autocast(batch, half):
        hidden, _ = batch.hidden(model)
    weight, bias = model.readout()
    real = batch.target_allowed
    none = smoothing("torch", 0.0, len(bias), 0)
    rows, target = hidden.flatten(0, 1), batch.target.flatten()
    _, nll = cross_entropy(rows, weight, bias, target, none, torch.bfloat16 if half else None, real.flatten())
    return nll, int(real.sum())


@torch.no_grad()
def projected_nll(model: Any, batch: Batch, precision: str = "float32") -> tuple[Tensor, int]:
    """`token_nll` of a model whose logits are not one product of its hidden states: an ensemble."""
    half = precision_on(batch.target.device.type, precision) == "bfloat16"
    with _autocast(batch, half):
        hidden, _ = batch.hidden(model)
        real = batch.target_allowed
        pairs = zip(hidden[real].split(ROWS), batch.target[real].split(ROWS), strict=True)
        losses = [nn.functional.cross_entropy(model.project(some).float(), own, reduction="sum") for some, own in pairs]
    return torch.stack(losses).sum(), int(real.sum())


def _autocast(batch: Batch, half: bool) -> Any:
    return torch.autocast(batch.target.device.type, torch.bfloat16) if half else nullcontext()


def _with_word_dropout(batch: Any, share: float, pad: int) -> Batch:
    if not hasattr(batch, "with_word_dropout"):
        raise ConfigError("training.word_dropout needs an encoder-decoder: its decoder reads the previous tokens")
    dropped: Batch = batch.with_word_dropout(share, pad)
    return dropped


def used_precision(config: TrainingConfig, device: str) -> str:
    """The precision of a run's matrix products on a type of device."""
    return precision_on(device, config.precision)


def precision_on(device: str, wanted: str) -> str:
    """The precision of matrix products on a type of device.

    Args:
        device: "cpu", "cuda", …
        wanted: "float32"; "bfloat16", where the device computes it; or "auto": bfloat16 on a GPU that computes it.
    """
    if wanted == "auto":
        wanted = "float32" if device == "cpu" else "bfloat16"
    return wanted if computes_bfloat16(device) else "float32"


_BFLOAT16: dict[str, bool] = {}  # a graph reads what was asked before it was traced


def computes_bfloat16(device: str) -> bool:
    """Whether a type of device has bfloat16 arithmetic; emulated on a CPU with AVX2 alone it was 17 times slower."""
    if device not in _BFLOAT16:
        _BFLOAT16[device] = _has_bfloat16(device)
    return _BFLOAT16[device]


def _has_bfloat16(device: str) -> bool:
    if device == "cpu":
        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if device == "cuda" and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return True
