"""Captions of pictures and transcripts of recordings: exact texts, word error rate, BLEU."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import jiwer
import sacrebleu
import torch
from torch import Tensor

from regard.bundle import Bundle, save_bundle
from regard.data.archive import Cells, Files
from regard.data.batching import BatchSource, move
from regard.data.datasets import an4, fsdd
from regard.data.files import plain_name, read_lines
from regard.data.media import MediaBatches, SceneBatches, media_batch, scene_points
from regard.data.pictures import read_picture
from regard.data.scenes.glyphs import Glyphs
from regard.data.scenes.scene import Scene, SceneConfig
from regard.data.scenes.scenes import scenes
from regard.data.sound import TooLong, faster, frames, log_mel, read_sound
from regard.data.tables import Row, named, read_cells, read_table, split_rows
from regard.errors import ConfigError, DataError
from regard.pipelines.base import InputError
from regard.pipelines.captioner import Captioner
from regard.pipelines.description import Describer, Description, MediaInput
from regard.pipelines.transcriber import Transcriber
from regard.pretrained.features import prepared
from regard.tasks.base import (
    Numbers,
    RunFolder,
    TaskData,
    for_development,
    left_out,
    loss_numbers,
    mean_loss,
    perplexity,
)
from regard.tasks.config import ExperimentConfig, source_encoder
from regard.text.tokenizer import Tokenizer
from regard.training.config import TrainingConfig
from regard.training.distributed import processes
from regard.training.objective import token_nll

SPEEDS = (0.9, 1.0, 1.1)  # speed perturbation in training (Ko et al. 2015)
TRACTS = tuple(
    0.85 + 0.05 * n for n in range(7)
)  # vocal tract length perturbation, 0.85 … 1.15 (Jaitly and Hinton 2013)
LONGEST = 60.0  # seconds of a recording whose loss is computed: attention over longer ones takes gigabytes
MASKED = 0.05, 27  # largest time mask, as a share of the frames, and largest frequency mask in bands (Park et al. 2019)
SOUNDS = ("sound", "pyramid")  # kinds of encoder


def scene_words(glyphs: Glyphs, config: SceneConfig) -> list[str]:
    """Texts that together contain every word of the captions."""
    moves = config.moves.values() if config.frames > 1 else []
    return [*glyphs.names, config.beside, config.above, config.listed, *config.dyes, *moves]


def scene_batches(
    glyphs: Glyphs, config: SceneConfig, tokenizer: Tokenizer, training: TrainingConfig, states: int, dev: bool
) -> SceneBatches:
    """Scenes in batches of `training.batch_tokens` memory states."""
    count = max(1, training.batch_tokens // states)
    ends = tokenizer.bos, tokenizer.eos, tokenizer.pad
    return SceneBatches(glyphs, config, tokenizer.encode_batch, count, ends, training.seed, dev)


def read_pictures(rows: Sequence[Row], files: Files, encoder: Any) -> tuple[list[Tensor], list[int]]:
    """The encoder's inputs for the rows' pictures, each once; and the index of each row's picture."""
    firsts = {row.file: row for row in reversed(rows)}
    numbers = {name: n for n, name in enumerate(dict.fromkeys(row.file for row in rows))}
    # one at a time, because a photograph is large before it is resized
    pictures = [prepared([read_picture(files.read(name), named(firsts[name], files))], encoder)[0] for name in numbers]
    return pictures, [numbers[row.file] for row in rows]


def read_sounds(rows: Sequence[Row], files: Files) -> tuple[list[Row], list[Tensor], list[str]]:
    """The rows whose recordings are short enough, their samples, and the files left out."""
    kept, samples, dropped = [], [], []
    for row in rows:
        try:
            samples.append(read_sound(files.read(row.file), named(row, files), LONGEST))
            kept.append(row)
        except TooLong:
            dropped.append(named(row, files))
    return kept, samples, dropped


def sound_batches(
    samples: Sequence[Tensor], targets: Sequence[list[int]], bands: int, training: TrainingConfig, moves: bool,
    ends: tuple[int, int, int], between: Sequence[int] = (),
) -> BatchSource:  # fmt: skip
    """Recordings in batches.

    Args:
        samples: at 16 kHz.
        targets: ids of the texts.
        bands: of the spectrogram.
        training: batch size and seed.
        moves: augment: speed, vocal tract length, time and frequency masks, concatenation.
        ends: ids of BOS, EOS and PAD.
        between: ids inserted between the texts of concatenated recordings.
    """
    sizes = [frames(len(one)) for one in samples]

    def change(one: Tensor, dice: random.Random) -> Tensor:
        if not moves:
            return log_mel(one, bands)
        return _hide(log_mel(faster(one, dice.choice(SPEEDS)), bands, dice.choice(TRACTS)), dice)

    join = training.concat_pairs if moves else 0.0
    return MediaBatches(
        samples, targets, range(len(samples)), sizes, training.batch_tokens, ends, change, training.seed, join, between
    )


def _hide(mel: Tensor, dice: random.Random) -> Tensor:
    """Two frequency masks and five time masks, set to the mean, 0 (SpecAugment, Park et al. 2019)."""
    mel = mel.clone()
    for _ in range(2):
        wide = dice.randint(0, min(MASKED[1], len(mel) - 1))
        first = dice.randint(0, len(mel) - wide)
        mel[first : first + wide] = 0
    for _ in range(5):
        long = dice.randint(0, int(MASKED[0] * mel.shape[1]))
        first = dice.randint(0, mel.shape[1] - long)
        mel[:, first : first + long] = 0
    return mel


def states_of(model: Any) -> int:
    """Number of memory states of a picture."""
    encoder = source_encoder(model)
    if encoder.kind in ("grid", "frames"):
        return int(-(-encoder.size // 2 ** (1 + len(encoder.channels)))) ** 2 * int(getattr(encoder, "frames", 1))
    return int(encoder.size // (encoder.patch if encoder.kind == "patches" else encoder.cell)) ** 2


@dataclass(frozen=True)
class FileData:
    """Files of one part of the split.

    Attributes:
        batches: the examples.
        sources: the encoder's input of every example (a recording's samples).
        texts: of every example.
        dropped: files left out because they are too long.
    """

    batches: BatchSource
    sources: list[Tensor]
    texts: list[str]
    dropped: list[str]


def file_examples(
    rows: Sequence[Row], files: Files, tokenizer: Tokenizer, model: Any, training: TrainingConfig, moves: bool
) -> FileData:
    """Examples of files with texts; `moves` augments recordings."""
    encoder, ends = source_encoder(model), (tokenizer.bos, tokenizer.eos, tokenizer.pad)
    if encoder.kind in SOUNDS:
        rows, samples, dropped = read_sounds(rows, files)
        targets = tokenizer.encode_batch([row.text for row in rows])
        between = _between(tokenizer, rows) if training.concat_pairs and moves and rows else []
        sounds = sound_batches(samples, targets, encoder.bands, training, moves, ends, between)
        return FileData(sounds, samples, [row.text for row in rows], dropped)
    targets = tokenizer.encode_batch([row.text for row in rows])
    pictures, of = read_pictures(rows, files, encoder)
    size = [states_of(model)] * len(rows)
    batches = MediaBatches(pictures, targets, of, size, training.batch_tokens, ends, None, training.seed)
    return FileData(batches, [pictures[n] for n in of], [row.text for row in rows], [])


def _between(tokenizer: Tokenizer, rows: Sequence[Row]) -> list[int]:
    """The ids between two concatenated texts: a space if tokens are characters, nothing if they are words.

    Raises:
        ConfigError: the tokens of a concatenated text are not those of its parts.
    """
    texts = rows[0].text, rows[-1].text
    whole, first, last = tokenizer.encode_batch([" ".join(texts), *texts])
    between = whole[len(first) : len(whole) - len(last)]
    if whole != [*first, *between, *last]:
        raise ConfigError(
            f'training.concat_pairs needs tokenizer.kind = "characters", "bytes" or "words"; got "{tokenizer.kind}", '
            "whose tokens depend on the text before them"
        )
    return between


def described(describer: Describer, sources: Sequence[Any], beam: int = 1, record: bool = False) -> list[Description]:
    """Descriptions of pictures, encoder inputs of pictures, or samples of recordings."""

    def read(one: Any) -> MediaInput:
        if isinstance(describer, Transcriber):
            return describer.heard("", one)
        assert isinstance(describer, Captioner)
        return MediaInput("", one) if isinstance(one, Tensor) else describer.seen("", one)

    return describer.describe([read(one) for one in sources], beam=beam, record=record)


def text_scores(outputs: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Exact matches and word error rate in percent, and BLEU."""
    exact = sum(a == b for a, b in zip(outputs, references, strict=True)) / max(1, len(references))
    filled = [(a, b) for a, b in zip(outputs, references, strict=True) if b.strip()]
    wer = jiwer.wer([b for _, b in filled], [a for a, _ in filled]) if filled else 0.0
    bleu = sacrebleu.corpus_bleu(list(outputs), [list(references)]).score
    return {"exact": 100 * exact, "wer": 100 * float(wer), "bleu": bleu}


def pointing(said: Sequence[Description], shown: Sequence[Scene]) -> tuple[float, int]:
    """Pointing accuracy in percent, and the number of words it is measured on.

    A word of a correctly named thing counts as a hit if its largest weight is at a cell whose center lies in the
    thing's box; for a moving thing, in its box in the frame of that cell.
    """
    hits = total = 0
    for one, scene in zip(said, shown, strict=True):
        if one.text != scene.caption:
            continue
        _, weights = one.word_attention
        for thing in scene.things:
            for word in thing.words:
                *when, row, column = one.positions[weights[word].argmax()].tolist()
                left, upper, right, lower = scene.paths[int(when[0] * len(scene.paths))] if when else thing.box
                hits += left <= column <= right and upper <= row <= lower
                total += 1
    return 100 * hits / max(1, total), total


def dev_scenes(glyphs: Glyphs, config: SceneConfig, seed: int, count: int) -> list[Scene]:
    """The first development scenes of `SceneBatches`."""
    return list(scenes(glyphs, config, range(min(count, config.dev_scenes)), seed, True))


def prepare(run: RunFolder, settings: ExperimentConfig) -> TaskData:
    """Training and development data of a captioner or transcriber: generated scenes, or files."""
    return (prepare_scenes if settings.scenes else prepare_files)(run, settings)


def prepare_scenes(run: RunFolder, settings: ExperimentConfig) -> TaskData:
    """Generated scenes of emoji."""
    assert settings.scenes is not None  # the settings have been checked
    config, training = settings.scenes, settings.training
    glyphs = Glyphs(config)
    tokenizer = run.tokenizer(settings, lambda: Tokenizer.learn(scene_words(glyphs, config), settings.tokenizer))
    states = states_of(settings.model)
    batches, dev = (scene_batches(glyphs, config, tokenizer, training, states, part) for part in (False, True))
    shown = dev_scenes(glyphs, config, training.seed, settings.dev_sentences)
    return TaskData(
        tokenizer,
        batches,
        f"{len(batches):,} scenes an epoch of {len(glyphs)} things",
        f"{len(dev):,} for development",
        make_evaluate(settings, tokenizer, dev, map(scene_points, shown), [scene.caption for scene in shown]),
        lambda model: _finish(run, settings, model, tokenizer),
        measured=dev,
    )


def prepare_files(run: RunFolder, settings: ExperimentConfig) -> TaskData:
    """Files with texts.

    Raises:
        ConfigError: there is nothing to train on.
    """
    assert settings.files is not None  # the settings have been checked
    train, dev = split_rows(read_table(settings.files), settings.files)
    if not train:
        raise ConfigError("there is nothing to train on: check files.table and files.dev_share")
    settings = _with_words(settings, train)
    tokenizer = run.tokenizer(settings, lambda: Tokenizer.learn([row.text for row in train], settings.tokenizer))
    assert settings.files is not None
    files, most = Files(settings.files.files), settings.dev_sentences

    def read(rows: Sequence[Row], moves: bool) -> FileData:
        return file_examples(rows, files, tokenizer, settings.model, settings.training, moves)

    training, development = read(train, True), read(dev, False)
    if not training.texts:
        raise ConfigError(f"there is nothing to train on: all recordings are longer than {LONGEST:g} seconds")
    _, amount = for_development((training.texts, development.texts), "files.dev_share", most)
    reason = f"longer than {LONGEST:g} seconds"
    note = left_out(development.dropped, reason)
    if not development.texts:
        known = set(training.texts[:most])
        development = read([row for row in train if row.text in known][:most], False)
    return TaskData(
        tokenizer,
        training.batches,
        f"{len(training.texts):,} training texts{left_out(training.dropped, reason)}",
        amount + note,
        make_evaluate(settings, tokenizer, development.batches, development.sources[:most], development.texts[:most]),
        lambda model: _finish(run, settings, model, tokenizer),
        measured=development.batches,
    )


def make_evaluate(
    settings: ExperimentConfig, tokenizer: Tokenizer, dev: BatchSource, sources: Iterable[Any], texts: list[str]
) -> Callable[[Any], dict[str, float]]:
    """From a model to its measures: loss of all development data, exact texts and word error rate of some."""
    shown = list(sources)

    def evaluate(model: Any) -> dict[str, float]:
        kind = Captioner if settings.task == "caption" else Transcriber
        describer = kind(_bundle(settings, model, tokenizer), "run")
        loss, _ = mean_loss(model, dev, settings.training.precision)
        return loss_numbers(loss, lambda: text_scores(outputs_of(describer, shown), texts))

    return evaluate


def outputs_of(describer: Describer, sources: list[Any]) -> list[str]:
    """The texts of all sources, in order; several processes describe some of them each."""
    return processes().share_out(sources, lambda part: [one.text for one in described(describer, part)])


FILE_COLUMNS = ("file", "file_name", "path", "image", "audio")
TEXT_COLUMNS = ("text", "caption", "transcription", "sentence")
TABLES = (".csv", ".tsv", ".jsonl")


def evaluate(
    describer: Describer, source: Path, reference: Path | None = None, beam: int | None = None
) -> tuple[Numbers, list[str]]:
    """Measures of a captioner or transcriber on files with texts, and its outputs.

    Args:
        describer: the captioner or transcriber.
        source: a table (.csv, .tsv, .jsonl) with columns file and text, files relative to the table's folder; or a
            folder that holds such a table, has AN4's or the Free Spoken Digit Dataset's layout, or has a NAME.txt
            beside every file.
        reference: refused; the texts are the table's.
        beam: hypotheses kept; the model's own number by default.

    Returns:
        loss (nats per token, EOS counted; of recordings up to 60 seconds), tokens, perplexity, exact, wer (percent)
        and bleu; one output a row.

    Raises:
        ConfigError: there is a reference.
        DataError: a table or a file cannot be read, or there is nothing to measure.
    """
    if reference is not None:
        raise ConfigError(f"{describer.name} is measured on --source alone, a table of files and texts: no --reference")
    files, rows = read_examples(source)
    tokenizer, encoder = describer.tokenizer, describer.encoder_config
    ends = tokenizer.bos, tokenizer.eos, tokenizer.pad
    targets = tokenizer.encode_batch([row.text for row in rows])
    outputs: list[str] = []
    total, tokens, skipped = 0.0, 0, 0
    for row, target in zip(rows, targets, strict=True):
        place = named(row, files)
        try:
            if describer.hears:
                features = [log_mel(read_sound(files.read(row.file), place, LONGEST), encoder.bands)]
            elif encoder.kind == "frames":
                features = [describer.prepare(files.path / row.file).features]
            else:
                features = prepared([read_picture(files.read(row.file), place)], encoder)
        except TooLong:
            features, skipped = [], skipped + 1
        if features:
            with torch.inference_mode():
                batch = move(media_batch(features, [target], ends), describer.device)
                nll, n = token_nll(describer.model, batch)
            total, tokens = total + float(nll), tokens + n
        outputs.append(" ".join(_said(describer, files, row, beam).split()))
    loss = total / max(1, tokens)
    numbers: Numbers = {"loss": loss, "perplexity": perplexity(loss), "tokens": tokens}
    numbers |= text_scores(outputs, [row.text for row in rows]) | {"examples": len(rows)}
    return numbers | ({"without_loss": skipped} if skipped else {}), outputs


def read_examples(source: Path) -> tuple[Files, list[Row]]:
    """Files with texts from a table or a folder (`evaluate` lists the layouts).

    Raises:
        DataError: there is no such file, no known layout, no text, or a column is missing.
    """
    if not source.exists():
        raise DataError(f"{source}: no such file")
    folder = Files(str(source if source.is_dir() else source.parent))
    cells: Iterable[Cells]
    if not source.is_dir():
        cells = read_cells(source)
    else:
        tables = [path for path in sorted(source.iterdir()) if path.is_file() and plain_name(path).endswith(TABLES)]
        if len(tables) > 1:
            raise DataError(f"{source}: several tables ({', '.join(path.name for path in tables)}): name one of them")
        if tables:
            cells = read_cells(tables[0])
        elif an4.found(folder):
            cells = an4.read(folder)
        elif fsdd.found(folder):
            cells = fsdd.read(folder)
        else:
            cells = _beside(folder)
    found = iter(cells)
    first = next(found, None)
    if first is None:
        raise DataError(f"{source}: there is nothing to measure: no file with a text")
    file, text = (_column(first, names) for names in (FILE_COLUMNS, TEXT_COLUMNS))
    rows = []
    for where, row in chain([first], found):
        if not row.get(file, "").strip() or not row.get(text, "").strip():
            raise DataError(f"{where}: the {'text' if row.get(file, '').strip() else 'file'} is empty")
        rows.append(Row(row[file].strip(), row[text].strip(), "", where))
    return folder, rows


def _column(row: Cells, names: Sequence[str]) -> str:
    where, cells = row
    found = next((name for name in names if name in cells), None)
    if found is None:
        raise DataError(f"{where}: no column {names[0]!r}: there are {', '.join(cells) or 'none'}")
    return found


def _beside(folder: Files) -> Iterable[Cells]:
    """Files with a text file of the same name beside them."""
    names = set(folder.names())
    for name in sorted(names):
        text = str(Path(name).with_suffix(".txt"))
        if name != text and text in names:
            yield str(folder.path / name), {"file": name, "text": " ".join(read_lines(folder.path / text))}


def _said(describer: Describer, files: Files, row: Row, beam: int | None) -> str:
    """The output for a row's file; long recordings are cut at quiet moments."""
    try:
        found: Description = describer(files.path / row.file, beam=beam, record=False)
    except InputError as error:
        raise DataError(f"{row.where}: {error}") from error
    return found.text


def _with_words(settings: ExperimentConfig, rows: Sequence[Row]) -> ExperimentConfig:
    """Settings with the words of the training texts, where the search is restricted to them.

    Raises:
        ConfigError: tokens are not characters.
    """
    if not settings.describing.known_words:
        return settings
    if settings.tokenizer.kind != "characters":
        raise ConfigError(
            f'describing.known_words needs tokenizer.kind = "characters"; got "{settings.tokenizer.kind}": '
            "its tokens are pieces or whole words already"
        )
    words = sorted({word for row in rows for word in row.text.split()})
    return settings.model_copy(update={"describing": settings.describing.model_copy(update={"words": tuple(words)})})


def _bundle(settings: ExperimentConfig, model: Any, tokenizer: Tokenizer) -> Bundle:
    decoding = settings.describing.model_dump()
    return Bundle(settings.task, settings.languages, model, settings.model, tokenizer, decoding)


def _finish(run: RunFolder, settings: ExperimentConfig, model: Any, tokenizer: Tokenizer) -> Bundle:
    bundle = _bundle(settings, model, tokenizer)
    save_bundle(run.path, bundle)
    return bundle
