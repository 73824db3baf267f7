"""Graphs in onnxruntime and in torch.export give the logits of the model that they were made from."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import jaxtyping
import numpy
import pytest
import torch
from torch import Tensor

import regard
from regard.bundle import Bundle
from regard.errors import ConfigError
from regard.export import onnx as onnx_layout
from regard.export import torch as torch_layout
from regard.export.folder import export_bundle
from regard.export.graph import SIZES as SIZES_OF_EXAMPLE
from regard.export.graph import Graph, SourceEncoder, TokenDecoder, graphs
from regard.export.graph_folder import write_graphs
from regard.models.build import build
from regard.models.language import DecoderConfig, EncoderConfig
from regard.models.recurrent import RecurrentConfig
from regard.models.transformer import TransformerConfig
from regard.models.vision import VisionConfig

SIZES: dict[str, Any] = {"width": 24, "heads": 4, "ffn_width": 20}
PAIR = {"kind": "transformer", "encoder_layers": 2, "decoder_layers": 2, **SIZES}
LLAMA: dict[str, Any] = {
    "positions": "rotary", "window": 3, "window_layers": (1,), "key_heads": 2, "gated": True, "activation": "silu",
    "normalization": "rms", "head_norm": True, "head_width": 10, "tied": False, "biases": (), "ffn_biases": False,
}  # fmt: skip
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "learned after": {"positions": "learned", "length": 9, "first_position": 2, "norm": "after"},
    "halves": {"positions": "sinusoidal_halves", "activation": "gelu_tanh", "scaled": False, "scaled_output": True},
    "relative": {"positions": "relative", "activation": "gelu", "embedding_norm": True, "output_bias": False},
    "alibi window": {"positions": "alibi", "window": 2},
    "no positions": {"positions": "none", "cross_score": "additive"},
    "conformer": {"convolution": 2, "ctc_head": True},
    **{f"score {score}": {"score": score} for score in ("dot", "cosine", "distance", "general", "concat")},
    **{f"normalizer {kind}": {"normalizer": kind} for kind in ("uniform", "sparsemax", "entmax15", "sigmoid")},
    "normalizer softmax1": {"normalizer": "softmax1"},
    **{f"context {kind}": {"context": kind} for kind in ("convolution", "running_mean", "recurrence")},
}
RECURRENT = {"kind": "recurrent", "width": 12, "embedding": 10, "score_width": 6}
RECURRENTS: dict[str, dict[str, Any]] = {
    **{
        f"score {score}": {"score": score} for score in ("concat", "general", "dot", "scaled_dot", "cosine", "distance")
    },
    "none": {"score": "none", "start": "zeros"},
    "hard backward": {"normalizer": "hard", "direction": "backward"},
    "uniform gate": {"normalizer": "uniform", "gate": True, "direction": "forward"},
    "location": {"score": "location", "location_reach": 2},
    "deep lstm": {"cell": "lstm", "encoder_layers": 2, "asks": "new", "feed": "previous"},
}
DECODERS: dict[str, dict[str, Any]] = {
    "rotary": LLAMA, "learned": {"positions": "learned", "length": 16}, "context": {"context": "running_mean"}
}  # fmt: skip
slow = pytest.mark.slow
# torch imports its own deprecated parts when it runs a loop that it has exported
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
VOCABULARY = 30


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a graph is traced a size is a symbol and no int: types are not checked here."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


class Names:
    """A vocabulary of numbers."""

    pad, bos, eos = 0, 1, 2

    def save(self, path: Path) -> None:
        path.write_text("{}")


class Folder:
    """An exported folder, run without regard."""

    def __init__(self, path: Path, layout: str) -> None:
        self.described = json.loads((path / f"{layout}.json").read_text())
        self.layout, self.run = layout, {}
        for name, graph in self.described["graphs"].items():
            if layout == "onnx":
                import onnxruntime

                session = onnxruntime.InferenceSession(path / graph["file"])
                assert [one.name for one in session.get_inputs()] == list(graph["inputs"])
                assert [one.name for one in session.get_outputs()] == list(graph["outputs"])
                self.run[name] = session.run
            else:
                self.run[name] = torch.export.load(path / graph["file"]).module()

    def __call__(self, name: str, **inputs: Tensor) -> dict[str, Tensor]:
        if self.layout == "torch":
            found: dict[str, Tensor] = self.run[name](**inputs)
        else:
            given = {part: tensor.numpy() for part, tensor in inputs.items()}
            names = self.described["graphs"][name]["outputs"]
            found = {
                part: torch.from_numpy(numpy.asarray(array))
                for part, array in zip(names, self.run[name](None, given), strict=True)
            }
        self.check(self.described["graphs"][name]["inputs"], inputs)
        self.check(self.described["graphs"][name]["outputs"], found)
        return found

    def check(self, described: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Names, types and fixed sizes are those that the description gives."""
        assert set(described) == set(tensors)
        for name, tensor in tensors.items():
            assert described[name]["type"] == str(tensor.dtype).removeprefix("torch.")
            assert len(described[name]["shape"]) == tensor.ndim
            for size, count in zip(described[name]["shape"], tensor.shape, strict=True):
                assert size == count or isinstance(size, str)


def made(config: Any, layout: str, path: Path) -> tuple[Any, Folder]:
    """A model with random weights, norms and biases too, and what is exported of it."""
    torch.manual_seed(4)
    model: Any = build(VOCABULARY, config).eval().requires_grad_(False)
    for part, weight in model.named_parameters():
        if "norm" in part or "bias" in part or "relative" in part:
            torch.nn.init.normal_(weight, 0.5, 0.3)
    bundle = Bundle("translate", ("a", "b"), model, config, Names())
    (onnx_layout if layout == "onnx" else torch_layout).write(bundle, path / "out")
    return model, Folder(path / "out", layout)


def sources(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Random sentences of these lengths, padded behind."""
    allowed = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(3, VOCABULARY, allowed.shape) * allowed, allowed


def check_pair(config: Any, layout: str, path: Path) -> None:
    model, folder = made(config, layout, path)
    for lengths in ((7, 4, 1), (1,), (5,)):
        tokens, allowed = sources(lengths)
        target = torch.randint(3, VOCABULARY, (len(lengths), 6))
        state = model.start(model.encode(tokens, allowed))
        whole = model(tokens, target, allowed)
        given = folder("encoder", tokens=tokens, allowed=allowed)
        for step, token in enumerate(target.split(1, 1)):
            found = folder("decoder", tokens=token, **given)
            logits, state = model.step(token, state)
            torch.testing.assert_close(found["logits"], logits[:, 0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found["logits"], whole[:, step], rtol=1e-4, atol=1e-4)
            given |= {f"past{name[7:]}": part for name, part in found.items() if name.startswith("present")}


def check_decoder(config: Any, layout: str, path: Path) -> None:
    model, folder = made(config, layout, path)
    shapes = {name: one for name, one in folder.described["graphs"]["decoder"]["inputs"].items() if "past" in name}
    padded = config.context == "none"  # a context takes prompts of one length
    for allowed in (torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1]]).bool(), torch.ones(1, 4).bool()):
        allowed = torch.cat([allowed if padded else allowed | True, allowed.new_ones(len(allowed), 3)], 1)
        tokens = torch.randint(3, VOCABULARY, allowed.shape)
        whole = model(tokens, allowed)
        given = {}
        for name, one in shapes.items():
            shape = [{"batch": len(tokens), "past": 0}.get(size, size) for size in one["shape"]]
            given[name] = torch.zeros(shape, dtype=getattr(torch, one["type"]))
        for step in range(tokens.shape[1]):
            here = slice(step, step + 1)
            found = folder("decoder", tokens=tokens[:, here], allowed=allowed[:, here], **given)
            real = allowed[:, step]
            torch.testing.assert_close(found["logits"][real], whole[real, step], rtol=1e-4, atol=1e-4)
            given = {f"past{name[7:]}": part for name, part in found.items() if name.startswith("present")}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["onnx", pytest.param("torch", marks=slow)])
def test_a_transformer(layout: str, tmp_path: Path) -> None:
    check_pair(
        TransformerConfig(**{**PAIR, **LLAMA, "encoder_layers": 1, "decoder_layers": 1, "window_layers": None}),
        layout,
        tmp_path,
    )


@pytest.mark.parametrize("layout", [pytest.param("onnx", marks=slow), "torch"])
def test_a_recurrent_model(layout: str, tmp_path: Path) -> None:
    check_pair(RecurrentConfig(**RECURRENT), layout, tmp_path)


@pytest.mark.parametrize("layout", ["onnx", pytest.param("torch", marks=slow)])
def test_a_decoder_alone(layout: str, tmp_path: Path) -> None:
    config = DecoderConfig(kind="decoder", layers=1, positions="alibi", window=3, **SIZES)
    check_decoder(config, layout, tmp_path)


@pytest.mark.parametrize("layout", [pytest.param("onnx", marks=slow), "torch"])
def test_an_encoder_alone(layout: str, tmp_path: Path) -> None:
    config = EncoderConfig(kind="encoder", layers=1, kinds=2, pooler=True, **SIZES)
    model, folder = made(config, layout, tmp_path)
    for lengths in ((6, 3, 1), (1,)):
        tokens, allowed = sources(lengths)
        kinds = torch.randint(0, 2, tokens.shape)
        found = folder("encoder", tokens=tokens, allowed=allowed, kinds=kinds)
        memory = model.encode(tokens, allowed, kinds)
        torch.testing.assert_close(found["states"][allowed], memory.states[allowed], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["summary"], memory.summary, rtol=1e-4, atol=1e-4)
        logits = model(tokens, allowed, kinds)
        torch.testing.assert_close(found["logits"][allowed], logits[allowed], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*TRANSFORMERS, *RECURRENTS])
def test_an_encoder_gives_what_its_decoder_takes(name: str) -> None:
    pair = TransformerConfig(**PAIR, **TRANSFORMERS[name]) if name in TRANSFORMERS else None
    model: Any = build(VOCABULARY, pair or RecurrentConfig(**RECURRENT, **RECURRENTS[name])).eval()
    tokens, allowed = sources((3, 2))
    with torch.no_grad():
        given = SourceEncoder(model)(tokens, allowed)
        wanted = TokenDecoder(model).example(SIZES_OF_EXAMPLE)
    assert {"tokens", *given} == set(wanted)


@slow
@pytest.mark.parametrize("layout", ["onnx", "torch"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_transformer(name: str, layout: str, tmp_path: Path) -> None:
    check_pair(TransformerConfig(**PAIR, **TRANSFORMERS[name]), layout, tmp_path)


@slow
@pytest.mark.parametrize("layout", ["onnx", "torch"])
@pytest.mark.parametrize("name", RECURRENTS)
def test_every_recurrent_model(name: str, layout: str, tmp_path: Path) -> None:
    check_pair(RecurrentConfig(**RECURRENT, **RECURRENTS[name]), layout, tmp_path)


@slow
@pytest.mark.parametrize("layout", ["onnx", "torch"])
@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder(name: str, layout: str, tmp_path: Path) -> None:
    check_decoder(DecoderConfig(kind="decoder", layers=2, **SIZES, **DECODERS[name]), layout, tmp_path)


@slow
@pytest.mark.parametrize("layout", ["onnx", "torch"])
@pytest.mark.parametrize("name", ["fr-en", "fr-en-rnn"])
def test_a_shipped_translator(name: str, layout: str, tmp_path: Path) -> None:
    model = regard.load(name)
    texts = ["le chat noir dort sur le lit", "Je ne sais pas où il est allé.", "Merci beaucoup !"]
    export_bundle(model, tmp_path / "out", "float32", layout)
    folder = Folder(tmp_path / "out", layout)
    special = folder.described["special"]
    for text, expected in zip(texts, model(texts, beam=1), strict=True):
        tokens = torch.tensor([[*model.tokenizer.encode(text), special["eos"]]])
        given = folder("encoder", tokens=tokens, allowed=tokens >= 0)
        token, ids = torch.tensor([[special["bos"]]]), []
        while not ids or ids[-1] != special["eos"]:
            found = folder("decoder", tokens=token, **given)
            given |= {f"past{part[7:]}": tensor for part, tensor in found.items() if part.startswith("present")}
            token = found["logits"].argmax(-1, keepdim=True)
            ids.append(int(token))
        assert model.tokenizer.tokens(ids) == expected.tokens


@slow
def test_the_documented_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[2] / "docs" / "export.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    export_bundle(regard.load("fr-en"), tmp_path / "model", "float32", "onnx")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out == "the black cat\n"


def test_what_it_cannot_express_is_named(tmp_path: Path) -> None:
    encoder = {"kind": "patches", "width": 24, "patch": 8, "layers": 1, "heads": 4, "ffn_width": 8}
    config: Any = TransformerConfig(**PAIR).model_copy(update={"source_encoder": encoder})
    with pytest.raises(ConfigError, match=r"a graph cannot express model\.source_encoder: its source is no text"):
        graphs(Bundle("caption", ("a", "b"), None, config, Names()))
    other = VisionConfig(kind="picture")
    with pytest.raises(ConfigError, match=r'a graph cannot express model\.kind = "picture": --layout regard keeps'):
        graphs(Bundle("caption", ("a", "b"), None, other, Names()))


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        ConfigError, match=r"^ONNX graphs need onnx, onnxscript and onnxruntime: pip install 'regard\[onnx\]'"
    ):
        onnx_layout.write(Bundle("translate", ("a", "b"), None, TransformerConfig(**PAIR), Names()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    config = RecurrentConfig(**RECURRENT)
    bundle = Bundle("translate", ("a", "b"), build(VOCABULARY, config).eval(), config, Names())
    found: dict[str, Graph] = graphs(bundle)
    assert found["decoder"].axes["past_hidden"] == {0: "batch"}

    def save(name: str, path: Path) -> None:
        path.write_text(name)
        if name == "decoder":
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_graphs(bundle, found, save, tmp_path / "out", "onnx")
    assert not list(tmp_path.iterdir())
