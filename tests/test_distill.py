"""A student learns the outputs of a teacher; what was kept apart stays apart."""

import json
from pathlib import Path

import pytest

import regard
from regard.data.files import share_of
from regard.distill import distill
from regard.errors import ConfigError

NOUNS = ("chat", "chien", "cheval", "lapin", "canard")
COLOURS = ("noir", "blanc", "rouge", "vert")
CONFIG = """
languages = ["fr", "en"]
[data]
train = "$REGARD_DATA/tatoeba-fra-eng/pairs.en-fr.tsv.gz"
source = 1
target = 0
dev_share = 0.15
test_share = 0.1
[tokenizer]
kind = "characters"
[model]
kind = "transformer"
width = 16
heads = 2
ffn_width = 16
encoder_layers = 1
decoder_layers = 1
[training]
max_steps = 2
batch_tokens = 500
evaluate_every = 2
"""


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_student_learns_what_its_teacher_says(talk, tmp_path: Path, data_folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    config, run, extra = tmp_path / "student.toml", tmp_path / "run", tmp_path / "extra.txt"
    config.write_text(CONFIG)
    extra.write_text(
        "un chat noir\n\nla maison\n" + "".join(f"le {noun} {colour}\n" for noun in NOUNS for colour in COLOURS)
    )
    command = (
        "distill", "fr-en", config, "--folder", run, "--text", extra, "--beam", 2, "--n-best", 2, "--precision",
        "float32", "--set", "data.dev_sets={more = '$REGARD_DATA/tatoeba-fra-eng/pairs.en-fr.tsv.gz'}",
    )  # fmt: skip
    code, out, err = talk(*command)
    assert (code, out) == (0, f"{run}\n"), err
    folder = run / "distilled"
    pairs, dev, test = (rows(folder / f"{name}.jsonl") for name in ("pairs", "dev", "test"))
    shares = {share_of(row["source"]) for row in dev}
    assert dev
    assert max(shares) < 0.15
    assert all(0.15 <= share_of(row["source"]) < 0.25 for row in test)
    kept = {row["source"] for row in (*dev, *test)}
    assert not any(row["source"] in kept for row in pairs)
    assert {"un chat noir", "la maison"} <= {row["source"] for row in pairs}
    teacher = regard.load("fr-en")
    for source in ("un chat noir", pairs[0]["source"]):
        made = teacher(source, beam=2, n_best=2, split=False)
        said = [row["target"] for row in pairs if row["source"] == source]
        assert said[: 1 + len(made.alternatives)] == [made.text, *(one.text for one in made.alternatives)]
    student = regard.load(run)
    assert isinstance(student("le chat").text, str)
    journal = rows(run / "journal.jsonl")
    assert "dev_more_loss" in journal[-1] or any("dev_more_loss" in row for row in journal)
    settings = (run / "config.toml").read_text()
    assert str(folder / "pairs.jsonl") in settings


def test_what_a_corpus_was_made_from_is_not_changed(talk, tmp_path: Path, data_folder: Path, monkeypatch) -> None:
    """Another teacher, other texts and other data are refused; a longer training is not."""
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    config, run, extra = tmp_path / "student.toml", tmp_path / "run", tmp_path / "extra.txt"
    config.write_text(CONFIG)
    extra.write_text("un chat noir\n")
    command = ("distill", "fr-en", config, "--folder", run, "--beam", 1)
    assert talk(*command, "--text", extra)[0] == 0
    folder = run / "distilled"
    before = (folder / "pairs.jsonl").read_bytes()

    def refused(*further: object) -> str:
        code, _, err = talk(*command, "--resume", *further)
        assert code in (1, 2)
        assert (folder / "pairs.jsonl").read_bytes() == before
        return err

    assert f"{folder / 'corpus.jsonl'}: made from other data" in refused()  # without --text
    assert "made from other data" in refused("--text", extra, "--set", "data.dev_share=0.2")
    extra.write_text("un chat blanc\n")
    assert "made from other data" in refused("--text", extra)
    extra.write_text("un chat noir\n")
    assert "its parts were made with" in refused("--text", extra, "--beam", 2)
    about = folder / "parts" / "corpus.json"
    about.write_text(about.read_text().replace('"fr-en"', '"other"'))
    assert "its parts were made with model = 'other'" in refused("--text", extra)
    about.write_text(about.read_text().replace('"other"', '"fr-en"'))
    part = next((folder / "parts").glob("part-*.parquet"))
    whole = part.read_bytes()
    part.write_bytes(whole[:-40])
    assert f"{part}: damaged" in refused("--text", extra)
    part.write_bytes(whole)
    assert talk(*command, "--text", extra, "--resume", "--set", "training.max_steps=3")[0] == 0


@pytest.mark.parametrize("teacher", ["english"])
def test_a_teacher_translates(talk, tmp_path: Path, data_folder: Path, monkeypatch, teacher: str) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    (tmp_path / "student.toml").write_text(CONFIG)
    code, _, err = talk("distill", teacher, tmp_path / "student.toml", "--folder", tmp_path / "run")
    assert code == 2
    assert "not for `regard translate`" in err


def test_a_teacher_has_the_student_s_direction(tmp_path: Path, data_folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    (tmp_path / "student.toml").write_text(CONFIG)
    given = tmp_path / "student.toml", {}, tmp_path / "run", regard.load
    with pytest.raises(ConfigError, match="en-fr-fast translates from en to fr, and the student's languages are fr to"):
        distill("en-fr-fast", *given)
    with pytest.raises(ConfigError, match="english is no translator"):
        distill("english", *given)
    with pytest.raises(ConfigError, match="n_best must be 1 or more; got 0"):
        distill("fr-en-fast", *given, n_best=0)
    assert not (tmp_path / "run").exists()


def test_the_test_pairs_stay_in_reach(talk, tmp_path: Path, data_folder: Path, monkeypatch) -> None:
    """Of a student, and of a run whose test pairs have a file of their own: nothing else is split off for them."""
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    config, run, own = tmp_path / "student.toml", tmp_path / "run", tmp_path / "test.tsv"
    config.write_text(CONFIG)
    own.write_text("the red cat\tle chat rouge\nthe black dog\tle chien noir\n")
    command = ("distill", "fr-en", config, "--folder", run, "--beam", 1, "--set", f"data.test={own}")
    code, _, err = talk(*command)
    assert code == 0, err
    assert [row["target"] for row in rows(run / "distilled" / "test.jsonl")] == ["the red cat", "the black dog"]
    shares = {share_of(row["source"]) for row in rows(run / "distilled" / "pairs.jsonl")}
    assert any(0.15 <= share < 0.25 for share in shares)  # what test_share would have taken
    code, out, err = talk("evaluate", run, "--part", "test", "--json")
    assert code == 0, err
    assert json.loads(out)["sentences"] == 2


def test_further_development_pairs_are_not_given_to_the_teacher(
    talk, tmp_path: Path, data_folder: Path, monkeypatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    (tmp_path / "more.tsv").write_text("another\tun autre\n")
    (tmp_path / "texts.txt").write_text("un autre\n un autre \nun troisième\n")
    sets = f'dev_sets = {{ more = "{tmp_path / "more.tsv"}" }}'
    (tmp_path / "c.toml").write_text(CONFIG.replace("dev_share", f"{sets}\ndev_share", 1))
    arguments = ["distill", "fr-en-fast", tmp_path / "c.toml", "--text", tmp_path / "texts.txt"]
    code, _, err = talk(*arguments, "--folder", tmp_path / "run", "--set", "training.max_steps=1")
    assert code == 0, err
    sources = [row["source"] for row in rows(tmp_path / "run" / "distilled" / "corpus.jsonl")]
    assert "un troisième" in sources
    assert "un autre" not in [source.strip() for source in sources]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [("training.device=cuda:7", "cuda"), ("model.width=15", "width"), ("", "holds a run already")],
)
def test_what_would_end_the_student_is_said_before_the_teacher_works(
    talk, tmp_path: Path, data_folder: Path, monkeypatch, setting: str, sentence: str
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    (tmp_path / "student.toml").write_text(CONFIG)
    run = tmp_path / "run"
    if not setting:
        run.mkdir()
        (run / "last.safetensors").write_bytes(b"")
    more = ["--set", setting] if setting else []
    code, _, err = talk("distill", "fr-en-fast", tmp_path / "student.toml", "--folder", run, *more)
    assert code == 2
    assert sentence in err
    assert not (run / "distilled").exists()


@pytest.mark.parametrize("name", ["distilled", "distilled/parts"])
def test_links_in_a_folder_of_a_stranger_are_not_followed(
    talk, tmp_path: Path, data_folder: Path, monkeypatch, name: str
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    config, run, other = tmp_path / "student.toml", tmp_path / "run", tmp_path / "other"
    config.write_text(CONFIG)
    other.mkdir()
    (other / "dev.jsonl").write_text("kept")
    (run / name).parent.mkdir(parents=True)
    (run / ".regard").write_text("This folder was made by regard.")
    (run / name).symlink_to(other)
    code, out, err = talk("distill", "fr-en", config, "--folder", run)
    assert (code, out) == (2, "")
    assert "a link, which regard does not follow" in err
    assert [path.name for path in other.iterdir()] == ["dev.jsonl"]
    assert (other / "dev.jsonl").read_text() == "kept"
