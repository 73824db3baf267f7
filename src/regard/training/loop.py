"""The training loop, visible from top to bottom. It knows no task: evaluation is a function that it is given."""

import gc
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.data.batching import Batch, BatchSource
from regard.device import device_of, random_states, restore_random_states, seed_generators
from regard.errors import BundleError, ConfigError, RegardError
from regard.storage import parse_json
from regard.training.best import Evaluate, Ranked, best_weights, keep_if_best, measure, rank, remove_later
from regard.training.checkpoint import LAST, Tensors, load_checkpoint
from regard.training.config import TrainingConfig
from regard.training.distributed import Alive, processes
from regard.training.engine import NOTE, SHARDED, Engine
from regard.training.journal import Journal
from regard.training.optimizer import Optimizer
from regard.training.schedule import factor
from regard.untrusted import first_line, read_text

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
        unmeasured: the last step's training loss, where that step's evaluation was interrupted; a resumed run makes
            it first.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    best: Ranked = field(default_factory=list)
    waited: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    unmeasured: float | None = None

    @classmethod
    def read(cls, state: dict[str, Any]) -> "Progress":
        """The position that a checkpoint noted.

        Raises:
            BundleError: of other things than this version knows.
        """
        try:
            return cls(**{**state, "best": [(number, step) for number, step in state["best"]]})
        except (TypeError, KeyError, ValueError) as error:
            raise BundleError(
                f"the checkpoint was not written by this version of regard: {first_line(error)}"
            ) from error


class Interrupted(Exception):
    """The run was asked to stop, and has been saved.

    Attributes:
        number: of the signal that asked, SIGINT unless another one is known.
    """

    number: int = signal.SIGINT


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
    watch: Callable[[Any, int], dict[str, float]] = lambda *_: {},
    should_stop: Callable[[], bool] = lambda: False,
    resume: bool = False,
    made_of: Mapping[str, str] | None = None,
    on_resume: Callable[[int], None] = lambda _: None,
) -> Tensors:
    """Train until `max_steps`, `max_minutes` or the end of patience; returns the best weights found.

    A run that is killed at any moment continues from its last checkpoint (`resume`), and ends with the same weights,
    bit for bit, as a run that was never interrupted. Several processes (`regard.training.distributed`) go through it
    together; the first one writes and reports.

    Args:
        model: with fresh weights, on the device to train on; batches are moved there.
        batches: the training data.
        config: the settings.
        folder: for checkpoints and the journal.
        evaluate: from a model to its named numbers on development data ("loss", "bleu", …). It may raise Interrupted:
            the run is then saved as it was before, and a resumed one begins with this evaluation.
        report: called with every step and evaluation.
        watch: called at every evaluation with the model and the step, by the first process; its numbers are journaled.
        should_stop: called after every step; True saves and raises Interrupted.
        resume: continue from the folder's last checkpoint.
        made_of: digests of what the run is made of (tokenizer, data), by name; kept in checkpoints, and compared.
        on_resume: called with the checkpoint's step, once nothing refuses to continue from it.

    Raises:
        Interrupted: `should_stop` returned True, or an evaluation was interrupted; everything is saved.
        Diverged: loss or gradient were not finite many times in a row, or at every evaluation.
        BundleError: a checkpoint is damaged or could not be written.
        ConfigError: there is nothing to train on; the memory does not hold one row of the largest batch; a resumed
            run is made of something else than its checkpoint.
    """
    if not len(batches):
        raise ConfigError(NOTHING)
    group = processes()
    journal, progress = Journal(folder / "journal.jsonl", writes=group.first), Progress()
    seed_generators(config.seed + group.rank, device_of(model))
    engine = Engine(model, config, batches.pad, group)
    if resume:
        state = engine.restore(folder)
        known = state.pop("made_of", {})
        check_made_of(folder, known, made_of or {})
        made_of = known | dict(made_of or {})
        progress = Progress.read(state)
        if group.first:
            remove_later(folder, progress.best)
        journal.rewind(progress.step, but="average")
        on_resume(progress.step)
    engine.module.train()
    if not resume:
        fit_in_memory(engine, batches, report)
    alive = Alive(folder, group)
    started, saved = time.monotonic() - progress.seconds, time.monotonic()
    sound = True  # the latest evaluation was finite

    def evaluated(train_loss: float) -> bool:
        """Measure the model; whether that was finite."""
        progress.unmeasured = train_loss  # unless the evaluation is interrupted, not for long
        whole = engine.whole()
        found = measure(whole, evaluate)
        score = rank(found, config)
        finite = score > -torch.inf
        seen = measure(whole, partial(_watched, watch, progress.step)) if group.first and finite else {}
        progress.waited = 0 if not progress.best or score > progress.best[0][0] else progress.waited + 1
        progress.best = keep_if_best(progress.best, score, progress.step, whole, config, folder, group.first)
        progress.unmeasured = None
        entry = _entry(progress, train_loss) | found | seen
        journal.write(entry)
        report(entry)
        return finite

    def save() -> None:
        engine.store(folder, vars(progress) | {"made_of": dict(made_of or {})})

    if progress.unmeasured is not None:
        sound = evaluated(progress.unmeasured)
        if sound:
            save()
    stream = _stream(batches, progress)
    while not _finished(progress, config):
        alive.note(progress.step)
        batch = next(stream)
        set_learning_rate(engine.optimizer, config, progress.step)
        numbers = update(engine, batch, report)
        progress.seconds = time.monotonic() - started
        if config.max_minutes:  # all processes end after the same step
            progress.seconds = group.from_first(progress.seconds)
        report({"event": "step", "step": progress.step, "seconds": progress.seconds, **numbers})
        _count_skipped(numbers, progress, folder, journal)

        due = progress.step % config.evaluate_every == 0 or _finished(progress, config)
        interrupted = False
        if due:
            try:
                sound = evaluated(numbers["loss"])
            except Interrupted:
                interrupted = True
        late = group.first and time.monotonic() - saved > config.checkpoint_seconds
        stop, late = group.any_of(interrupted or should_stop(), late)
        healthy = sound and not progress.skipped_in_a_row
        if (stop or due or late) and (healthy or (stop and not checkpoint_in(folder))):
            save()
            saved = time.monotonic()
        if stop:
            raise Interrupted
    if not progress.best and any(entry.get("event") == "evaluation" for entry in journal.entries()):
        raise Diverged(f"{folder}: training diverged: no evaluation had a finite loss. {_advice(folder)}")
    if not progress.best:
        raise ConfigError(
            f"{folder}: ended at step {progress.step} before its first evaluation: give it more time "
            "(training.max_minutes), or a smaller training.evaluate_every"
        )
    group.wait(config.timeout)
    return best_weights(engine.whole(), evaluate, progress.best, progress.step, config, folder, journal)


def check_made_of(folder: Path, known: Mapping[str, str], given: Mapping[str, str]) -> None:
    """Refuse to resume a run that is made of something else: it would not end as if it had never been interrupted.

    Args:
        folder: the run's.
        known: digests that its checkpoint holds, by name.
        given: those of the process that resumes it.

    Raises:
        ConfigError: one of them differs.
    """
    other = [name for name in given if name in known and known[name] != given[name]]
    if other:
        raise ConfigError(
            f"{folder}: changed since {last_checkpoint(folder)} was written: {' and '.join(other)}; restore it, or "
            "start again in another folder (--folder)"
        )


def update(engine: Engine, batch: Batch, report: Report = lambda _: None) -> dict[str, Any]:
    """One step of gradient descent on one global batch; it is skipped if the loss or the gradient is not finite.

    Args:
        engine: the model and its optimizer.
        batch: the global batch; each process computes its rows.
        report: receives an event when memory runs out and the batch is computed in more pieces.
    """
    tokens = max(1, int(batch.target_allowed.sum()))
    numbers = _gradients(engine, batch, tokens, report)
    norm = engine.clip().detach().to(numbers.dtype)
    # one transfer a step
    total, likelihood, length = torch.cat([engine.group.total(numbers), norm[None]]).tolist()
    skipped = not isfinite(length) or not isfinite(total)
    if not skipped:
        engine.step()
    return {
        "loss": likelihood / tokens,
        "smoothed_loss": total / tokens,
        "tokens": tokens,
        "gradient_norm": length,
        "learning_rate": engine.optimizer.param_groups[0]["lr"],
        "skipped": skipped,
    }


def _gradients(engine: Engine, batch: Batch, tokens: int, report: Report) -> Tensor:
    """The gradient of a batch, in twice as many pieces each time that memory runs out."""
    while True:
        engine.optimizer.zero_grad(set_to_none=True)
        try:
            return engine.gradients(batch, tokens)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            rows = len(batch.target)
            if engine.group.count > 1 or engine.pieces >= rows:
                raise ConfigError(_does_not_fit(batch, engine)) from error
        engine.pieces *= 2
        gc.collect()
        report({"event": "memory", "pieces": engine.pieces, "rows": rows})


def fit_in_memory(engine: Engine, batches: BatchSource, report: Report) -> None:
    """Compute the gradient of the largest batch once and forget it, so that memory does not run out later.

    Raises:
        ConfigError: the memory does not hold one row of it.
    """
    device = device_of(engine.model)
    states = random_states(device)
    buffers = {name: value.clone() for name, value in engine.model.named_buffers()}
    batch = batches.largest()
    if batch is None:
        return
    _gradients(engine, batch, max(1, int(batch.target_allowed.sum())), report)
    engine.optimizer.zero_grad(set_to_none=True)
    for name, value in engine.model.named_buffers():
        value.copy_(buffers[name])
    restore_random_states(states, device)


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text


def _does_not_fit(batch: Batch, engine: Engine) -> str:
    rows, positions = batch.target.shape[0], batch.target.shape[-1]
    at_once = -(-rows // (engine.group.count * engine.pieces))
    return (
        f"out of memory: {at_once} of the {rows} rows of a batch, {positions} target positions each, do not fit: set "
        f"training.accumulate above {engine.pieces}, a smaller training.batch_tokens, or a smaller data.longest"
    )


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


def _watched(watch: Callable[[Any, int], dict[str, float]], step: int, model: Any) -> dict[str, float]:
    return watch(model, step)


def _finished(progress: Progress, config: TrainingConfig) -> bool:
    if config.max_minutes and progress.seconds >= 60 * config.max_minutes:
        return progress.step > 0
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
    if checkpoint_in(folder):
        kept = f"{last_checkpoint(folder)} holds the last good step, {last_step(folder)}"
    return f"{kept[0].upper()}{kept[1:]}: lower training.learning_rate, or lengthen training.warmup"


def checkpoint_in(folder: Path) -> bool:
    """Whether a run's folder holds a checkpoint to resume from."""
    return (folder / LAST).exists() or (folder / SHARDED / NOTE).exists()


def last_checkpoint(folder: Path) -> str:
    """The name of a run's last checkpoint within its folder."""
    return SHARDED if (folder / SHARDED / NOTE).exists() else LAST


def last_step(folder: Path) -> int:
    """The step of a run's last checkpoint."""
    sharded = folder / SHARDED / NOTE
    path = sharded if sharded.exists() else folder / LAST
    try:
        return int((parse_json(read_text(sharded)) if sharded.exists() else load_checkpoint(path)[1])["step"])
    except BundleError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: damaged ({first_line(error)}): use an earlier checkpoint") from error
