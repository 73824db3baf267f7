"""The one place that joins everything: `train`, and averaging the checkpoints of a run."""

import json
import warnings
from collections.abc import Callable, Collection, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

import torch
from pydantic import BaseModel

from regard.arguments import check_arguments
from regard.bundle import INFO, TOKENIZER, Bundle, load_bundle, save_bundle
from regard.config import (
    apply,
    config_names,
    current_name,
    find_config,
    read_toml,
    to_toml,
    validate,
    with_current_names,
)
from regard.data.batching import BatchSource
from regard.data.pairs import Pairs
from regard.data.parallel import DataConfig, corpora, found
from regard.decoding.generate import Unwanted, while_wanted
from regard.device import find_device, random_numbers_kept, seed_generators
from regard.errors import BundleError, ConfigError, DataError
from regard.export.folder import export_bundle
from regard.machine.facts import examine
from regard.models.build import build
from regard.models.stack import LAYERS, fewer_layers
from regard.pipelines.load import load, shipped
from regard.process import cuda_float32, one_training, tuned
from regard.signals import stop_on_signal
from regard.storage import (
    check_claim,
    check_empty,
    check_name,
    claim,
    exclusive,
    fingerprint,
    new_folder,
    parse_json,
    remove_leftovers,
    without_halves,
    write_text,
)
from regard.tasks.base import Numbers, RunFolder, TaskData
from regard.tasks.config import ExperimentConfig, check_sizes
from regard.tasks.table import TASKS, evaluate
from regard.tasks.translation import read_data
from regard.text.tokenizer import Tokenizer
from regard.text.tokenizer_file import read_vocabulary
from regard.training.checkpoint import LAST, average, load_checkpoint
from regard.training.distributed import (
    Alive,
    Processes,
    ProcessLost,
    is_lost,
    local_device,
    restarted,
    together,
)
from regard.training.engine import SHARDED
from regard.training.journal import JOURNAL, Journal
from regard.training.loop import Interrupted, Report, checkpoint_in, last_checkpoint, last_step
from regard.training.loop import train as run_loop
from regard.training.objective import precision_on, used_precision
from regard.training.tensorboard import TensorBoard
from regard.untrusted import first_line, read_text

__all__ = ["ExperimentConfig", "Run", "average_run", "evaluate", "export_bundle", "prepare", "read_config", "train"]

Given = ParamSpec("Given")
CONFIG, DATA, MACHINE = "config.toml", "data.sha256", "machine.json"
# what runs have whose folders were made before folders were marked as regard's own
KNOWN = (LAST, f"{SHARDED}/.metadata", INFO, "prepared/prepared.json", "distilled/corpus.jsonl")
# settings that may differ when a run is resumed
FREE = tuple(f"training.{name}" for name in ("device", "timeout", "accumulate", "max_minutes", "checkpoint_seconds"))
FREE += ("training.tensorboard",)

# settings of a schedule, which a resumed run may change where that is said
CHANGEABLE = (
    "dev_sentences",
    *(f"training.{name}" for name in ("max_steps", "schedule", "learning_rate", "warmup", "patience")),
    *(f"training.{name}" for name in ("evaluate_every", "keep_best")),
)


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        path: its folder, which `regard.load(path)` loads.
        model: the trained model, ready to use.
        journal: every evaluation.
    """

    path: Path
    model: Any
    journal: list[dict[str, Any]]


def read_config(config: str | Path | dict[str, Any], overrides: dict[str, Any] | None = None) -> ExperimentConfig:
    """An experiment's settings from a TOML file (or its contents as a dict), some of them replaced.

    Raises:
        ConfigError: an unknown or invalid setting, nearest spelling first; sizes of which no model can be built.
    """
    where = "config" if isinstance(config, dict) else str(config)
    given = config if isinstance(config, dict) else read_toml(find_config(config))
    settings, renamed = with_current_names(given)
    for old, new in renamed.items():
        warnings.warn(f"{where}: {old} is called {new} now", stacklevel=2)
    current = {current_name(dotted): value for dotted, value in (overrides or {}).items()}
    for old in overrides or {}:
        if current_name(old) != old:
            warnings.warn(f"{old} is called {current_name(old)} now", stacklevel=2)
    checked = validate(ExperimentConfig, apply(settings, current), where)
    check_sizes(checked)
    text = to_toml(checked)
    if without_halves(text) != text:  # a run keeps its config as a file
        raise ConfigError(f"{where}: a name in it is not UTF-8: rename the file")
    return checked


@contextmanager
def _as_without_blocks(device: torch.device) -> Iterator[None]:
    """Gradients, and no autocast, whatever block of torch's the caller is in."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


@check_arguments
def train(
    config: str | Path | dict[str, Any],
    overrides: dict[str, Any] | None = None,
    *,
    run: str | Path | None = None,
    resume: bool = False,
    report: Report = lambda _: None,
) -> Run:
    """Train what a config describes, as `regard train` does.

    Args:
        config: a TOML file, the name of a shipped config, or the same as a dict.
        overrides: dotted settings to replace, {"model.width": 192}.
        run: the run's folder; runs/NAME-OF-THE-CONFIG by default.
        resume: continue the run in that folder.
        report: called with every step and evaluation.

    Raises:
        ConfigError: an invalid setting; a device that this machine does not have; a folder that holds a run already
            (without resume), or none (with it); another thread of this process trains.
        DataError: the data cannot be read; with file and line.
        Diverged: the loss is no longer finite.
        Interrupted: stopped by a signal, and saved.

    The process is left as it was: its random numbers, denormals and signal handlers. Blocks of the caller's without
    gradients, or of another precision, do not act on the training.
    """
    settings = read_config(config, overrides)
    device = local_device(find_device(settings.training.device))  # refused before a folder is made
    folder = Path(run) if run else default_folder(config)
    with (
        _as_without_blocks(device),
        one_training(),
        random_numbers_kept(device),
        together(device, settings.training.timeout) as group,
    ):
        resume = resume or (restarted() and checkpoint_in(folder))
        _check_folder(folder, settings, resume, set(overrides or {}))
        group.wait()
        if group.first:
            claim(folder, "a run", KNOWN)
        report = report if group.first else (lambda _: None)
        try:
            with exclusive(folder) if group.first else nullcontext():
                # again: another process may have used the folder up to now
                changed = _check_folder(folder, settings, resume, set(overrides or {})) if group.first else {}
                if group.first:
                    remove_leftovers(folder)
                    report = TensorBoard(folder, report) if settings.training.tensorboard else report
                _train(folder, settings, resume, report, group, device, changed)
        except RuntimeError as error:
            if not is_lost(error):
                raise
            raise ProcessLost(_lost(folder, group)) from error
    return Run(folder, load(folder.resolve(), str(device)), Journal(folder / "journal.jsonl").entries())


def prepare(
    config: str | Path | dict[str, Any],
    overrides: dict[str, Any] | None = None,
    *,
    run: str | Path | None = None,
    report: Report = lambda _: None,
) -> Path:
    """Tokenize the corpus of a config into its run's folder, as `regard prepare` does; `train` then starts at once.

    Args:
        config, overrides, run: as `train` takes them.
        report: called with the number of pairs so far.

    Returns:
        the run's folder.

    Raises:
        ConfigError: the task has no parallel corpus; the folder holds a run already.
        DataError: the data cannot be read; with file and line.
    """
    settings = read_config(config, overrides)
    if settings.data is None:
        raise ConfigError(f'task = "{settings.task}" has no [data] to prepare: its data are read when training starts')
    folder = Path(run) if run else default_folder(config)
    _check_folder(folder, settings, resume=False)
    claim(folder, "a run", KNOWN)
    with exclusive(folder):
        _check_folder(folder, settings, resume=False)
        remove_leftovers(folder)
        TASKS[settings.task].prepare(RunFolder(folder, _start(settings), False, report, _given(settings)), settings)
    return folder


def held_out(folder: str | Path, part: str) -> Pairs:
    """The development ("dev") or test ("test") pairs that a translator's run keeps apart from its training data.

    Args:
        folder: the run's, or the name of a shipped translator, whose config says where its data are.
        part: "dev" or "test".

    Raises:
        ConfigError: the folder is no translator's run; nothing was kept apart.
        DataError: the run's data cannot be read.
    """
    settings, data = _data_of(folder)
    train = data.train
    if not isinstance(train, str):  # a corpus of which nothing is held out need not be there
        some = tuple(one for one in train if isinstance(one, str) or one.held_out)
        data = data.model_copy(update={"train": some or train})
    pairs = read_data(settings.model_copy(update={"data": data}))[1 if part == "dev" else 2]
    if not len(pairs):
        raise ConfigError(
            f"{folder}: its config keeps no {part} pairs apart (data.{part} is not set, and "
            f"data.{part}_share = {getattr(data, f'{part}_share'):g}): "
            "measure it on files, with --source and --reference"
        )
    return pairs


def data_files(folder: str | Path) -> list[Path]:
    """The files that the pairs of a translator's run are read from, those that are there; arguments as `held_out`."""
    data = _data_of(folder)[1]
    further = [data.test, *data.dev_sets.values()]
    paths: list[Path] = []
    for one in (*(corpus.path for corpus in corpora(data)), data.dev, *further):
        for name in (one,) if isinstance(one, str) else one or ():
            with suppress(DataError):
                paths += found(name)
    return paths


def _data_of(folder: str | Path) -> tuple[ExperimentConfig, DataConfig]:
    """The settings of a translator's run, or of a shipped translator, and those of its data.

    Raises:
        ConfigError: the folder is no translator's run.
    """
    named = str(folder) in shipped() and str(folder) in config_names()  # as for `load`, before a folder of that name
    if not named and not (Path(folder) / CONFIG).exists():
        raise ConfigError(f"{folder}: no run's folder: it has no {CONFIG} that says which data were kept apart")
    settings = read_config(str(folder) if named else Path(folder) / CONFIG)
    if settings.data is None:
        raise ConfigError(f"{folder}: --part is for translators; measure a model of another task on --source")
    return settings, settings.data


def _train(
    folder: Path, settings: ExperimentConfig, resume: bool, report: Report, group: Processes, device: torch.device,
    changed: dict[str, Any],
) -> None:  # fmt: skip
    start = None if resume else _start(settings)
    if group.first:
        if not resume:
            _write_config(folder, settings, resume)
        given = None if resume else _given(settings)
        work = TASKS[settings.task].prepare(RunFolder(folder, start, resume, report, given), settings)
        _same_data(folder, work.batches, resume)
        made_of = _made_of(folder, work, set(changed))
    group.wait()
    if not group.first:  # with the tokenizer that the first process learned
        work = TASKS[settings.task].prepare(RunFolder(folder, start, True), settings)
        made_of = {}
    group.wait()
    report(
        {
            "event": "start",
            "training": work.training,
            "development": work.development,
            "vocabulary": len(work.tokenizer),
            "padding": work.batches.padding_share(),
            "device": str(device),
            "processes": group.count,
            "precision": used_precision(settings.training, device.type),
            "run": str(folder),
            "max_steps": settings.training.max_steps,
            "step": 0,
        }
    )
    if group.first:
        write_text(folder / MACHINE, json.dumps(_machine(group, device), ensure_ascii=False))
    seed_generators(settings.training.seed, device)
    model: Any = build(len(work.tokenizer), work.model or settings.model)
    if start:
        model.load_state_dict(fewer_layers(start.model.state_dict(), model.state_dict()))
    model.to(device)

    def resumed(step: int) -> None:  # a run whose continuation is refused keeps its settings
        if group.first:
            _write_config(folder, settings, resume)
            if changed:
                Journal(folder / JOURNAL).write({"event": "changed", "step": step, "settings": changed})

    exact = cuda_float32(settings.training.tf32) if device.type == "cuda" else nullcontext()
    with tuned(), exact, stop_on_signal() as should_stop:
        try:
            weights = run_loop(
                model,
                work.batches,
                settings.training,
                folder,
                evaluate=_until(should_stop, work.evaluate, group),
                report=report,
                # the first of several processes does it alone, and the others would wait for it
                watch=_until(should_stop, work.watch, group) if group.count == 1 else work.watch,
                should_stop=should_stop,
                resume=resume,
                made_of=made_of,
                on_resume=resumed,
            )
        except Interrupted as error:
            error.number = getattr(should_stop, "number", 0) or error.number
            raise
        whole = build(len(work.tokenizer), work.model or settings.model).to(device)  # `model` may hold a share only
        whole.load_state_dict(weights)
        if group.first:
            work.finish(whole.eval())
        group.wait()


def _until(stop: Callable[[], bool], work: Callable[Given, Numbers], group: Processes) -> Callable[Given, Numbers]:
    """Work of all processes that is interrupted in all of them where the run of one is to stop."""

    def interruptible(*given: Given.args, **named: Given.kwargs) -> Numbers:
        found: Numbers = {}
        unwanted = False
        try:
            with while_wanted(lambda: not stop()):
                found = work(*given, **named)
        except Unwanted:
            unwanted = True
        if any(group.any_of(unwanted)):
            raise Interrupted
        return found

    return interruptible


@check_arguments
def average_run(folder: Path, into: Path, other: str | None = None) -> Path:
    """Average a run's best checkpoints, or its model and another, into a new bundle in `into`.

    Args:
        folder: the run's.
        into: the new model's folder, which must be empty or missing.
        other: a model that the run started from, or that started from the same one (Wortsman et al. 2022).

    Raises:
        BundleError: the folder holds no finished run, or a checkpoint is damaged.
        ConfigError: `into` is not empty; the other model has other settings or other tokens.
    """
    bundle = load_bundle(folder)
    check_empty(into)
    best = sorted(folder.glob("best-*.safetensors"))
    if other is not None:
        beside: Bundle = load(other).bundle
        _must_agree(f"average: {other}", beside, "run", bundle.model_config, bundle.tokenizer.config)
        names = [
            (one.tokenizer.tokens(range(len(one.tokenizer))), one.decoding.get("answers")) for one in (bundle, beside)
        ]
        if names[0] != names[1]:
            raise ConfigError(
                f"average: {other} has other tokens or answers than {folder}: average a run with the model it "
                "started from"
            )
        weights = [bundle.model.state_dict(), beside.model.state_dict()]
    elif best:
        weights = [load_checkpoint(path)[0] for path in best]
    else:
        raise BundleError(f"{folder}: no best-*.safetensors to average")
    try:
        bundle.model.load_state_dict(average(weights))
    except (RuntimeError, KeyError) as error:
        raise BundleError(f"{folder}: its best-*.safetensors are of another model: {first_line(error)}") from error
    with new_folder(into) as made:
        save_bundle(made, bundle)
    return into


def _machine(group: Processes, device: torch.device) -> dict[str, Any]:
    """The machine that a run trains on, for its report."""
    machine = examine(measure=False)
    return {
        "processor": machine.processor.name,
        "cores": machine.processor.usable_cores,
        "device": str(device),
        "processes": group.count,
        "threads of a process": torch.get_num_threads(),
        "memory, GiB": round((machine.memory.total or 0) / 2**30, 1),
        "system": machine.software.system,
        "torch": machine.software.torch,
        "regard": machine.software.regard,
    }


def _lost(folder: Path, group: Processes) -> str:
    """The sentence about a process that is missing."""
    rank, step = Alive.missing_of(folder, group)
    kept = "there is no checkpoint yet: start again"
    if checkpoint_in(folder):
        kept = f"{last_checkpoint(folder)} holds step {last_step(folder)}: go on from it with --resume"
    return (
        f"{folder}: process {rank} of {group.count} (numbered from 0) was lost after step {step}, as process "
        f"{group.rank} noticed; {kept}"
    )


def default_folder(config: str | Path | dict[str, Any]) -> Path:
    """runs/NAME-OF-THE-CONFIG; the run's own folder for the config.toml inside it."""
    if isinstance(config, dict):
        return Path("runs") / "run"
    path = Path(config)
    return path.parent if path.name == CONFIG and checkpoint_in(path.parent) else Path("runs") / path.stem


def _check_folder(
    folder: Path, settings: ExperimentConfig, resume: bool, said: AbstractSet[str] = frozenset()
) -> dict[str, Any]:
    """The settings that a resumed run changes, as `said`."""
    check_folder(folder, resume)
    return _changed_settings(folder, settings, said) if resume else {}


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse a folder that a run cannot be started in, or resumed.

    Raises:
        ConfigError: it holds a run already, or nothing to resume; it is not regard's own.
    """
    check_name(folder)
    started = checkpoint_in(folder)
    if resume and not started:
        raise ConfigError(
            f"{folder}: there is nothing to resume: no {LAST}; start it without --resume, or name the run's own folder "
            "with --folder"
        )
    if not resume and (started or (folder / INFO).exists()):
        raise ConfigError(
            f"{folder} holds a run already: continue it with --resume, or choose another folder with --folder"
        )
    check_claim(folder, "a run", KNOWN)


def _write_config(folder: Path, settings: ExperimentConfig, resume: bool) -> None:
    """Write the run's settings, and remove what an earlier run left that has no checkpoint."""
    if not resume:  # files of a run that ended before its first checkpoint
        for path in (folder / "journal.jsonl", *folder.glob("best-*.safetensors")):
            path.unlink(missing_ok=True)
    write_text(folder / CONFIG, to_toml(settings))


def _changed_settings(folder: Path, settings: ExperimentConfig, said: AbstractSet[str]) -> dict[str, Any]:
    """The settings that a resumed run changes; refused unless they may change. Values are compared, not texts.

    The device, the number of processes and what only they concern may change, and so may the wish for a precision that
    comes to the same on it. Those of the schedule may, if they are set beside the config (`--set`).

    Raises:
        ConfigError: a setting differs, or the run's config cannot be read.
    """
    before = validate(ExperimentConfig, with_current_names(read_toml(folder / CONFIG))[0], str(folder / CONFIG))
    theirs, ours = flat(before), flat(settings)
    device = find_device(settings.training.device).type
    for one in (theirs, ours):
        one["training.precision"] = precision_on(device, one["training.precision"])
        for name in FREE:
            one.pop(name, None)
    changed = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    given = {name: ours.get(name) for name in changed if name in said and name in CHANGEABLE}
    if refused := [name for name in changed if name not in given]:
        shown = "; ".join(f"{name} = {_shown(ours, name)} (it was {_shown(theirs, name)})" for name in refused[:3])
        raise ConfigError(
            f"{folder}: its run had other settings ({CONFIG}), not {shown}: resume with the same ones, or choose "
            f"another folder with --folder{_how_to_change(refused)}"
        )
    return given


def _how_to_change(changed: list[str]) -> str:
    """What to do about changed settings that may change."""
    if not set(changed) <= set(CHANGEABLE):
        return ""
    return f"; to change {changed[0]} on purpose, give it beside the config: --set {changed[0]}=…"


def _same_data(folder: Path, batches: BatchSource, resume: bool) -> None:
    """Refuse to resume a run with other training data: it would not end as if it had never been interrupted.

    Raises:
        ConfigError: the training data differ from those that the run was started with.
    """
    path, digest = folder / DATA, _digest(batches)
    if not resume:
        write_text(path, f"{digest}\n")
    elif path.exists() and read_text(path).strip() != digest:
        raise ConfigError(
            f"{folder}: its training data have changed since the run was started ({len(batches):,} examples now): "
            "restore them, or choose another folder"
        )


def _digest(batches: BatchSource) -> str:
    """SHA-256 of the training data and of the settings by which they become batches."""
    return fingerprint(getattr(batches, "identity", batches))


def _made_of(folder: Path, work: TaskData, changed: AbstractSet[str]) -> dict[str, str]:
    """Digests of what a checkpoint is made of besides the settings: tokenizer, training and development data.

    Those that a changed setting is to change are left out.
    """
    tokenizer = json.dumps(parse_json(read_vocabulary(folder / TOKENIZER)), sort_keys=True)
    made_of = {
        f"tokenizer ({TOKENIZER})": fingerprint(tokenizer),
        "training data": _digest(work.batches),
        "development data": fingerprint(work.measured),
    }
    if "dev_sentences" in changed:
        del made_of["development data"]
    return made_of


def flat(config: BaseModel, prefix: str = "") -> dict[str, Any]:
    """All settings of a config under their dotted names; a section that is not set has none."""
    found: dict[str, Any] = {}
    for name, value in config:
        if isinstance(value, BaseModel):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[prefix + name] = value
    return found


def _shown(settings: dict[str, Any], name: str) -> str:
    return repr(settings[name]) if name in settings else "not set"


def _start(settings: ExperimentConfig) -> Bundle | None:
    """The model that training starts from."""
    if settings.start is None:
        return None
    bundle: Bundle = load(settings.start).bundle
    if not isinstance(bundle.tokenizer, Tokenizer):
        raise ConfigError(f"start: {settings.start} is not of regard's own layout: start from a run or a bundle")
    fewer = () if settings.model.kind == "recurrent" else LAYERS
    _must_agree(f"start: {settings.start}", bundle, "config", settings.model, settings.tokenizer, fewer)
    return bundle


def _given(settings: ExperimentConfig) -> Tokenizer | None:
    """The tokenizer of `tokenizer_from`."""
    name = settings.tokenizer_from
    if name is None:
        return None
    bundle: Bundle = load(name).bundle
    if not isinstance(bundle.tokenizer, Tokenizer):
        raise ConfigError(f"tokenizer_from: {name} is not of regard's own layout: name a run or a bundle")
    if settings.task == "fill" and bundle.tokenizer.mask is None:
        raise ConfigError(f'tokenizer_from: {name} has no mask token, which task = "fill" needs')
    reason = "write the tokenizer's own settings into the config"
    _agree(f"tokenizer_from: {name}", "tokenizer", bundle.tokenizer.config, settings.tokenizer, "config", reason)
    return bundle.tokenizer


def _must_agree(
    name_of: str, bundle: Bundle, side: str, model: Any, tokenizer: Any, fewer: Collection[str] = ()
) -> None:
    """Refuse a model whose settings differ from those of a run, apart from those that a run may change."""
    reason = "a run continues the model that it starts from"
    _agree(name_of, "model", bundle.model_config, model, side, reason, fewer)
    _agree(name_of, "tokenizer", bundle.tokenizer.config, tokenizer, side, reason)


def _agree(
    name_of: str, section: str, theirs: BaseModel, ours: BaseModel, side: str, reason: str, fewer: Collection[str] = ()
) -> None:
    """Refuse settings that differ, apart from those in `fewer`, which may be smaller than theirs."""
    wanted = ours.model_dump()
    for key, value in theirs.model_dump().items():
        if value != wanted.get(key) and key not in ("dropout", "answers"):  # counted by every run
            if key in fewer and wanted[key] < value:
                continue
            raise ConfigError(
                f"{name_of} has {section}.{key} = {value!r} and the {side} has {wanted.get(key)!r}: {reason}"
            )
