"""Bundles: the model that was saved is the model that is loaded, or it is refused by the name of the bad file."""

import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from regard import bundle as module
from regard.bundle import DIACRITICS, INFO, TOKENIZER, WEIGHTS, Bundle, load_bundle, pack, save_bundle, unpack
from regard.errors import BundleError
from regard.models.build import build
from regard.models.recurrent import RecurrentConfig
from regard.models.transformer import TransformerConfig
from regard.pipelines.load import load
from regard.text.diacritics import Diacritics
from regard.text.tokenizer import Tokenizer, TokenizerConfig

MODELS = {
    "recurrent": RecurrentConfig(kind="recurrent", width=16, embedding=8, score_width=6, dropout=0.3),
    "transformer": TransformerConfig(
        kind="transformer", width=16, encoder_layers=1, decoder_layers=2, heads=2, ffn_width=8, dropout=0.3,
        positions="learned", length=7,
    ),
}  # fmt: skip
TEXTS = ["le chat noir", "la vache là", "</s> 日本"]


def make(kind="recurrent"):
    tokenizer = Tokenizer.learn(TEXTS * 2, TokenizerConfig(kind="bpe", vocabulary=60))
    torch.manual_seed(3)
    model = build(len(tokenizer), MODELS[kind])
    return Bundle(
        "translate",
        ("fr", "日本"),
        model,
        MODELS[kind],
        tokenizer,
        {"beam": 3},
        {"site": "decoder.cross", "heads": [0]},
    )


@pytest.fixture
def folder(tmp_path):
    save_bundle(tmp_path / "b", make())
    return tmp_path / "b"


def logits(bundle):
    source, target = torch.tensor([[5, 6, 7, 2]]), torch.tensor([[1, 8, 9]])
    with torch.inference_mode():
        return bundle.model.eval()(source, target)


@pytest.mark.parametrize("kind", MODELS)
def test_float32_is_the_same_bit_for_bit(tmp_path, kind):
    saved = make(kind)
    save_bundle(tmp_path / "new" / "b", saved)
    loaded = load_bundle(tmp_path / "new" / "b")
    assert not loaded.model.training
    assert torch.equal(logits(loaded), logits(saved))
    assert loaded.model_config == saved.model_config
    assert (loaded.task, loaded.languages) == ("translate", ("fr", "日本"))
    assert (loaded.decoding, loaded.alignment) == (saved.decoding, saved.alignment)
    assert loaded.tokenizer.config == saved.tokenizer.config
    for text in TEXTS:
        assert loaded.tokenizer.encode(text) == saved.tokenizer.encode(text)
    assert sorted(path.name for path in (tmp_path / "new" / "b").iterdir()) == sorted([INFO, WEIGHTS, TOKENIZER])


def test_a_corpus_without_diacritics_leaves_none(tmp_path):
    saved = make()
    saved.diacritics = Diacritics.learn(["the cat"] * 9)
    save_bundle(tmp_path, saved)
    assert load_bundle(tmp_path).diacritics.phrases == ()


def test_diacritics_are_kept_with_the_model_and_another_file_is_refused(tmp_path):
    saved = make()
    saved.diacritics = Diacritics(["où est", "été"])
    save_bundle(tmp_path, saved)
    assert load_bundle(tmp_path).diacritics.phrases == ("où est", "été")
    (tmp_path / DIACRITICS).write_text("où est\nete\n", "utf-8")
    with pytest.raises(BundleError, match=r"diacritics\.txt: damaged or changed since it was saved"):
        load_bundle(tmp_path)
    info = json.loads((tmp_path / INFO).read_text("utf-8"))
    info["files"][DIACRITICS] = hashlib.sha256((tmp_path / DIACRITICS).read_bytes()).hexdigest()
    (tmp_path / INFO).write_text(json.dumps(info), "utf-8")
    with pytest.raises(BundleError, match=r"diacritics\.txt: damaged: phrase 2: expected a word with a diacritic"):
        load_bundle(tmp_path)
    (tmp_path / DIACRITICS).unlink()
    with pytest.raises(BundleError, match=r"diacritics\.txt: no such file"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("kind", MODELS)
def test_float16_is_each_number_rounded(tmp_path, kind):
    saved = make(kind)
    save_bundle(tmp_path, saved, "float16")
    state = load_bundle(tmp_path).model.state_dict()
    for name, tensor in saved.model.state_dict().items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], tensor.half().float() if tensor.ndim > 1 else tensor), name


@pytest.mark.parametrize("kind", MODELS)
def test_int8_is_within_half_a_step_of_its_row(tmp_path, kind):
    saved = make(kind)
    save_bundle(tmp_path, saved, "int8")
    stored, state = load_file(tmp_path / WEIGHTS), load_bundle(tmp_path).model.state_dict()
    for name, tensor in saved.model.state_dict().items():
        if tensor.ndim == 2:
            assert stored[name].dtype == torch.int8
            step = tensor.abs().max(1, keepdim=True).values / 127
            assert ((state[name] - tensor).abs() <= step / 2 * (1 + 1e-4)).all(), name
        else:
            assert torch.equal(state[name], tensor), name


def test_smaller_is_smaller(tmp_path):
    sizes = []
    for precision in ("int8", "float16", "float32"):
        save_bundle(tmp_path / precision, make("transformer"), precision)
        sizes.append((tmp_path / precision / WEIGHTS).stat().st_size)
    assert sizes == sorted(set(sizes))


@settings(deadline=None, max_examples=50)
@given(
    rows=st.lists(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=3, max_size=3), min_size=1, max_size=4)
)
def test_int8_of_any_numbers(rows):
    weights = torch.tensor(rows)
    packed = pack({"w": weights}, "int8")
    scale = packed["w#scale"]
    assert torch.equal(unpack(packed)["w"], packed["w"].float() * scale[:, None])
    error = (unpack(packed)["w"].double() - weights.double()).abs()
    assert (error <= scale.double()[:, None] / 2 * (1 + 1e-4) + 1e-14).all()


def test_rows_of_nothing_stay_nothing():
    assert torch.equal(unpack(pack({"w": torch.zeros(2, 3)}, "int8"))["w"], torch.zeros(2, 3))


def test_pack_leaves_vectors_and_makes_views_plain():
    vector, cube = torch.randn(3), torch.randn(2, 3, 4).transpose(0, 2)
    packed = pack({"v": vector, "c": cube}, "int8")
    assert torch.equal(packed["v"], vector)
    assert packed["c"].dtype == torch.float16
    assert packed["c"].is_contiguous()


@pytest.mark.parametrize("name", [WEIGHTS, TOKENIZER])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=rf"{name}: no such file, and .*bundle\.json lists it"):
        load_bundle(folder)


def test_no_bundle_json_is_no_finished_training(folder):
    (folder / INFO).unlink()
    with pytest.raises(BundleError, match=r"bundle\.json: no such file: .*training may not be finished"):
        load_bundle(folder)


@pytest.mark.parametrize("name", [WEIGHTS, TOKENIZER])
@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1], lambda raw: b"",
        lambda raw: raw[:70] + bytes([raw[70] ^ 1]) + raw[71:], lambda raw: raw + b" ",
    ],
    ids=["cut", "empty", "one bit", "longer"],
)  # fmt: skip
def test_a_changed_file_is_named(folder, name, damage):
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(BundleError, match=rf"{name}: damaged or changed since it was saved"):
        load_bundle(folder)


def test_a_newer_format_is_refused(folder):
    change(folder, lambda info: info.update(format=3))
    with pytest.raises(BundleError, match=r"format 3 is newer than this regard reads \(2\): update regard"):
        load_bundle(folder)


def change(folder, how):
    info = json.loads((folder / INFO).read_text("utf-8"))
    how(info)
    (folder / INFO).write_text(json.dumps(info), "utf-8")


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"5", b"\xff\xfe", b'{"format": "one"}', b"{}", b"null"])
def test_a_damaged_bundle_json_is_named(folder, raw):
    (folder / INFO).write_bytes(raw)
    with pytest.raises(BundleError, match=r"bundle\.json: damaged"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "part", ["format", "task", "languages", "model", "tokenizer", "decoding", "alignment", "files"]
)
def test_a_bundle_json_that_lacks_a_part_is_refused(folder, part):
    change(folder, lambda info: info.pop(part))
    with pytest.raises(BundleError, match=r"bundle\.json: "):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("model", {"kind": "pigeon"}), ("model", None), ("model", {**MODELS["recurrent"].model_dump(), "width": 18}),
        ("tokenizer", {"kind": "pigeon"}), ("tokenizer", 5), ("files", []), ("languages", 5),
    ],
)  # fmt: skip
def test_a_bundle_json_of_another_model_is_refused(folder, part, value):
    change(folder, lambda info: info.update({part: value}))
    with pytest.raises(BundleError, match=r"bundle\.json: "):
        load_bundle(folder)


def test_a_half_written_bundle_is_not_mistaken_for_a_whole(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_tensors", full)
    with pytest.raises(OSError, match="No space"):
        save_bundle(folder, make())
    with pytest.raises(BundleError, match="training may not be finished"):
        load_bundle(folder)


def test_bundle_json_is_readable(folder):
    info = json.loads((folder / INFO).read_text("utf-8"))
    assert info["format"] == 2
    assert info["model"]["width"] == 16
    assert set(info["files"]) == {WEIGHTS, TOKENIZER}
    assert "日本" in (folder / INFO).read_text("utf-8")


def resigned(folder, tensors):
    """Weights that a stranger changed, with the digests that belong to them."""
    save_file(tensors, folder / WEIGHTS)
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    change(folder, lambda info: info["files"].update({WEIGHTS: digest}))


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (
            "weight",
            torch.zeros(1, 8, dtype=torch.int8),
            r"embedding\.weight has shape \[1, 8\], and the settings make it",
        ),
        ("weight#scale", torch.ones(1), r"the scale of .*embedding\.weight is not one number for each of its rows"),
        (
            "weight#scale",
            torch.ones(1000, 8),
            r"the scale of .*embedding\.weight is not one number for each of its rows",
        ),
        ("weight#scale", None, r"embedding\.weight is of kind I8; expected F16, BF16, F32, F64"),
        ("lonely#scale", torch.ones(3), r"lonely#scale is the scale of no weight"),
        ("weight", "float", r"embedding\.weight is of kind F32; expected I8"),
        ("weight#scale", float("nan"), r"embedding\.weight#scale has numbers that are infinite or NaN"),
        ("more", torch.ones(3), r"a weight too many, decoder\.embedding\.more"),
    ],
)
def test_weights_of_a_stranger_are_compared_with_the_model(tmp_path, name, tensor, message):
    save_bundle(tmp_path, make(), "int8")
    tensors = load_file(tmp_path / WEIGHTS)
    name = f"decoder.embedding.{name}"
    if tensor is None:
        del tensors[name]
    else:
        old = tensors.get(name)
        tensors[name] = old.float() if tensor == "float" else old * tensor if isinstance(tensor, float) else tensor
    resigned(tmp_path, tensors)
    with pytest.raises(BundleError, match=message):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("model", {**MODELS["transformer"].model_dump(), "decoder_layers": 10**12}, "of more weights than the"),
        ("model", {**MODELS["transformer"].model_dump(), "width": 10**7}, "shape|no weight"),
        (
            "model",
            {**MODELS["transformer"].model_dump(), "window": 10**30},
            "window: Input should be less than or equal",
        ),
        (
            "model",
            {**MODELS["transformer"].model_dump(), "first_position": 2**63},
            "first_position: Input should be less",
        ),
        ("alignment", {"site": "x", "heads": [10**9]}, r"alignment: heads = \[1000000000\], and a site has 2"),
        ("alignment", {"site": "x", "heads": "all"}, "heads: Input should be a valid list"),
        ("alignment", {"site": 5, "heads": [0]}, "site: Input should be a valid string"),
        ("languages", ["fr"], "languages: List should have at least 2 items"),
        ("task", 5, "task: Input should be a valid string"),
    ],
)
def test_settings_of_a_stranger_are_refused(tmp_path, part, value, message):
    save_bundle(tmp_path, make("transformer"))
    change(tmp_path, lambda info: info.update({part: value}))
    with pytest.raises(BundleError, match=message) as caught:
        load_bundle(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("task", "decoding", "message"),
    [
        ("translate", {"length_extra": 10**12}, "length_extra: Input should be less than or equal to 10000"),
        ("translate", {"length_ratio": 10**12}, "length_ratio: Input should be less than or equal to 100"),
        ("translate", {"beam": "wide"}, "beam: Input should be a valid integer"),
        ("fill", {}, "a model of kind 'recurrent' cannot fill"),
    ],
)
def test_settings_of_a_search_are_bounded(folder, task, decoding, message):
    change(folder, lambda info: info.update(task=task, decoding=decoding))
    with pytest.raises(BundleError, match=message):
        load(folder)
