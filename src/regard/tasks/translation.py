"""Translation: parallel text, guided alignment, BLEU and chrF."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import sacrebleu
import torch
from torch import Tensor

from regard.analysis.alignment import choose_heads, teacher_forced
from regard.analysis.calibration import Calibration, calibration
from regard.bundle import Bundle, save_bundle
from regard.data.align import Aligner, Link
from regard.data.augment import AugmentConfig, augment
from regard.data.batching import POOL, SEGMENTED_POOL, Batches
from regard.data.files import read_lines
from regard.data.pairs import Pairs
from regard.data.parallel import DataConfig, files_of, read_pairs, read_parts, stream_parts
from regard.data.prepared import FOLDER, Chunk, Prepared, Thinned, key_of, prepared_in, write_prepared
from regard.errors import ConfigError, DataError
from regard.models.seq2seq import Seq2Seq
from regard.pipelines.base import InputError
from regard.pipelines.translator import DecodingConfig, Translator
from regard.storage import fingerprint, own_folder, write_text
from regard.tasks.base import (
    ATTENTION,
    EVALUATION_TOKENS,
    SAMPLES,
    Numbers,
    RunFolder,
    TaskData,
    left_out,
    left_out_of,
    loss_numbers,
    mean_loss,
    no_development,
    perplexity,
)
from regard.tasks.config import ExperimentConfig, positions_of
from regard.text.bpe_dropout import BpeDropout
from regard.text.diacritics import Diacritics
from regard.text.tokenizer import Tokenizer, word_of_each
from regard.training.distributed import processes

SURVEYED = (
    500_000  # training pairs that tokenizer and word alignment are learned from, at least; all of a smaller corpus
)


def prepare(run: RunFolder, settings: ExperimentConfig) -> TaskData:
    """Training and development data of a translator; the corpus is tokenized once, into the run's folder."""
    corpus, tokenizer = prepare_corpus(run, settings)
    note = corpus.note
    dropped = "" if not note.dropped else left_out_of(note.dropped, too_long(settings), note.first_dropped)
    dev, dev_amount = development_pairs(corpus.sample, corpus.dev, tokenizer, settings)
    training = settings.training
    ends = tokenizer.bos, tokenizer.eos, tokenizer.pad
    segment = BpeDropout(tokenizer, training.bpe_dropout, most_tokens(settings)) if training.bpe_dropout else None
    batches = Batches(
        corpus.pairs, training.batch_tokens, *ends, training.seed, corpus.links, made_from=f"{note.key} {note.pairs}",
        segment=segment, pool=SEGMENTED_POOL if segment else POOL,
    )  # fmt: skip

    def finish(model: Seq2Seq) -> Bundle:
        bundle = _bundle(settings, model, tokenizer)
        bundle.alignment = choose_heads(model, tokenizer, corpus.sample, dev)
        if settings.decoding.diacritics:
            bundle.diacritics = Diacritics.learn(corpus.sample.source)
        save_bundle(run.path, bundle)
        return bundle

    cut = settings.data is not None and (settings.data.fragments or settings.data.phrases)
    made = ", including those made from parts of others" if cut else ""
    amount = f"{note.pairs:,} training pairs{made}{dropped}"
    further = further_sets(tokenizer, settings)
    evaluate = make_evaluate(dev, tokenizer, settings, further)
    measured = [[name, pairs.source, pairs.target] for name, pairs in {"": dev, **further}.items()]
    watch = partial(watch_attention, folder=run.path, dev=dev, tokenizer=tokenizer, settings=settings)
    return TaskData(tokenizer, batches, amount, dev_amount, evaluate, finish, watch=watch, measured=measured)


def watch_attention(
    model: Seq2Seq, step: int, *, folder: Path, dev: Pairs, tokenizer: Tokenizer, settings: ExperimentConfig
) -> dict[str, float]:
    """Keep the attention and the outputs of a few development pairs; entropy and coverage of that attention.

    Returns:
        attention_entropy: of a target token's weights, in nats, mean over tokens; attention_coverage: percentage of
        source tokens that receive at least half a token's weight in sum. Heads are averaged; empty where the model
        has no attention to its source.
    """
    some = dev.sample(settings.watched_sentences)
    if not len(some):
        return {}
    outputs = translations(Translator(_bundle(settings, model, tokenizer), "run"), some.source, beam=1, shared=False)
    rows = list(zip(some.source, some.target, outputs, strict=True))
    write_text(folder / SAMPLES, json.dumps({"step": step, "rows": rows}, ensure_ascii=False))
    maps = dict(teacher_forced(model, tokenizer, some))
    if not maps or not maps[0]:
        return {}
    site = sharpest(list(maps.values()))
    sentences = []
    entropy, tokens, covered, sources = 0.0, 0, 0, 0
    for number, (source, target) in enumerate(some):
        weights = maps[number][site].mean(0)
        entropy += float(torch.special.entr(weights).sum())
        covered += int((weights.sum(0) >= 0.5).sum())
        tokens, sources = tokens + weights.shape[0], sources + weights.shape[1]
        names = [[*tokenizer.tokens(tokenizer.encode(text)), "</s>"] for text in (source, target)]
        shown = [[round(float(weight), 3) for weight in row] for row in weights]
        sentences.append({"source": names[0], "target": names[1], "weights": shown})
    own_folder(folder / ATTENTION)
    kept = {"step": step, "site": site, "sentences": sentences}
    write_text(folder / ATTENTION / f"{step:07d}.json", json.dumps(kept, ensure_ascii=False))
    return {"attention_entropy": entropy / tokens, "attention_coverage": 100 * covered / sources}


def sharpest(maps: Sequence[dict[str, Tensor]]) -> str:
    """The site whose weights, averaged over heads, have the least entropy."""

    def entropy(site: str) -> float:
        return sum(float(torch.special.entr(of[site].mean(0)).sum()) for of in maps)

    return min(maps[0], key=entropy)


def prepare_corpus(run: RunFolder, settings: ExperimentConfig) -> tuple[Prepared, Tokenizer]:
    """The corpus of a run as token ids beside it, and its tokenizer; what was prepared before is used again.

    Raises:
        DataError: a file is missing or malformed; the tokenizer is not the one that the corpus was prepared with.
        ConfigError: nothing is left to train on; or a resumed run's data have changed.
    """
    data = settings.data
    assert data is not None  # the settings have been checked
    folder = run.path / FOLDER
    alike = settings.training.seed, settings.languages, bool(settings.training.guided_alignment), most_tokens(settings)
    given = [settings.tokenizer_from] if settings.tokenizer_from else []
    key = key_of(
        files_of(data),
        [data.model_dump(exclude={"dev_sets"}), settings.tokenizer.model_dump(), settings.start, *alike, *given],
    )
    there = prepared_in(folder)
    kept = there is not None and there.note.key == key and (run.path / "tokenizer.json").exists()
    if there is not None and kept:
        kept_tokenizer = Tokenizer.load(run.path / "tokenizer.json", settings.tokenizer)
        if not run.resumed and there.note.tokenizer not in ("", fingerprint(kept_tokenizer.identity())):
            raise DataError(
                f"{run.path / 'tokenizer.json'}: not the tokenizer that {folder} was prepared with: restore it, or "
                f"remove {folder}, and the data are prepared again"
            )
        if not all(side.are_below(len(kept_tokenizer)) for side in (there.pairs.source, there.pairs.target)):
            raise DataError(
                f"{folder}: it has token ids that {run.path / 'tokenizer.json'} does not have: remove {folder}, and "
                "the data are prepared again"
            )
        return there, kept_tokenizer
    if there is not None and run.resumed:
        raise ConfigError(
            f"{run.path}: its training data have changed since the run was started: restore them, or choose "
            "another folder with --folder"
        )
    sample, dev, read = _survey(data)
    texts = [text for pair in sample for text in pair]
    tokenizer = run.tokenizer(settings, lambda: Tokenizer.learn(texts, settings.tokenizer))
    chunks = partial(_chunks, settings, sample, tokenizer)
    written = write_prepared(
        folder, key, sample, dev, read, chunks, lambda n: run.report({"event": "prepare", "pairs": n}),
        fingerprint(tokenizer.identity()),
    )  # fmt: skip
    if not written.note.pairs:
        raise ConfigError(
            f"there is nothing to train on: all {written.note.dropped:,} training pairs are {too_long(settings)}"
        )
    return written, tokenizer


def _survey(data: DataConfig) -> tuple[Pairs, Pairs, int]:
    """Evenly spaced training pairs (all of a small corpus), the development pairs, and the number of training pairs."""
    some, dev = Thinned(SURVEYED), []
    for train, held_out, _ in stream_parts(data):
        some.add(train)
        dev.append(held_out)
    if not some.seen:
        raise ConfigError("there are no training pairs: check data.train and the shares that are split off")
    return some.taken(), Pairs.together(dev) if data.dev is None else read_pairs(data.dev, data), some.seen


def _chunks(settings: ExperimentConfig, sample: Pairs, tokenizer: Tokenizer, start: int) -> Iterator[Chunk]:
    """The augmented training pairs as ids, from chunk number `start` on; last come phrases and words, each once."""
    data, training = settings.data, settings.training
    assert data is not None  # the settings have been checked
    aligned = training.guided_alignment or data.phrases or data.crossed or data.words
    aligner = Aligner(list(sample)) if aligned else None
    once = {"crossed": data.crossed, "words": data.words}
    each = data.model_copy(update=dict.fromkeys(once, 0))
    trains = (train for train, _, _ in stream_parts(data) if len(train))
    for number, train in enumerate(trains):
        if number >= start:
            shown = augment(train, each, training.seed + number, settings.languages, aligner, sample)
            yield _tokenized(shown, tokenizer, settings, aligner)
    if any(once.values()):
        shown = augment(sample, AugmentConfig(**once), training.seed, settings.languages, aligner, sample)
        yield _tokenized(shown.at(range(len(sample), len(shown))), tokenizer, settings, aligner)


def _tokenized(shown: Pairs, tokenizer: Tokenizer, settings: ExperimentConfig, aligner: Aligner | None) -> Chunk:
    sides = encode(tokenizer, shown)
    most = most_tokens(settings)
    kept = [n for n, pair in enumerate(sides) if max(map(len, pair)) <= most]
    known = set(kept)
    dropped = [shown.where[n] for n in range(len(sides)) if n not in known]
    links = token_links(tokenizer, shown.at(kept), aligner) if settings.training.guided_alignment else None
    return Chunk([sides[n][0] for n in kept], [sides[n][1] for n in kept], links, dropped)


def read_data(settings: ExperimentConfig) -> tuple[Pairs, Pairs, Pairs]:
    """Training, development and test pairs, all in memory.

    Raises:
        DataError: a file is missing or malformed.
        ConfigError: nothing is left to train on.
    """
    data = settings.data
    assert data is not None  # the settings have been checked
    train, dev, test = read_parts(data)
    if data.dev is not None:
        dev = read_pairs(data.dev, data)
    if data.test is not None:
        test = read_pairs(data.test, data)
    if not len(train):
        raise ConfigError("there are no training pairs: check data.train and the shares that are split off")
    return train, dev, test


def most_tokens(settings: ExperimentConfig) -> int:
    """Number of tokens of the longest side of a training pair."""
    places = positions_of(settings.model)
    assert settings.data is not None  # the settings have been checked
    return settings.data.longest if places is None else min(settings.data.longest, places - 1)


def too_long(settings: ExperimentConfig) -> str:
    """The reason for which a training pair is left out."""
    most = most_tokens(settings)
    assert settings.data is not None  # the settings have been checked
    return f"longer than {'data.longest' if most == settings.data.longest else 'model.length - 1'} = {most} tokens"


def development_pairs(train: Pairs, dev: Pairs, tokenizer: Tokenizer, settings: ExperimentConfig) -> tuple[Pairs, str]:
    """The development pairs that the model takes, and their number in words; some training pairs if there are none."""
    sources, targets = longest_taken(settings)
    reason = f"longer than the model takes, {sources} tokens of a source or {targets} of a target"
    kept, dropped = _taken(dev, tokenizer, settings)
    note = left_out(dropped, reason)
    if len(kept):
        return kept, f"{len(kept):,} for development{note}"
    some, _ = _taken(train.sample(settings.dev_sentences), tokenizer, settings)
    setting = "data.dev_share" if settings.data is None or settings.data.dev is None else "data.dev"
    if not len(some):
        raise ConfigError(f"{setting} leaves none for development, and every training pair is {reason}")
    return some, no_development(setting, len(some)) + note


def _taken(pairs: Pairs, tokenizer: Tokenizer, settings: ExperimentConfig) -> tuple[Pairs, list[str]]:
    """The pairs that are not longer than the model takes, and the names of the others."""
    sources, targets = longest_taken(settings)
    fits = [len(s) <= sources and len(t) <= targets for s, t in encode(tokenizer, pairs)]
    names = pairs.where or [source[:30] for source in pairs.source]
    return pairs.at([n for n, fit in enumerate(fits) if fit]), [names[n] for n, fit in enumerate(fits) if not fit]


def longest_taken(settings: ExperimentConfig) -> tuple[int, int]:
    """Largest number of tokens of a source and of a target, EOS not counted."""
    decoding, places = settings.decoding, positions_of(settings.model)
    source, target = decoding.longest_source, longest_output(decoding, decoding.longest_source)
    return (source, target) if places is None else (min(source, places - 1), min(target, places - 1))


def longest_output(decoding: DecodingConfig, source: int) -> int:
    """Largest number of tokens that are decoded for a source of so many tokens."""
    return int(decoding.length_ratio * source) + decoding.length_extra


def further_sets(tokenizer: Tokenizer, settings: ExperimentConfig) -> dict[str, Pairs]:
    """The pairs of `data.dev_sets` that the model takes, by name.

    Raises:
        DataError: a file is missing or malformed.
        ConfigError: the model takes none of a set's pairs.
    """
    data = settings.data
    assert data is not None  # the settings have been checked
    found = {name: _taken(read_pairs(path, data), tokenizer, settings)[0] for name, path in data.dev_sets.items()}
    for name, pairs in found.items():
        if not len(pairs):
            raise ConfigError(
                f"data.dev_sets.{name}: the model takes none of its pairs: there are none, or all are too long"
            )
    return found


def make_evaluate(
    dev: Pairs, tokenizer: Tokenizer, settings: ExperimentConfig, further: dict[str, Pairs]
) -> Callable[[Seq2Seq], dict[str, float]]:
    """From a model to its measures: loss and perplexity of all development pairs, BLEU and chrF of some; and the same
    of further sets, as `name_loss` and so on."""
    sets = {"": dev} | {f"{name}_": pairs for name, pairs in further.items()}
    batches = {name: pair_batches(tokenizer, pairs, settings.training.batch_tokens) for name, pairs in sets.items()}
    some = {name: pairs.sample(settings.dev_sentences) for name, pairs in sets.items()}

    def evaluate(model: Seq2Seq) -> dict[str, float]:
        translator = Translator(_bundle(settings, model, tokenizer), "run")
        numbers: dict[str, float] = {}
        for name, pairs in some.items():
            loss, _ = mean_loss(model, batches[name], settings.training.precision)
            decode = partial(_decoded_scores, translator, pairs)
            numbers |= {f"{name}{key}": number for key, number in loss_numbers(loss, decode).items()}
        return numbers

    return evaluate


def _decoded_scores(translator: Translator, pairs: Pairs) -> dict[str, float]:
    return scores(translations(translator, pairs.source, beam=1), pairs.target, translator.tokenizer.lowers)


def scores(outputs: list[str], references: list[str], lower: bool = False) -> dict[str, float]:
    """BLEU and chrF of outputs against references (sacreBLEU's defaults), of both in lower case if asked for."""
    metrics = {"bleu": sacrebleu.BLEU(lowercase=lower), "chrf": sacrebleu.CHRF(lowercase=lower)}
    return {name: one.corpus_score(outputs, [references]).score for name, one in metrics.items()}


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
        loss (nats per target token, EOS counted), tokens, perplexity, bleu and chrf with signatures (case:lc where the
        tokenizer puts texts in lower case); translations.

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
    for file, lines, check in (
        (source, pairs.source, translator.encode), (reference, pairs.target, translator.encode_target),
    ):  # fmt: skip
        for number, line in enumerate(lines, 1):
            try:
                check(line)
            except InputError as error:
                raise DataError(f"{file}:{number}: {error}") from error
    if translator.tokenizer.bos is None or translator.tokenizer.eos is None:
        raise ConfigError(f"{translator.name} names no decoder_start_token_id or no eos_token_id: it has no loss")
    batches = pair_batches(translator.tokenizer, _filled(pairs), EVALUATION_TOKENS)
    with torch.inference_mode():
        loss, tokens = mean_loss(translator.model, batches, measure=translator.measure)
    if not tokens:
        raise DataError(f"{source}: no line has a reference: there is nothing to measure")
    outputs = translations(translator, pairs.source, beam)
    lower = translator.tokenizer.lowers  # a model that writes no capitals
    bleu, chrf = sacrebleu.BLEU(lowercase=lower), sacrebleu.CHRF(lowercase=lower)
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


def translations(translator: Translator, sources: list[str], beam: int | None, shared: bool = True) -> list[str]:
    """The translations of all sources, in order; several processes translate some of them each, where the work is
    `shared`."""

    def work(part: list[str]) -> list[str]:
        return [found.text for found in translator.many(part, beam=beam, record=False, split=False)]

    return processes().share_out(sources, work) if shared else work(sources)


def word_calibration(
    translator: Translator, source: Path, reference: Path, beam: int | None = None, bins: int = 10
) -> Calibration:
    """What the probabilities of a translator's words are worth.

    A word (with its punctuation) is right where its reference has it, each word of the reference once; its confidence
    is the product of its tokens' probabilities, as in `generation.words`.

    Args:
        translator: the model.
        source, reference: two parallel files, as for `evaluate`.
        beam: hypotheses kept; the model's own number by default.
        bins: number of bins of confidence.
    """
    pairs = Pairs(read_lines(source), read_lines(reference))
    found = translator.many(pairs.source, beam=beam, record=False, split=False)
    confidence, right = [], []
    for generation, wanted in zip(found, pairs.target, strict=True):
        left = Counter(wanted.split())
        for word in generation.words:
            confidence.append(min(1.0, math.exp(word.log_prob)))
            right.append(left[word.text] > 0)
            left[word.text] -= 1
    return calibration(confidence, right, bins)


def pair_batches(tokenizer: Any, pairs: Pairs, tokens: int) -> Batches:
    """Pairs as batches of at most `tokens` positions a side, in the tokenizer's own ids."""
    return Batches(encode(tokenizer, pairs), tokens, tokenizer.bos, tokenizer.eos, tokenizer.pad)


def encode(tokenizer: Any, pairs: Pairs) -> list[tuple[list[int], list[int]]]:
    """(source ids, target ids) of every pair, without BOS and EOS; each by its own side's tokenizer."""
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
