"""A search over settings: short trainings, each with settings that Optuna proposes, for a budget of minutes.

tune/
  trials.db      Optuna's storage: a search that was interrupted goes on
  best.toml      the config with the best settings found
  trial-0003/    the run of a trial
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any

from regard.config import to_toml
from regard.errors import ConfigError, RegardError
from regard.experiment import read_config, train
from regard.storage import claim, exclusive, write_text
from regard.training.best import SMALL_IS_BETTER
from regard.untrusted import first_line

STORAGE, BEST, STUDY = "trials.db", "best.toml", "settings"
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
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

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

    def propose(self, trial: Any) -> Any:
        """A value for a trial of Optuna's."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.low.is_integer() and self.high.is_integer() and not self.log:
            return trial.suggest_int(self.name, int(self.low), int(self.high))
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


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
    ends early. The search goes on where an earlier one in the same folder stopped.

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
        ConfigError: an unknown setting; Optuna is not installed; the folder holds a search by another metric or over
            other choices, or a damaged one; no trial was finished.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("regard tune needs the package Optuna: pip install 'regard[tune]'") from error
    for one in ranges:  # refused before the first trial
        first = one.choices[0] if one.choices else int(one.low) if one.low.is_integer() else one.low
        read_config(config, (overrides or {}) | {one.name: first})
    settings = read_config(config, overrides)
    metric = settings.training.metric
    claim(folder, "a search", (STORAGE,))

    def objective(trial: Any) -> float:
        try:
            chosen = {one.name: one.propose(trial) for one in ranges}
        except ValueError as error:  # Optuna's: the values are of another kind, or other choices
            raise ConfigError(
                f"{folder}: its earlier trials searched over other values ({error}): {ANOTHER}"
            ) from error

        def report(event: dict[str, Any]) -> None:
            if event["event"] == "evaluation":
                trial.report(event[f"dev_{metric}"], event["step"])
                if trial.should_prune():
                    raise optuna.TrialPruned

        value, failed = None, ""
        try:
            given = (overrides or {}) | chosen | {"training.max_minutes": trial_minutes}
            run = train(config, given, run=folder / f"trial-{trial.number:04d}", report=report)
            value = run.journal[-1][f"dev_{metric}"]
        except RegardError as error:
            failed = str(error)
            trial.set_user_attr("error", failed)
            raise optuna.TrialPruned from error
        finally:
            on_trial(trial.number, chosen, value, failed)
        return float(value)

    until = time.monotonic() + 60 * minutes
    with exclusive(folder), _quiet(optuna.logging), _storage(folder / STORAGE):
        study = _study(folder, metric, settings.training.seed)
        study.optimize(objective, n_trials=1)
        while time.monotonic() < until:
            study.optimize(objective, n_trials=1)
        trials = study.trials
    if not any(one.state.name == "COMPLETE" for one in trials):
        why = next((one.user_attrs["error"] for one in reversed(trials) if "error" in one.user_attrs), "")
        raise ConfigError(
            f"{folder}: no trial was finished: {why or 'give more minutes, or look at why the trials end early'}"
        )
    best = dict(study.best_params)
    write_text(folder / BEST, to_toml(read_config(config, (overrides or {}) | best)))
    return best


def _study(folder: Path, metric: str, seed: int) -> Any:
    """Optuna's study in a folder: a new one, or the one that was begun there.

    Raises:
        ConfigError: it is of another metric, or damaged.
    """
    import optuna

    path = folder / STORAGE
    try:
        study = optuna.create_study(
            study_name=STUDY, storage=f"sqlite:///{path}", load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=seed), pruner=optuna.pruners.MedianPruner(5, 2),
            direction="minimize" if metric in SMALL_IS_BETTER else "maximize",
        )  # fmt: skip
        if not study.trials:
            study.set_user_attr("metric", metric)
        before = study.user_attrs.get("metric")
    except (ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"{path}: damaged, or not a search of `regard tune`: {first_line(error)}: {ANOTHER}"
        ) from error
    if before != metric:
        raise ConfigError(f"{folder}: holds a search by {before}, not by {metric} (training.metric): {ANOTHER}")
    return study


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
