"""The training loop, visible from top to bottom. It knows no task: evaluation is a function it is given."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from math import isnan
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from regard.attention.watch import Call, changing, watching
from regard.bundle import current_weight
from regard.data.batching import Batch, BatchSource, PairBatch
from regard.errors import ConfigError
from regard.training.checkpoint import (
    Tensors,
    average,
    flatten_optimizer,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from regard.training.journal import Journal
from regard.training.loss import cross_entropy, smoothing
from regard.training.objective import TERMS, Pass, ctc
from regard.training.reinforce import Draws
from regard.training.schedule import factor

LAST = "last.safetensors"


class TrainingConfig(BaseModel):
    """Settings of a training run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_steps: int = Field(10_000, gt=0)
    """Updates at most."""
    batch_tokens: int = Field(4096, gt=0)
    """Places of a batch on either side, padding included."""
    learning_rate: float = Field(1e-3, gt=0)
    """The peak rate."""
    schedule: Literal["inverse_sqrt", "cosine", "constant"] = "inverse_sqrt"
    """How the rate goes on after the warm-up."""
    warmup: int = Field(1000, ge=0)
    """Updates of linear growth."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW for all, or Muon (Jordan 2024) for the matrices of the blocks and AdamW for the rest."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decay of matrices; vectors (norms, biases) are not decayed."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """ε of the smoothed target."""
    smoothing: Literal["torch", "fairseq", "joeynmt", "mxnet"] = "torch"
    """Which definition of label smoothing."""
    guided_alignment: float = Field(0.0, ge=0)
    """Weight of guided alignment (Garg et al. 2019): one head is drawn to IBM Model 1's links; 0 is off."""
    coverage_loss: float = Field(0.0, ge=0)
    """λ of Σ_i (1 - Σ_t α_ti)², which asks that every place be looked at (Xu et al. 2015, equation 14); 0 is off."""
    ctc: float = Field(0.0, ge=0, lt=1)
    """Share of CTC in the loss, beside attention (Watanabe et al. 2017); needs model.ctc_head."""
    ctc_halfway: float = Field(0.0, ge=0, lt=1)
    """Share of CTC's part that reads the states behind half of the encoder's blocks (Lee and Watanabe 2021,
    intermediate CTC)."""
    word_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the previous tokens a decoder does not see, PAD in their place (Bowman et al. 2016, word dropout)."""
    concat_pairs: float = Field(0.0, ge=0, le=1)
    """Share of the batches of recordings that are joined two by two; who hears short ones only is lost in long ones."""
    hard: Literal["straight_through", "reinforce"] = "straight_through"
    """How a model with hard attention learns where to look."""
    entropy: float = Field(0.01, ge=0)
    """Weight of the draws' entropy, for reinforce."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products; weights, their updates, softmax and norms stay in float32. On a processor that has no
    arithmetic for bfloat16 everything is float32, which is many times as fast there."""
    evaluate_every: int = Field(500, gt=0)
    """Updates between evaluations."""
    checkpoint_seconds: float = Field(120, gt=0)
    """Seconds between checkpoints; one is also written at every evaluation."""
    metric: Literal["bleu", "chrf", "loss", "exact", "wer"] = "bleu"
    """What decides which checkpoint is best: loss and wer (word errors) are better small, the others large."""
    patience: int = Field(0, ge=0)
    """Evaluations without a better one before the run stops; 0 never stops early."""
    keep_best: int = Field(3, gt=0)
    """How many best checkpoints are kept; their average competes with the single best at the end."""
    seed: int = 0
    """Of weights, order, dropout and augmentation."""


Evaluate = Callable[[Any], dict[str, float]]
Report = Callable[[dict[str, Any]], None]


class CombinedOptimizer:
    """Several optimizers as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget every gradient."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        """One step of each."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The parameters' states, numbered through; the groups of each part."""
        state: dict[int, Any] = {}
        groups, first = [], 0
        for part in self.parts:
            own = part.state_dict()
            state |= {first + i: values for i, values in own["state"].items()}
            groups.append(own["param_groups"])
            first += sum(len(group["params"]) for group in own["param_groups"])
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, given: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        first = 0
        for part, groups in zip(self.parts, given["param_groups"], strict=True):
            count = sum(len(group["params"]) for group in groups)
            own = {i - first: values for i, values in given["state"].items() if first <= i < first + count}
            part.load_state_dict({"state": own, "param_groups": groups})
            first += count


Optimizer = torch.optim.Optimizer | CombinedOptimizer


@dataclass
class Progress:
    """Where a run stands: everything a checkpoint must hold besides tensors."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    best: list[tuple[float, int]] = field(default_factory=list)
    waited: int = 0


class Interrupted(Exception):
    """The run was asked to stop, and has been saved."""


def train(
    model: Any,
    batches: BatchSource,
    config: TrainingConfig,
    folder: Path,
    *,
    evaluate: Evaluate,
    report: Report,
    should_stop: Callable[[], bool] = lambda: False,
    resume: bool = False,
) -> Tensors:
    """Train until `max_steps` or until patience ends; returns the best weights found.

    A run that is killed at any moment goes on from its last checkpoint (`resume`), and ends with the
    same weights, bit for bit, as one that was never interrupted.

    Args:
        model: with fresh weights.
        batches: the training data.
        config: the settings.
        folder: for checkpoints and the journal.
        evaluate: gives named numbers of the model on development data ("loss", "bleu", …).
        report: is told of every step and evaluation.
        should_stop: asked after every step; True saves and raises Interrupted.
        resume: go on from the folder's last checkpoint.

    Raises:
        Interrupted: `should_stop` said so; everything is saved.
        BundleError: a checkpoint is damaged or could not be written.
        ConfigError: there is nothing to train on.
    """
    if not len(batches):
        raise ConfigError(
            "there is nothing to train on: check data.train, data.longest and the shares that are split off"
        )
    journal = Journal(folder / "journal.jsonl")
    optimizer = make_optimizer(model, config)
    progress = Progress()
    torch.manual_seed(config.seed)
    if resume:
        progress = restore(folder / LAST, model, optimizer)
        _forget_after(folder, progress)
        journal.rewind(progress.step, but="average")
    model.train()
    started, saved = time.monotonic() - progress.seconds, time.monotonic()

    while progress.step < config.max_steps and not (config.patience and progress.waited >= config.patience):
        for batch in batches.epoch(progress.epoch, progress.batch):
            progress.step, progress.batch = progress.step + 1, progress.batch + 1
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * factor(
                    config.schedule, progress.step, config.warmup, config.max_steps
                )
            numbers = update(model, batch, optimizer, config, batches.pad)
            progress.seconds = time.monotonic() - started
            report({"event": "step", "step": progress.step, "seconds": progress.seconds, **numbers})

            last = progress.step == config.max_steps
            if progress.step % config.evaluate_every == 0 or last:
                entry = {
                    "event": "evaluation",
                    **vars(progress),
                    "train_loss": numbers["loss"],
                    **measure(model, evaluate),
                }
                keep_if_best(entry, model, progress, config, folder)
                del entry["best"], entry["waited"]
                journal.write(entry)
                report(entry)
            stop = should_stop()
            if (
                stop
                or last
                or progress.step % config.evaluate_every == 0
                or time.monotonic() - saved > config.checkpoint_seconds
            ):
                store(folder / LAST, model, optimizer, progress)
                saved = time.monotonic()
            if stop:
                raise Interrupted
            if last or (config.patience and progress.waited >= config.patience):
                break
        else:
            progress.epoch, progress.batch = progress.epoch + 1, 0
    return best_weights(model, evaluate, progress, config, folder, journal)


def update(model: Any, batch: Batch, optimizer: Optimizer, config: TrainingConfig, pad: int) -> dict[str, float]:
    """One step of gradient descent on one batch."""
    optimizer.zero_grad(set_to_none=True)
    if config.word_dropout:
        if not isinstance(batch, PairBatch):
            raise ConfigError("training.word_dropout needs a decoder that is given the previous tokens beside a source")
        batch = batch.with_word_dropout(config.word_dropout, pad)
    loss, nll, tokens = batch_loss(model, batch, config, pad)
    (loss / tokens).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    if torch.isfinite(norm):  # an infinite gradient would spoil every weight: skip the update, and say so
        optimizer.step()
    return {
        "loss": nll.item() / tokens, "smoothed_loss": loss.item() / tokens, "tokens": tokens,
        "gradient_norm": float(norm), "learning_rate": optimizer.param_groups[0]["lr"],
    }  # fmt: skip


def batch_loss(model: Any, batch: Batch, config: TrainingConfig, pad: int) -> tuple[Tensor, Tensor, int]:
    """Smoothed loss and negative log-likelihood in nats, summed over the batch's tokens, and their number."""
    half = used_precision(config, batch.target.device.type) == "bfloat16"
    calls: list[Call] = []
    draws = Draws() if model.training and config.hard == "reinforce" and hasattr(model, "baseline") else None
    with (
        torch.autocast(batch.target.device.type, torch.bfloat16) if half else nullcontext(),
        watching(calls.append) if batch.links is not None or config.coverage_loss else nullcontext(),
        changing(draws) if draws else nullcontext(),
    ):
        hidden, memory = batch.hidden(model)
    seen = Pass(model, batch, config, pad, hidden, memory, calls, draws)
    weight, bias = model.readout()
    smooth = smoothing(config.smoothing, config.label_smoothing, len(bias), pad)
    loss, nll = cross_entropy(
        hidden[seen.real], weight, bias, batch.target[seen.real], smooth, torch.bfloat16 if half else None
    )
    loss = loss + sum(term(seen) for wanted, term in TERMS if wanted(seen))
    if config.ctc:
        loss = (1 - config.ctc) * loss + config.ctc * ctc(seen)
    return loss, nll, int(seen.real.sum())


def used_precision(config: TrainingConfig, device: str) -> str:
    """The precision of the products on a kind of device: what is asked for, where it can be computed."""
    return config.precision if computes_bfloat16(device) else "float32"


@cache
def computes_bfloat16(device: str) -> bool:
    """Whether a kind of device has arithmetic for bfloat16: a CPU with AVX2 alone was 17 times as slow in it."""
    return device != "cpu" or (
        torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def make_optimizer(model: nn.Module, config: TrainingConfig) -> Optimizer:
    """AdamW with decay on matrices only (Loshchilov and Hutter 2019); beside Muon, for what is no block's matrix."""
    named = list(model.named_parameters())
    turned = {n for n, p in named if config.optimizer == "muon" and ".layers." in n and p.ndim == 2}
    rest = [p for n, p in named if n not in turned]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=1e-9, fused=True)
    if config.optimizer == "adamw":
        return adamw
    muon = torch.optim.Muon(
        [p for n, p in named if n in turned], lr=config.learning_rate, weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    return CombinedOptimizer(muon, adamw)


def measure(model: Any, evaluate: Evaluate) -> dict[str, float]:
    """Evaluate without touching the training's random numbers."""
    state = torch.get_rng_state()
    model.eval()
    with torch.inference_mode():
        numbers = evaluate(model)
    model.train()
    torch.set_rng_state(state)
    return {f"dev_{name}": value for name, value in numbers.items()}


def keep_if_best(entry: dict[str, Any], model: Any, progress: Progress, config: TrainingConfig, folder: Path) -> None:
    """Keep the weights if they are among the best so far, and count how long there was no better one."""
    number = entry[f"dev_{config.metric}"] * _sign(config)
    number = float("-inf") if isnan(number) else number
    progress.waited = 0 if not progress.best or number > progress.best[0][0] else progress.waited + 1
    ranked = sorted([*progress.best, (number, progress.step)], reverse=True)
    for _, step in ranked[config.keep_best :]:
        best_path(folder, step).unlink(missing_ok=True)
    progress.best = ranked[: config.keep_best]
    if (number, progress.step) in progress.best:
        save_checkpoint(best_path(folder, progress.step), dict(model.state_dict()), {"step": progress.step})


def best_weights(
    model: Any, evaluate: Evaluate, progress: Progress, config: TrainingConfig, folder: Path, journal: Journal
) -> Tensors:
    """The single best checkpoint, or the average of the best ones where that is better on development data."""
    candidates = [load_checkpoint(best_path(folder, step))[0] for _, step in progress.best]
    single, mean = candidates[0], average(candidates)
    sign = _sign(config)
    model.load_state_dict(mean)
    numbers = measure(model, evaluate)
    better = numbers[f"dev_{config.metric}"] * sign >= progress.best[0][0]
    journal.write(
        {
            "event": "average",
            "step": progress.step,
            "of": [step for _, step in progress.best],
            "chosen": better,
            **numbers,
        }
    )
    model.load_state_dict(mean if better else single)
    return mean if better else single


def _sign(config: TrainingConfig) -> int:
    """-1 where small is better."""
    return -1 if config.metric in ("loss", "wer") else 1


def _forget_after(folder: Path, progress: Progress) -> None:
    """Remove best checkpoints that were written after the last full one: the run will make them again."""
    known = {best_path(folder, step) for _, step in progress.best}
    for path in set(folder.glob("best-*.safetensors")) - known:
        path.unlink()


def best_path(folder: Path, step: int) -> Path:
    """Where the weights of a step are kept while they are among the best."""
    return folder / f"best-{step:06d}.safetensors"


def store(path: Path, model: Any, optimizer: Optimizer, progress: Progress) -> None:
    """Write everything that going on needs."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_checkpoint(path, tensors | flatten_optimizer(optimizer) | {"random": torch.get_rng_state()}, vars(progress))


def restore(path: Path, model: Any, optimizer: Optimizer) -> Progress:
    """Read what `store` wrote back into model, optimizer and random numbers."""
    tensors, state = load_checkpoint(path)
    own = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    model.load_state_dict({current_weight(name): t for name, t in own.items()})
    restore_optimizer(optimizer, tensors)
    torch.set_rng_state(tensors["random"])
    return Progress(**{**state, "best": [(number, step) for number, step in state["best"]]})
