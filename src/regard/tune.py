"""A search over settings: short trainings, each with settings that Optuna proposes, for a budget of minutes.

tune/
  trials.db      Optuna's storage: a search that was interrupted goes on
  best.toml      the config with the best settings found
  trial-0003/    the run of a trial
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf, isfinite
from pathlib import Path
from typing import Any

from regard.arguments import check_arguments
from regard.config import to_toml
from regard.errors import ConfigError, RegardError
from regard.experiment import FREE, ExperimentConfig, flat, read_config, train
from regard.signals import stop_on_signal
from regard.storage import claim, exclusive, refuse_link, write_text
from regard.training.best import SMALL_IS_BETTER
from regard.training.loop import Interrupted
from regard.untrusted import file_size, first_line

FAILED, ALIKE = 10, 3  # trials in a row that failed, and of these with the same sentence, before a search ends
STORAGE, BEST, STUDY = "trials.db", "best.toml", "settings"
SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")  # ends a journal that names another one (SQLite's file format)
ANOTHER = "name another --folder"
OnTrial = Callable[[int, dict[str, Any], float | None, str], None]


@dataclass(frozen=True)
class Range:
    """The values that a setting may take: a list of choices, or numbers between two ends.

    Attributes:
        name: dotted, "training.learning_rate".
        choices: the values, where there is a list of them.
        low, high: the ends otherwise.
        log: numbers are proposed evenly on a logarithmic scale.
        whole: whole numbers alone are proposed: the setting takes no others.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @classmethod
    def parse(cls, text: str) -> "Range":
        """`NAME=LOW..HIGH`, `NAME=LOW..HIGH,log`, or `NAME=A|B|C`.

        Raises:
            ConfigError: it is neither.
        """
        number = r"[-+]?[\d.]+(?:e[-+]?\d+)?"
        found = re.fullmatch(rf"([\w.]+)=({number})\.\.({number})(,log)?", text, re.IGNORECASE)
        if found:
            low, high = _number(text, found[2]), _number(text, found[3])
            if low >= high or (found[4] and low <= 0):
                raise ConfigError(f"--range {text}: the lower end must be below the upper one, and above 0 with log")
            return cls(found[1], low=low, high=high, log=bool(found[4]))
        name, equals, values = text.partition("=")
        if not equals or "|" not in values:
            raise ConfigError(f"--range {text}: expected NAME=LOW..HIGH, NAME=LOW..HIGH,log or NAME=A|B|C")
        return cls(name, tuple(map(_value, values.split("|"))))

    def fitted(self, config: str | Path | dict[str, Any], overrides: dict[str, Any]) -> "Range":
        """The same for a config's setting, which takes both ends or all choices.

        Raises:
            ConfigError: it does not.
        """
        whole = not self.choices and all(float(end).is_integer() for end in (self.low, self.high))
        ends = (int(self.low), int(self.high)) if whole else (self.low, self.high)
        for value in self.choices or ends:
            read_config(config, overrides | {self.name: value})
        if not whole:
            return self
        try:
            read_config(config, overrides | {self.name: self.low + 0.5})
        except ConfigError:
            return replace(self, whole=True)
        return self

    def propose(self, trial: Any) -> Any:
        """A value for a trial of Optuna's."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


@check_arguments
def tune(
    config: str | Path | dict[str, Any],
    ranges: Sequence[Range],
    folder: Path,
    *,
    minutes: float,
    trial_minutes: float,
    overrides: dict[str, Any] | None = None,
    on_trial: OnTrial = lambda *_: None,
) -> dict[str, Any]:
    """Search for settings with the best `training.metric` on development data.

    A trial is a training of `trial_minutes`; one that is worse than the median of the others at the same evaluation
    ends early. The search goes on where an earlier one in the same folder stopped. It ends after ten trials in a row
    that failed, or three with the same sentence.

    Args:
        config: as `regard.train` takes it.
        ranges: the settings to search over.
        folder: of the search.
        minutes: for this call, all trials together; at least one trial is made, and one that has begun is finished.
        trial_minutes: of training, for a trial.
        overrides: other settings to replace.
        on_trial: called after every trial with its number, its settings, its measure (None if it ended early) and the
            sentence of the error that ended it ("" for none).

    Returns:
        the best settings found, {"training.learning_rate": 0.0013, …}; best.toml in the folder is the whole config.

    Raises:
        ConfigError: an unknown setting, or a value that it does not take; Optuna is not installed; the folder holds a
            search by another metric, over other values or with other settings, or a damaged one; no trial was finished,
            or the last ones failed.
        Interrupted: stopped by a signal; what was finished is kept.
    """
    if not (isfinite(minutes) and minutes >= 0):
        raise ConfigError(f"minutes must be a number of at least 0; got {minutes}")
    if not (isfinite(trial_minutes) and trial_minutes > 0):
        raise ConfigError(f"trial_minutes must be a number above 0; got {trial_minutes}")
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("regard tune needs the package Optuna: pip install 'regard[tune]'") from error
    settings = read_config(config, overrides)
    if twice := next((name for name, times in Counter(one.name for one in ranges).items() if times > 1), ""):
        raise ConfigError(f"--range {twice}: given twice: one range for each setting")
    if both := next((one.name for one in ranges if one.name in {"training.max_minutes": 0, **(overrides or {})}), ""):
        other = "--trial-minutes" if both == "training.max_minutes" else "--set"
        raise ConfigError(f"--range {both}: {other} says what it is in every trial: leave out one of them")
    ranges = [one.fitted(config, overrides or {}) for one in ranges]
    metric = settings.training.metric
    claim(folder, "a search")

    def objective(trial: Any) -> float:
        try:
            chosen = {one.name: one.propose(trial) for one in ranges}
        except ValueError as error:  # Optuna's: the values are of another kind, or other choices
            raise ConfigError(
                f"{folder}: its earlier trials searched over other values ({error}): {ANOTHER}"
            ) from error

        def report(event: dict[str, Any]) -> None:
            if event["event"] == "evaluation":
                if f"dev_{metric}" in event:  # not where the loss is not finite
                    trial.report(event[f"dev_{metric}"], event["step"])
                if trial.should_prune():
                    raise optuna.TrialPruned

        value, failed = None, ""
        try:
            trial.set_user_attr("config", to_toml(read_config(config, (overrides or {}) | chosen)))
            given = (overrides or {}) | chosen | {"training.max_minutes": trial_minutes}
            run = train(config, given, run=folder / f"trial-{trial.number:04d}", report=report)
            value = _kept(run.journal)[f"dev_{metric}"]
        except RegardError as error:
            failed = str(error)
            trial.set_user_attr("error", failed)
            raise optuna.TrialPruned from error
        except (Interrupted, OSError) as error:
            failed = first_line(error) if isinstance(error, OSError) else "interrupted"
            raise
        finally:
            on_trial(trial.number, chosen, value, failed)
        return float(value)

    until = time.monotonic() + 60 * minutes
    trials: list[Any] = []
    with exclusive(folder), _quiet(optuna.logging), _storage(folder / STORAGE), stop_on_signal() as asked:
        study = _study(folder, metric, settings.training.seed)
        _check_same(folder, study, settings, ranges)
        before = len(study.trials)
        while not trials or (time.monotonic() < until and not _all_failed(trials)):
            if not asked():
                study.optimize(objective, n_trials=1)
            if asked():
                interrupted = Interrupted()
                interrupted.number = asked.number
                raise interrupted
            trials = study.trials[before:]
        done = study.trials
    why = next((one.user_attrs["error"] for one in reversed(done) if "error" in one.user_attrs), "")
    if not any(one.state.name == "COMPLETE" for one in done):
        raise ConfigError(
            f"{folder}: no trial was finished: {why or 'give more minutes, or look at why the trials end early'}"
        )
    best = dict(study.best_params)
    own = study.best_trial.user_attrs.get("config")  # a search that was begun before trials had one has none
    write_text(folder / BEST, own or to_toml(read_config(config, (overrides or {}) | best)))
    if _all_failed(trials):
        raise ConfigError(f"{folder}: the last trials failed: {why}; {BEST} has the best one before them")
    return best


def _kept(journal: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The journal's entry of the model that a run has kept: the average, or the best checkpoint."""
    last = journal[-1]
    if last.get("event") != "average" or last["chosen"]:
        return last
    return next(one for one in journal if one.get("event") == "evaluation" and one["step"] == last["of"][0])


def _all_failed(trials: Sequence[Any]) -> bool:
    """Whether so many trials failed in a row that the next one would, too."""
    why = [one.user_attrs.get("error") for one in trials]
    return (len(why) >= FAILED and all(why[-FAILED:])) or (
        len(why) >= ALIKE and bool(why[-1]) and len(set(why[-ALIKE:])) == 1
    )


def _check_same(folder: Path, study: Any, settings: ExperimentConfig, ranges: Sequence[Range]) -> None:
    """Refuse to continue a search with other settings or other values: its trials could not be compared.

    Raises:
        ConfigError: names the first difference.
    """
    values = {one.name: str(one.choices or f"{one.low} to {one.high}{', log' * one.log}") for one in ranges}
    fixed = {name: str(value) for name, value in flat(settings).items() if name not in FREE}
    known: dict[str, dict[str, str]] = study.user_attrs.get("searched", {"values": {}, "fixed": {}})
    if not (isinstance(known, dict) and all(isinstance(known.get(part), dict) for part in ("values", "fixed"))):
        raise ConfigError(f"{folder / STORAGE}: damaged, or not a search of `regard tune`: {ANOTHER}")
    for name in values.keys() & known["values"].keys():
        if values[name] != known["values"][name]:
            earlier = f"{name} in {known['values'][name]}"
            raise ConfigError(f"{folder}: its earlier trials searched over other values ({earlier}): {ANOTHER}")
    searched = known["values"] | values
    before = known["fixed"] or fixed
    for name in sorted((before.keys() | fixed.keys()) - searched.keys()):
        now, earlier = fixed.get(name, "not set"), before.get(name, "not set")
        if now != earlier:
            raise ConfigError(f"{folder}: holds a search with {name} = {earlier}, not {now}: {ANOTHER}")
    study.set_user_attr("searched", {"values": searched, "fixed": fixed})


def _study(folder: Path, metric: str, seed: int) -> Any:
    """Optuna's study in a folder: a new one, or the one that was begun there.

    Raises:
        ConfigError: it is of another metric, or damaged.
    """
    import optuna
    from sqlalchemy import URL

    path = folder / STORAGE
    refuse_link(path)
    _check_journal(path.with_name(f"{STORAGE}-journal"))
    try:
        study = optuna.create_study(
            study_name=STUDY, storage=URL.create("sqlite", database=str(path)).render_as_string(), load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(5, 2),
            direction="minimize" if metric in SMALL_IS_BETTER else "maximize",
        )  # fmt: skip
        if not study.trials:
            study.set_user_attr("metric", metric)
        before = study.user_attrs.get("metric")
        # a search that goes on does not propose again what it began with
        study.sampler = optuna.samplers.TPESampler(seed=(seed + len(study.trials)) % 2**32)
    except (ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"{path}: damaged, or not a search of `regard tune`: {first_line(error)}: {ANOTHER}"
        ) from error
    if before != metric:
        raise ConfigError(f"{folder}: holds a search by {before}, not by {metric} (training.metric): {ANOTHER}")
    return study


def _check_journal(path: Path) -> None:
    """Refuse a journal of SQLite's that names another file, which SQLite would delete: those of one database name none.

    Raises:
        ConfigError: as said.
    """
    refuse_link(path)
    if not path.exists():
        return
    size = file_size(path)  # refuses a pipe
    with path.open("rb") as file:
        file.seek(max(0, size - len(SUPER_JOURNAL)))
        if file.read() == SUPER_JOURNAL:
            raise ConfigError(f"{path}: it names a file that is to be deleted, and no search has written it: {ANOTHER}")


@contextmanager
def _storage(path: Path) -> Iterator[None]:
    """What Optuna's storage raises, at any trial, as one sentence.

    Raises:
        ConfigError: the storage is damaged, or its disk is full.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except RegardError:
        raise
    except Exception as error:  # Optuna raises others, UnboundLocalError too, where SQLAlchemy's was raised
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, SQLAlchemyError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise ConfigError(
            f"{path}: damaged, or not a search of `regard tune`, or its disk is full: {first_line(cause)}: {ANOTHER}"
        ) from error


@contextmanager
def _quiet(log: Any) -> Iterator[None]:
    """Optuna without its warnings, which print tracebacks of what is raised anyway."""
    before = log.get_verbosity()
    log.set_verbosity(log.ERROR)
    try:
        yield
    finally:
        log.set_verbosity(before)


def _number(text: str, digits: str) -> float:
    """An end of a range.

    Raises:
        ConfigError: it is no number, or an infinite one.
    """
    try:
        number = float(digits)
    except ValueError:
        number = inf
    if not isfinite(number):
        raise ConfigError(f"--range {text}: expected two finite numbers; got {digits!r}")
    return number


def _value(text: str) -> Any:
    from regard.config import parse_setting

    return parse_setting(f"x={text}")[1]
