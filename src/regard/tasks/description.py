"""Training on pictures and sounds with their texts."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jiwer
import sacrebleu
from torch import Tensor

from regard.bundle import Bundle, save_bundle
from regard.data.batching import BatchSource
from regard.data.media import Encode, MediaBatches, SceneBatches, scene_points
from regard.data.pictures import read_picture
from regard.data.scenes.glyphs import Glyphs
from regard.data.scenes.scenes import Scene, SceneConfig, scenes
from regard.data.sound import faster, frames, log_mel, read_sound
from regard.data.tables import Files, Row, TableConfig, read_table, split_rows
from regard.errors import ConfigError
from regard.pipelines.captioner import Captioner
from regard.pipelines.description import Describer, Description, MediaInput
from regard.pipelines.transcriber import Transcriber
from regard.pretrained.features import prepared
from regard.tasks.base import TaskData, for_development, mean_loss, run_tokenizer
from regard.text.tokenizer import BOS, EOS, PAD, Tokenizer
from regard.training.loop import TrainingConfig

ENDS = (BOS, EOS, PAD)
SPEEDS = (0.9, 1.0, 1.1)  # of a sound in training (Ko et al. 2015)
TRACTS = tuple(0.85 + 0.05 * n for n in range(7))  # of a voice in training, 0.85 … 1.15 (Jaitly and Hinton 2013)
LONGEST = 60.0  # seconds of a recording to learn from: the attention of longer ones takes gigabytes
MASKED = 0.05, 27  # of a sound's moments in one stretch at most, and of its bands (Park et al. 2019)


def scene_words(sprites: Glyphs, config: SceneConfig) -> list[str]:
    """Texts that hold every word of the captions."""
    moves = config.moves.values() if config.frames > 1 else []
    return [*sprites.names, config.beside, config.above, config.listed, *config.dyes, *moves]


def scene_batches(
    sprites: Glyphs, config: SceneConfig, encode: Encode, training: TrainingConfig, states: int, dev: bool
) -> SceneBatches:
    """Scenes in batches of `training.batch_tokens` states."""
    count = max(1, training.batch_tokens // states)
    return SceneBatches(sprites, config, encode, count, ENDS, training.seed, dev)


def read_pictures(rows: Sequence[Row], files: Files, encoder: Any) -> tuple[list[Tensor], list[int]]:
    """What the encoder takes of the rows' pictures, each once; and which one each row is of."""
    firsts = {row.file: row for row in reversed(rows)}
    numbers = {name: n for n, name in enumerate(dict.fromkeys(row.file for row in rows))}
    # one at a time: a photograph is large before it is made small
    pictures = [prepared([read_picture(files.read(name), files.named(firsts[name]))], encoder)[0] for name in numbers]
    return pictures, [numbers[row.file] for row in rows]


def read_sounds(rows: Sequence[Row], files: Files) -> list[Tensor]:
    """The samples of every row's recording."""
    return [read_sound(files.read(row.file), files.named(row), LONGEST) for row in rows]


def sound_batches(
    samples: Sequence[Tensor], targets: Sequence[list[int]], bands: int, training: TrainingConfig, moves: bool,
    between: Sequence[int] = (),
) -> BatchSource:  # fmt: skip
    """Recordings in batches; in training at three speeds, by other voices, with moments and bands hidden, and some
    joined: `between` are the ids of what then stands between their texts."""
    sizes = [frames(len(one)) for one in samples]

    def change(one: Tensor, dice: random.Random) -> Tensor:
        if not moves:
            return log_mel(one, bands)
        return _hide(log_mel(faster(one, dice.choice(SPEEDS)), bands, dice.choice(TRACTS)), dice)

    join = training.concat_pairs if moves else 0.0
    return MediaBatches(
        samples, targets, range(len(samples)), sizes, training.batch_tokens, ENDS, change, training.seed, join, between
    )


def _hide(mel: Tensor, dice: random.Random) -> Tensor:
    """Two stretches of bands and some of moments set to 0, the mean (SpecAugment, Park et al. 2019)."""
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
    """How many states a picture has in a model's memory."""
    encoder = model.source_encoder
    if encoder.kind in ("grid", "frames"):
        return int(-(-encoder.size // 2 ** (1 + len(encoder.channels)))) ** 2 * int(getattr(encoder, "frames", 1))
    return int(encoder.size // (encoder.patch if encoder.kind == "patches" else encoder.cell)) ** 2


def file_examples(
    parts: tuple[list[Row], list[Row]], table: TableConfig, tokenizer: Tokenizer, model: Any, training: TrainingConfig
) -> tuple[list[BatchSource], list[Any]]:
    """Training and development examples of files, and the development sources one by one, as a row each."""
    files = Files(table.files)
    made: list[BatchSource] = []
    sources: list[Any] = []
    for rows, moves in zip(parts, (True, False), strict=True):
        targets = tokenizer.encode_batch([row.text for row in rows])
        if model.source_encoder.kind in ("sound", "pyramid"):
            samples = read_sounds(rows, files)
            between = _between(tokenizer, rows) if training.concat_pairs and moves else []
            made.append(sound_batches(samples, targets, model.source_encoder.bands, training, moves, between))
            sources = list(samples)
        else:
            pictures, of = read_pictures(rows, files, model.source_encoder)
            size = [states_of(model)] * len(rows)
            made.append(MediaBatches(pictures, targets, of, size, training.batch_tokens, ENDS, None, training.seed))
            sources = [pictures[n] for n in of]
    return made, sources


def _between(tokenizer: Tokenizer, rows: Sequence[Row]) -> list[int]:
    """The ids that stand between two texts: a space where tokens are characters, nothing where they are words.

    Raises:
        ConfigError: two texts' tokens are not their joined text's.
    """
    texts = rows[0].text, rows[-1].text
    whole, first, last = tokenizer.encode_batch([" ".join(texts), *texts])
    between = whole[len(first) : len(whole) - len(last)]
    if whole != [*first, *between, *last]:
        raise ConfigError(
            f'training.concat_pairs needs tokenizer.kind = "characters", "bytes" or "words"; got "{tokenizer.kind}", '
            "whose tokens depend on what stands before them"
        )
    return between


def described(describer: Describer, sources: Sequence[Any], beam: int = 1, record: bool = False) -> list[Description]:
    """Pictures, or samples, or what the encoder takes of a picture, described."""

    def read(one: Any) -> MediaInput:
        if isinstance(describer, Transcriber):
            return describer.heard("", one)
        assert isinstance(describer, Captioner)
        return MediaInput("", one) if isinstance(one, Tensor) else describer.seen("", one)

    return describer.describe([read(one) for one in sources], beam=beam, record=record)


def text_scores(outputs: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Shares of exactly right texts and of wrong words, in percent, and BLEU."""
    exact = sum(a == b for a, b in zip(outputs, references, strict=True)) / max(1, len(references))
    filled = [(a, b) for a, b in zip(outputs, references, strict=True) if b.strip()]
    wer = jiwer.wer([b for _, b in filled], [a for a, _ in filled]) if filled else 0.0
    bleu = sacrebleu.corpus_bleu(list(outputs), [list(references)]).score
    return {"exact": 100 * exact, "wer": 100 * float(wer), "bleu": bleu}


def pointing(said: Sequence[Description], shown: Sequence[Scene]) -> tuple[float, int]:
    """Share of the words of rightly named things that look most at a cell whose centre lies in the thing's box,
    in percent; and how many words that were. Of a moving thing it is the box in the frame that was looked at."""
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


def dev_scenes(sprites: Glyphs, config: SceneConfig, seed: int, count: int) -> list[Scene]:
    """The first development scenes, which `SceneBatches` shows too."""
    return list(scenes(sprites, config, range(min(count, config.dev_scenes)), seed, True))


def prepare(folder: Path, settings: Any, begun: Bundle | None) -> TaskData:
    """Scenes, or files, and what is done with them."""
    return (prepare_scenes if settings.scenes else prepare_files)(folder, settings, begun)


def prepare_scenes(folder: Path, settings: Any, begun: Bundle | None) -> TaskData:
    assert settings.scenes is not None  # the settings have been checked
    config, training = settings.scenes, settings.training
    sprites = Glyphs(config)
    tokenizer = run_tokenizer(
        folder, settings, begun,
        lambda: Tokenizer.learn(scene_words(sprites, config), settings.tokenizer),
    )  # fmt: skip
    states = states_of(settings.model)
    batches, dev = (
        scene_batches(sprites, config, tokenizer.encode_batch, training, states, part) for part in (False, True)
    )
    shown = dev_scenes(sprites, config, training.seed, settings.dev_sentences)
    pictures = [scene_points(scene) for scene in shown]
    return TaskData(
        tokenizer, batches, f"{len(batches):,} scenes an epoch of {len(sprites)} things",
        f"{len(dev):,} for development",
        _evaluate_sensed(settings, tokenizer, dev, pictures, [scene.caption for scene in shown]),
        lambda model: _finish_sensed(folder, settings, model, tokenizer),
    )  # fmt: skip


def prepare_files(folder: Path, settings: Any, begun: Bundle | None) -> TaskData:
    assert settings.files is not None  # the settings have been checked
    training, model_config = settings.training, settings.model
    parts = split_rows(read_table(settings.files), settings.files)
    if not parts[0]:
        raise ConfigError("there is nothing to train on: check files.table and files.dev_share")
    dev, amount = for_development(parts, "files.dev_share", settings.dev_sentences)
    settings = _with_words(settings, parts[0])
    tokenizer = run_tokenizer(
        folder, settings, begun, lambda: Tokenizer.learn([row.text for row in parts[0]], settings.tokenizer)
    )
    made, sources = file_examples((parts[0], dev), settings.files, tokenizer, model_config, training)
    some = dev[: settings.dev_sentences]
    return TaskData(
        tokenizer, made[0], f"{len(parts[0]):,} training texts", amount,
        _evaluate_sensed(settings, tokenizer, made[1], sources[: len(some)], [row.text for row in some]),
        lambda model: _finish_sensed(folder, settings, model, tokenizer),
    )  # fmt: skip


def _evaluate_sensed(
    settings: Any, tokenizer: Tokenizer, dev: BatchSource, sources: list[Any], texts: list[str]
) -> Callable[[Any], dict[str, float]]:
    """From a model to its numbers on development data: loss of all, exact texts and word errors of some."""

    def evaluate(model: Any) -> dict[str, float]:
        loss, _ = mean_loss(model, dev, settings.training)
        kind = Captioner if settings.task == "caption" else Transcriber
        describer = kind(_sensed_bundle(settings, model, tokenizer), "run")
        said = described(describer, sources)
        return {"loss": loss, **text_scores([one.text for one in said], texts)}

    return evaluate


def _with_words(settings: Any, rows: Sequence[Row]) -> Any:
    """Settings that hold the words of the training texts, where a search is to say no others.

    Raises:
        ConfigError: tokens are no characters.
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


def _sensed_bundle(settings: Any, model: Any, tokenizer: Tokenizer) -> Bundle:
    return Bundle(settings.task, settings.languages, model, settings.model, tokenizer, settings.describing.model_dump())


def _finish_sensed(folder: Path, settings: Any, model: Any, tokenizer: Tokenizer) -> Bundle:
    bundle = _sensed_bundle(settings, model, tokenizer)
    save_bundle(folder, bundle)
    return bundle
