"""A translator over onnxruntime finds what regard finds, and says what it cannot show."""

from typing import Any

import jaxtyping
import pytest
import torch

import regard
from regard.bundle import Bundle
from regard.models.build import build
from regard.models.recurrent import RecurrentConfig
from regard.models.transformer import TransformerConfig
from regard.pipelines.engines import with_engine
from regard.pipelines.onnx_engine import OnnxRuntime
from regard.pipelines.translator import Translator
from regard.text.tokenizer import Tokenizer, TokenizerConfig

WORDS = ["le chat noir mange", "the black cat eats", "un chien blanc dort", "a white dog sleeps"]
SOURCES = ["le chat noir", "un chien blanc dort le chat", "", "le chat"]
CONFIGS: dict[str, Any] = {
    "transformer": TransformerConfig(
        kind="transformer", width=22, encoder_layers=1, decoder_layers=2, heads=2, ffn_width=19
    ),
    "recurrent": RecurrentConfig(kind="recurrent", width=13, embedding=11, score_width=7, cell="lstm"),
}
DECODING = {"beam": 3, "length_ratio": 1.0, "length_extra": 3}
# torch imports its own deprecated parts when it runs a loop that it has exported
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(scope="module", params=["transformer", pytest.param("recurrent", marks=pytest.mark.slow)])
def both(request: pytest.FixtureRequest) -> tuple[Translator, OnnxRuntime]:
    """A random model that is sure of itself, plain and over onnxruntime."""
    own = Tokenizer.learn(WORDS * 3, TokenizerConfig(vocabulary=61))
    torch.manual_seed(2)
    model = build(len(own), CONFIGS[request.param]).eval()
    for part in model.parameters():
        torch.nn.init.normal_(part, 0.0, 0.4)
    site = "decoder.layers.1.cross" if request.param == "transformer" else "decoder.cross"
    alignment = {"site": site, "heads": [0]}
    bundle = Bundle("translate", ("fr", "en"), model, CONFIGS[request.param], own, DECODING, alignment)
    plain = Translator(bundle, request.param)
    with pytest.MonkeyPatch.context() as patch:  # while a graph is traced a size is a symbol and no int
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        found = with_engine(plain, "onnx", "auto")
    assert isinstance(found, OnnxRuntime)
    return plain, found


@pytest.mark.parametrize("how", [
    {"beam": 1}, {"beam": 5, "n_best": 3}, {"beam": 6, "groups": 3}, {"sample": True, "seed": 5},
    {"sample": True, "seed": 5, "mbr": 3}, {"prefix": "the dog"}, {"force": ["cat", "dog"]}, {"forbid": ["eats"]},
])  # fmt: skip
def test_it_finds_what_regard_finds(both: tuple[Translator, OnnxRuntime], how: dict[str, Any]) -> None:
    plain, engine = both
    wanted, found = plain(SOURCES, **how), engine(SOURCES, **how)
    for one, other in zip(wanted, found, strict=True):
        assert [each.ids for each in (one, *one.alternatives)] == [each.ids for each in (other, *other.alternatives)]
        assert other.text == one.text
        assert other.log_prob == pytest.approx(one.log_prob, abs=1e-4)
        assert [word.text for word in other.words] == [word.text for word in one.words]
    filled = [one for one in found if one.ids]
    scored = engine.score([one.source for one in filled], filled)
    assert [one.log_prob for one in scored] == pytest.approx([one.log_prob for one in filled], abs=1e-4)


def test_batch_mates_change_nothing_and_a_stream_is_the_translation(both: tuple[Translator, OnnxRuntime]) -> None:
    _, engine = both
    for source, one in zip(SOURCES, engine(SOURCES), strict=True):
        assert engine(source).ids == one.ids
        assert "".join(engine.stream(source)) == one.text


def test_what_it_cannot_show_is_named(both: tuple[Translator, OnnxRuntime]) -> None:
    plain, engine = both
    made = engine(SOURCES[0])
    assert not made.attention
    assert made.as_json()["alignment"] is None
    assert engine("").alignment.pairs == []
    for take, sentence in (
        (lambda: made.alignment, r'engine = "onnx" shows no attention: load the model without engine for an alignment'),
        (lambda: made.trace, r'engine = "onnx" shows no steps'),
        (lambda: engine(SOURCES[0], glossary={"chat": "cat"}), r'engine = "onnx" takes no glossary'),
        (lambda: list(engine.stream(SOURCES[0], glossary={"chat": "cat"})), r"takes no glossary"),
        (lambda: engine(SOURCES[0], protect=True), r'engine = "onnx" takes no protect'),
        (lambda: with_engine(plain, "onnx", "int8"), r'engine = "onnx": precision must be one of float32, auto; got'),
    ):
        with pytest.raises(regard.ConfigError, match=sentence):
            take()
    for outside in (regard.observe(engine), regard.intervene(engine, plain.bundle.alignment["site"], lambda w: 0 * w)):
        with outside, pytest.raises(regard.ConfigError, match=r"cannot be observed or changed"):
            engine(SOURCES[0])
