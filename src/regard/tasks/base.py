"""What all tasks share: the data of a run, and the measures of a loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from math import exp, inf, isfinite
from pathlib import Path
from typing import Any, TypeVar

import torch

from regard.bundle import Bundle
from regard.data.batching import BatchSource, move
from regard.decoding.generate import check_wanted
from regard.device import device_of
from regard.errors import ConfigError
from regard.models.build import ModelConfig
from regard.tasks.config import ExperimentConfig
from regard.text.tokenizer import Tokenizer
from regard.training.distributed import processes
from regard.training.objective import token_nll

SAMPLES, ATTENTION = "samples.json", "attention"  # of a run's folder: the latest outputs; maps of watched sentences
EVALUATION_TOKENS = 4096  # positions of a batch when files are measured
Numbers = dict[str, Any]
Measure = Callable[[Any, Any, str], tuple[torch.Tensor, int]]


@dataclass(frozen=True)
class TaskData:
    """The data of a training run.

    Attributes:
        tokenizer: learned, or the run's own.
        batches: training data.
        training, development: the amount of either, in words.
        evaluate: from a model to its measures on development data.
        finish: writes the bundle of a trained model.
        model: the model's settings, where they depend on the data.
        watch: from a model and its update to measures of its attention on a few sentences, whose maps it keeps.
        measured: the development data, in texts or ids: a resumed run is measured on the same.
    """

    tokenizer: Tokenizer
    batches: BatchSource
    training: str
    development: str
    evaluate: Callable[[Any], dict[str, float]]
    finish: Callable[[Any], Bundle]
    model: ModelConfig | None = None
    watch: Callable[[Any, int], dict[str, float]] = lambda *_: {}
    measured: Any = None


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run and how the run begins.

    Attributes:
        path: the folder.
        start: the model that training starts from, if any.
        resumed: the run continues from its own checkpoint.
        report: called with the progress of the preparation.
        given: the tokenizer that is used instead of one that is learned, if any.
    """

    path: Path
    start: Bundle | None = None
    resumed: bool = False
    report: Callable[[Numbers], None] = lambda _: None
    given: Tokenizer | None = None

    def tokenizer(self, settings: ExperimentConfig, learn: Callable[[], Tokenizer]) -> Tokenizer:
        """The run's tokenizer, learned on training data only; a resumed run reads its own."""
        path = self.path / "tokenizer.json"
        if self.resumed:
            return Tokenizer.load(path, settings.tokenizer)
        tokenizer: Tokenizer = self.given or (self.start.tokenizer if self.start else learn())
        tokenizer.save(path)
        return tokenizer


Row = TypeVar("Row")


def for_development(parts: tuple[Sequence[Row], Sequence[Row]], setting: str, most: int) -> tuple[list[Row], str]:
    """Development data and their amount in words; if there are none, some training data, whose measures tell nothing
    about unseen data.

    Args:
        parts: training and development data.
        setting: the setting that left no development data.
        most: number of training examples to use.

    Raises:
        ConfigError: there are no training data either.
    """
    training, development = parts
    if development:
        return list(development), f"{len(development):,} for development"
    some = list(training[:most])
    if not some:
        raise ConfigError(f"there is nothing to train on, and {setting} leaves none for development")
    return some, no_development(setting, len(some))


def no_development(setting: str, count: int) -> str:
    """The sentence about a run whose checkpoints are compared on training data."""
    return f"{setting} leaves none for development: {count:,} of them choose the best checkpoint"


def left_out(names: Sequence[str], reason: str) -> str:
    """The number of examples left out, the reason and the first one, in parentheses; nothing if there are none."""
    return left_out_of(len(names), reason, names[0]) if names else ""


def left_out_of(count: int, reason: str, first: str) -> str:
    """The number of examples left out, the reason and the first one's name, in parentheses."""
    return f" ({count:,} left out: {reason}{f', the first {first}' if first else ''})"


def mean_loss(
    model: Any, batches: BatchSource, precision: str = "float32", measure: Measure = token_nll
) -> tuple[float, int]:
    """Negative log-likelihood per target token in nats, EOS counted; and the number of tokens.

    Several processes compute some of the batches each.

    Args:
        model: the model.
        batches: the data.
        precision: of the products.
        measure: (model, batch, precision) -> the negative log-likelihood of a batch, summed; and its tokens.
    """
    device, group = device_of(model), processes()

    def own() -> tuple[float, int]:
        total, tokens = 0.0, 0
        for batch in islice(batches.epoch(0), group.rank, None, group.count):
            check_wanted()
            nll, n = measure(model, move(batch, device), precision)
            total, tokens = total + float(nll), tokens + n
        return total, tokens

    total, tokens = group.all_or_none(own)
    if group.count > 1:
        numbers = torch.tensor([total, tokens], dtype=torch.float64 if device.type != "mps" else torch.float32)
        total, tokens = group.total(numbers.to(device)).tolist()
    return total / max(1, tokens), int(tokens)


def perplexity(loss: float) -> float:
    """exp(loss); infinite where it would overflow."""
    return exp(loss) if loss < 700 else inf


def loss_numbers(loss: float, decode: Callable[[], dict[str, float]] = dict) -> dict[str, float]:
    """Loss and perplexity, and the measures of decoded outputs unless the loss is not finite: a search over NaN
    fails."""
    numbers = {"loss": loss, "perplexity": perplexity(loss)}
    return numbers | decode() if isfinite(loss) else numbers
