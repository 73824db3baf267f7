"""The training loop, visible from top to bottom. It knows no task: evaluation is a function that it is given."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regard.bundle import current_weight
from regard.data.batching import Batch, BatchSource, move
from regard.device import device_of, random_states, restore_random_states
from regard.errors import ConfigError, RegardError
from regard.training.best import Evaluate, Ranked, best_weights, keep_if_best, measure, rank, remove_later
from regard.training.checkpoint import Tensors, flatten_optimizer, load_checkpoint, restore_optimizer, save_checkpoint
from regard.training.config import TrainingConfig
from regard.training.journal import Journal
from regard.training.objective import Objective
from regard.training.optimizer import Optimizer, make_optimizer
from regard.training.schedule import factor

LAST = "last.safetensors"
MOST_SKIPPED = 10  # updates skipped in a row before a run counts as diverged
NOTHING = "there is nothing to train on: check data.train, data.longest and the shares that are split off"

Report = Callable[[dict[str, Any]], None]


@dataclass
class Progress:
    """The position of a run: what a checkpoint holds besides tensors.

    Attributes:
        step: updates so far, skipped ones included.
        epoch, batch: number of the epoch, and of the batches of it that were used.
        seconds: training time.
        best: the best evaluations.
        waited: evaluations since the best one.
        skipped: updates skipped because the loss or its gradient was not finite.
        skipped_in_a_row: those since the last update that was made.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    best: Ranked = field(default_factory=list)
    waited: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0


class Interrupted(Exception):
    """The run was asked to stop, and has been saved."""


class Diverged(RegardError):
    """The loss or its gradient is no longer finite."""


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

    A run that is killed at any moment continues from its last checkpoint (`resume`), and ends with the same weights,
    bit for bit, as a run that was never interrupted.

    Args:
        model: with fresh weights, on the device to train on; batches are moved there.
        batches: the training data.
        config: the settings.
        folder: for checkpoints and the journal.
        evaluate: from a model to its named numbers on development data ("loss", "bleu", …).
        report: called with every step and evaluation.
        should_stop: called after every step; True saves and raises Interrupted.
        resume: continue from the folder's last checkpoint.

    Raises:
        Interrupted: `should_stop` returned True; everything is saved.
        Diverged: loss or gradient were not finite many times in a row, or at every evaluation.
        BundleError: a checkpoint is damaged or could not be written.
        ConfigError: there is nothing to train on.
    """
    if not len(batches):
        raise ConfigError(NOTHING)
    journal, progress = Journal(folder / "journal.jsonl"), Progress()
    optimizer = make_optimizer(model, config)
    objective = Objective(model, config, batches.pad)
    torch.manual_seed(config.seed)
    if resume:
        progress = restore(folder / LAST, model, optimizer)
        remove_later(folder, progress.best)
        journal.rewind(progress.step, but="average")
    objective.train()
    started, saved = time.monotonic() - progress.seconds, time.monotonic()
    sound = True  # the latest evaluation was finite

    stream = _stream(batches, progress)
    while not _finished(progress, config):
        batch = next(stream)
        set_learning_rate(optimizer, config, progress.step)
        numbers = update(objective, batch, optimizer)
        progress.seconds = time.monotonic() - started
        report({"event": "step", "step": progress.step, "seconds": progress.seconds, **numbers})
        _count_skipped(numbers, progress, folder, journal)

        evaluated = progress.step % config.evaluate_every == 0 or progress.step == config.max_steps
        if evaluated:
            found = measure(model, evaluate)
            score = rank(found, config)
            sound = score > -torch.inf
            progress.waited = 0 if not progress.best or score > progress.best[0][0] else progress.waited + 1
            progress.best = keep_if_best(progress.best, score, progress.step, model, config, folder)
            entry = _entry(progress, numbers["loss"]) | found
            journal.write(entry)
            report(entry)

        stop = should_stop()
        due = stop or evaluated or time.monotonic() - saved > config.checkpoint_seconds
        healthy = sound and not progress.skipped_in_a_row
        if due and (healthy or (stop and not (folder / LAST).exists())):
            store(folder / LAST, model, optimizer, progress)
            saved = time.monotonic()
        if stop:
            raise Interrupted
    if not progress.best:
        raise Diverged(f"{folder}: training diverged: no evaluation had a finite loss. {_advice(folder)}")
    return best_weights(model, evaluate, progress.best, progress.step, config, folder, journal)


def update(objective: Objective, batch: Batch, optimizer: Optimizer) -> dict[str, Any]:
    """One step of gradient descent on one batch; it is skipped if the loss or the gradient is not finite."""
    optimizer.zero_grad(set_to_none=True)
    loss, nll, tokens = objective(move(batch, device_of(objective)))
    tokens = max(1, tokens)
    (loss / tokens).backward()
    norm = nn.utils.clip_grad_norm_(objective.parameters(), objective.config.clip)
    # one transfer a step
    total, likelihood, length = torch.stack([value.detach().to(nll.dtype) for value in (loss, nll, norm)]).tolist()
    skipped = not isfinite(length) or not isfinite(total)
    if not skipped:
        optimizer.step()
    return {
        "loss": likelihood / tokens,
        "smoothed_loss": total / tokens,
        "tokens": tokens,
        "gradient_norm": length,
        "learning_rate": optimizer.param_groups[0]["lr"],
        "skipped": skipped,
    }


def set_learning_rate(optimizer: Optimizer, config: TrainingConfig, step: int) -> None:
    """The schedule's learning rate of a step, in all parameter groups."""
    rate = config.learning_rate * factor(config.schedule, step, config.warmup, config.max_steps)
    for group in optimizer.param_groups:
        group["lr"] = rate


def _stream(batches: BatchSource, progress: Progress) -> Iterator[Batch]:
    """Batches without end, counted in `progress`."""
    while True:
        first = progress.batch
        for batch in batches.epoch(progress.epoch, first):
            progress.step, progress.batch = progress.step + 1, progress.batch + 1
            yield batch
        if not first and not progress.batch:
            raise ConfigError(NOTHING)
        progress.epoch, progress.batch = progress.epoch + 1, 0


def _finished(progress: Progress, config: TrainingConfig) -> bool:
    return progress.step >= config.max_steps or bool(config.patience and progress.waited >= config.patience)


def _entry(progress: Progress, train_loss: float) -> dict[str, Any]:
    """The beginning of an evaluation's journal entry."""
    return {
        "event": "evaluation",
        "step": progress.step,
        "epoch": progress.epoch,
        "batch": progress.batch,
        "seconds": progress.seconds,
        "skipped": progress.skipped,
        "train_loss": train_loss,
    }


def _count_skipped(numbers: dict[str, Any], progress: Progress, folder: Path, journal: Journal) -> None:
    """Count and journal a skipped update.

    Raises:
        Diverged: too many in a row.
    """
    if not numbers["skipped"]:
        progress.skipped_in_a_row = 0
        return
    progress.skipped, progress.skipped_in_a_row = progress.skipped + 1, progress.skipped_in_a_row + 1
    where = {"step": progress.step, "epoch": progress.epoch, "batch": progress.batch}
    journal.write({"event": "skipped", **where, "loss": numbers["loss"], "gradient_norm": numbers["gradient_norm"]})
    if progress.skipped_in_a_row >= MOST_SKIPPED:
        raise Diverged(
            f"{folder}: training diverged: the loss or its gradient was not finite {MOST_SKIPPED} times in a row, up "
            f"to step {progress.step} (epoch {progress.epoch}, batch {progress.batch}). {_advice(folder)}"
        )


def _advice(folder: Path) -> str:
    kept = "no checkpoint was written before that"
    if (folder / LAST).exists():
        kept = f"{LAST} holds the last good step, {load_checkpoint(folder / LAST)[1]['step']}"
    return f"{kept[0].upper()}{kept[1:]}: lower training.learning_rate, or lengthen training.warmup"


def store(path: Path, model: Any, optimizer: Optimizer, progress: Progress) -> None:
    """Write everything that a resumed run needs."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    states = random_states(device_of(model))
    random = {"random": states.pop("cpu")} | {f"random.{kind}": state for kind, state in states.items()}
    save_checkpoint(path, tensors | flatten_optimizer(optimizer) | random, vars(progress))


def restore(path: Path, model: Any, optimizer: Optimizer) -> Progress:
    """Read what `store` wrote, on any device, back into model, optimizer and random states."""
    tensors, state = load_checkpoint(path)
    own = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    model.load_state_dict({current_weight(name): t for name, t in own.items()})
    restore_optimizer(optimizer, tensors)
    kept = {name.removeprefix("random."): t for name, t in tensors.items() if name.startswith("random.")}
    restore_random_states(kept | {"cpu": tensors["random"]}, device_of(model))
    return Progress(**{**state, "best": [(number, step) for number, step in state["best"]]})
