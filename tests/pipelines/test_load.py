"""A pipeline is chosen by what a model can do, not by the name of its task."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers

import regard
from regard import cli
from regard.bundle import Bundle
from regard.models.build import build
from regard.models.transformer import TransformerConfig
from regard.pipelines.base import InputError, ModelOnly, length_groups
from regard.pipelines.translator import Translator

SMALL = {"kind": "transformer", "width": 16, "heads": 4, "ffn_width": 8, "encoder_layers": 2, "decoder_layers": 2}


def made(**more: object) -> Translator:
    """A translator with random weights and the shipped one's tokens."""
    torch.manual_seed(1)
    tokenizer = regard.load("fr-en").tokenizer
    config = TransformerConfig(**SMALL, **more)
    return Translator(
        Bundle("translate", ("", ""), build(len(tokenizer), config).eval(), config, tokenizer, {}), "made"
    )


def test_a_model_without_a_pipeline_refuses_in_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = transformers.WhisperConfig(
        vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, max_target_positions=32, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
    )  # fmt: skip
    transformers.WhisperForConditionalGeneration(config).save_pretrained(tmp_path)
    capfd.readouterr()
    loaded = regard.load(tmp_path)
    assert isinstance(loaded, ModelOnly)
    with pytest.raises(regard.ChoiceError, match=r"is for `regard transcribe`, which is not there yet: use \.model"):
        loaded("x.wav")
    for verb in ("transcribe", "translate"):
        assert cli.run([verb, "x.wav", "--model", str(tmp_path)]) == 2
        assert "which is not there yet: use .model" in capfd.readouterr().err


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "more",
    [
        {"positions": "alibi"},
        {"positions": "relative"},
        {"key_heads": 2},
        {"positions": "rotary"},
        {"score": "additive"},
    ],
)
def test_encoder_maps_of_a_translator_are_those_of_its_module(more: dict) -> None:
    """Bias, mask and grouped heads included, also beside a longer sentence."""
    translator = made(**more)
    with regard.observe(translator) as seen:
        translator(["le chat noir", "la maison est grande et le chat dort"], beam=1)
    ids = torch.tensor([[*translator.tokenizer.encode("le chat noir"), translator.tokenizer.eos]])
    with regard.observe(translator.model) as true:
        translator.model.encode(ids)
    for site in ("encoder.layers.0.self", "encoder.layers.1.self"):
        torch.testing.assert_close(seen[site][0].full(), true[site][0].full()[0], atol=1e-6, rtol=1e-5)


def test_a_model_without_a_chosen_alignment_shows_its_last_layer() -> None:
    generation = made()("le chat noir", beam=1)
    alignment = generation.alignment
    assert (alignment.site, alignment.heads) == ("decoder.layers.1.cross", [0, 1, 2, 3])
    if alignment.target:
        assert float(alignment.matrix.sum()) == pytest.approx(len(alignment.target), abs=1e-3)
    assert generation.trace.site == "decoder.layers.1.cross"
    assert all(step.weights for step in generation.trace.steps)


def test_attention_that_was_not_kept_is_not_shown_as_nothing() -> None:
    generation = made()("le chat noir", beam=1, record=False)
    with pytest.raises(regard.ConfigError, match="translate with record=True"):
        _ = generation.alignment
    assert generation.as_json()["alignment"] is None


def test_maps_are_detached_from_later_training() -> None:
    translator = made(score="additive")
    generation = translator("le chat noir", beam=1)
    site = "decoder.layers.0.cross"
    with torch.no_grad():
        translator.model.decoder.layers[0].cross.score.v.add_(5.0)
    found = generation.attention[site].full()
    again = translator("le chat noir", beam=1).attention[site].full()
    assert not found.requires_grad
    assert found[:, 0].shape == again[:, 0].shape
    assert not torch.allclose(found[:, 0], again[:, 0])
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found.sum(-1)))


def test_each_gives_errors_in_their_place_and_many_raises_the_first() -> None:
    translator = made()
    first, second, third = translator.each(["le chat", "a" * 100_000, ""], beam=1)
    assert isinstance(second, InputError)
    assert (first.source, third.source, third.text) == ("le chat", "", "")
    with pytest.raises(InputError, match="100,000 characters is too long"):
        translator(["le chat", "a" * 100_000], beam=1)


@pytest.mark.parametrize("tokens", [1, 7, 30, 1000])
def test_groups_hold_every_index_once_and_keep_their_size(tokens: int) -> None:
    lengths = [5, 1, 9, 3, 3, 12, 2]
    groups = list(length_groups(lengths, tokens))
    assert sorted(i for group in groups for i in group) == list(range(7))
    for group in groups:
        assert len(group) == 1 or max(lengths[i] for i in group) * len(group) <= tokens


def test_batch_tokens_change_nothing_but_the_batches() -> None:
    translator = regard.load("fr-en")
    sources = ["le chat noir", "la maison", "", "le petit chien dort sous la table"]
    wide = translator(sources, beam=2)
    for a, b in zip(wide, translator(sources, beam=2, batch_tokens=1), strict=True):
        assert (a.text, a.tokens) == (b.text, b.tokens)
        assert a.log_prob == pytest.approx(b.log_prob, abs=1e-4)
    with pytest.raises(regard.ConfigError, match="batch_tokens must be at least 1; got 0"):
        translator(sources, batch_tokens=0)


def test_a_transcriber_announces_its_encoder_too(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000).astype("float32")
    soundfile.write(tmp_path / "noise.wav", noise, 16_000)
    model = regard.load("spelling")
    with regard.observe(model, sites=["encoder.*"]) as seen:
        model(tmp_path / "noise.wav", beam=1)
    assert list(seen) == [f"encoder.layers.{n}.self" for n in range(6)]
    with regard.observe(model) as everything:
        said = model(tmp_path / "noise.wav", beam=1)
    assert set(seen) < set(everything)
    plain = model(tmp_path / "noise.wav", beam=1)
    assert (said.text, said.ids, said.log_prob) == (plain.text, plain.ids, plain.log_prob)
    states = len(said.positions)
    for site in seen:
        assert seen[site][0].shape[-2:] == (states, states)
        torch.testing.assert_close(seen[site][0].full().sum(-1), torch.ones(4, states))


@pytest.mark.parametrize("mark", ["\u00a0", "\t", " \u00ad", " \u200b", "\u200e ", "\u2009"])
def test_white_space_and_invisible_characters_of_a_source_change_nothing(mark: str) -> None:
    translator = regard.load("fr-en")
    plain, marked = translator(["le chat noir dort", f"le{mark}chat{mark}noir dort"])
    assert (marked.text, marked.tokens) == (plain.text, plain.tokens)
    assert marked.source == f"le{mark}chat{mark}noir dort"
    assert marked.alignment.source == ["le", "chat", "noir", "dort"]
    assert marked.alignment.pairs == plain.alignment.pairs
    assert translator("le chat\u00adnoir").read == "le chatnoir"


def test_a_module_is_no_name() -> None:
    script = "import regard, torch; regard.load(torch.nn.Linear(2, 3))"  # elsewhere types are checked in tests alone
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "ChoiceError: load takes a name or a folder; got a Linear: regard.observe" in found.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("marker", "way"),
    [
        ("onnx.json", 'for onnx, which other programs run.*engine="onnx"'),
        ("shared_vocabulary.json", 'for ctranslate2, which.*engine="ctranslate2"'),
        ("torch.json", "for torch, which other programs run; load the model that it was made from$"),
    ],
)
def test_an_export_for_other_programs_says_what_to_load(marker: str, way: str, tmp_path: Path) -> None:
    for name in (marker, "config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(regard.BundleError, match=f"an export {way}"):
        regard.load(tmp_path)
