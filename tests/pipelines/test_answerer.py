"""Questions about pictures, from training to the command line."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import regard
from regard import cli, experiment
from regard.data.questions import PictureQuestionsConfig, read_questions
from regard.errors import ConfigError, DataError
from regard.models.build import build
from regard.models.questions import QuestionsConfig, StackedAttentionConfig
from regard.pipelines.answerer import Answerer
from regard.pipelines.base import InputError
from regard.tasks.questions import evaluate

GRID = {"kind": "grid", "size": 32, "first": 8, "channels": [16], "width": 24}
MODELS: dict[str, dict[str, Any]] = {
    "stacked": {"kind": "stacked", "embedding": 12, "score_width": 8, "source_encoder": GRID},
    "blind": {"kind": "stacked", "embedding": 12, "hops": 0, "source_encoder": GRID},
    "hard": {"kind": "stacked", "embedding": 12, "hops": 1, "normalizer": "hard", "source_encoder": GRID},
    "questions": {"kind": "questions", "width": 32, "heads": 2, "ffn_width": 48, "layers": 2, "source_encoder": GRID},
}


def made_questions(folder: Path) -> Path:
    """Twelve walls of two colors, lit on one side; two questions about each."""
    (folder / "images").mkdir(parents=True)
    rows = ["image,question,answer"]
    for number in range(12):
        colour, side = ("red", "blue")[number % 2], ("left", "right")[number // 2 % 2]
        picture = Image.new("RGB", (32, 32), "white")
        picture.paste(colour, (2, 4, 14, 28) if side == "left" else (18, 4, 30, 28))
        picture.save(folder / "images" / f"{number}.png")
        rows += [f"{number},What colour is it?,{colour}", f"{number},where is it?,{side}"]
    (folder / "asked.csv").write_text("\n".join(rows))
    return folder


def config(folder: Path, model: str, **training: Any) -> dict[str, Any]:
    return {
        "task": "answer",
        "questions": {
            "table": str(folder / "asked.csv"), "files": str(folder / "images"), "file": "image", "ending": ".png",
            "dev_share": 0.2,
        },
        "tokenizer": {"kind": "words", "vocabulary": 40}, "model": MODELS[model],
        "training": {
            "max_steps": 3, "evaluate_every": 3, "warmup": 2, "schedule": "cosine", "batch_tokens": 60,
            "metric": "exact", "label_smoothing": 0.0, "learning_rate": 5e-3,
        } | training,
    }  # fmt: skip


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_questions(tmp_path_factory.mktemp("asked") / "set")


@pytest.fixture(scope="session", params=list(MODELS))
def run(request: pytest.FixtureRequest, asked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / request.param
    experiment.train(config(asked, request.param), run=folder)
    return folder


def test_what_is_trained_answers(run: Path, asked: Path) -> None:
    model = regard.load(run)
    assert isinstance(model, Answerer)
    one, two = model(asked / "images" / "3.png", ["what colour is it?", "Where is it?"], top=2)
    assert one.text in ("red", "blue", "left", "right")
    assert [one.text, *(text for text, _ in one.alternatives)] == list(
        dict.fromkeys([one.text, *(text for text, _ in one.alternatives)])
    )
    assert 0 < one.probability <= 1
    names, weights = two.word_attention
    assert len(names) == len(weights)
    sites = {"stacked": 2, "blind": 0, "hard": 1, "questions": 2}[run.name]
    assert len(one.attention) == sites
    if sites:
        assert torch.allclose(weights.sum(-1), torch.ones(len(weights)), atol=1e-5)
        if run.name == "questions":
            assert names == ["Where", "is", "it?", f"→ {two.text}"]
    assert len(model.answers) == 4


def test_it_learns_to_look(asked: Path, tmp_path: Path) -> None:
    """Colors and sides are learned from ten pictures; what sees the mean alone still tells colors."""
    done = experiment.train(config(asked, "stacked", max_steps=160, evaluate_every=160), run=tmp_path / "run")
    assert done.journal[-1]["dev_exact"] >= 75


def test_a_run_goes_on_from_another(run: Path, asked: Path, tmp_path: Path) -> None:
    """Also where the later data have their answers in another order, or lack some."""
    still = config(asked, run.name, learning_rate=1e-12, warmup=0) | {"start": str(run)}
    turned = asked / "turned.csv"
    first, *rows = (asked / "asked.csv").read_text().splitlines()
    turned.write_text("\n".join([first, *(row for row in reversed(rows) if not row.endswith("left"))]))
    still["questions"]["table"] = str(turned)
    after = experiment.train(still, run=tmp_path / "run").model
    before = regard.load(run)
    assert after.answers == before.answers
    picture = asked / "images" / "3.png"
    assert after(picture, "where is it?").text == before(picture, "where is it?").text
    deeper = {"channels": [24]}
    still["model"] = still["model"] | {"source_encoder": still["model"]["source_encoder"] | deeper}
    with pytest.raises(ConfigError, match=r"has model.source_encoder = .* and the config has .*\(24,\)"):
        experiment.train(still, run=tmp_path / "other")


def test_what_names_the_picture_is_dropped(asked: Path) -> None:
    named = asked / "named.csv"
    named.write_text("image,question,answer\n12,What is in the image12 ?,red\n")
    settings: Any = config(asked, "stacked")["questions"] | {"table": str(named), "drop": " in the image[0-9]+"}
    assert read_questions(PictureQuestionsConfig(**settings))[0][0].question == "What is ?"
    with pytest.raises(ValueError, match="'\\(' is no regular expression"):
        PictureQuestionsConfig(**settings | {"drop": "("})


@pytest.mark.parametrize("kind", ["stacked", "questions"])
def test_padding_and_batch_mates_change_nothing(kind: str) -> None:
    torch.manual_seed(0)
    made = (StackedAttentionConfig if kind == "stacked" else QuestionsConfig)(**MODELS[kind] | {"answers": 5})
    model = build(11, made).eval()
    pictures, question = torch.rand(2, 3, 32, 32), torch.tensor([[4, 5, 6, 2], [7, 2, 0, 0]])
    allowed = torch.tensor([[True] * 4, [True, True, False, False]])
    together = model(pictures, question, allowed)
    assert together.shape == (2, 6)
    assert torch.allclose(together[1:], model(pictures[1:], question[1:, :2]), atol=1e-5)
    left = torch.tensor([[0, 0, 7, 2]])
    assert torch.allclose(together[1:], model(pictures[1:], left, left > 0), atol=1e-5)


def test_the_page_of_an_answer_has_its_picture_and_its_looks(run: Path, asked: Path, tmp_path: Path) -> None:
    said = regard.load(run)(asked / "images" / "0.png", "what colour is it?", top=2)
    if not said.attention:
        with pytest.raises(ConfigError, match="the model attends to nothing"):
            said.look()
        return
    page = said.look(tmp_path / "page.html")
    (shown,) = page.document["runs"]  # other answers have no attention of their own
    assert (shown["source"], shown["text"]) == (said.question, said.text)
    assert shown["media"]["positions"] == said.positions.tolist()
    assert shown["untested"] == "an answer is one of a list, and the test is of an output of tokens"
    for info in shown["maps"]:
        assert info["columns"] == "source"
        names = shown["sequences"][info["rows"]]
        assert names == (said.tokens if len(names) > 1 else [f"look {said.word_attention[0].index(names[0]) + 1}"])
        assert info["how"]["queries"] == len(names)
    assert list(said.attention) == [info["site"] for info in shown["maps"]]


def test_a_long_answer_is_shortened_in_a_title(run: Path, asked: Path) -> None:
    said = regard.load(run)(asked / "images" / "0.png", "what colour is it?")
    object.__setattr__(said, "text", "x" * 10**5)
    assert len(said.title) < 150


def test_observe_sees_the_looks(run: Path, asked: Path) -> None:
    model = regard.load(run)
    with regard.observe(model) as seen:
        said = model(asked / "images" / "0.png", "what colour is it?")
    assert set(seen) == set(said.attention)


def test_answer_on_the_command_line(
    run: Path, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = str(asked / "images" / "0.png")

    def talk(*arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.run(["answer", *map(str, arguments), "--model", str(run)])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    code, out, _ = talk(picture, "what colour is it?", "where is it?")
    assert (code, out.count("\n")) == (0, 2)
    assert talk(picture, stdin=b"what colour is it?\nwhere is it?\n")[1] == out
    code, out, err = talk(picture, "", "where is it?")
    assert (code, out.count("\n")) == (1, 2)
    assert "line 1: an empty question" in err
    if run.name != "blind":
        assert talk(picture, "what colour is it?", "--look")[0] == 0
        assert (tmp_path / "0.look.png").exists()
    answer = json.loads(talk(picture, "where is it?", "--json", "--top", 4)[1])
    assert len(answer["alternatives"]) == 3
    assert answer["unknown"] == []
    code, _, err = talk(picture, "where is Zanzibar?")
    assert (code, err) == (0, "regard: words that no training question had: Zanzibar?\n")
    code, _, err = talk(tmp_path / "none.png", "where?")
    assert code == 1
    assert "no such file" in err


def test_refusals(asked: Path, run: Path, tmp_path: Path) -> None:
    model = regard.load(run)
    with pytest.raises(InputError, match="an empty question"):
        model(Image.new("RGB", (4, 4)), " ")
    with pytest.raises(ConfigError, match="top must be at least 1"):
        model(Image.new("RGB", (4, 4)), "what?", top=0)
    with pytest.raises(ConfigError, match="needs both"):
        experiment.read_config(config(asked, "stacked") | {"questions": {"table": "x"}})
    with pytest.raises(ConfigError, match=r"questions.scenes: layout"):
        experiment.read_config(config(asked, "stacked") | {"questions": {"layout": "scenes"}})
    with pytest.raises(DataError, match="no column 'reply'"):
        read_questions(PictureQuestionsConfig(**config(asked, "stacked")["questions"] | {"answer": "reply"}))


def test_the_package_s_questions() -> None:
    pytest.importorskip("easy_vqa")
    asked, where = read_questions(PictureQuestionsConfig(layout="easy_vqa"))
    assert len(asked) == 38_575
    assert where(asked[0].file).size == (64, 64)


def test_answer_without_a_model_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["answer", "room.png", "what is it?"]) == 2
    assert "regard train shapes" in capsys.readouterr().err


def test_a_page_of_models_does_not_take_a_picture_and_a_question(run: Path, asked: Path, talk, tmp_path: Path) -> None:
    picture, page = asked / "images" / "3.png", tmp_path / "page.html"
    code, _, err = talk("look", run, picture, "where is it?", "--save", page)
    assert code == 2
    assert err == (
        f"regard: {run.name} takes a picture and a question, where a page of models has one input for all: "
        f"regard answer PICTURE QUESTION --model {run.name} --look page.html makes one of the answer\n"
    )
    assert not page.exists()
    if run.name == "blind":  # it has no attention to draw
        return
    assert talk("answer", picture, "where is it?", "--model", run, "--look", page)[0] == 0
    assert page.stat().st_size > 10_000


def test_development_answers_that_no_training_question_has_are_refused_before_training(
    asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regard.tasks.questions.count_answers", lambda *_: ["green"])
    with pytest.raises(DataError, match="none of the development questions has an answer"):
        experiment.train(config(asked, "stacked"), run=tmp_path / "run")
    assert not (tmp_path / "run" / "journal.jsonl").exists()


def test_a_loss_over_nothing_is_no_loss(run: Path, asked: Path) -> None:
    table = asked / "images" / "strange.csv"
    table.write_text("file,question,answer\n0.png,what is it?,zanzibar\n")
    with pytest.raises(DataError, match="none of the questions has an answer that the model knows"):
        evaluate(regard.load(run), table)
