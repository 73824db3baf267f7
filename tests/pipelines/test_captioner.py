"""Captions and transcripts from training to the command line, on made pictures and sounds."""

import io
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.figure import Figure
from PIL import Image

import regard
from made import made_glyphs, made_sounds, made_table, tone
from regard import cli, experiment
from regard.data.scenes.glyphs import Glyphs
from regard.data.scenes.scene import Scene, SceneConfig, Thing
from regard.data.scenes.scenes import scenes
from regard.errors import ConfigError, DataError, RegardError
from regard.pipelines.base import InputError
from regard.pipelines.captioner import Captioner
from regard.pipelines.description import Description
from regard.tasks import description
from regard.text.tokenizer import Tokenizer, TokenizerConfig

SMALL = {"kind": "recurrent", "width": 24, "embedding": 12, "score_width": 8}
TRAINING = {
    "max_steps": 4, "evaluate_every": 2, "warmup": 2, "schedule": "cosine", "batch_tokens": 1600, "metric": "exact",
}  # fmt: skip
GRID = {"kind": "grid", "size": 40, "first": 8, "channels": [16], "width": 24}


def scene_config(folder: Path, **model: Any) -> dict[str, Any]:
    return {
        "task": "caption", "dev_sentences": 6,
        "scenes": {"pictures": str(folder), "size": 40, "scenes": 32, "dev_scenes": 8, "dev_share": 0.3},
        "tokenizer": {"kind": "words", "vocabulary": 60},
        "model": SMALL | {"source_encoder": GRID} | model, "training": TRAINING,
    }  # fmt: skip


def sound_config(folder: Path, **model: Any) -> dict[str, Any]:
    return {
        "task": "transcribe",
        "files": {"layout": "an4", "files": str(folder), "group": "speaker", "dev_share": 0.3, "lower": True},
        "tokenizer": {"kind": "characters", "vocabulary": 40},
        "model": {
            "kind": "transformer", "width": 24, "heads": 2, "ffn_width": 32, "encoder_layers": 1, "decoder_layers": 1,
            "ctc_head": True, "source_encoder": {"kind": "sound", "bands": 20, "channels": 4, "width": 24},
        } | model,
        "training": TRAINING | {"ctc": 0.5, "metric": "wer", "batch_tokens": 400},
        "describing": {"ctc": 0.5, "longest": 20},
    }  # fmt: skip


@pytest.fixture(scope="session")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_glyphs(tmp_path_factory.mktemp("glyphs"))


@pytest.fixture(scope="session")
def captioner(glyphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "captioner"
    experiment.train(scene_config(glyphs), run=folder)
    return folder


@pytest.fixture(scope="session")
def transcriber(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "transcriber"
    experiment.train(sound_config(made_sounds(tmp_path_factory.mktemp("sounds") / "an4")), run=folder)
    return folder


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path):
    """Run the command in an empty folder: (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("model", "training"),
    [
        ({"gate": True, "cell": "lstm"}, {"coverage_loss": 0.1}),
        ({"normalizer": "hard"}, {}),
        ({"normalizer": "hard"}, {"hard": "reinforce"}),
        ({"score": "none"}, {}),
        (
            {
                "source_encoder": {"kind": "patches", "size": 40, "patch": 8, "width": 24},
                "asks": "new", "feed": "previous",
            },
            {},
        ),
        (
            {
                "kind": "transformer", "width": 24, "heads": 2, "ffn_width": 32, "encoder_layers": 1,
                "decoder_layers": 2,
                "source_encoder": GRID,
            },
            {"coverage_loss": 0.1, "precision": "bfloat16"},
        ),
    ],
)  # fmt: skip
def test_every_captioner_trains_resumes_and_loads(
    glyphs: Path, tmp_path: Path, model: dict[str, Any], training: dict[str, Any]
) -> None:
    config = scene_config(glyphs, **model)
    if model.get("kind") == "transformer":
        config["model"] = model
    config["training"] = TRAINING | training
    run = experiment.train(config, run=tmp_path / "run")
    assert {"dev_loss", "dev_exact", "dev_wer"} <= set(run.journal[-1])
    loaded = regard.load(tmp_path / "run")
    assert isinstance(loaded, Captioner)
    said = loaded(Image.new("RGB", (50, 30), "red"), n_best=2, beam=3)
    assert len(said.alternatives) == 1
    assert len(said.word_attention[0]) == len(said.word_attention[1])
    if "reinforce" in training.values():
        assert float(loaded.model.baseline) < 0


def test_learning_where_to_look(glyphs: Path, tmp_path: Path) -> None:
    """A few hundred updates teach seven single shapes; a network that sees nothing names one in seven."""
    config = scene_config(glyphs)
    config["scenes"] |= {"most": 1, "scenes": 640}
    config["training"] |= {"max_steps": 120, "evaluate_every": 120, "learning_rate": 5e-3, "label_smoothing": 0.0}
    run = experiment.train(config, run=tmp_path / "run")
    assert run.journal[-1]["dev_exact"] >= 50


def test_files_with_captions_train(tmp_path: Path) -> None:
    folder = made_table(tmp_path / "set")
    config = scene_config(folder)
    del config["scenes"]
    config["files"] = {
        "table": str(folder / "captions.csv.gz"), "files": str(folder / "images"), "file": "image", "text": "caption",
        "dev_share": 0.5,
    }  # fmt: skip
    experiment.train(config, run=tmp_path / "run")
    assert regard.load(tmp_path / "run")(folder / "images" / "0.png").text is not None


@pytest.mark.parametrize("kind", ["transformer", pytest.param("recurrent", marks=pytest.mark.slow)])
def test_every_transcriber_trains(transcriber: Path, tmp_path: Path, kind: str) -> None:
    if kind == "recurrent":
        config = sound_config(made_sounds(tmp_path / "an4"))
        config["model"] = SMALL | {
            "ctc_head": True, "source_encoder": {"kind": "pyramid", "bands": 20, "layers": 2, "width": 24},
        }  # fmt: skip
        transcriber = experiment.train(config, run=tmp_path / "run").path
    model = regard.load(transcriber)
    soundfile.write(tmp_path / "yes.wav", tone("yes", 44_100), 44_100)
    said = model(tmp_path / "yes.wav")
    assert said.log_prob < 0
    assert model([tmp_path / "yes.wav"] * 2)[1].text == said.text
    assert said.positions.shape[1] == 1
    still = {"start": str(transcriber), "training.learning_rate": 1e-12, "training.warmup": 0}
    assert (
        experiment.train(transcriber / "config.toml", still, run=tmp_path / "on").model(tmp_path / "yes.wav").text
        == said.text
    )


def test_a_long_recording_is_cut_and_joined(transcriber: Path, tmp_path: Path) -> None:
    parts = [tone("yes", seconds=9.0), np.zeros(8000), tone("no", seconds=9.0), np.zeros(8000)] * 3
    soundfile.write(tmp_path / "long.wav", np.concatenate(parts), 16_000)
    model, told = regard.load(transcriber), []
    said = model.hear(tmp_path / "long.wav", told.append)
    assert len(said.pieces) >= 4
    assert said.text == " ".join(one.text for one in said.pieces if one.text)
    assert [one.media.start for one in said.pieces] == sorted(one.media.start for one in said.pieces)
    ends = [one.media.start + len(one.media.samples) / 16_000 for one in said.pieces]
    assert ends[-1] == pytest.approx(57.0, abs=0.1)
    assert told[-1] == pytest.approx(ends[-2], abs=16)
    with pytest.raises(ConfigError, match=r"read in \d pieces"):
        said.plot(tmp_path / "x.png")
    assert said.as_json()["pieces"][0]["start"] == 0.0
    for light in (model.hear(tmp_path / "long.wav", record=False), model(tmp_path / "long.wav", report=told.append)):
        assert light.text == said.text
    light = model.hear(tmp_path / "long.wav", record=False)
    assert all(not len(one.media.samples) for one in light.pieces)


def test_silence_is_no_text(transcriber: Path, tmp_path: Path) -> None:
    model = regard.load(transcriber)
    for name, samples in (("silence", np.zeros(16_000)), ("nothing", np.zeros(0))):
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000)
        said = model(tmp_path / f"{name}.wav")
        assert said.text == ""
        assert said.as_json()["text"] == ""
        said.plot(tmp_path / f"{name}.png")


@pytest.mark.parametrize("kind", ["double", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_model_of_another_type_is_given_its_own(kind: str) -> None:
    samples = Path(regard.__file__).parent / "samples"
    for name, file in (("emoji", "picture.png"), ("spelling", "recording.flac")):
        model = regard.load(name)
        want = model(samples / file).text
        getattr(model.model, kind)()
        assert model(samples / file).text == want


def test_batch_mates_change_no_text(captioner: Path, glyphs: Path) -> None:
    config = SceneConfig(pictures=str(glyphs), size=40)
    pictures = [Image.fromarray(s.picture) for s in scenes(Glyphs(config), config, range(5), 1, False)]
    model = regard.load(captioner)
    together = model(pictures, beam=3)
    for picture, said in zip(pictures, together, strict=True):
        alone = model(picture, beam=3)
        assert alone.text == said.text
        assert alone.log_prob == pytest.approx(said.log_prob, abs=1e-4)


def test_asking_to_see_changes_nothing(captioner: Path) -> None:
    model, picture = regard.load(captioner), Image.new("RGB", (40, 40), "green")
    plain = model(picture, beam=3, record=False)
    with regard.observe(model):
        watched = model(picture, beam=3)
    assert (plain.text, plain.log_prob, plain.score) == (watched.text, watched.log_prob, watched.score)
    assert not plain.attention
    assert watched.attention


def test_observe_sees_what_is_returned(captioner: Path) -> None:
    model = regard.load(captioner)
    with regard.observe(model) as seen:
        said = model(Image.new("RGB", (40, 40), "blue"))
    (weights,) = seen["decoder.cross"]
    assert torch.allclose(weights.full(), said.attention["decoder.cross"].full())
    assert weights.shape[-1] == 100


def test_pictures_are_drawn(captioner: Path, transcriber: Path, tmp_path: Path) -> None:
    said = regard.load(captioner)(Image.new("RGB", (40, 40), "blue"))
    for name, smooth in (("a.png", False), ("b.svg", True)):
        said.plot(tmp_path / name, smooth=smooth)
        assert (tmp_path / name).stat().st_size > 1000
    assert "exact cells" not in (tmp_path / "b.svg").read_text()
    assert ("smoothed" if said.text else "nothing said") in (tmp_path / "b.svg").read_text()
    soundfile.write(tmp_path / "yes.wav", tone("yes"), 16_000)
    regard.load(transcriber)(tmp_path / "yes.wav").plot(tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_caption_on_the_command_line(talk, captioner: Path, tmp_path: Path) -> None:
    Image.new("RGB", (30, 30), "red").save(tmp_path / "cat.png")
    (tmp_path / "text.png").write_text("no picture")
    code, out, err = talk("caption", "cat.png", "text.png", "cat.png", "--model", captioner)
    assert code == 1
    assert out.count("\n") == 3
    assert out.split("\n")[1] == ""
    assert "line 2: text.png: no picture that can be read" in err
    code, out, err = talk("caption", "cat.png", "--model", captioner, "--look")
    assert (code, err) == (0, "regard: drawn: cat.look.png\n")
    assert (tmp_path / "cat.look.png").exists()
    code, _, _ = talk("caption", "cat.png", "cat.png", "--look", "out.svg", "--smooth", "--model", captioner)
    assert code == 0
    assert (tmp_path / "out-2.svg").exists()
    code, out, _ = talk("caption", "--model", captioner, "--json", stdin=b"cat.png\n\n")
    assert code == 1
    assert "looks" in json.loads(out.split("\n")[0]) or json.loads(out.split("\n")[0])["text"] == ""
    code, _, err = talk("caption", "--look", "cat.png", "--model", captioner)
    assert code == 2
    assert "name the inputs before it" in err


def test_a_look_never_destroys_a_file(talk, captioner: Path, tmp_path: Path) -> None:
    """Not an input, not anybody's picture; and where nothing can be drawn is said before there is work."""
    for name in ("cat.png", "dog.png"):
        Image.new("RGB", (30, 30), "red").save(tmp_path / name)
    before = (tmp_path / "cat.png").read_bytes()
    (tmp_path / "folder.png").mkdir()
    for arguments, reason in (
        (("cat.png", "--look", "cat.png"), "--look cat.png: this file exists and was not drawn by regard"),
        (("dog.png", "--look", "cat.png"), "--look cat.png: this file exists"),
        (("--look", "cat.png", "dog.png"), "--look cat.png: this file exists"),
        (("dog.png", "--look", "folder.png"), "folder.png: a folder; name a file in it"),
        (("dog.png", "--look", "none/x.png"), "the folder none does not exist"),
        (("dog.png", "--look", "x.bmp"), "cannot draw '.bmp'"),
    ):
        code, out, err = talk("caption", *arguments, "--model", captioner)
        assert code in (1, 2)
        assert out == ""
        assert reason in err
        assert err.count("\n") == 1
    assert (tmp_path / "cat.png").read_bytes() == before
    for ending in ("png", "svg", "pdf"):
        own = Figure()
        own.savefig(tmp_path / f"own.{ending}")  # by the same library, and somebody else's
        assert talk("caption", "dog.png", "--look", f"own.{ending}", "--model", captioner)[0] == 2
        for _ in range(2):  # its own drawing may be drawn anew
            assert talk("caption", "dog.png", "--look", f"new.{ending}", "--model", captioner)[0] == 0


def test_a_long_recording_on_the_command_line(talk, transcriber: Path, tmp_path: Path) -> None:
    """Its pieces are drawn and told as they come; as a whole it has text and tokens, and no looks."""
    parts = [tone("yes", seconds=9.0), np.zeros(8000), tone("no", seconds=9.0)]
    soundfile.write(tmp_path / "long.wav", np.concatenate(parts), 16_000)
    code, out, _ = talk("transcribe", "long.wav", "--model", transcriber, "--json", "--look")
    told = json.loads(out)
    assert code == 0
    assert len(told["pieces"]) == 2
    assert (tmp_path / "long.look-2.png").exists()
    said = regard.load(transcriber)(tmp_path / "long.wav")
    assert [piece["text"] for piece in told["pieces"]] == [piece.text for piece in said.pieces]
    assert [piece["start"] for piece in told["pieces"]] == [piece.start for piece in said.pieces]
    for piece in told["pieces"]:
        for look in piece.get("looks", []):
            assert look["seconds"] == pytest.approx(piece["start"] + look["frame"] / 100)
    assert said.tokens == [token for piece in said.pieces for token in piece.tokens]
    assert not said.attention
    with pytest.raises(ConfigError, match=r"was read in 2 pieces: ask \.pieces"):
        _ = said.word_attention
    assert len(repr(said)) < 300


def test_transcribe_on_the_command_line(talk, transcriber: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "yes.wav", tone("yes"), 16_000)
    (tmp_path / "bad.wav").write_text("no sound")
    code, out, err = talk("transcribe", "yes.wav", "bad.wav", "--model", transcriber, "--look")
    assert code == 1
    assert out.count("\n") == 2
    assert "line 2: bad.wav: no recording that can be read" in err
    assert (tmp_path / "yes.look-1.png").exists()
    code, _, err = talk("caption", "yes.wav", "--model", transcriber)
    assert code == 2
    assert "is a model for `regard transcribe`" in err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scenes": None}, r"needs \[scenes\] or \[files\]"),
        ({"model": SMALL}, r"needs \[model.source_encoder\]"),
        (
            {"model": SMALL | {"source_encoder": {"kind": "sound"}}},
            'cannot have model.source_encoder.kind = "sound"',
        ),
        ({"scenes": {"size": 48}}, "scenes.size = 48 must be model.source_encoder.size = 40"),
        ({"model": SMALL | {"source_encoder": GRID | {"sise": 3}}}, "did you mean size"),
        ({"task": "translate"}, r"needs \[data\]"),
        ({"describing": {"ctc": 0.5}}, "describing.ctc needs training.ctc"),
        ({"training": {"hard": "reinforce"}}, r'training.hard = "reinforce" needs .* model.normalizer = "hard"'),
    ],
)
def test_configs_that_do_not_fit(glyphs: Path, change: dict[str, Any], reason: str) -> None:
    config = {key: value for key, value in (scene_config(glyphs) | change).items() if value is not None}
    with pytest.raises(ConfigError, match=reason):
        experiment.read_config(config)


def test_refusals(captioner: Path, transcriber: Path, tmp_path: Path) -> None:
    sees, hears = regard.load(captioner), regard.load(transcriber)
    with pytest.raises(InputError, match="no such file"):
        sees(tmp_path / "none.png")
    with pytest.raises(InputError, match="transcribes sound; got a picture"):
        hears(Image.new("RGB", (4, 4)))
    with pytest.raises(ConfigError, match="n_best between 1 and beam"):
        sees(Image.new("RGB", (4, 4)), beam=1, n_best=2)
    config = sound_config(made_sounds(tmp_path / "an4"))
    del config["model"]["ctc_head"]
    with pytest.raises(RegardError, match=r"needs model.ctc_head"):
        experiment.train(config, run=tmp_path / "run")


def test_pointing_counts_words_in_their_things(captioner: Path, glyphs: Path) -> None:
    """Weights that are put on the right cell point, those on the corner do not."""
    config = SceneConfig(pictures=str(glyphs), size=40, most=1)
    scene = next(iter(scenes(Glyphs(config), config, [4], 1, False)))
    said = regard.load(captioner)(Image.fromarray(scene.picture))
    left, upper, right, lower = scene.things[0].box
    middle = (upper + lower) / 2, (left + right) / 2
    best = int((said.positions - torch.tensor(middle)).square().sum(1).argmin())
    for cell, wanted in ((best, 100.0), (0 if min(left, upper) > 0.1 else 99, 0.0)):
        weights = torch.zeros(len(scene.caption.split()), 100)
        weights[:, cell] = 1.0
        made = object.__new__(type(said))
        made.__dict__.update(vars(said) | {"text": scene.caption, "word_attention": (scene.caption.split(), weights)})
        assert description.pointing([made], [scene]) == (wanted, len(scene.caption.split()))


def test_pointing_at_a_thing_that_moves_needs_the_right_frame() -> None:
    """A weight on the thing's box of the last frame points there, and nowhere else in the first."""
    boxes = ((0.0, 0.0, 0.3, 0.3), (0.6, 0.0, 0.9, 0.3))
    nothing = np.zeros((4, 4, 3), np.uint8)
    thing = Thing("cat", boxes[0], range(1))
    scene = Scene(nothing, "cat moves to the right", [thing], (nothing, nothing), boxes)
    positions = torch.tensor(list(product((0.25, 0.75), (0.15, 0.6), (0.15, 0.75))))
    for place, wanted in (((0.25, 0.15, 0.15), 100), ((0.75, 0.15, 0.15), 0), ((0.75, 0.15, 0.75), 100)):
        weights = torch.zeros(5, 8)
        weights[:, (positions - torch.tensor(place)).abs().sum(1).argmin()] = 1.0
        said = object.__new__(Description)
        said.__dict__.update(text=scene.caption, word_attention=(scene.caption.split(), weights), positions=positions)
        assert description.pointing([said], [scene]) == (wanted, 1)


FILM = {"kind": "frames", "size": 40, "frames": 3, "first": 8, "channels": [16], "width": 24}


@pytest.mark.slow
def test_moving_pictures(talk, glyphs: Path, tmp_path: Path) -> None:
    """Training, a .gif of any length, a picture that stands still, and the drawing over frames."""
    config = scene_config(glyphs, source_encoder=FILM)
    config["scenes"] |= {"frames": 3}
    experiment.train(config, run=tmp_path / "run")
    model = regard.load(tmp_path / "run")
    frames = [Image.new("RGB", (30, 20), (20 * n, 0, 0)) for n in range(7)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=50)
    said = model(tmp_path / "clip.gif")
    assert said.positions.shape == (300, 3)
    assert said.positions[100].tolist() == pytest.approx([0.5, 0.05, 0.05])
    assert len(said.media.frames) == 3
    code, _, err = talk("caption", "clip.gif", "--model", tmp_path / "run", "--look")
    assert (code, err) == (0, "regard: drawn: clip.look.png\n")
    frames[0].save(tmp_path / "still.png")
    assert model(tmp_path / "still.png").text == model(frames[0]).text
    with pytest.raises(ConfigError, match=r"scenes.frames must be model.source_encoder.frames = 3"):
        experiment.read_config(scene_config(glyphs, source_encoder=FILM))


@pytest.mark.parametrize("more", [{}, {"dyes": {"red": "#ff0000"}}, {"frames": 3}])
def test_every_word_of_a_caption_is_known(glyphs: Path, more: dict[str, Any]) -> None:
    config = SceneConfig(**scene_config(glyphs)["scenes"] | more)
    glyphs = Glyphs(config)
    tokenizer = Tokenizer.learn(description.scene_words(glyphs, config), TokenizerConfig(kind="words", vocabulary=100))
    for scene in scenes(glyphs, config, range(60), 0, False):
        assert tokenizer.decode(tokenizer.encode(scene.caption)) == scene.caption


def test_things_move_as_the_caption_says(glyphs: Path) -> None:
    config = SceneConfig(pictures=str(glyphs), size=40, frames=4, dev_share=0.3)
    glyphs, seen = Glyphs(config), set()
    for scene in scenes(glyphs, config, range(80), 0, False):
        (way,) = [way for way, said in config.moves.items() if scene.caption.endswith(said)]
        seen.add(way)
        first, last = scene.paths[0], scene.paths[-1]
        moved = {
            "left": last[0] < first[0], "right": last[0] > first[0], "up": last[1] < first[1],
            "down": last[1] > first[1], "near": last[2] - last[0] > first[2] - first[0],
            "away": last[2] - last[0] < first[2] - first[0],
        }  # fmt: skip
        assert moved[way]
        assert len(scene.frames) == 4
    assert seen == set(config.moves)


def test_a_bad_file_in_training_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.png").write_text("no picture")
    (tmp_path / "t.csv").write_text("file,text\na.png,a cat\n")
    config = {
        "task": "caption", "files": {"table": str(tmp_path / "t.csv"), "files": str(tmp_path / "files")},
        "tokenizer": {"kind": "words", "vocabulary": 20}, "model": SMALL | {"source_encoder": GRID},
        "training": {"metric": "wer"},
    }  # fmt: skip
    with pytest.raises(DataError, match=r"t.csv:2: .*a.png: no picture that can be read: of no kind"):
        experiment.train(config, run=tmp_path / "run")


def test_without_development_data_training_examples_are_measured(tmp_path: Path) -> None:
    """And it is said; the journal has numbers."""
    (tmp_path / "files").mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "files" / "a.png")
    (tmp_path / "t.csv").write_text("file,text\na.png,a cat\n")
    config = {
        "task": "caption",
        "files": {"table": str(tmp_path / "t.csv"), "files": str(tmp_path / "files"), "dev_share": 0},
        "tokenizer": {"kind": "words", "vocabulary": 20}, "model": SMALL | {"source_encoder": GRID},
        "training": {"metric": "wer", "max_steps": 2, "warmup": 1, "evaluate_every": 2},
    }  # fmt: skip
    told: list[dict[str, Any]] = []
    run = experiment.train(config, run=tmp_path / "run", report=told.append)
    assert told[0]["development"] == "files.dev_share leaves none for development: 1 of them choose the best checkpoint"
    assert 0 < run.journal[-1]["dev_loss"] < 10


def test_a_resumed_run_says_which_setting_is_another(captioner: Path, glyphs: Path) -> None:
    config = scene_config(glyphs)
    with pytest.raises(ConfigError, match=r"had other settings \(config.toml\), not .*clip = 99"):
        experiment.train(config, {"training.clip": 99}, run=captioner, resume=True)
