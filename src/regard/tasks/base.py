"""What a task brings to a training run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from regard.bundle import Bundle
from regard.data.batching import BatchSource
from regard.models.build import ModelConfig
from regard.text.tokenizer import PAD, Tokenizer
from regard.training.loop import LAST, TrainingConfig, batch_loss


@dataclass(frozen=True)
class TaskData:
    """What a task brings to a run.

    Attributes:
        tokenizer: learned, or the run's own.
        batches: to train on.
        training, development: how much there is of either, in words.
        evaluate: from a model to its numbers on development data.
        finish: writes the bundle of a trained model.
        model: its settings, where the data says more than the config.
    """

    tokenizer: Tokenizer
    batches: BatchSource
    training: str
    development: str
    evaluate: Callable[[Any], dict[str, float]]
    finish: Callable[[Any], Bundle]
    model: ModelConfig | None = None


Row = TypeVar("Row")


def for_development(parts: tuple[list[Row], list[Row]], setting: str, most: int) -> tuple[list[Row], str]:
    """Development data and how much it is, in words; where a setting left nothing, some of what is trained on, whose
    figures say nothing of what a model has not seen."""
    training, development = parts
    if development:
        return development, f"{len(development):,} for development"
    some = training[:most]
    return some, f"{setting} leaves none for development: {len(some):,} of them choose the best checkpoint"


def run_tokenizer(folder: Path, settings: Any, begun: Bundle | None, learn: Callable[[], Tokenizer]) -> Tokenizer:
    """The run's tokeniser, learned on the training side only; a resumed run reads its own back."""
    path = folder / "tokenizer.json"
    if (folder / LAST).exists() and path.exists():
        return Tokenizer.load(path, settings.tokenizer)
    tokenizer = begun.tokenizer if begun else learn()
    tokenizer.save(path)
    return tokenizer


def mean_loss(model: Any, batches: BatchSource, training: TrainingConfig) -> tuple[float, int]:
    """Negative log-likelihood per target token in nats, EOS counted; and the number of tokens."""
    total, tokens = 0.0, 0
    for batch in batches.epoch(0):
        _, nll, n = batch_loss(model, batch, training, PAD)
        total, tokens = total + float(nll), tokens + n
    return total / max(1, tokens), tokens
