"""The best checkpoints of a run: which ones are kept, and what becomes of them at the end."""

import warnings
from collections.abc import Callable
from math import inf, isfinite, isnan
from pathlib import Path
from typing import Any

import torch

from regard.device import device_of, random_states, restore_random_states
from regard.errors import BundleError
from regard.training.checkpoint import Tensors, average, load_checkpoint, save_checkpoint
from regard.training.config import TrainingConfig
from regard.training.journal import Journal

Evaluate = Callable[[Any], dict[str, float]]
Ranked = list[tuple[float, int]]  # (rank, step), best first
SMALL_IS_BETTER = ("loss", "wer")


def measure(model: Any, evaluate: Evaluate) -> dict[str, float]:
    """Evaluate in inference mode; the random states of training are left as they were."""
    device = device_of(model)
    states = random_states(device)
    model.eval()
    try:
        with torch.inference_mode():
            numbers = evaluate(model)
    finally:  # of an evaluation that is interrupted, too: the run is saved next
        model.train()
        restore_random_states(states, device)
    return {f"dev_{name}": value for name, value in numbers.items()}


def rank(numbers: dict[str, Any], config: TrainingConfig) -> float:
    """The metric of an evaluation, larger is better; -inf where the loss or the metric is not finite.

    A loss whose perplexity overflows counts as infinite.
    """
    if not isfinite(numbers.get("dev_loss", 0.0)) or numbers.get("dev_perplexity") == inf:
        return -inf
    value = float(numbers[f"dev_{config.metric}"])
    return -inf if isnan(value) else -value if config.metric in SMALL_IS_BETTER else value


def keep_if_best(
    best: Ranked, score: float, step: int, model: Any, config: TrainingConfig, folder: Path, writes: bool = True
) -> Ranked:
    """The best evaluations so far, this one included if it is among them; where `writes`, saves its weights and
    removes those that drop out."""
    if score == -inf:
        return best
    ranked = sorted([*best, (score, step)], reverse=True)
    kept = ranked[: config.keep_best]
    if not writes:
        return kept
    for _, dropped in ranked[config.keep_best :]:
        best_path(folder, dropped).unlink(missing_ok=True)
    if (score, step) in kept:
        save_checkpoint(best_path(folder, step), dict(model.state_dict()), {"step": step})
    return kept


def best_weights(
    model: Any, evaluate: Evaluate, best: Ranked, step: int, config: TrainingConfig, folder: Path, journal: Journal
) -> Tensors:
    """The best checkpoint's weights, or the average of the best ones if it is better on development data."""
    found = _readable(best, folder)
    if not found:
        warnings.warn(f"{folder}: no best checkpoint can be read: the model of the last update is kept", stacklevel=2)
        return {name: value.detach().clone() for name, value in model.state_dict().items()}
    best, candidates = [one for one, _ in found], [weights for _, weights in found]
    single, mean = candidates[0], average(candidates)
    model.load_state_dict(mean)
    numbers = measure(model, evaluate)
    better = rank(numbers, config) >= best[0][0]
    journal.write({"event": "average", "step": step, "of": [kept for _, kept in best], "chosen": better, **numbers})
    model.load_state_dict(mean if better else single)
    return mean if better else single


def _readable(best: Ranked, folder: Path) -> list[tuple[tuple[float, int], Tensors]]:
    """The best checkpoints with their weights; one that is missing or damaged is named, and left out."""
    found = []
    for one in best:
        try:
            found.append((one, load_checkpoint(best_path(folder, one[1]))[0]))
        except BundleError as error:
            warnings.warn(f"{error}; the run ends without it", stacklevel=3)
    return found


def remove_later(folder: Path, best: Ranked) -> None:
    """Remove best checkpoints that are newer than the last full one: the resumed run writes them again."""
    known = {best_path(folder, step) for _, step in best}
    for path in set(folder.glob("best-*.safetensors")) - known:
        path.unlink()


def best_path(folder: Path, step: int) -> Path:
    """The file that holds the weights of a step while they are among the best."""
    return folder / f"best-{step:06d}.safetensors"
