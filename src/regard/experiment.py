"""The one place that joins everything: the settings of a run, `train`, and what is done with its folder."""

import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any, Literal, get_args

import sacrebleu
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from regard import question_task, sense_task, text_task
from regard.answerer import Answerer
from regard.bundle import INFO, Bundle, Precision, load_bundle, save_bundle
from regard.completer import Completer
from regard.config import apply, read_toml, to_toml, validate
from regard.data.align import Link, phrase_links
from regard.data.batching import Batches, Examples
from regard.data.corpus import DataConfig, Pairs, augment, read_lines, read_pairs, split
from regard.data.questions import AskedConfig, count_answers, read_asked
from regard.data.scenes import SceneConfig, Sprites
from regard.data.sensed import scene_points
from regard.data.tables import TableConfig, read_table, split_rows
from regard.data.texts import TextConfig, read_texts
from regard.describer import Describer, DescribingConfig
from regard.errors import BundleError, ConfigError, DataError, unknown
from regard.loading import load
from regard.models.build import ModelConfig, build
from regard.models.seq2seq import Seq2Seq
from regard.pretrained.folder import save_pretrained
from regard.ready import Refused
from regard.text.pretrained import Nothing
from regard.text.tokenizer import BOS, EOS, PAD, Tokenizer, TokenizerConfig, word_of_each
from regard.text_encoder import TextEncoder
from regard.training.checkpoint import average, load_checkpoint
from regard.training.journal import Journal
from regard.training.loop import LAST, Report, TrainingConfig, batch_loss
from regard.training.loop import train as run_loop
from regard.translator import SEARCH_TOKENS, DecodingConfig, Translator

LAYOUTS = ("regard", "hf")


@dataclass(frozen=True)
class Task:
    """What a task goes with.

    Attributes:
        data: sections of which it needs one.
        models: kinds.
        reads: kinds of encoder, for what is no text.
        metrics: that it measures.
    """

    data: tuple[str, ...]
    models: tuple[str, ...]
    reads: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("loss",)


PAIRS = ("transformer", "recurrent")
SIGHT = ("grid", "patches", "features")
SAID = ("loss", "exact", "wer", "bleu")
TASKS = {
    "translate": Task(("data",), PAIRS, metrics=("bleu", "chrf", "loss")),
    "complete": Task(("texts",), ("decoder",)),
    "fill": Task(("texts",), ("encoder",)),
    "caption": Task(("scenes", "files"), PAIRS, (*SIGHT, "frames"), SAID),
    "transcribe": Task(("files",), PAIRS, ("sound", "pyramid"), SAID),
    "answer": Task(("asked",), ("stacked", "questions"), SIGHT, ("exact", "loss")),
}


class ExperimentConfig(BaseModel):
    """A training run: data, tokeniser, model, training, decoding."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    task: Literal["translate", "complete", "fill", "caption", "transcribe", "answer"] = "translate"
    """What the model learns: to translate, to go on with a text, to find hidden words, to say what is in a picture,
    to write down what is said, to answer questions about pictures."""
    languages: tuple[str, str] = ("fr", "en")
    """Of source and target, for figures and the model card."""
    start: str | None = None
    """A run, a bundle's folder or a shipped model to go on from: its tokeniser and weights; settings must agree."""
    dev_sentences: int = Field(500, gt=0)
    """Development sentences translated (greedily) at each evaluation during training."""
    data: DataConfig | None = None
    """Pairs, for translating."""
    texts: TextConfig | None = None
    """Texts, to go on with or to find hidden words in."""
    scenes: SceneConfig | None = None
    """Scenes of emoji, for captions."""
    files: TableConfig | None = None
    """Pictures or recordings with their texts, for captions and transcripts."""
    asked: AskedConfig | None = None
    """Pictures with questions and answers."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig
    training: TrainingConfig = TrainingConfig()
    decoding: DecodingConfig = DecodingConfig()
    describing: DescribingConfig = DescribingConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> "ExperimentConfig":
        task = TASKS[self.task]
        if sum(getattr(self, name) is not None for name in task.data) != 1:
            raise ValueError(f'task = "{self.task}" needs {" or ".join(f"[{name}]" for name in task.data)}')
        if self.model.kind not in task.models:
            raise ValueError(f'task = "{self.task}" needs model.kind = {" or ".join(map(repr, task.models))}')
        if self.training.metric not in task.metrics:
            raise ValueError(f'task = "{self.task}" needs training.metric = {" or ".join(map(repr, task.metrics))}')
        reads = getattr(self.model, "reads", None)
        if bool(task.reads) != (reads is not None):
            raise ValueError(f'task = "{self.task}" needs {"" if task.reads else "no "}[model.reads]')
        if reads is not None and reads.kind not in task.reads:
            raise ValueError(f'task = "{self.task}" cannot read by model.reads.kind = "{reads.kind}"')
        if self.scenes is not None and reads is not None and reads.size != self.scenes.size:
            raise ValueError(f"scenes.size = {self.scenes.size} must be model.reads.size = {reads.size}")
        frames = getattr(reads, "frames", 1)
        if self.task == "caption" and (self.scenes.frames if self.scenes else 1) != frames:
            raise ValueError(f"scenes.frames must be model.reads.frames = {frames}")
        return self


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        path: its folder; `regard.load(path)` loads it.
        model: the trained model, ready to use.
        journal: every evaluation.
    """

    path: Path
    model: Translator | Completer | TextEncoder | Describer | Answerer
    journal: list[dict[str, Any]]


def read_config(config: str | Path | dict[str, Any], overrides: dict[str, Any] | None = None) -> ExperimentConfig:
    """An experiment's settings from a TOML file (or its contents as a dict), some of them replaced.

    Raises:
        ConfigError: an unknown or senseless setting, nearest spelling first.
    """
    settings = config if isinstance(config, dict) else read_toml(Path(config))
    where = "config" if isinstance(config, dict) else str(config)
    return validate(ExperimentConfig, apply(settings, overrides or {}), where)


def train(
    config: str | Path | dict[str, Any],
    overrides: dict[str, Any] | None = None,
    *,
    run: str | Path | None = None,
    resume: bool = False,
    report: Report = lambda _: None,
) -> Run:
    """Train what a config describes; what `regard train` does.

    Args:
        config: a TOML file, or the same as a dict.
        overrides: dotted settings to replace, {"model.width": 192}.
        run: the run's folder; runs/NAME-OF-THE-CONFIG by default.
        resume: go on with the run in that folder.
        report: told of every step and evaluation.

    Raises:
        ConfigError: a bad setting; a folder that holds a run already (without resume), or none (with it).
        DataError: the data cannot be read, by file and line.
        Interrupted: stopped by Ctrl-C, and saved.
    """
    settings = read_config(config, overrides)
    folder = Path(run) if run else Path("runs") / (Path(config).stem if not isinstance(config, dict) else "run")
    _prepare_folder(folder, settings, resume)
    begun = None if resume else _start(settings)
    work = PREPARE[settings.task](folder, settings, begun)
    tokenizer, batches = work.tokenizer, work.batches
    report(
        {
            "event": "start",
            "training": work.training,
            "development": work.development,
            "vocabulary": len(tokenizer),
            "padding": batches.padding_share(),
            "run": str(folder),
            "max_steps": settings.training.max_steps,
            "step": 0,
        }
    )
    torch.manual_seed(settings.training.seed)
    model: Any = build(len(tokenizer), work.model or settings.model)
    if begun:
        model.load_state_dict(begun.model.state_dict())
    with tuned(), _asked_to_stop() as should_stop:
        weights = run_loop(
            model, batches, settings.training, folder,
            evaluate=work.evaluate, report=report,
            should_stop=should_stop, resume=resume,
        )  # fmt: skip
        model.load_state_dict(weights)
        work.finish(model.eval())
    return Run(folder, load(folder.resolve()), Journal(folder / "journal.jsonl").entries())


@dataclass(frozen=True)
class Work:
    """What a task brings to a run.

    Attributes:
        tokenizer: learned, or the run's own.
        batches: to train on.
        training, development: how much there is of either, in words.
        evaluate: from a model to its numbers on development data.
        finish: writes the bundle of a trained model.
        model: its settings, where the data says more than the config.
    """

    tokenizer: Tokenizer
    batches: Examples
    training: str
    development: str
    evaluate: Callable[[Any], dict[str, float]]
    finish: Callable[[Any], Bundle]
    model: ModelConfig | None = None


def _prepare_pairs(folder: Path, settings: ExperimentConfig, begun: Bundle | None) -> Work:
    parts = read_data(settings)
    texts = [text for pair in parts[0] for text in pair]
    tokenizer = _tokenizer(folder, settings, begun, lambda: Tokenizer.learn(texts, settings.tokenizer))
    batches = _training_batches(parts[0], tokenizer, settings)
    return Work(
        tokenizer, batches, f"{len(batches):,} training pairs", f"{len(parts[1]):,} for development",
        make_evaluate(parts[1], tokenizer, settings),
        lambda model: finish(folder, settings, model, tokenizer, parts),
    )  # fmt: skip


def _prepare_texts(folder: Path, settings: ExperimentConfig, begun: Bundle | None) -> Work:
    assert settings.texts is not None  # the settings have been checked
    task, texts = settings.task, read_texts(settings.texts)
    if not texts.train:
        raise ConfigError("there is nothing to train on: check texts.train and texts.dev_share")
    tokenizer = _tokenizer(
        folder, settings, begun, lambda: text_task.learn_tokenizer(texts.train, task, settings.tokenizer)
    )
    batches, dev = (
        text_task.examples(part, task, tokenizer, settings.texts, settings.training, moves)
        for part, moves in ((texts.train, True), (texts.dev, False))
    )

    def finish(model: Any) -> Bundle:
        begins = {"begins": len(texts.train) > 1} if task == "complete" else {}
        bundle = Bundle(task, settings.languages, model, settings.model, tokenizer, begins)
        save_bundle(folder, bundle)
        return bundle

    name = "windows" if task == "complete" else "sentences"
    return Work(
        tokenizer, batches, f"{len(batches):,} training {name}", f"{len(dev):,} for development",
        text_task.make_evaluate(dev, settings.training), finish,
    )  # fmt: skip


def _prepare_scenes(folder: Path, settings: ExperimentConfig, begun: Bundle | None) -> Work:
    assert settings.scenes is not None  # the settings have been checked
    config, training = settings.scenes, settings.training
    sprites = Sprites(config)
    tokenizer = _tokenizer(
        folder, settings, begun,
        lambda: Tokenizer.learn(sense_task.scene_words(sprites, config), settings.tokenizer),
    )  # fmt: skip
    states = sense_task.states_of(settings.model)
    batches, dev = (
        sense_task.scene_batches(sprites, config, tokenizer.encode_batch, training, states, part)
        for part in (False, True)
    )
    shown = sense_task.dev_scenes(sprites, config, training.seed, settings.dev_sentences)
    pictures = [scene_points(scene) for scene in shown]
    return Work(
        tokenizer, batches, f"{len(batches):,} scenes an epoch of {len(sprites)} things",
        f"{len(dev):,} for development",
        _evaluate_sensed(settings, tokenizer, dev, pictures, [scene.caption for scene in shown]),
        lambda model: _finish_sensed(folder, settings, model, tokenizer),
    )  # fmt: skip


def _prepare_files(folder: Path, settings: ExperimentConfig, begun: Bundle | None) -> Work:
    assert settings.files is not None  # the settings have been checked
    training, model_config = settings.training, settings.model
    parts = split_rows(read_table(settings.files), settings.files)
    if not parts[0]:
        raise ConfigError("there is nothing to train on: check files.table and files.dev_share")
    tokenizer = _tokenizer(
        folder, settings, begun, lambda: Tokenizer.learn([row.text for row in parts[0]], settings.tokenizer)
    )
    made, sources = sense_task.file_examples(parts, settings.files, tokenizer, model_config, training)
    some = parts[1][: settings.dev_sentences]
    return Work(
        tokenizer, made[0], f"{len(parts[0]):,} training texts", f"{len(parts[1]):,} for development",
        _evaluate_sensed(settings, tokenizer, made[1], sources[: len(some)], [row.text for row in some]),
        lambda model: _finish_sensed(folder, settings, model, tokenizer),
    )  # fmt: skip


def _evaluate_sensed(
    settings: ExperimentConfig, tokenizer: Tokenizer, dev: Examples, sources: list[Any], texts: list[str]
) -> Callable[[Any], dict[str, float]]:
    """From a model to its numbers on development data: loss of all, exact texts and word errors of some."""

    def evaluate(model: Any) -> dict[str, float]:
        if not len(dev):
            return {"loss": float("inf"), "exact": 0.0, "wer": 100.0, "bleu": 0.0}
        loss, _ = mean_loss(model, dev, settings.training)
        describer = Describer(_sensed_bundle(settings, model, tokenizer), "run")
        said = sense_task.described(describer, sources)
        return {"loss": loss, **sense_task.text_scores([one.text for one in said], texts)}

    return evaluate


def _sensed_bundle(settings: ExperimentConfig, model: Any, tokenizer: Tokenizer) -> Bundle:
    return Bundle(settings.task, settings.languages, model, settings.model, tokenizer, settings.describing.model_dump())


def _finish_sensed(folder: Path, settings: ExperimentConfig, model: Any, tokenizer: Tokenizer) -> Bundle:
    bundle = _sensed_bundle(settings, model, tokenizer)
    save_bundle(folder, bundle)
    return bundle


def _prepare_questions(folder: Path, settings: ExperimentConfig, begun: Bundle | None) -> Work:
    assert settings.asked is not None  # the settings have been checked
    asked, where = read_asked(settings.asked)
    parts = question_task.split_asked(asked, settings.asked.dev_share)
    if not parts[0]:
        raise ConfigError("there is nothing to train on: check asked.table and asked.dev_share")
    tokenizer = _tokenizer(
        folder, settings, begun,
        lambda: Tokenizer.learn([one.question.lower() for one in parts[0]], settings.tokenizer),
    )  # fmt: skip
    answers = count_answers(parts[0], settings.asked.most)
    config: Any = settings.model.model_copy(update={"answers": len(answers)})
    batches, dev = (
        question_task.batches(part, where, answers, tokenizer, config, settings.training, moves)
        for part, moves in zip(parts, (True, False), strict=True)
    )

    def finish(model: Any) -> Bundle:
        bundle = Bundle("answer", settings.languages, model, config, tokenizer, {"answers": answers})
        save_bundle(folder, bundle)
        return bundle

    return Work(
        tokenizer, batches, f"{len(batches):,} training questions with {len(answers):,} answers",
        f"{len(dev):,} for development", question_task.make_evaluate(dev, settings.training), finish, config,
    )  # fmt: skip


PREPARE: dict[str, Callable[[Path, ExperimentConfig, Bundle | None], Work]] = {
    "translate": _prepare_pairs, "complete": _prepare_texts, "fill": _prepare_texts,
    "caption": lambda *a: (_prepare_files if a[1].files else _prepare_scenes)(*a), "transcribe": _prepare_files,
    "answer": _prepare_questions,
}  # fmt: skip


def finish(
    folder: Path, settings: ExperimentConfig, model: Seq2Seq, tokenizer: Tokenizer, parts: tuple[Pairs, Pairs, Pairs]
) -> Bundle:
    """Choose the alignment's site and heads on development data, and write the bundle."""
    from regard.explore.alignment import choose_heads

    bundle = Bundle(settings.task, settings.languages, model, settings.model, tokenizer, settings.decoding.model_dump())
    dev = parts[1] if len(parts[1]) else parts[0]
    bundle.alignment = choose_heads(model, tokenizer, parts[0], dev)
    save_bundle(folder, bundle)
    return bundle


def read_data(settings: ExperimentConfig) -> tuple[Pairs, Pairs, Pairs]:
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


def make_evaluate(
    dev: Pairs, tokenizer: Tokenizer, settings: ExperimentConfig
) -> Callable[[Seq2Seq], dict[str, float]]:
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
        outputs = [g.text for g in translator.translate(some.source, beam=1, record=False)]
        return {"loss": loss, "perplexity": exp(min(loss, 700)), **scores(outputs, some.target)}

    return evaluate


def mean_loss(model: Any, batches: Examples, training: TrainingConfig) -> tuple[float, int]:
    """Negative log-likelihood per target token in nats, EOS counted; and the number of tokens."""
    total, tokens = 0.0, 0
    for batch in batches.epoch(0):
        _, nll, n = batch_loss(model, batch, training, PAD)
        total, tokens = total + float(nll), tokens + n
    return total / max(1, tokens), tokens


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
        except Refused as error:
            raise DataError(f"{source}:{number}: {error}") from error
    outputs = [g.text for g in translator.translate(sides[0], beam=beam, record=False)]
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    measured = bleu.corpus_score(outputs, [sides[1]]).score, chrf.corpus_score(outputs, [sides[1]]).score
    tokenizer = translator.tokenizer
    filled = [(s, t) for s, t in zip(*sides, strict=True) if s.strip() and t.strip()]
    encoded = [(tokenizer.encode(s), tokenizer.encode(t)) for s, t in filled]
    with torch.inference_mode():
        loss, tokens = mean_loss(translator.model, Batches(encoded, SEARCH_TOKENS, BOS, EOS, PAD), TrainingConfig())
    numbers = {
        "bleu": measured[0], "bleu_signature": str(bleu.get_signature()),
        "chrf": measured[1], "chrf_signature": str(chrf.get_signature()),
        "loss": loss, "perplexity": exp(min(loss, 700)), "tokens": tokens, "sentences": len(outputs),
        "beam": translator.decoding.beam if beam is None else beam,
    }  # fmt: skip
    return numbers, outputs


def average_run(folder: Path, into: Path) -> Path:
    """Average a run's best checkpoints into a new bundle in `into`.

    Raises:
        BundleError: the folder holds no finished run, or a checkpoint is damaged.
    """
    bundle = load_bundle(folder)
    best = sorted(folder.glob("best-*.safetensors"))
    if not best:
        raise BundleError(f"{folder}: no best-*.safetensors to average")
    bundle.model.load_state_dict(average([load_checkpoint(path)[0] for path in best]))
    save_bundle(into, bundle)
    return into


def export_bundle(ready: Any, into: Path, precision: str, layout: str = "regard") -> None:
    """Write a model as a folder of its own.

    Args:
        ready: what `load` gives.
        into: the folder.
        precision: of the weights, "float32", "float16" or "int8".
        layout: "regard", or "hf": float32 in the Hugging Face layout, which transformers loads.

    Raises:
        ChoiceError: an unknown precision or layout.
        ConfigError: the folder holds something already.
        BundleError: no family of the Hugging Face layout has the model's parts.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    if precision not in get_args(Precision):
        raise unknown("precision", precision, get_args(Precision))
    if into.exists() and any(into.iterdir()):
        raise ConfigError(f"{into} is not empty: choose another folder")
    bundle: Bundle = ready.bundle
    if layout == "regard":
        save_bundle(into, bundle, precision)  # type: ignore[arg-type]
        return
    tokenizer = bundle.tokenizer
    named = {"pad": "pad", "bos": "bos", "eos": "eos"} | ({"start": "bos"} if bundle.task == "translate" else {})
    ids = {name: getattr(tokenizer, attribute) for name, attribute in named.items()}
    save_pretrained(into, bundle.model, bundle.model_config, {name: i for name, i in ids.items() if i is not None})
    if not isinstance(tokenizer, Nothing):
        tokenizer.save(into / "tokenizer.json")


def _prepare_folder(folder: Path, settings: ExperimentConfig, resume: bool) -> None:
    started = (folder / LAST).exists()
    if resume and not started:
        raise ConfigError(f"{folder}: there is nothing to resume: no {LAST}")
    if not resume and (started or (folder / INFO).exists()):
        raise ConfigError(f"{folder} holds a run already: go on with --resume, or choose another folder with --run")
    if resume and (folder / "config.toml").read_text("utf-8") != to_toml(settings):
        raise ConfigError(
            f"{folder}: its run had other settings (config.toml): resume with the same ones, or choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:  # what a run left that ended before its first checkpoint
        for path in (folder / "journal.jsonl", *folder.glob("best-*.safetensors")):
            path.unlink(missing_ok=True)
    (folder / "config.toml").write_text(to_toml(settings), "utf-8")


def _start(settings: ExperimentConfig) -> Bundle | None:
    """The model that a run goes on from."""
    if settings.start is None:
        return None
    bundle: Bundle = load(settings.start).bundle
    for name, theirs, ours in (
        ("model", bundle.model_config, settings.model), ("tokenizer", bundle.tokenizer.config, settings.tokenizer)
    ):  # fmt: skip
        for key, value in theirs.model_dump().items():
            if value != getattr(ours, key) and key != "dropout":
                raise ConfigError(
                    f"start: {settings.start} has {name}.{key} = {value!r} and the config has {getattr(ours, key)!r}: "
                    "a run goes on with the model it starts from"
                )
    return bundle


def _tokenizer(
    folder: Path, settings: ExperimentConfig, begun: Bundle | None, learn: Callable[[], Tokenizer]
) -> Tokenizer:
    """The run's tokeniser, learned on the training side only; a resumed run reads its own back."""
    path = folder / "tokenizer.json"
    if (folder / LAST).exists() and path.exists():
        return Tokenizer.load(path, settings.tokenizer)
    tokenizer = begun.tokenizer if begun else learn()
    tokenizer.save(path)
    return tokenizer


def _training_batches(pairs: Pairs, tokenizer: Tokenizer, settings: ExperimentConfig) -> Batches:
    """The augmented training pairs as batches, with links where alignment is guided."""
    data = settings.data
    assert data is not None  # the settings have been checked
    shown = augment(pairs, data, settings.training.seed)
    sides = (tokenizer.encode_batch(shown.source), tokenizer.encode_batch(shown.target))
    kept = [n for n, pair in enumerate(zip(*sides, strict=True)) if max(map(len, pair)) <= data.longest]
    links = token_links(tokenizer, shown) if settings.training.guide else None
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
        places: dict[int | None, list[int]] = {}
        for place, word in enumerate(words[0]):
            places.setdefault(word, []).append(place)
        partner = dict(links)
        result.append([(t, s) for t, w in enumerate(words[1]) if w in partner for s in places.get(partner[w], [])])
    return result


def _batches(pairs: Pairs, tokenizer: Tokenizer, settings: ExperimentConfig) -> Batches:
    sides = (tokenizer.encode_batch(pairs.source), tokenizer.encode_batch(pairs.target))
    return Batches(
        list(zip(*sides, strict=True)), settings.training.batch_tokens, BOS, EOS, PAD, settings.training.seed
    )


@contextmanager
def tuned() -> Iterator[None]:
    """The process made fit for training: no denormal numbers, and freed memory kept for the next step."""
    torch.set_flush_denormal(True)
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    # glibc: give nothing back below 1 GiB; page faults cost a fifth of a step
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(-3, 1 << 30)
        libc.mallopt(-1, (1 << 31) - 1)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a question that the loop asks between steps; the second one interrupts at once."""
    asked = threading.Event()

    def ask(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
