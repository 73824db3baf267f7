"""Questions about pictures: one of the learned answers is chosen."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from regard.bundle import Bundle, save_bundle
from regard.data.batching import BatchSource, move
from regard.data.questions import Open, QuestionBatches, count_answers, open_from, question_parts
from regard.data.scenes.questions import PictureQuestion
from regard.data.tables import read_cells
from regard.decoding.generate import check_wanted
from regard.device import device_of
from regard.errors import ConfigError, DataError
from regard.pipelines.answerer import Answerer
from regard.pipelines.base import InputError
from regard.pretrained.features import prepared
from regard.tasks.base import EVALUATION_TOKENS, Numbers, RunFolder, TaskData, for_development, loss_numbers, perplexity
from regard.tasks.config import ExperimentConfig, source_encoder
from regard.text.tokenizer import Tokenizer
from regard.training.objective import token_nll

COLUMNS = ("file", "question", "answer")
NONE_KNOWN = "none of the {} has an answer that the {}: there is no loss to measure, and all answers would be wrong"


def batches(
    questions: Sequence[PictureQuestion], opened: Open, answers: Sequence[str], tokenizer: Tokenizer, model: Any,
    tokens: int, seed: int = 0, moves: bool = False,
) -> QuestionBatches:  # fmt: skip
    """Questions in batches.

    Args:
        questions: with their answers.
        opened: from a picture's name to the picture.
        answers: the learned answers; class n + 1 is answers[n].
        tokenizer: of the questions.
        model: its settings.
        tokens: question tokens of a batch, EOS included.
        seed: of the order.
        moves: shuffle in every epoch.
    """
    numbers = {name: n for n, name in enumerate(dict.fromkeys(one.file for one in questions))}
    pictures = [prepared([opened(name)], source_encoder(model))[0] for name in numbers]
    encoded = tokenizer.encode_batch([one.question.lower() for one in questions])
    classes = {answer: n for n, answer in enumerate(answers, 1)}
    longest = max((len(one) + 1 for one in encoded), default=1)
    return QuestionBatches(
        pictures,
        [numbers[one.file] for one in questions],
        encoded,
        [classes.get(one.answer, 0) for one in questions],
        max(1, tokens // longest),
        tokenizer.eos,
        tokenizer.pad,
        moves,
        seed,
    )


def prepare(run: RunFolder, settings: ExperimentConfig) -> TaskData:
    """Training and development data of a model that answers questions.

    Raises:
        ConfigError: there is nothing to train on.
        DataError: no development question has an answer that the training questions have.
    """
    assert settings.questions is not None  # the settings have been checked
    training = settings.training
    train, dev, opened = question_parts(settings.questions)
    if not train:
        raise ConfigError("there is nothing to train on: check questions.table and questions.dev_share")
    dev, amount = for_development((train, dev), "questions.dev_share", settings.dev_sentences)
    tokenizer = run.tokenizer(
        settings, lambda: Tokenizer.learn([one.question.lower() for one in train], settings.tokenizer)
    )
    answers = run.start.decoding["answers"] if run.start else count_answers(train, settings.questions.most)
    config: Any = settings.model.model_copy(update={"answers": len(answers)})
    train_batches, dev_batches = (
        batches(part, opened, answers, tokenizer, config, training.batch_tokens, training.seed, moves)
        for part, moves in ((train, True), (dev, False))
    )

    if not any(dev_batches.answers):
        raise DataError(NONE_KNOWN.format("development questions", "training questions have"))

    def finish(model: Any) -> Bundle:
        bundle = Bundle("answer", settings.languages, model, config, tokenizer, {"answers": answers})
        save_bundle(run.path, bundle)
        return bundle

    return TaskData(
        tokenizer,
        train_batches,
        f"{len(train_batches):,} training questions with {len(answers):,} answers",
        amount,
        make_evaluate(dev_batches, training.precision),
        finish,
        config,
        measured=dev_batches,
    )


def make_evaluate(dev: BatchSource, precision: str = "float32") -> Callable[[Any], dict[str, float]]:
    """From a model to its loss and its accuracy in percent; an answer outside the learned ones counts as wrong."""

    def evaluate(model: Any) -> dict[str, float]:
        device = device_of(model)
        total, known, right, asked = 0.0, 0, 0, 0
        for batch in dev.epoch(0):
            check_wanted()
            batch = move(batch, device)
            nll, n = token_nll(model, batch, precision)
            total, known = total + float(nll), known + n
            best = 1 + model(batch.pictures, batch.question, batch.allowed)[:, 1:].argmax(-1)
            right, asked = right + int((best == batch.target[:, 0]).sum()), asked + len(best)
        if not known:
            raise DataError(NONE_KNOWN.format("development questions", "training questions have"))
        shares = {"exact": 100 * right / max(1, asked), "unknown": 100 * (asked - known) / max(1, asked)}
        return loss_numbers(total / known, lambda: shares)

    return evaluate


def accuracy(model: Any, dev: QuestionBatches) -> float:
    """The share of correct answers, in percent."""
    with torch.inference_mode():
        return make_evaluate(dev)(model)["exact"]


def evaluate(
    answerer: Answerer, source: Path, reference: Path | None = None, beam: int | None = None
) -> tuple[Numbers, list[str]]:
    """Measures of a model on a table of questions, and its answers.

    Args:
        answerer: the model.
        source: a table (.csv, .tsv, .jsonl) with columns file, question and answer, files relative to its folder.
        reference, beam: refused.

    Returns:
        loss in nats per question whose answer the model knows, tokens (the number of those), perplexity, accuracy in
        percent of all questions, unknown: questions in percent whose answer the model does not know; the answers.

    Raises:
        ConfigError: there is a reference or a beam.
        DataError: the table or a picture cannot be read, or there is nothing to measure.
    """
    if reference is not None or beam is not None:
        given = "--reference" if reference is not None else "--beam"
        raise ConfigError(f"{answerer.name} is measured on --source alone, a table of questions: no {given}")
    questions = read_table_of_questions(source)
    opened = open_from(str(source.parent))
    tokenizer, config = answerer.tokenizer, answerer.bundle.model_config
    outputs: list[str] = []
    total, known, right = 0.0, 0, 0
    pictures: dict[str, Any] = {}
    for where, one in questions:
        try:
            if one.file not in pictures:
                pictures = {one.file: answerer.read(opened(one.file))}  # questions about a picture stand together
            outputs.append(answerer.run(pictures[one.file], [one.question], 1)[0].text)
        except InputError as error:
            raise DataError(f"{where}: {error}") from error
        right += outputs[-1] == one.answer
    rows = [one for _, one in questions]
    with torch.inference_mode():
        for batch in batches(rows, opened, answerer.answers, tokenizer, config, EVALUATION_TOKENS).epoch(0):
            nll, n = token_nll(answerer.model, move(batch, answerer.device))
            total, known = total + float(nll), known + n
    if not known:
        raise DataError(f"{source}: {NONE_KNOWN.format('questions', 'model knows')}")
    loss = total / known
    numbers: Numbers = {"loss": loss, "perplexity": perplexity(loss), "tokens": known}
    count = len(rows)
    numbers |= {"accuracy": 100 * right / count, "unknown": 100 * (count - known) / count, "examples": count}
    return numbers, outputs


def read_table_of_questions(source: Path) -> list[tuple[str, PictureQuestion]]:
    """The rows of a table with columns file, question, answer, each with file and line.

    Raises:
        DataError: there is no such file, no row, an empty cell, or a column is missing.
    """
    if source.is_dir():
        raise DataError(f"{source}: a folder: name a table with columns {', '.join(COLUMNS)}")
    found = []
    for where, cells in read_cells(source):
        missing = [name for name in COLUMNS if name not in cells]
        if missing:
            raise DataError(f"{where}: no column {missing[0]!r}: there are {', '.join(cells) or 'none'}")
        empty = [name for name in COLUMNS if not cells[name].strip()]
        if empty:
            raise DataError(f"{where}: the {empty[0]} is empty")
        found.append(
            (where, PictureQuestion(cells["file"].strip(), cells["question"].strip(), cells["answer"].strip()))
        )
    if not found:
        raise DataError(f"{source}: there is nothing to measure: the table has no rows")
    return found
