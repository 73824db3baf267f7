"""The one place that joins everything: the settings of a run, `train`, and what is done with its folder."""

import ctypes
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from regard.bundle import INFO, Bundle, Precision, load_bundle, save_bundle
from regard.config import apply, read_toml, to_toml, validate, with_current_names
from regard.data.parallel import DataConfig
from regard.data.questions import AskedConfig
from regard.data.scenes.scenes import SceneConfig
from regard.data.tables import TableConfig
from regard.data.texts import TextConfig
from regard.errors import BundleError, ConfigError, unknown
from regard.models.build import ModelConfig, build
from regard.pipelines.answerer import Answerer
from regard.pipelines.completer import Completer
from regard.pipelines.description import Describer, DescribingConfig
from regard.pipelines.filler import Filler
from regard.pipelines.load import load
from regard.pipelines.translator import DecodingConfig, Translator
from regard.pretrained.folder import save_pretrained
from regard.tasks import description, language, questions, translation
from regard.tasks.base import TaskData
from regard.text.pretrained import Nothing
from regard.text.tokenizer import TokenizerConfig
from regard.training.checkpoint import average, load_checkpoint
from regard.training.journal import Journal
from regard.training.loop import LAST, Report, TrainingConfig, used_precision
from regard.training.loop import train as run_loop

LAYOUTS = ("regard", "hf")


@dataclass(frozen=True)
class Task:
    """What a task goes with.

    Attributes:
        prepare: from a run's folder, its settings and the model it goes on from to what the task brings.
        data: sections of which it needs one.
        models: kinds.
        reads: kinds of encoder, for what is no text.
        metrics: that it measures.
    """

    prepare: Callable[[Path, Any, Bundle | None], TaskData]
    data: tuple[str, ...]
    models: tuple[str, ...]
    reads: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("loss",)


PAIRS = ("transformer", "recurrent")
SIGHT = ("grid", "patches", "features")
SAID = ("loss", "exact", "wer", "bleu")
TASKS = {
    "translate": Task(translation.prepare, ("data",), PAIRS, metrics=("bleu", "chrf", "loss")),
    "complete": Task(language.prepare, ("texts",), ("decoder",)),
    "fill": Task(language.prepare, ("texts",), ("encoder",)),
    "caption": Task(description.prepare, ("scenes", "files"), PAIRS, (*SIGHT, "frames"), SAID),
    "transcribe": Task(description.prepare, ("files",), PAIRS, ("sound", "pyramid"), SAID),
    "answer": Task(questions.prepare, ("asked",), ("stacked", "questions"), SIGHT, ("exact", "loss")),
}


def _or(names: Sequence[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)


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
            raise ValueError(f'task = "{self.task}" needs model.kind = {_or(task.models)}')
        if self.training.metric not in task.metrics:
            raise ValueError(f'task = "{self.task}" needs training.metric = {_or(task.metrics)}')
        reads = getattr(self.model, "source_encoder", None)
        if bool(task.reads) != (reads is not None):
            raise ValueError(f'task = "{self.task}" needs {"" if task.reads else "no "}[model.source_encoder]')
        if reads is not None and reads.kind not in task.reads:
            raise ValueError(f'task = "{self.task}" cannot read by model.source_encoder.kind = "{reads.kind}"')
        if self.scenes is not None and reads is not None and reads.size != self.scenes.size:
            raise ValueError(f"scenes.size = {self.scenes.size} must be model.source_encoder.size = {reads.size}")
        if self.describing.ctc and not self.training.ctc:
            raise ValueError("describing.ctc needs training.ctc: the layer that it reads would not have been trained")
        if self.training.hard == "reinforce" and getattr(self.model, "normalizer", None) != "hard":
            raise ValueError('training.hard = "reinforce" needs model.kind = "recurrent" and model.normalizer = "hard"')
        frames = getattr(reads, "frames", 1)
        if self.task == "caption" and (self.scenes.frames if self.scenes else 1) != frames:
            raise ValueError(f"scenes.frames must be model.source_encoder.frames = {frames}")
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
    model: Translator | Completer | Filler | Describer | Answerer
    journal: list[dict[str, Any]]


def read_config(config: str | Path | dict[str, Any], overrides: dict[str, Any] | None = None) -> ExperimentConfig:
    """An experiment's settings from a TOML file (or its contents as a dict), some of them replaced.

    Raises:
        ConfigError: an unknown or senseless setting, nearest spelling first.
    """
    where = "config" if isinstance(config, dict) else str(config)
    given = config if isinstance(config, dict) else read_toml(Path(config))
    settings, renamed = with_current_names(apply(given, overrides or {}))
    for old, new in renamed.items():
        warnings.warn(f"{where}: {old} is called {new} now", stacklevel=2)
    return validate(ExperimentConfig, settings, where)


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
    work = TASKS[settings.task].prepare(folder, settings, begun)
    tokenizer, batches = work.tokenizer, work.batches
    report(
        {
            "event": "start",
            "training": work.training,
            "development": work.development,
            "vocabulary": len(tokenizer),
            "padding": batches.padding_share(),
            "precision": used_precision(settings.training, "cpu"),
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


def average_run(folder: Path, into: Path, other: str | None = None) -> Path:
    """Average a run's best checkpoints, or its model and another, into a new bundle in `into`.

    Args:
        folder: the run's.
        into: the new model's folder.
        other: a model from which the run started, or that started from the same one (Wortsman et al. 2022).

    Raises:
        BundleError: the folder holds no finished run, or a checkpoint is damaged.
        ConfigError: the other model has other settings or other tokens.
    """
    bundle = load_bundle(folder)
    best = sorted(folder.glob("best-*.safetensors"))
    if other is not None:
        beside: Bundle = load(other).bundle
        _must_agree(f"average: {other}", beside, "run", bundle.model_config, bundle.tokenizer.config)
        names = [
            (one.tokenizer.tokens(range(len(one.tokenizer))), one.decoding.get("answers")) for one in (bundle, beside)
        ]
        if names[0] != names[1]:
            raise ConfigError(
                f"average: {other} has other tokens or answers than {folder}: average a run with what it started from"
            )
        weights = [bundle.model.state_dict(), beside.model.state_dict()]
    elif best:
        weights = [load_checkpoint(path)[0] for path in best]
    else:
        raise BundleError(f"{folder}: no best-*.safetensors to average")
    bundle.model.load_state_dict(average(weights))
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
    save_pretrained(
        into, bundle.model, bundle.model_config, {name: i for name, i in ids.items() if i is not None}, bundle.rules
    )
    if not isinstance(tokenizer, Nothing):
        tokenizer.save(into / "tokenizer.json")


def _prepare_folder(folder: Path, settings: ExperimentConfig, resume: bool) -> None:
    started = (folder / LAST).exists()
    if resume and not started:
        raise ConfigError(f"{folder}: there is nothing to resume: no {LAST}")
    if not resume and (started or (folder / INFO).exists()):
        raise ConfigError(f"{folder} holds a run already: go on with --resume, or choose another folder with --run")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: a file; a run needs a folder of its own, --run")
    if resume and (before := (folder / "config.toml").read_text("utf-8")) != to_toml(settings):
        known = set(before.splitlines())
        others = [line.split("  #")[0].strip() for line in to_toml(settings).splitlines() if line not in known]
        raise ConfigError(
            f"{folder}: its run had other settings (config.toml), not {'; '.join(others[:3]) or 'these'}: resume with "
            "the same ones, or choose another folder"
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
    _must_agree(f"start: {settings.start}", bundle, "config", settings.model, settings.tokenizer)
    return bundle


def _must_agree(who: str, bundle: Bundle, side: str, model: Any, tokenizer: Any) -> None:
    """A model's settings are those that are wanted, but for what a run may choose anew."""
    for name, theirs, ours in (
        ("model", bundle.model_config, model),
        ("tokenizer", bundle.tokenizer.config, tokenizer),
    ):
        wanted = ours.model_dump()
        for key, value in theirs.model_dump().items():
            if value != wanted.get(key) and key not in ("dropout", "answers"):  # a run counts the answers
                raise ConfigError(
                    f"{who} has {name}.{key} = {value!r} and the {side} has {wanted.get(key)!r}: "
                    "a run goes on with the model it starts from"
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
