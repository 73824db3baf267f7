"""Training on questions about pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from regard.bundle import Bundle, save_bundle
from regard.data.batching import BatchSource
from regard.data.questions import Open, QuestionBatches, asked_parts, count_answers
from regard.data.scenes.questions import Asked
from regard.errors import ConfigError
from regard.pretrained.features import prepared
from regard.tasks.base import TaskData, for_development, run_tokenizer
from regard.text.tokenizer import Tokenizer
from regard.training.loop import TrainingConfig, batch_loss


def batches(
    asked: Sequence[Asked], opened: Open, answers: Sequence[str], tokenizer: Tokenizer, model: Any,
    training: TrainingConfig, moves: bool,
) -> QuestionBatches:  # fmt: skip
    """Questions in batches of `training.batch_tokens` question tokens, end included."""
    numbers = {name: n for n, name in enumerate(dict.fromkeys(one.file for one in asked))}
    pictures = [prepared([opened(name)], model.source_encoder)[0] for name in numbers]
    questions = tokenizer.encode_batch([one.question.lower() for one in asked])
    classes = {answer: n for n, answer in enumerate(answers, 1)}
    longest = max((len(one) + 1 for one in questions), default=1)
    return QuestionBatches(
        pictures, [numbers[one.file] for one in asked], questions, [classes.get(one.answer, 0) for one in asked],
        max(1, training.batch_tokens // longest), tokenizer.eos, tokenizer.pad, moves, training.seed,
    )  # fmt: skip


def make_evaluate(dev: BatchSource, training: TrainingConfig) -> Callable[[Any], dict[str, float]]:
    """From a model to its loss and its share of right answers, in percent; an answer it does not know is wrong."""

    def evaluate(model: Any) -> dict[str, float]:
        total, known, right, asked = 0.0, 0, 0, 0
        for batch in dev.epoch(0):
            _, nll, n = batch_loss(model, batch, training, 0)
            total, known = total + float(nll), known + n
            best = 1 + model(batch.pictures, batch.question, batch.allowed)[:, 1:].argmax(-1)
            right, asked = right + int((best == batch.target[:, 0]).sum()), asked + len(best)
        return {"loss": total / max(1, known), "exact": 100 * right / max(1, asked)} | {
            "unknown": 100 * (asked - known) / max(1, asked)
        }

    return evaluate


def accuracy(model: Any, dev: QuestionBatches) -> float:
    """The share of right answers, in percent."""
    with torch.inference_mode():
        return make_evaluate(dev, TrainingConfig())(model)["exact"]


def prepare(folder: Path, settings: Any, begun: Bundle | None) -> TaskData:
    assert settings.asked is not None  # the settings have been checked
    first, second, opened = asked_parts(settings.asked)
    if not first:
        raise ConfigError("there is nothing to train on: check asked.table and asked.dev_share")
    second, amount = for_development((first, second), "asked.dev_share", settings.dev_sentences)
    tokenizer = run_tokenizer(
        folder, settings, begun,
        lambda: Tokenizer.learn([one.question.lower() for one in first], settings.tokenizer),
    )  # fmt: skip
    answers = begun.decoding["answers"] if begun else count_answers(first, settings.asked.most)
    config: Any = settings.model.model_copy(update={"answers": len(answers)})
    training, dev = (
        batches(part, opened, answers, tokenizer, config, settings.training, moves)
        for part, moves in ((first, True), (second, False))
    )

    def finish(model: Any) -> Bundle:
        bundle = Bundle("answer", settings.languages, model, config, tokenizer, {"answers": answers})
        save_bundle(folder, bundle)
        return bundle

    return TaskData(
        tokenizer, training, f"{len(training):,} training questions with {len(answers):,} answers",
        amount, make_evaluate(dev, settings.training), finish, config,
    )  # fmt: skip
