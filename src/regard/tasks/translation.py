"""Translation: parallel text, guided alignment, BLEU and chrF."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import sacrebleu
import torch

from regard.analysis.alignment import choose_heads
from regard.bundle import Bundle, save_bundle
from regard.data.align import Aligner, Link
from regard.data.augment import augment
from regard.data.batching import Batches
from regard.data.files import read_lines
from regard.data.pairs import Pairs
from regard.data.parallel import read_pairs, read_parts
from regard.errors import ConfigError, DataError
from regard.models.seq2seq import Seq2Seq
from regard.pipelines.base import InputError
from regard.pipelines.translator import DecodingConfig, Translator
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
from regard.text.tokenizer import Tokenizer, word_of_each


def prepare(run: RunFolder, settings: ExperimentConfig) -> TaskData:
    """Training and development data of a translator."""
    train, dev, _ = read_data(settings)
    texts = [text for pair in train for text in pair]
    tokenizer = run.tokenizer(settings, lambda: Tokenizer.learn(texts, settings.tokenizer))
    batches, amount = training_batches(train, tokenizer, settings)
    dev, dev_amount = development_pairs(train, dev, tokenizer, settings)

    def finish(model: Seq2Seq) -> Bundle:
        bundle = _bundle(settings, model, tokenizer)
        bundle.alignment = choose_heads(model, tokenizer, train, dev)
        save_bundle(run.path, bundle)
        return bundle

    return TaskData(tokenizer, batches, amount, dev_amount, make_evaluate(dev, tokenizer, settings), finish)


def read_data(settings: ExperimentConfig) -> tuple[Pairs, Pairs, Pairs]:
    """Training, development and test pairs.

    Raises:
        DataError: a file is missing or malformed.
        ConfigError: nothing is left to train on.
    """
    data = settings.data
    assert data is not None  # the settings have been checked
    train, dev, test = read_parts(data if data.dev is None else data.model_copy(update={"dev_share": 0.0}))
    if data.dev is not None:
        dev = read_pairs(data.dev, data)
    if not len(train):
        raise ConfigError("there are no training pairs: check data.train and the shares that are split off")
    return train, dev, test


def training_batches(pairs: Pairs, tokenizer: Tokenizer, settings: ExperimentConfig) -> tuple[Batches, str]:
    """The augmented training pairs as batches, with links for guided alignment; and their number in words.

    Raises:
        ConfigError: every pair is too long.
    """
    data, training = settings.data, settings.training
    assert data is not None  # the settings have been checked
    aligned = training.guided_alignment or data.phrases or data.crossed or data.words
    aligner = Aligner(list(pairs)) if aligned else None
    shown = augment(pairs, data, training.seed, settings.languages, aligner)
    sides = encode(tokenizer, shown)
    places = positions_of(settings.model)
    most = data.longest if places is None else min(data.longest, places - 1)
    kept = [n for n, pair in enumerate(sides) if max(map(len, pair)) <= most]
    known = set(kept)
    dropped = [shown.where[n] for n in range(len(sides)) if n not in known]
    reason = f"longer than {'data.longest' if most == data.longest else 'model.length - 1'} = {most} tokens"
    if not kept:
        raise ConfigError(f"there is nothing to train on: all {len(sides):,} training pairs are {reason}")
    links = token_links(tokenizer, shown, aligner) if training.guided_alignment else None
    batches = Batches(
        [sides[n] for n in kept],
        training.batch_tokens,
        tokenizer.bos,
        tokenizer.eos,
        tokenizer.pad,
        training.seed,
        None if links is None else [links[n] for n in kept],
    )
    return batches, f"{len(kept):,} training pairs{left_out(dropped, reason)}"


def development_pairs(train: Pairs, dev: Pairs, tokenizer: Tokenizer, settings: ExperimentConfig) -> tuple[Pairs, str]:
    """The development pairs that the model takes, and their number in words; some training pairs if there are none."""
    sources, targets = longest_taken(settings)
    reason = f"longer than the model takes, {sources} tokens of a source or {targets} of a target"

    def fits(pairs: Pairs) -> list[int]:
        return [n for n, (s, t) in enumerate(encode(tokenizer, pairs)) if len(s) <= sources and len(t) <= targets]

    kept = fits(dev)
    known = set(kept)
    dropped = [dev.where[n] if dev.where else dev.source[n][:30] for n in range(len(dev)) if n not in known]
    note = left_out(dropped, reason)
    if kept:
        return dev.at(kept), f"{len(kept):,} for development{note}"
    some = train.sample(settings.dev_sentences)
    some = some.at(fits(some))
    setting = "data.dev_share" if settings.data is None or settings.data.dev is None else "data.dev"
    if not len(some):
        raise ConfigError(f"{setting} leaves none for development, and every training pair is {reason}")
    return some, no_development(setting, len(some)) + note


def longest_taken(settings: ExperimentConfig) -> tuple[int, int]:
    """Largest number of tokens of a source and of a target, EOS not counted."""
    decoding, places = settings.decoding, positions_of(settings.model)
    source, target = decoding.longest_source, longest_output(decoding, decoding.longest_source)
    return (source, target) if places is None else (min(source, places - 1), min(target, places - 1))


def longest_output(decoding: DecodingConfig, source: int) -> int:
    """Largest number of tokens that are decoded for a source of so many tokens."""
    return int(decoding.length_ratio * source) + decoding.length_extra


def make_evaluate(
    dev: Pairs, tokenizer: Tokenizer, settings: ExperimentConfig
) -> Callable[[Seq2Seq], dict[str, float]]:
    """From a model to its measures: loss and perplexity of all development pairs, BLEU and chrF of some."""
    batches = pair_batches(tokenizer, dev, settings.training.batch_tokens)
    some = dev.sample(settings.dev_sentences)

    def evaluate(model: Seq2Seq) -> dict[str, float]:
        translator = Translator(_bundle(settings, model, tokenizer), "run")
        loss, _ = mean_loss(model, batches, settings.training.precision)

        def decode() -> dict[str, float]:
            outputs = [g.text for g in translator.many(some.source, beam=1, record=False)]
            return scores(outputs, some.target)

        return loss_numbers(loss, decode)

    return evaluate


def evaluate(
    translator: Translator, source: Path, reference: Path | None = None, beam: int | None = None
) -> tuple[Numbers, list[str]]:
    """Measures of a translator on two parallel files, and its translations.

    Args:
        translator: the model.
        source: sentences, one a line.
        reference: their translations.
        beam: hypotheses kept; the model's own number by default.

    Returns:
        loss (nats per target token, EOS counted), tokens, perplexity, bleu and chrf with signatures; translations.

    Raises:
        ConfigError: there is no reference.
        DataError: a file is missing or malformed, or the files differ in length.
    """
    if reference is None:
        raise ConfigError("a translator is measured against --reference, one line for each of --source")
    pairs = Pairs(read_lines(source), read_lines(reference))
    if len(pairs.source) != len(pairs.target):
        raise DataError(
            f"{source} has {len(pairs.source)} lines and {reference} has {len(pairs.target)}: "
            "every source line needs one reference"
        )
    if not any(map(str.strip, pairs.source)):
        raise DataError(f"{source}: there is nothing to translate: the file is empty")
    if not any(map(str.strip, pairs.target)):
        raise DataError(f"{reference}: there is nothing to measure against: the file is empty")
    for number, line in enumerate(pairs.source, 1):
        try:
            translator.encode(line)
        except InputError as error:
            raise DataError(f"{source}:{number}: {error}") from error
    if translator.tokenizer.bos is None or translator.tokenizer.eos is None:
        raise ConfigError(f"{translator.name} names no decoder_start_token_id or no eos_token_id: it has no loss")
    batches = pair_batches(translator.tokenizer, _filled(pairs), EVALUATION_TOKENS)
    with torch.inference_mode():
        loss, tokens = mean_loss(translator.model, batches)
    if not tokens:
        raise DataError(f"{source}: no line has a reference: there is nothing to measure")
    outputs = [g.text for g in translator.many(pairs.source, beam=beam, record=False)]
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    measured = bleu.corpus_score(outputs, [pairs.target]).score, chrf.corpus_score(outputs, [pairs.target]).score
    numbers = {
        "bleu": measured[0],
        "bleu_signature": str(bleu.get_signature()),
        "chrf": measured[1],
        "chrf_signature": str(chrf.get_signature()),
        "loss": loss,
        "perplexity": perplexity(loss),
        "tokens": tokens,
        "sentences": len(outputs),
        "beam": translator.decoding.beam if beam is None else beam,
    }
    return numbers, outputs


def scores(outputs: list[str], references: list[str]) -> dict[str, float]:
    """BLEU and chrF of outputs against references (sacreBLEU's defaults)."""
    return {
        "bleu": sacrebleu.corpus_bleu(outputs, [references]).score,
        "chrf": sacrebleu.corpus_chrf(outputs, [references]).score,
    }


def pair_batches(tokenizer: Any, pairs: Pairs, tokens: int) -> Batches:
    """Pairs as batches of at most `tokens` positions a side, in the tokeniser's own ids."""
    return Batches(encode(tokenizer, pairs), tokens, tokenizer.bos, tokenizer.eos, tokenizer.pad)


def encode(tokenizer: Any, pairs: Pairs) -> list[tuple[list[int], list[int]]]:
    """(source ids, target ids) of every pair, without BOS and EOS; each by its own side's tokeniser."""
    sides = tokenizer.encode_batch(pairs.source), tokenizer.encode_target_batch(pairs.target)
    return list(zip(*sides, strict=True))


def token_links(tokenizer: Tokenizer, pairs: Pairs, aligner: Aligner | None = None) -> list[list[Link]]:
    """(target token, source token) links of every pair, between the tokens of words that are aligned one to one."""
    known = (aligner or Aligner(list(pairs))).links(list(pairs))
    spans = zip(tokenizer.encode_spans(pairs.source), tokenizer.encode_spans(pairs.target), strict=True)
    result = []
    for (source, target), (there, here), links in zip(pairs, spans, known, strict=True):
        words = word_of_each(there, source), word_of_each(here, target)
        positions: dict[int | None, list[int]] = {}
        for place, word in enumerate(words[0]):
            positions.setdefault(word, []).append(place)
        partner = dict(links)
        result.append([(t, s) for t, w in enumerate(words[1]) if w in partner for s in positions.get(partner[w], [])])
    return result


def _filled(pairs: Pairs) -> Pairs:
    """The pairs without an empty side: an empty source is translated by an empty line, not by the model."""
    return pairs.at([n for n, pair in enumerate(pairs) if all(map(str.strip, pair))])


def _bundle(settings: ExperimentConfig, model: Seq2Seq, tokenizer: Tokenizer) -> Bundle:
    decoding = settings.decoding.model_dump()
    return Bundle(settings.task, settings.languages, model, settings.model, tokenizer, decoding)
