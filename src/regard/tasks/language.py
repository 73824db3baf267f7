"""Running text: a decoder-only model learns to continue it, an encoder-only model to predict masked tokens."""

from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Any

import torch

from regard.bundle import Bundle, save_bundle
from regard.data.batching import BatchSource
from regard.data.files import read_lines, read_text
from regard.data.texts import Masked, TextConfig, Windows, read_texts, units_of
from regard.errors import ConfigError, DataError
from regard.pipelines.base import InputError
from regard.pipelines.completer import Completer
from regard.pipelines.filler import Filler
from regard.tasks.base import (
    EVALUATION_TOKENS,
    Numbers,
    RunFolder,
    TaskData,
    left_out,
    loss_numbers,
    mean_loss,
    no_development,
    perplexity,
)
from regard.tasks.config import ExperimentConfig, positions_of
from regard.text.protocol import unnamed
from regard.text.tokenizer import MASK, SPECIALS, Tokenizer, TokenizerConfig, word_of_each
from regard.training.config import TrainingConfig

WINDOW = 256  # tokens of a window when a file is measured, at most
MASKED = TextConfig.model_fields["masked"].default


def learn_tokenizer(texts: list[str], task: str, config: TokenizerConfig) -> Tokenizer:
    """A tokenizer of training texts, with a mask token where words are to be filled in."""
    return Tokenizer.learn(texts, config, mask=task == "fill")


def examples(
    texts: list[str], task: str, tokenizer: Tokenizer, config: TextConfig, training: TrainingConfig, moves: bool = True
) -> BatchSource:
    """Windows for a decoder, sentences with masked tokens for an encoder.

    Args:
        texts: the documents.
        task: "complete" or "fill".
        tokenizer: the run's.
        config: settings of texts; longer sentences than `config.length` are left out.
        training: batch size and seed.
        moves: draw other windows or other masked tokens in every epoch.
    """
    encoded = tokenizer.encode_batch(texts)
    if task == "complete":
        ends = tokenizer.bos, tokenizer.eos, tokenizer.pad
        return Windows(encoded, config.length, training.batch_tokens, *ends, training.seed, moves)
    if tokenizer.mask is None:
        raise ConfigError("the tokenizer has no mask token: a run that fills gaps cannot start from it")
    kept = sentences_of(encoded, config.length)
    words: list[Sequence[int | None] | None] = [None] * len(kept)
    if config.whole_words:
        spans = tokenizer.encode_spans([texts[n] for n in kept])
        words = [word_of_each(one, texts[n]) for one, n in zip(spans, kept, strict=True)]
    return Masked(
        [[tokenizer.bos, *encoded[n], tokenizer.eos] for n in kept],
        [units_of(word, len(encoded[n])) for word, n in zip(words, kept, strict=True)],
        config.masked,
        range(len([*SPECIALS, MASK]), len(tokenizer)),
        tokenizer.mask,
        training.batch_tokens,
        tokenizer.pad,
        training.seed,
        moves,
    )


def sentences_of(encoded: Sequence[Sequence[int]], length: int) -> list[int]:
    """The indices of sentences of at most `length` tokens, BOS and EOS counted; empty ones are left out."""
    return [n for n, ids in enumerate(encoded) if 0 < len(ids) <= length - 2]


def prepare(run: RunFolder, settings: ExperimentConfig) -> TaskData:
    """Training and development data of a language model.

    Raises:
        ConfigError: there is nothing to train on.
    """
    assert settings.texts is not None  # the settings have been checked
    positions = positions_of(settings.model)
    if positions is not None and settings.texts.length > positions:
        raise ConfigError(f"texts.length = {settings.texts.length} must be at most model.length = {positions}")
    texts, task, training = read_texts(settings.texts), settings.task, settings.training
    if not texts.train:
        raise ConfigError("there is nothing to train on: check texts.train and texts.dev_share")
    tokenizer = run.tokenizer(settings, lambda: learn_tokenizer(texts.train, task, settings.tokenizer))
    batches = examples(texts.train, task, tokenizer, settings.texts, training)
    if not len(batches):
        raise ConfigError(
            f"there is nothing to train on: texts.train has {'one token' if task == 'complete' else 'no sentence'} of "
            f"at most texts.length = {settings.texts.length}"
        )
    dev = examples(texts.dev, task, tokenizer, settings.texts, training, moves=False)
    name = "windows" if task == "complete" else "sentences"
    amount = f"{len(dev):,} for development{_too_long(texts.dev, task, tokenizer, settings.texts)}"
    if not len(dev):
        some = _some(texts.train, settings)
        dev = examples(some, task, tokenizer, settings.texts, training, moves=False)
        amount = no_development("texts.dev_share" if settings.texts.dev is None else "texts.dev", len(dev))

    def evaluate(model: Any) -> dict[str, float]:
        return loss_numbers(mean_loss(model, dev, training.precision)[0])

    def finish(model: Any) -> Bundle:
        begins = {"begins": len(texts.train) > 1} if task == "complete" else {}
        bundle = Bundle(task, settings.languages, model, settings.model, tokenizer, begins)
        save_bundle(run.path, bundle)
        return bundle

    left = _too_long(texts.train, task, tokenizer, settings.texts)
    return TaskData(
        tokenizer, batches, f"{len(batches):,} training {name}{left}", amount, evaluate, finish, measured=dev
    )


def _too_long(texts: list[str], task: str, tokenizer: Tokenizer, config: TextConfig) -> str:
    """The number of sentences that are longer than a model's input, in words; windows have no such limit."""
    if task == "complete":
        return ""
    encoded = tokenizer.encode_batch(texts)
    kept = set(sentences_of(encoded, config.length))
    names = [f"“{text[:40]}…”" for n, text in enumerate(texts) if n not in kept]
    return left_out(names, f"longer than texts.length = {config.length} tokens")


def _some(texts: list[str], settings: ExperimentConfig) -> list[str]:
    """Some training text: sentences, or the beginning of the first document."""
    if settings.task == "fill":
        return texts[: settings.dev_sentences] if len(texts) > settings.dev_sentences else texts
    assert settings.texts is not None
    return [texts[0][: settings.texts.length * settings.dev_sentences]]


def evaluate_completer(
    completer: Completer, source: Path, reference: Path | None = None, beam: int | None = None
) -> tuple[Numbers, list[str]]:
    """Loss, perplexity and bits per character of a text under a decoder-only model.

    The text is cut into windows of at most 256 tokens, and no more than the model has positions; every token is
    predicted from those before it in its window. Its ids are those that the model's own tokenizer gives, special tokens
    only where that tokenizer adds them.

    Raises:
        ConfigError: there is a reference.
        DataError: the file cannot be read, or has nothing to predict.
    """
    _refuse_reference(completer.name, "completes texts", reference, beam)
    text, tokenizer = read_text(source), completer.tokenizer
    ids = list(tokenizer.marked(text)[0] if hasattr(tokenizer, "marked") else tokenizer.encode(text))
    if completer.bundle.decoding.get("begins", False) and tokenizer.bos not in (None, *ids[:1]):
        ids = [tokenizer.bos, *ids]
    if not text.strip() or len(ids) < 2:
        raise DataError(f"{source}: there is nothing to predict: the text has fewer than two tokens")
    pad = tokenizer.pad
    windows = Windows([ids], _window(completer.bundle.model_config), EVALUATION_TOKENS, pad, pad, pad, moves=False)
    with torch.inference_mode():
        loss, tokens = mean_loss(completer.model, windows)
    bits = loss * tokens / len(text) / log(2)
    return {"loss": loss, "perplexity": perplexity(loss), "tokens": tokens, "bits_per_character": bits}, []


def evaluate_filler(
    filler: Filler, source: Path, reference: Path | None = None, beam: int | None = None
) -> tuple[Numbers, list[str]]:
    """Loss and perplexity of masked tokens of sentences, one a line, under an encoder-only model.

    15 % of each line's tokens, one at least, are masked as in training (Devlin et al. 2019); the choice is always the
    same. Special tokens are those that the model's own tokenizer puts around a text, and are never masked.

    Raises:
        ConfigError: there is a reference, or the tokenizer has no mask token.
        DataError: the file cannot be read, a line is too long, or there is nothing to predict.
    """
    _refuse_reference(filler.name, "fills gaps", reference, beam)
    tokenizer = filler.tokenizer
    if tokenizer.mask is None:
        raise ConfigError(f"{filler.name} has no mask token: it cannot be measured by the words that it fills in")
    rows: list[list[int]] = []
    units: list[list[list[int]]] = []
    special: set[int] = {i for i in (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.mask) if i is not None}
    for number, line in enumerate(read_lines(source), 1):
        if not line.strip():
            continue
        try:
            ids, spans = filler.encode(line)
        except InputError as error:
            raise DataError(f"{source}:{number}: {error}") from error
        inside = [position for position, (a, b) in enumerate(spans) if b > a]
        if inside:
            own = range(inside[0], inside[-1] + 1)
            special |= {i for position, i in enumerate(ids) if position not in own}
            rows.append(ids)
            units.append([[position] for position in own])
    if not rows:
        raise DataError(f"{source}: there is nothing to predict: the file is empty")
    known = min(len(tokenizer), len(filler.model.readout()[0])) if filler.model.head else len(tokenizer)
    names = enumerate(tokenizer.tokens(range(known)))
    ordinary = [i for i, name in names if i not in special and name != unnamed(i)]
    masked = Masked(rows, units, MASKED, ordinary, tokenizer.mask, EVALUATION_TOKENS, tokenizer.pad, moves=False)
    with torch.inference_mode():
        loss, tokens = mean_loss(filler.model, masked)
    return {"loss": loss, "perplexity": perplexity(loss), "tokens": tokens, "sentences": len(rows)}, []


def _window(config: Any) -> int:
    positions = positions_of(config)
    return WINDOW if positions is None else min(WINDOW, positions)


def _refuse_reference(name: str, does: str, reference: Path | None, beam: int | None) -> None:
    if reference is not None or beam is not None:
        given = "--reference" if reference is not None else "--beam"
        raise ConfigError(f"{name} {does}: it is measured on --source alone, without {given}")
