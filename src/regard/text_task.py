"""Training on running text: a decoder alone learns to go on with it, an encoder alone to find hidden words."""

from collections.abc import Callable
from math import exp
from pathlib import Path
from typing import Any

import torch

from regard.bundle import Bundle
from regard.data.batching import Examples
from regard.data.texts import Masked, TextConfig, Windows, read_texts
from regard.errors import ConfigError
from regard.text.tokenizer import MASK, SPECIALS, Tokenizer, TokenizerConfig, word_of_each
from regard.training.loop import TrainingConfig, batch_loss

TASKS = {"complete": "decoder", "fill": "encoder"}


def learn_tokenizer(texts: list[str], task: str, config: TokenizerConfig) -> Tokenizer:
    """A tokeniser of training texts, with a token that hides words where words are to be found."""
    return Tokenizer.learn(texts, config, mask=task == "fill")


def examples(
    texts: list[str], task: str, tokenizer: Tokenizer, config: TextConfig, training: TrainingConfig, moves: bool = True
) -> Examples:
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


def make_evaluate(batches: Examples, training: TrainingConfig) -> Callable[[Any], dict[str, float]]:
    """From a model to its loss on development data, in nats per predicted token, and its perplexity."""

    def evaluate(model: Any) -> dict[str, float]:
        loss, tokens = mean_loss(model, batches, training)
        return (
            {"loss": loss, "perplexity": exp(min(loss, 700))}
            if tokens
            else {"loss": float("inf"), "perplexity": float("inf")}
        )

    return evaluate


def mean_loss(model: Any, batches: Examples, training: TrainingConfig) -> tuple[float, int]:
    """Negative log-likelihood per predicted token in nats, and the number of tokens."""
    total, tokens = 0.0, 0
    for batch in batches.epoch(0):
        _, nll, n = batch_loss(model, batch, training, batches.pad)
        total, tokens = total + float(nll), tokens + n
    return total / max(1, tokens), tokens


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
