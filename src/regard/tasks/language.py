"""Training on running text: a decoder alone learns to go on with it, an encoder alone to find hidden words."""

from collections.abc import Callable
from math import exp
from pathlib import Path
from typing import Any

import torch

from regard.bundle import Bundle, save_bundle
from regard.data.batching import BatchSource
from regard.data.texts import Masked, TextConfig, Windows, read_texts
from regard.errors import ConfigError
from regard.tasks.base import TaskData, mean_loss, run_tokenizer
from regard.text.tokenizer import MASK, SPECIALS, Tokenizer, TokenizerConfig, word_of_each
from regard.training.loop import TrainingConfig

TASKS = {"complete": "decoder", "fill": "encoder"}


def learn_tokenizer(texts: list[str], task: str, config: TokenizerConfig) -> Tokenizer:
    """A tokeniser of training texts, with a token that hides words where words are to be found."""
    return Tokenizer.learn(texts, config, mask=task == "fill")


def examples(
    texts: list[str], task: str, tokenizer: Tokenizer, config: TextConfig, training: TrainingConfig, moves: bool = True
) -> BatchSource:
    """Windows for a decoder, sentences with hidden words for an encoder; `moves`: other ones in every epoch."""
    encoded = tokenizer.encode_batch(texts)
    ends = tokenizer.bos, tokenizer.eos, tokenizer.pad
    if task == "complete":
        return Windows(encoded, config.length, training.batch_tokens, *ends, training.seed, moves)
    kept = [n for n, ids in enumerate(encoded) if 0 < len(ids) <= config.length - 2]
    words = None
    if config.whole_words:
        spans = tokenizer.encode_spans([texts[n] for n in kept])
        words = [word_of_each(one, texts[n]) for one, n in zip(spans, kept, strict=True)]
    if tokenizer.mask is None:
        raise ConfigError("the tokeniser has no mask token: a run that fills gaps cannot start from it")
    return Masked(
        [encoded[n] for n in kept], words, config.masked, len(tokenizer), len([*SPECIALS, MASK]), tokenizer.mask,
        training.batch_tokens, *ends, training.seed, moves,
    )  # fmt: skip


def prepare(folder: Path, settings: Any, begun: Bundle | None) -> TaskData:
    assert settings.texts is not None  # the settings have been checked
    task, texts = settings.task, read_texts(settings.texts)
    if not texts.train:
        raise ConfigError("there is nothing to train on: check texts.train and texts.dev_share")
    tokenizer = run_tokenizer(folder, settings, begun, lambda: learn_tokenizer(texts.train, task, settings.tokenizer))
    batches, dev = (
        examples(part, task, tokenizer, settings.texts, settings.training, moves)
        for part, moves in ((texts.train, True), (texts.dev, False))
    )

    def finish(model: Any) -> Bundle:
        begins = {"begins": len(texts.train) > 1} if task == "complete" else {}
        bundle = Bundle(task, settings.languages, model, settings.model, tokenizer, begins)
        save_bundle(folder, bundle)
        return bundle

    name = "windows" if task == "complete" else "sentences"
    return TaskData(
        tokenizer, batches, f"{len(batches):,} training {name}", f"{len(dev):,} for development",
        make_evaluate(dev, settings.training), finish,
    )  # fmt: skip


def make_evaluate(batches: BatchSource, training: TrainingConfig) -> Callable[[Any], dict[str, float]]:
    """From a model to its loss on development data, in nats per predicted token, and its perplexity."""

    def evaluate(model: Any) -> dict[str, float]:
        loss, tokens = mean_loss(model, batches, training)
        return (
            {"loss": loss, "perplexity": exp(min(loss, 700))}
            if tokens
            else {"loss": float("inf"), "perplexity": float("inf")}
        )

    return evaluate


def evaluate_texts(bundle: Bundle, path: Path, length: int = 256) -> dict[str, Any]:
    """Loss, perplexity and bits per character of a text file under a decoder or encoder alone."""
    config = TextConfig(
        train=str(path), documents="lines" if bundle.task == "fill" else "files", dev_share=0.0, length=length
    )
    texts = read_texts(config).train
    training = TrainingConfig(batch_tokens=4096)
    with torch.inference_mode():
        loss, tokens = mean_loss(
            bundle.model, examples(texts, bundle.task, bundle.tokenizer, config, training, moves=False), training
        )
    bits = loss * tokens / sum(map(len, texts)) / 0.6931471805599453 if texts else 0.0
    numbers = {"loss": loss, "perplexity": exp(min(loss, 700)), "tokens": tokens}
    return numbers | ({"bits_per_character": bits} if bundle.task == "complete" else {})
