"""A search over settings: short runs, the best one kept, continued where it stopped."""

import signal
import struct
from itertools import count
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("optuna")

from conftest import tiny
from regard import experiment
from regard.errors import ConfigError
from regard.experiment import read_config
from regard.training.loop import Interrupted
from regard.tune import Range, _kept, tune


@pytest.mark.parametrize(("text", "wanted"), [
    ("a.b=1..4", Range("a.b", low=1.0, high=4.0)),
    ("a.b=1e-4..3e-3,log", Range("a.b", low=1e-4, high=3e-3, log=True)),
    ("a=-0.5..0.5", Range("a", low=-0.5, high=0.5)),
    ("a=x|y", Range("a", ("x", "y"))),
    ("a=1|2.5|true", Range("a", (1, 2.5, True))),
])  # fmt: skip
def test_ranges(text: str, wanted: Range) -> None:
    assert Range.parse(text) == wanted


@pytest.mark.parametrize(
    "text", ["a", "a=1", "a=1..", "a=4..1", "a=0..1,log", "=1..2", "a=x", "a=1.2.3..4", "a=1..1e999"]
)
def test_wrong_ranges_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--range"):
        Range.parse(text)


class Fake:
    """A run whose measure is known: best at a learning rate of 0.001 with the cosine schedule."""

    made = 0

    def __init__(self, config: Any, given: dict[str, Any], run: Path, report: Any) -> None:
        Fake.made += 1
        settings = read_config(config, given)
        rate, schedule = settings.training.learning_rate, settings.training.schedule
        value = -abs(rate - 0.001) * 1000 - (schedule != "cosine")
        for step in (1, 2, 3):
            report({"event": "evaluation", "step": step, "dev_bleu": value})
        self.journal = [{"dev_bleu": value}]


RANGES = [Range.parse("training.learning_rate=1e-4..1e-2,log"), Range.parse("training.schedule=cosine|constant")]


def test_a_search_finds_the_best_settings_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regard.tune.train", Fake)
    told: list[tuple[int, dict[str, Any], float | None, str]] = []
    config = tiny("transformer")
    clock = count()  # a trial takes a second
    monkeypatch.setattr("regard.tune.time", SimpleNamespace(monotonic=lambda: next(clock)))
    for minutes in (0.2, 0.2):
        best = tune(
            config, RANGES, tmp_path / "t", minutes=minutes, trial_minutes=1.0, on_trial=lambda *one: told.append(one)
        )
    assert [number for number, _, _, _ in told] == list(range(len(told)))  # numbered on
    assert len({chosen["training.learning_rate"] for _, chosen, _, _ in told}) == len(told)  # none twice
    assert len(told) == 2 * 12  # 12 seconds
    assert best["training.schedule"] == "cosine"
    assert abs(best["training.learning_rate"] - 0.001) < 0.0008
    kept = read_config(tmp_path / "t" / "best.toml")
    assert kept.training.learning_rate == best["training.learning_rate"]
    assert kept.training.max_minutes is None  # the whole training is not cut short


def test_unknown_settings_are_refused_before_the_first_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regard.tune.train", Fake)
    Fake.made = 0
    with pytest.raises(ConfigError, match=r"unknown setting training\.learning_rat"):
        tune(tiny("transformer"), [Range.parse("training.learning_rat=1..2")], tmp_path, minutes=1.0, trial_minutes=1.0)
    assert not Fake.made


def test_trials_that_fail_are_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, dict[str, Any], float | None, str]] = []

    def failing(*_: Any, **__: Any) -> None:
        raise ConfigError("no")

    monkeypatch.setattr("regard.tune.train", failing)
    with pytest.raises(ConfigError, match=r"no trial was finished: no$"):  # the sentence of the last one
        tune(
            tiny("transformer"), RANGES, tmp_path / "t", minutes=0.001, trial_minutes=1.0,
            on_trial=lambda *one: told.append(one),
        )  # fmt: skip
    assert {(value, failed) for _, _, value, failed in told} == {(None, "no")}


def test_a_storage_that_fails_during_a_trial_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Broken(Fake):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            (tmp_path / "t" / "trials.db").write_bytes(b"SQLite format 3\0" + bytes(3000))

    monkeypatch.setattr("regard.tune.train", Broken)
    with pytest.raises(ConfigError, match=r"trials\.db: damaged, or not a search of `regard tune`, or its disk"):
        tune(tiny("transformer"), RANGES, tmp_path / "t", minutes=0.001, trial_minutes=1.0)
    assert capfd.readouterr().err == ""


def test_a_search_is_not_continued_as_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regard.tune.train", Fake)
    folder = tmp_path / "t"

    def search(ranges: list[Range], **overrides: Any) -> dict[str, Any]:
        return tune(tiny("transformer"), ranges, folder, minutes=0.001, trial_minutes=1.0, overrides=overrides)

    search(RANGES)
    with pytest.raises(ConfigError, match=r"t: holds a search by bleu, not by loss \(training.metric\)"):
        search(RANGES, **{"training.metric": "loss"})
    other = [RANGES[0], Range.parse("training.schedule=cosine|inverse_sqrt|constant")]
    with pytest.raises(ConfigError, match="t: its earlier trials searched over other values"):
        search(other)
    search([*RANGES, Range.parse("training.label_smoothing=0.0|0.1")])  # a further setting is no contradiction
    (folder / "trials.db").write_bytes(b"SQLite format 3\0" + bytes(3000))
    with pytest.raises(ConfigError, match=r"trials\.db: damaged, or not a search of `regard tune`"):
        search(RANGES)


def test_a_trial_is_a_run(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, talk: Any) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    config = tmp_path / "c.toml"
    from regard.config import to_toml

    config.write_text(to_toml(read_config(tiny("recurrent"))), "utf-8")
    code, out, err = talk(
        "tune", config, "--range", "training.label_smoothing=0.0|0.1", "--minutes", 0.001, "--folder", tmp_path / "t"
    )
    assert code == 0, err
    assert out.splitlines()[0].startswith("training.label_smoothing = 0.")
    assert (tmp_path / "t" / "trial-0000" / "bundle.json").exists()


def test_curves_for_tensorboard(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    run = experiment.train(tiny("transformer"), {"training.tensorboard": True}, run=tmp_path / "run")
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in found.Scalars("training/loss")] == [1, 2, 3, 4, 5, 6]
    losses = [event.value for event in found.Scalars("development/loss")]
    assert losses == pytest.approx([entry["dev_loss"] for entry in run.journal if entry["event"] == "evaluation"])


def test_whole_numbers_are_proposed_for_settings_that_take_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regard.tune.train", Fake)
    told: list[dict[str, Any]] = []
    ranges = [Range.parse(text) for text in ("training.batch_tokens=100..2000,log", "training.learning_rate=1..3")]
    clock = count()
    monkeypatch.setattr("regard.tune.time", SimpleNamespace(monotonic=lambda: next(clock)))
    tune(
        tiny("transformer"), ranges, tmp_path / "t", minutes=0.2, trial_minutes=1.0,
        on_trial=lambda _, chosen, value, failed: told.append(chosen),
    )  # fmt: skip
    assert {type(one["training.batch_tokens"]) for one in told} == {int}
    assert any(
        one["training.learning_rate"] % 1 for one in told
    )  # numbers between two whole ones, where they are taken


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        ({"minutes": nan, "trial_minutes": 1.0}, "minutes must be a number of at least 0; got nan"),
        ({"minutes": -1.0, "trial_minutes": 1.0}, "minutes must be a number of at least 0; got -1.0"),
        ({"minutes": 1.0, "trial_minutes": 0.0}, "trial_minutes must be a number above 0; got 0.0"),
        ({"minutes": 1.0, "trial_minutes": inf}, "trial_minutes must be a number above 0; got inf"),
    ],
)
def test_budgets_that_are_none_are_refused(budget: dict[str, float], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        tune(tiny("transformer"), RANGES, tmp_path / "t", **budget)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["training.schedule=cosine|sine"], "training.schedule"),
        (["training.warmup=1..2.5"], "training.warmup"),
        (["model.dropout=0.1..0.2", "model.dropout=0.2..0.3"], "model.dropout: given twice"),
    ],
)
def test_values_that_a_setting_does_not_take_are_refused_before_the_first_trial(
    texts: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regard.tune.train", Fake)
    Fake.made = 0
    with pytest.raises(ConfigError, match=sentence):
        tune(tiny("transformer"), [*map(Range.parse, texts)], tmp_path / "t", minutes=0.0, trial_minutes=1.0)
    assert not Fake.made


def test_a_search_whose_trials_all_fail_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Fake):
        good, differently = 0, False

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            if Fake.made > Failing.good:
                raise ConfigError(f"no {Fake.made}" if Failing.differently else "no")

    def search() -> None:
        tune(tiny("transformer"), RANGES, tmp_path / "t", minutes=60.0, trial_minutes=1.0)

    monkeypatch.setattr("regard.tune.train", Failing)
    Fake.made = 0
    with pytest.raises(ConfigError, match=r"no trial was finished: no$"):
        search()
    assert Fake.made == 3
    Fake.made, Failing.differently = 0, True
    with pytest.raises(ConfigError, match=r"no trial was finished: no 10$"):
        search()
    assert Fake.made == 10
    Fake.made, Failing.good = 0, 4
    with pytest.raises(ConfigError, match=r"the last trials failed: no 14; best\.toml has the best one before them$"):
        search()
    assert Fake.made == 14
    assert read_config(tmp_path / "t" / "best.toml").training.schedule in ("cosine", "constant")


def test_a_search_is_not_continued_with_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regard.tune.train", Fake)

    def search(ranges: list[Range], **overrides: Any) -> dict[str, Any]:
        return tune(
            tiny("transformer"), ranges, tmp_path / "t", minutes=0.0, trial_minutes=1.0,
            overrides={name.replace("__", "."): value for name, value in overrides.items()},
        )  # fmt: skip

    search(RANGES, training__seed=1)
    with pytest.raises(ConfigError, match=r"t: holds a search with training\.seed = 1, not 2: name another --folder"):
        search(RANGES, training__seed=2)
    with pytest.raises(ConfigError, match=r"holds a search with model\.dropout = .*, not 0\.25"):
        search(RANGES, training__seed=1, model__dropout=0.25)
    with pytest.raises(
        ConfigError, match=r"searched over other values \(training\.learning_rate in 0\.0001 to 0\.01, log"
    ):
        search([Range.parse("training.learning_rate=1e-4..1e-3,log"), RANGES[1]], training__seed=1)
    search([*RANGES, Range.parse("model.dropout=0.1..0.3")], training__seed=1)
    search(RANGES, training__seed=1, training__device="cpu", training__checkpoint_seconds=7)  # they are not compared


@pytest.mark.parametrize("noticed", [True, False])
def test_a_signal_ends_a_search_and_its_trials_are_kept(
    noticed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, talk: Any
) -> None:
    class Signalled(Fake):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            if Fake.made == 2:
                signal.raise_signal(signal.SIGTERM)
                if noticed:  # by the training, which is saved and raises; else it has just ended
                    error = Interrupted()
                    error.number = signal.SIGTERM
                    raise error

    monkeypatch.setattr("regard.tune.train", Signalled)
    from regard.config import to_toml

    config = tmp_path / "c.toml"
    config.write_text(to_toml(read_config(tiny("transformer"))), "utf-8")
    search = ["tune", config, "--range", "training.learning_rate=1e-4..1e-2,log", "--folder", tmp_path / "t"]
    before, Fake.made = signal.getsignal(signal.SIGTERM), 0
    code, _, err = talk(*search, "--minutes", 60)
    assert code == 143
    assert err.endswith("regard: interrupted; the finished trials are kept: the same command continues the search\n")
    assert Fake.made == 2
    assert signal.getsignal(signal.SIGTERM) is before
    code, out, err = talk(*search, "--minutes", 0)
    assert (code, Fake.made) == (0, 3), err
    assert "training.learning_rate = " in out


@pytest.mark.parametrize(
    ("text", "overrides", "sentence"),
    [
        ("training.max_minutes=1..2", {}, "--range training.max_minutes: --trial-minutes says"),
        ("model.dropout=0.1..0.2", {"model.dropout": 0.3}, "--range model.dropout: --set says"),
    ],
)
def test_what_is_said_twice_is_refused(text: str, overrides: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        tune(
            tiny("transformer"), [Range.parse(text)], tmp_path / "t", minutes=0.0, trial_minutes=1.0,
            overrides=overrides,
        )  # fmt: skip
    assert not (tmp_path / "t").exists()


def test_the_best_config_is_that_of_its_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regard.tune.train", Fake)
    rate = Range.parse("training.learning_rate=0.001..0.0011")

    def search(ranges: list[Range], **overrides: Any) -> dict[str, Any]:
        found = tune(
            tiny("transformer"), [rate, *ranges], tmp_path / "t", minutes=0.0, trial_minutes=1.0,
            overrides={name.replace("__", "."): value for name, value in overrides.items()},
        )  # fmt: skip
        kept = read_config(tmp_path / "t" / "best.toml")
        assert kept.training.learning_rate == found["training.learning_rate"]
        assert (kept.model.dropout, kept.training.schedule, kept.training.max_minutes) == (0.3, "cosine", None)
        return found

    first = search([], model__dropout=0.3)
    worse = [Range.parse("training.schedule=constant|inverse_sqrt"), Range.parse("model.dropout=0.1..0.2")]
    assert search(worse) == first


def test_the_measure_is_that_of_the_model_that_was_kept() -> None:
    journal = [
        {"event": "evaluation", "step": 1, "dev_loss": 3.0}, {"event": "evaluation", "step": 2, "dev_loss": 2.0},
        {"event": "average", "step": 2, "of": [2, 1], "chosen": False, "dev_loss": 2.5},
    ]  # fmt: skip
    assert _kept(journal)["dev_loss"] == 2.0
    journal[-1]["chosen"] = True
    assert _kept(journal)["dev_loss"] == 2.5


def test_odd_folders_and_large_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regard.tune.train", Fake)
    folder = tmp_path / "a?b#c%20"
    tune(tiny("transformer"), RANGES, folder, minutes=0.0, trial_minutes=1.0, overrides={"training.seed": 2**40})
    assert (folder / "trials.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "trials.db").write_text("of another search")
    with pytest.raises(ConfigError, match="not made by regard"):
        tune(tiny("transformer"), RANGES, tmp_path / "mine", minutes=0.0, trial_minutes=1.0)


def test_an_evaluation_without_the_metric_is_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Infinite(Fake):
        def __init__(self, config: Any, given: dict[str, Any], run: Path, report: Any) -> None:
            report({"event": "evaluation", "step": 1, "dev_loss": inf})
            super().__init__(config, given, run, report)

    monkeypatch.setattr("regard.tune.train", Infinite)
    assert tune(tiny("transformer"), RANGES, tmp_path / "search", minutes=0.0, trial_minutes=1.0)


def test_a_journal_that_names_a_file_to_delete_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regard.tune.train", Fake)
    tune(tiny("transformer"), RANGES, tmp_path / "search", minutes=0.0, trial_minutes=1.0)
    (tmp_path / "diary.txt").write_text("kept")
    name = str(tmp_path / "diary.txt").encode()
    end = struct.pack(">I", 262145) + name + struct.pack(">II", len(name), sum(name))
    journal = tmp_path / "search" / "trials.db-journal"
    journal.write_bytes(b"x" * 512 + end + bytes.fromhex("d9d505f920a163d7"))
    with pytest.raises(ConfigError, match=r"trials\.db-journal: it names a file that is to be deleted"):
        tune(tiny("transformer"), RANGES, tmp_path / "search", minutes=0.0, trial_minutes=1.0)
    assert (tmp_path / "diary.txt").read_text() == "kept"
    journal.write_bytes(b"")  # of a search that was killed
    assert tune(tiny("transformer"), RANGES, tmp_path / "search", minutes=0.0, trial_minutes=1.0)


def test_a_search_that_is_a_link_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regard.tune.train", Fake)
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / ".regard").write_text("This folder was made by regard.")
    (tmp_path / "search" / "trials.db").symlink_to(tmp_path / "other.db")
    with pytest.raises(ConfigError, match=r"trials\.db: a link, which regard does not follow"):
        tune(tiny("transformer"), RANGES, tmp_path / "search", minutes=0.1, trial_minutes=1.0)
    assert not (tmp_path / "other.db").exists()
