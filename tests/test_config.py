"""Configs: what is wrong is named, with the nearest spelling; what is written is read again the same."""

import copy
import os
import tomllib
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from regard.config import (
    CONFIG_FOLDER,
    apply,
    config_names,
    find_config,
    parse_setting,
    read_toml,
    to_toml,
    validate,
    with_current_names,
)
from regard.errors import ConfigError, shown
from regard.experiment import read_config
from regard.tasks.config import ExperimentConfig

CONFIGS = sorted(CONFIG_FOLDER.glob("*.toml"))
MODELS = {
    "recurrent": {"kind": "recurrent", "width": 16, "score": "general", "dropout": 0.25},
    "transformer": {"kind": "transformer", "width": 16, "heads": 2, "key_heads": 1, "tied": False},
}


def experiment(model="recurrent", **changes):
    return {"data": {"train": "x.tsv"}, "model": dict(MODELS[model]) if model in list(MODELS) else model, **changes}


def check(config):
    return validate(ExperimentConfig, config, "run.toml")


def test_reads_toml(tmp_path):
    (tmp_path / "x.toml").write_text('a = 1\n[b]\nc = ["é", 2.5]\n', "utf-8")
    assert read_toml(tmp_path / "x.toml") == {"a": 1, "b": {"c": ["é", 2.5]}}


def test_a_config_is_a_file_or_the_name_of_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"first", "fr-en", "shapes"} <= set(config_names())
    assert find_config("first") == CONFIG_FOLDER / "first.toml"
    (tmp_path / "first").write_text("")
    assert find_config("first") == Path("first")
    (tmp_path / "fr-en").mkdir()  # a run that is named like its config
    assert find_config("fr-en") == CONFIG_FOLDER / "fr-en.toml"
    with pytest.raises(
        ConfigError, match=r"frist: no such config file, and no shipped .*`regard configs` lists 'first'"
    ):
        find_config("frist")
    for name in ("first.toml", "there/first"):
        with pytest.raises(ConfigError, match=rf"^{name}: no such config file$"):
            find_config(name)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: no such config file"):
        read_toml(tmp_path / "none.toml")


@pytest.mark.parametrize("raw", [b"a = ", b"just text", b"a = 1\na = 2", b'a = "\xe9"', b"[a\n"])
def test_not_toml(tmp_path, raw):
    (tmp_path / "x.toml").write_bytes(raw)
    with pytest.raises(ConfigError, match=r"x\.toml: not a TOML file: "):
        read_toml(tmp_path / "x.toml")


def test_a_folder_is_no_config(tmp_path):
    with pytest.raises(ConfigError, match=tmp_path.name):
        read_toml(tmp_path)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.width=192", ("model.width", 192)),
        ("a=1e-3", ("a", 0.001)),
        ("a = true", ("a", True)),
        ('a="5"', ("a", "5")),
        ("a=plain words", ("a", "plain words")),
        ("data.train=/x/y=z.tsv", ("data.train", "/x/y=z.tsv")),
        ("a=[1, 2]", ("a", [1, 2])),
        ("a=", ("a", "")),
        ("a=$HOME/x", ("a", "$HOME/x")),
    ],
)
def test_settings_of_the_command_line(setting, expected):
    assert parse_setting(setting) == expected


@pytest.mark.parametrize("setting", ["model.width", "", "=5", " =5"])
def test_settings_without_key_or_value(setting):
    with pytest.raises(ConfigError, match=rf"--set {setting}: expected key=value, for example --set model.width=192"):
        parse_setting(setting)


def test_apply():
    before = {"a": 1, "b": {"c": 2, "d": 3}, "e": {"f": {"g": 4}}}
    kept = copy.deepcopy(before)
    after = apply(before, {"a": 5, "b.c": 6, "new.x.y": 7, "e.f.g": 8})
    assert after == {"a": 5, "b": {"c": 6, "d": 3}, "new": {"x": {"y": 7}}, "e": {"f": {"g": 8}}}
    assert before == kept


def test_apply_refuses_parts_of_a_single_setting():
    with pytest.raises(ConfigError, match=r"a\.b\.c: b is a single setting and has no parts"):
        apply({"a": {"b": 1}}, {"a.b.c": 2})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (experiment(trainng={}), r"run\.toml: unknown setting trainng: did you mean training\? \(known: training, "),
        (experiment(training={"max_step": 3}), r"unknown setting training\.max_step: did you mean max_steps\?"),
        (experiment(data={"train": "x", "split_bye": 1}), r"unknown setting data\.split_bye: did you mean split_by\?"),
        (experiment(model={"kind": "recurrent", "widht": 3}), r"unknown setting model\.widht: did you mean width\?"),
        (experiment(model={"kind": "transformer", "head": 3}), r"unknown setting model\.head: did you mean heads\?"),
        (experiment(model={"kind": "recurrent", "heads": 3}), r"unknown setting model\.heads: did you mean (?!heads)"),
        (experiment(tokenizer={"vocabluary": 9}), r"unknown setting tokenizer\.vocabluary: did you mean vocabulary\?"),
    ],
)
def test_unknown_settings_get_the_nearest_spelling(config, message):
    with pytest.raises(ConfigError, match=message):
        check(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            experiment(training={"max_steps": "many"}),
            r"training\.max_steps: input should be a valid integer.*got 'many'",
        ),
        (experiment(training={"max_steps": 0}), r"training\.max_steps: input should be greater than 0; got 0"),
        (experiment(training={"schedule": "cos"}), r"training\.schedule: input should be 'inverse_sqrt', 'cosine'"),
        (
            experiment(model={"kind": "recurrent", "cell": 5}),
            r"run\.toml: model\.cell: input should be 'gru' or 'lstm'",
        ),
        (experiment(model={"kind": "transfomer"}), r"model: .*'recurrent', 'transformer'"),
        (experiment(model={"width": 3}), r"model\.kind is missing: expected one of .*'transformer'"),
        (experiment(model=5), r"model: .*got 5"),
        (experiment(data=5), r"data: input should be a valid dictionary"),
        (experiment(data={}), r"data\.train is missing"),
        (experiment(data={"train": 5}), r"data\.train.*: .*got 5"),
        ({"model": MODELS["recurrent"]}, r"run\.toml: config: value error, task = \"translate\" needs \[data\]"),
        (experiment(data={"train": "x", "dev": ["x" * 99]}), r"data\.dev.*: .*x\.\.\.x"),
    ],
)
def test_wrong_values_are_named_and_shown(config, message):
    with pytest.raises(ConfigError, match=message):
        check(config)


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError) as refused:
        check(experiment(training={"max_stps": 3, "seed": "x"}, model={"kind": "recurrent", "widht": 3}))
    message = str(refused.value)
    assert all(part in message for part in ("training.max_stps", "training.seed", "model.widht"))
    assert message.count("; ") >= 2


@pytest.mark.parametrize("model", MODELS)
def test_to_toml_is_read_again_the_same(model):
    config = check(
        experiment(
            model, languages=["日本", 'a"b\\c'], data={"train": ["$X/a.gz", "b"], "on_empty": "skip", "source": "fr"},
            training={"learning_rate": 1e-7, "checkpoint_seconds": 1e22, "betas": [0.5, 0.75]},
        )
    )  # fmt: skip
    text = to_toml(config)
    assert check(tomllib.loads(text)) == config
    assert to_toml(check(tomllib.loads(text))) == text


@settings(deadline=None)
@given(start=st.text())
def test_to_toml_keeps_any_text(start):
    config = check(experiment(start=start))
    assert check(tomllib.loads(to_toml(config))).start == start


@settings(deadline=None)
@given(rate=st.floats(0, exclude_min=True, allow_infinity=False), penalty=st.floats(allow_nan=False))
def test_to_toml_keeps_any_number(rate, penalty):
    config = check(experiment(training={"learning_rate": rate}, decoding={"length_penalty": penalty}))
    assert check(tomllib.loads(to_toml(config))) == config


def test_to_toml_says_what_every_setting_means():
    lines = to_toml(check(experiment("transformer"))).splitlines()
    assert "[model]" in lines
    assert next(line for line in lines if line.startswith("heads")).split("#")[1].strip().startswith("Heads of every")
    assert any(line.startswith("# dev = (not set)") for line in lines)
    assert any(line.startswith("tied = false") for line in lines)
    assert lines[0] == next(line for line in lines if "=" in line)  # plain settings come before the sections


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_that_comes_along_is_valid(path):
    config = validate(ExperimentConfig, read_toml(path), str(path))
    assert check(tomllib.loads(to_toml(config))) == config


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["x"] = "x"
    size: int = Field(1, description="How large.")


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner | None = None
    after: tuple[int, ...] = (1, 2)


def test_to_toml_of_a_section_that_is_not_there():
    assert to_toml(Outer()).splitlines() == ["# inner = (not set)", "after = [1, 2]"]
    assert tomllib.loads(to_toml(Outer(inner=Inner(size=3)))) == {"after": [1, 2], "inner": {"kind": "x", "size": 3}}


def test_unknown_names_in_an_optional_section():
    with pytest.raises(ConfigError, match=r"unknown setting inner\.sise: did you mean size\?"):
        validate(Outer, {"inner": {"sise": 2}}, "x")


def test_deep_lists_are_refused(tmp_path):
    (tmp_path / "deep.toml").write_text("a = " + "[" * 50_000)
    with pytest.raises(ConfigError, match=r"deep\.toml: not a TOML file: nested too deeply"):
        read_toml(tmp_path / "deep.toml")
    with pytest.raises(ConfigError, match=r"--set a: its lists are nested too deeply"):
        parse_setting("a=" + "[" * 50_000)


def test_pipes_and_devices_are_no_config_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    for path in (tmp_path / "pipe.toml", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="a pipe or a device, not a config file"):
            read_toml(path)


def test_a_runs_folder_names_its_config(tmp_path):
    with pytest.raises(ConfigError, match=r"a folder, not a config file$"):
        read_toml(tmp_path)
    (tmp_path / "config.toml").touch()
    with pytest.raises(ConfigError, match=r"a folder, not a config file; a run's is .*config\.toml$"):
        read_toml(tmp_path)


def test_numbers_of_thousands_of_digits_are_one_sentence(tmp_path: Path) -> None:
    name, value = parse_setting("training.seed=" + "9" * 5000)
    assert (name, value) == ("training.seed", "9" * 5000)
    (tmp_path / "c.toml").write_text("seed = " + "9" * 5000)
    with pytest.raises(ConfigError, match="not a TOML file"):
        read_toml(tmp_path / "c.toml")


def test_names_that_are_not_utf_8_are_refused() -> None:
    with pytest.raises(ConfigError, match="a name in it is not UTF-8"):
        read_config("fr-en", {"data.train": ["x\udcff", "y"]})


def test_a_number_of_thousands_of_digits_in_another_base_is_one_sentence() -> None:
    with pytest.raises(
        ConfigError, match=r"max_steps: expected at most 9,007,199,254,740,992; got a number of 20,000 b"
    ):
        read_config("fr-en", {"training.max_steps": int("f" * 5000, 16)})
    assert "seed = 9223372036854775807" in to_toml(read_config("fr-en", {"training.seed": 2**63 - 1}))
    assert shown(int("f" * 5000, 16)) == "a number of 20,000 bits"


def test_both_names_of_a_setting_are_refused() -> None:
    for section in ({"word_dropout": 0.3, "forget": 0.1}, {"forget": 0.1, "word_dropout": 0.3}):
        with pytest.raises(ConfigError, match=r"training\.forget and training\.word_dropout are two names"):
            with_current_names({"training": section})


def test_configs_that_are_too_deep_or_too_large_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.toml"
    for text in (".".join("a" * 3000) + " = 1\n", "[" + ".".join("a" * 3000) + "]\nx = 1\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="nested too deeply"):
            read_toml(path)
    with pytest.raises(ConfigError, match="no setting has so many parts"):
        parse_setting(".".join("a" * 3000) + "=1")
    path.write_text("# a comment\n" * 400_000)
    with pytest.raises(ConfigError, match=r"a config has at most 4,194,304 bytes; this file has 4,800,000"):
        read_toml(path)


def test_more_layers_than_any_model_has_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"more than 20,000 weights and biases: set fewer layers"):
        read_config("fr-en", {"model.encoder_layers": 10**9})
    with pytest.raises(ConfigError, match=r"window_layers = \[99\]: expected numbers of the 4 layers, 0 to 3"):
        read_config("fr-en", {"model.window": 4, "model.window_layers": [99]})


def test_names_of_development_sets_need_no_ascii(tmp_path: Path) -> None:
    settings = {"data.dev_sets": {"réseau": "dev.tsv", "plain": "dev.tsv"}}
    (tmp_path / "c.toml").write_text(to_toml(read_config("fr-en", settings)))
    assert set(read_config(tmp_path / "c.toml").data.dev_sets) == {"réseau", "plain"}
