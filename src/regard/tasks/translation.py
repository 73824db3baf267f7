"""Training on parallel text: pairs, their alignment, and what a translator is measured by."""

from collections.abc import Callable
from math import exp
from pathlib import Path
from typing import Any

import sacrebleu
import torch

from regard.bundle import Bundle, save_bundle
from regard.data.align import Link, phrase_links
from regard.data.batching import Batches
from regard.data.parallel import Pairs, augment, read_lines, read_pairs, split
from regard.errors import ConfigError, DataError
from regard.models.seq2seq import Seq2Seq
from regard.pipelines.base import InputError
from regard.pipelines.translator import BATCH_TOKENS, Translator
from regard.tasks.base import TaskData, mean_loss, run_tokenizer
from regard.text.tokenizer import BOS, EOS, PAD, Tokenizer, word_of_each
from regard.training.loop import TrainingConfig


def prepare(folder: Path, settings: Any, begun: Bundle | None) -> TaskData:
    parts = read_data(settings)
    texts = [text for pair in parts[0] for text in pair]
    tokenizer = run_tokenizer(folder, settings, begun, lambda: Tokenizer.learn(texts, settings.tokenizer))
    batches = _training_batches(parts[0], tokenizer, settings)
    return TaskData(
        tokenizer, batches, f"{len(batches):,} training pairs", f"{len(parts[1]):,} for development",
        make_evaluate(parts[1], tokenizer, settings),
        lambda model: finish(folder, settings, model, tokenizer, parts),
    )  # fmt: skip


def finish(
    folder: Path, settings: Any, model: Seq2Seq, tokenizer: Tokenizer, parts: tuple[Pairs, Pairs, Pairs]
) -> Bundle:
    """Choose the alignment's site and heads on development data, and write the bundle."""
    from regard.analysis.alignment import choose_heads

    bundle = Bundle(settings.task, settings.languages, model, settings.model, tokenizer, settings.decoding.model_dump())
    dev = parts[1] if len(parts[1]) else parts[0]
    bundle.alignment = choose_heads(model, tokenizer, parts[0], dev)
    save_bundle(folder, bundle)
    return bundle


def read_data(settings: Any) -> tuple[Pairs, Pairs, Pairs]:
    """Training, development and test pairs of an experiment.

    Raises:
        DataError: a file is missing or crooked.
        ConfigError: nothing is left to train on.
    """
    data = settings.data
    assert data is not None  # the settings have been checked
    pairs = read_pairs(data.train, data)
    train_part, dev, test = split(pairs, data if data.dev is None else data.model_copy(update={"dev_share": 0.0}))
    if data.dev is not None:
        dev = read_pairs(data.dev, data)
    if not len(train_part):
        raise ConfigError("there are no training pairs: check data.train and the shares that are split off")
    return train_part, dev, test


def make_evaluate(dev: Pairs, tokenizer: Tokenizer, settings: Any) -> Callable[[Seq2Seq], dict[str, float]]:
    """From a model to its numbers on development data: loss and perplexity of all pairs, BLEU and chrF of some."""
    batches = _batches(dev, tokenizer, settings)
    some = dev.sample(settings.dev_sentences)

    def evaluate(model: Seq2Seq) -> dict[str, float]:
        if not len(dev):
            return {"loss": float("inf"), "perplexity": float("inf"), "bleu": 0.0, "chrf": 0.0}
        loss, _ = mean_loss(model, batches, settings.training)
        translator = Translator(
            Bundle("translate", settings.languages, model, settings.model, tokenizer, settings.decoding.model_dump()),
            "run",
        )
        outputs = [g.text for g in translator.many(some.source, beam=1, record=False)]
        return {"loss": loss, "perplexity": exp(min(loss, 700)), **scores(outputs, some.target)}

    return evaluate


def scores(outputs: list[str], references: list[str]) -> dict[str, float]:
    """BLEU and chrF of outputs against references (sacreBLEU's defaults)."""
    return {
        "bleu": sacrebleu.corpus_bleu(outputs, [references]).score,
        "chrf": sacrebleu.corpus_chrf(outputs, [references]).score,
    }


def evaluate_files(
    translator: Translator, source: Path, reference: Path, beam: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """BLEU and chrF with signatures, loss and perplexity of a model on two parallel files; and the translations.

    Raises:
        DataError: a file is missing or crooked, or the files differ in length.
    """
    sides = read_lines(source), read_lines(reference)
    if len(sides[0]) != len(sides[1]):
        raise DataError(
            f"{source} has {len(sides[0])} lines and {reference} has {len(sides[1])}: "
            "every source line needs one reference"
        )
    if not sides[0]:
        raise DataError(f"{source}: there is nothing to translate: the file is empty")
    for number, line in enumerate(sides[0], 1):
        try:
            translator.encode(line)
        except InputError as error:
            raise DataError(f"{source}:{number}: {error}") from error
    outputs = [g.text for g in translator.many(sides[0], beam=beam, record=False)]
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    measured = bleu.corpus_score(outputs, [sides[1]]).score, chrf.corpus_score(outputs, [sides[1]]).score
    tokenizer = translator.tokenizer
    filled = [(s, t) for s, t in zip(*sides, strict=True) if s.strip() and t.strip()]
    encoded = [(tokenizer.encode(s), tokenizer.encode(t)) for s, t in filled]
    with torch.inference_mode():
        loss, tokens = mean_loss(translator.model, Batches(encoded, BATCH_TOKENS, BOS, EOS, PAD), TrainingConfig())
    numbers = {
        "bleu": measured[0], "bleu_signature": str(bleu.get_signature()),
        "chrf": measured[1], "chrf_signature": str(chrf.get_signature()),
        "loss": loss, "perplexity": exp(min(loss, 700)), "tokens": tokens, "sentences": len(outputs),
        "beam": translator.decoding.beam if beam is None else beam,
    }  # fmt: skip
    return numbers, outputs


def _training_batches(pairs: Pairs, tokenizer: Tokenizer, settings: Any) -> Batches:
    """The augmented training pairs as batches, with links where alignment is guided."""
    data = settings.data
    assert data is not None  # the settings have been checked
    shown = augment(pairs, data, settings.training.seed)
    sides = (tokenizer.encode_batch(shown.source), tokenizer.encode_batch(shown.target))
    kept = [n for n, pair in enumerate(zip(*sides, strict=True)) if max(map(len, pair)) <= data.longest]
    links = token_links(tokenizer, shown) if settings.training.guided_alignment else None
    training = settings.training
    return Batches(
        [(sides[0][n], sides[1][n]) for n in kept], training.batch_tokens, BOS, EOS, PAD, training.seed,
        None if links is None else [links[n] for n in kept],
    )  # fmt: skip


def token_links(tokenizer: Tokenizer, pairs: Pairs) -> list[list[Link]]:
    """(target token, source token) links of every pair: the tokens of words that translate each other one by one."""
    spans = zip(tokenizer.encode_spans(pairs.source), tokenizer.encode_spans(pairs.target), strict=True)
    result = []
    for (source, target), (there, here), links in zip(pairs, spans, phrase_links(list(pairs)), strict=True):
        words = word_of_each(there, source), word_of_each(here, target)
        positions: dict[int | None, list[int]] = {}
        for place, word in enumerate(words[0]):
            positions.setdefault(word, []).append(place)
        partner = dict(links)
        result.append([(t, s) for t, w in enumerate(words[1]) if w in partner for s in positions.get(partner[w], [])])
    return result


def _batches(pairs: Pairs, tokenizer: Tokenizer, settings: Any) -> Batches:
    sides = (tokenizer.encode_batch(pairs.source), tokenizer.encode_batch(pairs.target))
    return Batches(
        list(zip(*sides, strict=True)), settings.training.batch_tokens, BOS, EOS, PAD, settings.training.seed
    )
