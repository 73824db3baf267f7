"""The residual stream of a stack of blocks, as what was written into it: a sum, whose every term is known.

A part of a block (attention, feed-forward) adds its output to the stream; a norm turns the stream x into
A x + b, with A = diag(g / σ) (I - 11ᵀ/d) for a LayerNorm and diag(g / rms) for an RMSNorm. With σ frozen at its actual
value A is linear, so a term keeps its share through any number of norms (Elhage et al. 2021, "Handling layer
normalization"; Kobayashi et al. 2021, section 3.1), and the terms still sum to the stream exactly.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.analysis.base import ForwardPass, check_single
from regard.attention.maps.map import AttentionMap
from regard.attention.plain import is_plain_linear
from regard.attention.watch import Call, calls_by_site, watching
from regard.errors import ConfigError
from regard.models.stack import Embeds, Stack
from regard.nn.blocks import Residual
from regard.nn.multihead import MultiHead
from regard.shapes import share_heads

Vector = Float[Tensor, "*batch d"]


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """A norm as a linear map of each position's vector: y = gain ⊙ (x - mean(x)) + bias, or y = gain ⊙ x.

    Attributes:
        name: path of the norm.
        gain: g / σ, `[n, d]`.
        centred: whether the mean is subtracted.
        bias: b, `[d]`, where the norm has one.
    """

    name: str
    gain: Float[Tensor, "n d"]
    centred: bool
    bias: Float[Tensor, "d"] | None

    @classmethod
    def of(cls, name: str, norm: nn.Module, states: Float[Tensor, "n d"]) -> "FrozenNorm":
        """A LayerNorm or RMSNorm, with σ or rms of these states."""
        own: Any = norm
        centred = isinstance(norm, nn.LayerNorm)
        moved = states - states.mean(-1, keepdim=True) if centred else states
        size = (moved.square().mean(-1, keepdim=True) + own.eps).sqrt()
        return cls(name, own.weight / size, centred, getattr(own, "bias", None))

    def push(self, vectors: Vector, place: int) -> Vector:
        """Terms of the stream before the norm, as terms of the stream behind it; without the bias."""
        moved = vectors - vectors.mean(-1, keepdim=True) if self.centred else vectors
        return moved * self.gain[place]

    def pull(self, direction: Float[Tensor, "d"], place: int) -> Float[Tensor, "d"]:
        """A direction behind the norm as the direction before it: pull(w) · x = w · push(x)."""
        scaled = direction * self.gain[place]
        return scaled - scaled.mean() if self.centred else scaled


@dataclass(frozen=True, eq=False)
class Write:
    """What a part of a block adds to the stream.

    Attributes:
        name: path of the part.
        added: `[n, d]`.
        norm: through which the part takes the stream; None in a post-norm block.
        attention: the part, where it is an attention.
        call: its queries, keys and values.
    """

    name: str
    added: Float[Tensor, "n d"]
    norm: FrozenNorm | None
    attention: MultiHead | None = None
    call: Call | None = None


@dataclass(frozen=True, eq=False)
class Stream:
    """The residual stream of one stack over one sequence.

    Attributes:
        start: {name: term `[n, d]`} of what the first block is given, or of what the embedding's norm is given.
        steps: writes and norms in their order.
    """

    start: dict[str, Float[Tensor, "n d"]]
    steps: list[Write | FrozenNorm] = field(default_factory=list)


def record(given: ForwardPass) -> tuple[dict[str, Stream], Tensor]:
    """{path: stream} of every stack of blocks in one forward pass of one input, and the pass's logits `[1, T, V]`."""
    module = given.module
    check_single(module)
    streams: dict[str, Stream] = {}
    calls: list[Call] = []
    with torch.no_grad(), watching(calls.append), _recording(module, streams):
        logits = given.logits()
    by_site = calls_by_site(module, calls)
    for stream in streams.values():
        stream.steps[:] = [_with_call(step, by_site) for step in stream.steps]
    return streams, logits


def terms(stream: Stream, place: int, until: str | None = None) -> dict[str, Float[Tensor, "d"]]:
    """What a position's vector is the sum of: {what wrote it: term}, each head of an attention by itself.

    Args:
        stream: the stream.
        place: the position.
        until: path of the part that takes the vector, through its norm where it has one; the stream's end by default.
    """
    found = {name: term[place] for name, term in stream.start.items()}
    for step in stream.steps:
        taking = isinstance(step, Write) and step.name == until
        norm = step if isinstance(step, FrozenNorm) else step.norm if taking else None
        if norm is not None:
            found = {name: norm.push(term, place) for name, term in found.items()}
            if norm.bias is not None:
                found[f"{norm.name}.bias"] = norm.bias
        if taking:
            break
        if isinstance(step, Write):
            found |= _written(step, place)
    return found


def _written(write: Write, place: int) -> dict[str, Tensor]:
    """What a part wrote at one position; an attention's output by heads, and its bias."""
    if write.attention is None:
        return {write.name: write.added[place]}
    weights, values = head_outputs(write, place)
    heads = (weights[:, None] @ values).to(write.added.dtype) @ head_weights(write.attention, len(weights))
    found = {f"{write.name}, head {head}": vector[0] for head, vector in enumerate(heads)}
    bias = write.attention.output.bias
    return found if bias is None else {**found, f"{write.name}.output.bias": bias}


def head_outputs(write: Write, place: int) -> tuple[Float[Tensor, "H S"], Float[Tensor, "H S d_v"]]:
    """The weights of every head of an attention at one query, and the value vectors of its heads."""
    call = write.call
    assert call is not None
    weights = AttentionMap.from_spec(call.query, call.key, call.spec).tile([place], slice(None))[0, :, 0]
    values = share_heads(call.query, call.value)[0].to(weights.dtype)
    return weights, values.expand(len(weights), -1, -1)


def check_linear(layer: nn.Module, name: str) -> None:
    """Refuse a layer of an attention that is no plain linear one, or has hooks.

    Raises:
        ConfigError: as said.
    """
    if not is_plain_linear(layer):
        raise ConfigError(f"an attention's {name} is a {type(layer).__name__}, or has hooks: it is no sum of parts")


def head_weights(attention: MultiHead, heads: int) -> Float[Tensor, "H d_v d"]:
    """W_O of every head.

    Raises:
        ConfigError: the output is a layer of its own, which is more than its weight.
    """
    check_linear(attention.output, "output")
    weight: Tensor = attention.output.weight.T.unflatten(0, (heads, -1))
    return weight


def _with_call(step: Write | FrozenNorm, by_site: dict[str, list[Call]]) -> Write | FrozenNorm:
    if isinstance(step, FrozenNorm) or step.attention is None:
        return step
    return Write(step.name, step.added, step.norm, step.attention, by_site[step.name][-1])


@contextmanager
def _recording(module: nn.Module, streams: dict[str, Stream]) -> Iterator[None]:
    """Fill `streams` while the module runs."""
    inputs: dict[nn.Module, Tensor] = {}  # of the modules that ran last, without the batch axis
    outputs: dict[nn.Module, Tensor] = {}

    def keep(part: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        inputs[part], outputs[part] = args[0][0], output[0]

    def begin(path: str, stack: nn.Module, args: tuple[Any, ...]) -> None:  # noqa: ARG001
        streams[path] = _embedded(module, args[0][0], inputs, outputs)

    def written(path: str, part: str, layer: Any, residual: Any) -> None:
        stream, own = streams[path], getattr(layer, part.rpartition(".")[2], None)
        attention = own if isinstance(own, MultiHead) else None
        norm = FrozenNorm.of(f"{part}.norm", residual.norm, inputs[residual.norm])
        before = norm if residual.before else None
        stream.steps.append(Write(part, outputs[residual.dropout], before, attention))
        if not residual.before:
            stream.steps.append(norm)

    def normed(path: str, name: str, norm: nn.Module, args: tuple[Any, ...]) -> None:
        streams[path].steps.append(FrozenNorm.of(name, norm, args[0][0]))

    hooks = [part.register_forward_hook(keep) for part in _embedding_parts(module)]
    try:
        for path, stack in module.named_modules():
            if not isinstance(stack, Stack):
                continue
            hooks.append(stack.register_forward_pre_hook(lambda m, a, path=path: begin(path, m, a)))
            norms = [(f"{path}.norm", stack.norm)]
            for number, layer in enumerate(stack.layers):
                norms.append((f"{path}.layers.{number}.norm", getattr(layer, "norm", nn.Identity())))
                for name, residual in layer.named_children():
                    if isinstance(residual, Residual):
                        part_name = f"{path}.layers.{number}.{name.removeprefix('around_')}"
                        hooks += [
                            residual.norm.register_forward_hook(keep),
                            residual.dropout.register_forward_hook(keep),
                        ]
                        hooks.append(
                            residual.register_forward_hook(
                                lambda r, *_, path=path, part=part_name, layer=layer: written(path, part, layer, r)
                            )
                        )
            hooks += [
                norm.register_forward_hook(lambda m, a, _, path=path, name=name: normed(path, name, m, a))
                for name, norm in norms if not isinstance(norm, nn.Identity)
            ]  # fmt: skip
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _embedding_parts(module: nn.Module) -> list[nn.Module]:
    if not isinstance(module, Embeds):
        return []
    parts = [module.embedding, module.positions, module.embedding_norm]
    return [part for part in parts if part is not None]


def _embedded(
    module: nn.Module, states: Tensor, inputs: dict[nn.Module, Tensor], outputs: dict[nn.Module, Tensor]
) -> Stream:
    """The stream that begins with an embedding of tokens, if one was made since the last stack began."""
    if not isinstance(module, Embeds) or module.embedding not in outputs:
        return Stream({"input": states})
    tokens, placed = outputs[module.embedding], outputs[module.positions]
    whole = states if module.embedding_norm is None else inputs[module.embedding_norm]
    start = {"embedding": tokens}
    if module.positions.kind != "none":
        start["position"] = placed - tokens
    if module.kinds is not None:
        start["token type"] = whole - placed
    norm = module.embedding_norm
    steps: list[Write | FrozenNorm] = [] if norm is None else [FrozenNorm.of("embedding_norm", norm, whole)]
    inputs.clear()
    outputs.clear()
    return Stream(start, steps)
