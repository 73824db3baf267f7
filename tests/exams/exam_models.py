"""Models in a graph: encoder, decoder steps, whole forward and training loss compiled whole, exported, on meta.

Run by `tests/test_exams.py` in a process of its own, because run-time type checks have no place in a graph.
"""

from copy import deepcopy
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from regard.data.batching import PairBatch
from regard.models.build import ModelConfig, build
from regard.training.config import TrainingConfig
from regard.training.objective import Objective

V = 23
TRANSFORMER: dict[str, Any] = {
    "kind": "transformer", "width": 16, "heads": 4, "ffn_width": 24, "encoder_layers": 1, "decoder_layers": 2,
}  # fmt: skip
RECURRENT: dict[str, Any] = {"kind": "recurrent", "width": 16, "embedding": 8, "score_width": 8}
DECODER: dict[str, Any] = {"kind": "decoder", "width": 16, "heads": 4, "ffn_width": 24, "layers": 2}
MODELS: dict[str, dict[str, Any]] = {
    "transformer": TRANSFORMER,
    "rotary": TRANSFORMER | {"positions": "rotary", "normalization": "rms", "gated": True, "activation": "silu"},
    "alibi": TRANSFORMER | {"positions": "alibi"},
    "relative": TRANSFORMER | {"positions": "relative"},
    "entmax": TRANSFORMER | {"normalizer": "entmax15"},
    "additive": TRANSFORMER | {"score": "additive"},
    "distance": TRANSFORMER | {"score": "distance"},
    "convolution": TRANSFORMER | {"context": "convolution"},
    "running mean": TRANSFORMER | {"context": "running_mean"},
    "recurrence": TRANSFORMER | {"context": "recurrence"},
    "conformer": TRANSFORMER | {"convolution": 2},
    "grouped heads": TRANSFORMER | {"key_heads": 2},
    "window": TRANSFORMER | {"window": 3},
    "recurrent": RECURRENT,
    "lstm": RECURRENT | {"cell": "lstm", "encoder_layers": 2},
    "luong": RECURRENT | {"asks": "new", "feed": "previous", "score": "general"},
    "location": RECURRENT | {"score": "location"},
    "no attention": RECURRENT | {"score": "none"},
    "hard": RECURRENT | {"normalizer": "hard"},
    "backward": RECURRENT | {"direction": "backward"},
    "decoder": DECODER,
    "decoder window": DECODER | {"window": 3},
    "decoder alibi": DECODER | {"positions": "alibi"},
    "encoder": DECODER | {"kind": "encoder"},
}
SAMPLE = ("transformer", "recurrent")
NAMES = [pytest.param(name, marks=[] if name in SAMPLE else pytest.mark.slow) for name in MODELS]
draw = torch.Generator().manual_seed(0)
SOURCE, TARGET = (torch.randint(5, V, (3, n), generator=draw) for n in (7, 5))
ALLOWED = torch.arange(7) < torch.tensor([[7], [4], [6]])


class Part(nn.Module):
    """A model and one thing that it does."""

    def __init__(self, model: nn.Module, does: Any) -> None:
        super().__init__()
        self.model, self.does = model, does

    def forward(self, *inputs: Tensor) -> Tensor:
        found: Tensor = self.does(self.model, *inputs)
        return found


def steps(model: Any, state: Any, tokens: Tensor) -> Tensor:
    found = []
    for token in tokens.split(1, 1):
        step = model.step(token, state)
        state = step.state
        found.append(step.logits)
    return torch.cat(found, 1)


def made(name: str) -> Any:
    torch.manual_seed(0)
    return build(V, TypeAdapter(ModelConfig).validate_python(MODELS[name])).eval()


def parts(name: str) -> dict[str, tuple[Part, tuple[Tensor, ...]]]:
    model = made(name)
    if MODELS[name]["kind"] == "encoder":
        return {
            "forward": (Part(model, lambda m, a, c: m(a, c)), (SOURCE, ALLOWED)),
            "encode": (Part(model, lambda m, a, c: m.encode(a, c).states), (SOURCE, ALLOWED)),
        }
    if MODELS[name]["kind"] == "decoder":
        return {
            "forward": (Part(model, lambda m, a, c: m(a, c)), (SOURCE, ALLOWED)),
            # padded on the left, as prompts are
            "steps": (Part(model, lambda m, a, c, b: steps(m, m.read(a, c), b)), (SOURCE, ALLOWED.flip(1), TARGET)),
        }
    return {
        "forward": (Part(model, lambda m, a, b, c: m(a, b, c)), (SOURCE, TARGET, ALLOWED)),
        "encode": (Part(model, lambda m, a, c: m.encode(a, c).states), (SOURCE, ALLOWED)),
        "steps": (Part(model, lambda m, a, c, b: steps(m, m.start(m.encode(a, c)), b)), (SOURCE, ALLOWED, TARGET)),
    }


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_whole(name: str) -> None:
    for part, inputs in parts(name).values():
        with torch.no_grad():
            close(torch.compile(part, fullgraph=True, backend="aot_eager")(*inputs), part(*inputs))


@pytest.mark.parametrize("name", NAMES)
def test_exported(name: str) -> None:
    for part, inputs in parts(name).values():
        with torch.no_grad():
            close(torch.export.export(part, inputs).module()(*inputs), part(*inputs))


@pytest.mark.parametrize("name", NAMES)
def test_meta_gives_shapes(name: str) -> None:
    for part, inputs in parts(name).values():
        with torch.no_grad():
            found = deepcopy(part).to("meta")(*(one.to("meta") for one in inputs))
            assert (found.shape, found.device.type) == (part(*inputs).shape, "meta")


@pytest.mark.parametrize("smoothing", ["torch", pytest.param("joeynmt", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [one for one in NAMES if "layers" not in MODELS[str(one.values[0])]])
def test_the_training_loss_and_its_gradients(name: str, smoothing: str) -> None:
    real = torch.arange(5) < torch.tensor([[5], [3], [4]])
    before = torch.cat([torch.full((3, 1), 1), TARGET[:, :-1]], 1)
    batch = PairBatch(SOURCE, ALLOWED, before, TARGET, real, None)
    objective = Objective(made(name), TrainingConfig(label_smoothing=0.1, smoothing=smoothing, precision="float32"), 0)
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    losses = [function(batch) for function in (objective, compiled)]
    assert int(losses[1].tokens) == losses[0].tokens == 12
    close(losses[0].loss, losses[1].loss)
    close(losses[0].nll, losses[1].nll)
    weights = [one for one in objective.parameters() if one.requires_grad]
    gradients = [torch.autograd.grad(loss.loss, weights, allow_unused=True) for loss in losses]
    for one, other in zip(*gradients, strict=True):
        if one is None or other is None:  # a weight that no loss reaches
            assert one is None or not one.any()
            assert other is None or not other.any()
        else:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", pytest.param("bert", marks=pytest.mark.slow)])
def test_transformers_with_our_attention(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    import regard.interop.transformers  # noqa: F401 - registers the name

    small = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": V,
    }  # fmt: skip
    if kind == "llama":
        model = transformers.LlamaModel(transformers.LlamaConfig(**small, num_key_value_heads=2))
    else:
        model = transformers.BertModel(transformers.BertConfig(**small))
    model.eval().set_attn_implementation("regard")
    part = Part(model, lambda m, a, c: m(input_ids=a, attention_mask=c, use_cache=False)[0])
    inputs = SOURCE, ALLOWED.long()
    with torch.no_grad():
        want = part(*inputs)
        close(torch.compile(part, fullgraph=True, backend="aot_eager")(*inputs), want)
        close(torch.export.export(part, inputs, strict=False).module()(*inputs), want)
