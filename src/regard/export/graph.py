"""Models as graphs with named tensors in and out, which the layouts onnx and torch write.

    encoder    tokens, allowed                  -> memory_*, past_*: the memory, and the state before the first token
    decoder    tokens, memory_*, past_*         -> logits of the next token, present_*: the state after `tokens`

One step's `present_x` is the next step's `past_x`. A decoder without an encoder begins with zeros and past length 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import Tensor, nn

from regard.attention.watch import Call, changing
from regard.bundle import Bundle
from regard.errors import ConfigError
from regard.models.language import DecoderConfig, DecoderLM, EncoderConfig, MaskedLM
from regard.models.recurrent import Recurrent, RecurrentConfig, RecurrentState
from regard.models.seq2seq import Seq2Seq
from regard.models.transformer import TransformerConfig
from regard.nn.kv_cache import KVCache
from regard.nn.state import BlockState, CrossAttentionState, DecoderState, SelfAttentionState
from regard.shapes import batch_shape, share_heads
from regard.text.pretrained import Nothing, Spelled

Tensors = dict[str, Tensor]
BATCH, SOURCE, PAST = "batch", "source", "past"
SIZES = {BATCH: 3, SOURCE: 5, PAST: 2}  # of the example that a graph is traced with


@dataclass(frozen=True)
class Graph:
    """A module from named tensors to named tensors, and an example of both.

    Attributes:
        module: takes the inputs as keywords and returns the outputs.
        inputs, outputs: an example, for the `SIZES`.
        axes: of each input and output, which axes vary with which of the sizes "batch", "source" and "past".
    """

    module: nn.Module
    inputs: Tensors
    outputs: Tensors
    axes: dict[str, dict[int, str]]


def refusal(bundle: Bundle) -> str:
    """What the graphs cannot express of a model; empty where they can express all of it."""
    config = bundle.model_config
    if not isinstance(config, TransformerConfig | RecurrentConfig | DecoderConfig | EncoderConfig):
        return f'model.kind = "{config.kind}"'
    if getattr(config, "source_encoder", None) is not None:
        return "model.source_encoder: its source is no text"
    return ""


@torch.no_grad()
def graphs(bundle: Bundle) -> dict[str, Graph]:
    """The graphs of a model by their names, "encoder" and "decoder": both, or the one that it has.

    Raises:
        ConfigError: the model has something that they cannot express.
    """
    if why := refusal(bundle):
        layout = "hf" if isinstance(bundle.tokenizer, Nothing | Spelled) else "regard"
        raise ConfigError(f"a graph cannot express {why}: --layout {layout} keeps everything")
    modules = modules_of(bundle.model)

    def example(sizes: Mapping[str, int]) -> dict[str, tuple[Tensors, Tensors]]:
        inputs = {name: module.example(sizes) for name, module in modules.items()}
        return {name: (inputs[name], module(**inputs[name])) for name, module in modules.items()}

    plain = example(SIZES)
    # an axis varies with a size if it is longer where that size is
    larger = {size: example({**SIZES, size: count + 1}) for size, count in SIZES.items()}
    return {
        name: Graph(modules[name], *plain[name], _varying(plain[name], {size: of[name] for size, of in larger.items()}))
        for name in modules
    }


def _varying(
    plain: tuple[Tensors, Tensors], larger: dict[str, tuple[Tensors, Tensors]]
) -> dict[str, dict[int, str]]:  # fmt: skip
    return {
        name: {
            axis: size for size, others in larger.items()
            for axis, count in enumerate(tensor.shape) if count != others[part][name].shape[axis]
        }
        for part, tensors in enumerate(plain) for name, tensor in tensors.items()
    }  # fmt: skip


def modules_of(model: Any) -> dict[str, Any]:
    """The modules that a model's graphs are traced from."""
    if isinstance(model, MaskedLM):
        return {"encoder": TextEncoder(model)}
    if isinstance(model, DecoderLM):
        return {"decoder": Continuation(model)}
    return {"encoder": SourceEncoder(model), "decoder": TokenDecoder(model)}


def attention(call: Call) -> Tensor:
    """One attention in plain operations: normalize(score(q, k) + bias, mask) · v.

    The kernels also keep a NaN in one key from the queries that may not attend to it, which a graph has no use for.
    """
    query, key, value = call.query, share_heads(call.query, call.key), share_heads(call.query, call.value)
    shape = (*batch_shape(query, key), query.shape[-2], key.shape[-2])
    scores = call.spec.scores(query, key, None, shape)
    weights, _ = call.spec.normalize(scores, call.spec.allowed(None, shape, scores.device).expand_as(scores))
    return weights @ value


def read(sizes: Mapping[str, int]) -> Tensors:
    """Tokens `[N, S]` and which are real, of these sizes."""
    tokens = torch.ones(sizes[BATCH], sizes[SOURCE], dtype=torch.long)
    return {"tokens": tokens, "allowed": torch.ones_like(tokens, dtype=torch.bool)}


class TextEncoder(nn.Module):
    """An encoder alone: states of a text, the pooled first one and logits where the model has them."""

    def __init__(self, model: MaskedLM) -> None:
        super().__init__()
        self.model = model

    def example(self, sizes: Mapping[str, int]) -> Tensors:
        """Inputs of these sizes."""
        inputs = read(sizes)
        return inputs if self.model.kinds is None else inputs | {"kinds": torch.zeros_like(inputs["tokens"])}

    def forward(self, tokens: Tensor, allowed: Tensor, kinds: Tensor | None = None) -> Tensors:
        """`states` `[N, S, d]`, `summary` `[N, d]` and `logits` `[N, S, V]` of tokens `[N, S]`."""
        with changing(attention):
            memory = self.model.encode(tokens, allowed, kinds)
        found = {"states": memory.states}
        if memory.summary is not None:
            found["summary"] = memory.summary
        if self.model.head is not None:
            found["logits"] = self.model.project(self.model.head(memory.states))
        return found


class SourceEncoder(nn.Module):
    """An encoder–decoder's encoder: the memory, and the state of the decoder before the first token."""

    def __init__(self, model: Seq2Seq) -> None:
        super().__init__()
        self.model, self.states = model, states_of(model)

    def example(self, sizes: Mapping[str, int]) -> Tensors:
        """Inputs of these sizes."""
        return read(sizes)

    def forward(self, tokens: Tensor, allowed: Tensor) -> Tensors:
        """The tensors `memory_*` and `past_*` of tokens `[N, S]`, which are real where `allowed` is True."""
        with changing(attention):
            state = self.model.start(self.model.encode(tokens, allowed))
            return self.states.memory(state) | self.states.changing(state, "past_")


class TokenDecoder(nn.Module):
    """An encoder–decoder's step: one token for each sentence."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.states = model, states_of(model)

    def example(self, sizes: Mapping[str, int]) -> Tensors:
        """Inputs of these sizes: those of a step after `past` others."""
        state = self.start(sizes)
        tokens = torch.ones(sizes[BATCH], 1, dtype=torch.long)
        for _ in range(sizes[PAST]):
            _, state = self.model.step(tokens, state)
        named = {"tokens": tokens, **self.states.memory(state), **self.states.changing(state, "past_")}
        # torch.export takes a view for a part of something larger
        return {name: part.clone(memory_format=torch.contiguous_format) for name, part in named.items()}

    def start(self, sizes: Mapping[str, int]) -> Any:
        """A state before the first token, which keeps all keys also behind a window."""
        source = read(sizes)
        return self.model.start(self.model.encode(source["tokens"], source["allowed"]), record=True)

    def forward(self, **inputs: Tensor) -> Tensors:
        """The `logits` `[N, V]` after `tokens` `[N, 1]`, and the tensors `present_*`."""
        tokens = inputs["tokens"]
        with changing(attention):
            logits, state = self.model.step(tokens, self.states.state(inputs))
        return {"logits": logits[:, 0]} | self.states.changing(state, "present_")


class Continuation(TokenDecoder):
    """The step of a decoder alone, whose tokens may be padding: positions count the real ones."""

    def example(self, sizes: Mapping[str, int]) -> Tensors:
        allowed = torch.ones(sizes[BATCH], sizes[PAST], dtype=torch.bool)
        return super().example(sizes) | {"allowed": allowed[:, :1].clone(), "past_allowed": allowed}

    def start(self, sizes: Mapping[str, int]) -> Any:
        return self.model.read(torch.ones(sizes[BATCH], 0, dtype=torch.long), record=True)

    def forward(self, **inputs: Tensor) -> Tensors:
        """As of `TokenDecoder`, where `allowed` `[N, 1]` is True at real tokens."""
        present = torch.cat([inputs["past_allowed"], inputs["allowed"]], 1)
        return super().forward(**inputs) | {"present_allowed": present}


class AttentionStates:
    """States of a Transformer's decoder as named tensors: keys and values of every layer, and the queries' contexts.

    Args:
        layers: number of blocks.
    """

    def __init__(self, layers: int) -> None:
        self.layers = layers

    def memory(self, state: DecoderState) -> Tensors:
        """What no step changes: keys and values of the memory `[N, heads, S, d_head]`, and which are real `[N, S]`."""
        found: Tensors = {}
        for i, block in enumerate(state.blocks):
            if (cross := block.cross_attention) is not None:
                found |= {f"memory_{i}_key": cross.key[:, 0], f"memory_{i}_value": cross.value[:, 0]}
        return found if state.memory_allowed is None else found | {"memory_allowed": state.memory_allowed[:, 0]}

    def changing(self, state: DecoderState, prefix: str) -> Tensors:
        """What every step changes: keys and values of the tokens so far `[N, heads, t, d_head]`, and contexts."""
        found: Tensors = {}
        for i, block in enumerate(state.blocks):
            own, cross = block.self_attention, block.cross_attention
            parts = {
                "key": own.cache.key, "value": own.cache.value, "context": own.context,
                "crosscontext": None if cross is None else cross.context,
            }  # fmt: skip
            found |= {f"{prefix}{i}_{name}": part[:, 0] for name, part in parts.items() if part is not None}
        return found

    def state(self, inputs: Mapping[str, Tensor]) -> DecoderState:
        """The state that inputs say; all keys are kept, also behind a window, so that their number is the position."""
        named = {name: tensor[:, None] for name, tensor in inputs.items()}
        blocks = []
        for i in range(self.layers):
            cache = KVCache(named[f"past_{i}_key"], named[f"past_{i}_value"])
            cross = None
            if (key := named.get(f"memory_{i}_key")) is not None:
                cross = CrossAttentionState(key, named[f"memory_{i}_value"], named.get(f"past_{i}_crosscontext"))
            blocks.append(BlockState(SelfAttentionState(cache, named.get(f"past_{i}_context")), cross))
        past = named.get("past_allowed")
        tokens = inputs["tokens"]
        position = torch.full_like(tokens, cache.key.shape[-2]) if past is None else past.sum(-1)
        return DecoderState(
            tuple(blocks), record=True, memory_allowed=named.get("memory_allowed"), first_position=position,
            prompt_allowed=past,
        )  # fmt: skip


class RecurrentStates:
    """States of a recurrent decoder as named tensors.

    Args:
        model: the model.
    """

    def __init__(self, model: Recurrent) -> None:
        self.cross = model.decoder.cross
        self.is_lstm = model.config.cell == "lstm"

    def memory(self, state: RecurrentState) -> Tensors:
        """What no step changes: states of the encoder `[N, S, d]`, their projection as keys, which are real, and the
        summary `[N, d]`."""
        parts = {
            "states": state.memory, "key": state.key, "allowed": state.allowed, "summary": state.summary
        }  # fmt: skip
        return {f"memory_{name}": part[:, 0] for name, part in parts.items()}

    def changing(self, state: RecurrentState, prefix: str) -> Tensors:
        """What every step changes: s_t and c_t, an LSTM's cell state, the weights where the score follows them."""
        wide = self.cross.memory_width
        parts = {"hidden": state.hidden, "context": state.context[..., :wide]}
        if self.is_lstm:
            parts["cell"] = state.cell
        if self.cross.follows:
            parts["weights"] = state.context[..., wide:]
        return {prefix + name: part[:, 0] for name, part in parts.items()}

    def state(self, inputs: Mapping[str, Tensor]) -> RecurrentState:
        """The state that inputs say."""
        named = {name: tensor[:, None] for name, tensor in inputs.items()}
        hidden, context = named["past_hidden"], named["past_context"]
        if self.cross.follows:
            context = torch.cat([context, named["past_weights"]], -1)
        return RecurrentState(
            named["memory_states"], named["memory_key"], named["memory_allowed"], named["memory_summary"], hidden,
            named.get("past_cell", torch.zeros_like(hidden)), context,
        )  # fmt: skip


def states_of(model: Any) -> AttentionStates | RecurrentStates:
    """How the states of a model's decoder are named."""
    return RecurrentStates(model) if isinstance(model, Recurrent) else AttentionStates(len(model.decoder.layers))


class Named(nn.Module):
    """A graph's module with its inputs as named parameters: torch.export takes no others for dynamic shapes."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.module = graph.module

        def forward(**inputs: Tensor) -> Tensors:
            found: Tensors = graph.module(**inputs)
            return found

        parameters = [Parameter(name, Parameter.KEYWORD_ONLY) for name in graph.inputs]
        forward.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        self.forward = forward


def trace(graph: Graph) -> torch.export.ExportedProgram:
    """The graph as torch exports it, for every batch of at least one, every source and every past length."""
    sizes = {name: torch.export.Dim(name, min=0 if name == PAST else 1) for name in SIZES}
    axes = {name: {axis: sizes[size] for axis, size in graph.axes[name].items()} for name in graph.inputs}
    with torch.no_grad():
        return torch.export.export(Named(graph), (), graph.inputs, dynamic_shapes=axes, strict=False)
