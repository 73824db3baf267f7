"""What findings run a model on: a text for what `load` returns, else the arguments of a module's forward."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from regard.attention.maps.map import AttentionMap
from regard.errors import ConfigError, shown
from regard.models.ensemble import Ensemble
from regard.nn.dropout import Dropout


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """One forward pass of a module that can be repeated.

    Attributes:
        module: the module.
        arguments: of its forward, by their names; tensors have one row for each input.
        tokens: of the positions of the logits: what the module is given there (for a decoder BOS first).
        source_tokens: of the memory, where there is an encoder.
        predicted: ids of the tokens that were predicted at the last positions, where an output was found first.
        text: that the source tokens were cut from; of a decoder alone, the text of its tokens.
        spans: where these tokens stand in it; tokens beyond them belong to none of its words.
    """

    module: nn.Module
    arguments: dict[str, Any]
    tokens: list[str] = field(default_factory=list)
    source_tokens: list[str] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)
    text: str = ""
    spans: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self) -> Any:
        """The module's output."""
        return self.module(**self.arguments)

    def copies(self, count: int) -> "ForwardPass":
        """The pass of several copies of its one input, in one batch."""
        return replace(self, arguments={name: _expanded(value, count) for name, value in self.arguments.items()})

    def logits(self) -> Tensor:
        """Logits `[B, positions, V]`: the output, or its attribute `logits`.

        Raises:
            ConfigError: the module gives neither a tensor nor an object with logits.
        """
        output = self()
        found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if not isinstance(found, Tensor):
            raise ConfigError(
                f"{type(self.module).__name__} gives {type(output).__name__}: expected a tensor or .logits"
            )
        return found


def _expanded(value: Any, count: int) -> Any:
    return value.expand(count, *value.shape[1:]) if isinstance(value, Tensor) else value


def check_single(module: nn.Module) -> None:
    """Refuse an ensemble where one stream of states is looked into.

    Raises:
        ConfigError: the module is an ensemble.
    """
    if isinstance(module, Ensemble):
        raise ConfigError("an ensemble has the layers of several models: look into one of its members, .members[0]")


@runtime_checkable
class PassesForward(Protocol):
    """What `load` returns: it knows the forward pass of an input."""

    @property
    def model(self) -> Any: ...

    def forward_pass(self, source: Any) -> ForwardPass:
        """The pass whose logits an input's output was chosen from, the output given."""
        ...


DROPS = ("dropout", "attention_dropout", "dropout_rate")  # of modules that drop elements in training: how many


def check_repeatable(module: nn.Module) -> None:
    """Refuse a module whose next run would be another one: dropout or batch statistics, in training mode.

    Raises:
        ConfigError: naming a part of it.
    """
    for path, part in module.named_modules():
        if not part.training:
            continue
        drops = isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0
        drops = drops or (isinstance(part, Dropout) and part.threshold > 0)
        drops = drops or any(isinstance(size := getattr(part, name, 0), int | float) and size > 0 for name in DROPS)
        if drops or isinstance(part, nn.modules.batchnorm._BatchNorm):
            what = "dropout changes" if drops else "batch statistics change"
            raise ConfigError(
                f"{type(module).__name__} is in training mode, in which {what} every run (at {path or '.'!r}), and "
                "findings compare runs: call .eval() first"
            )


def check_numbers(tensors: Mapping[str, Any]) -> None:
    """Refuse tensors on the meta device, by their names.

    Raises:
        ConfigError: naming the first one.
    """
    for name, one in tensors.items():
        if isinstance(one, Tensor) and one.is_meta:
            raise ConfigError(
                f"{name} is on the meta device, which holds shapes and no numbers, and findings are numbers: load the "
                "weights first, and give inputs on a device that computes"
            )


def as_inputs(given: Any) -> list[Any]:
    """A list of inputs; a single one (a text, a file, a dict of arguments) is a list of one."""
    one = isinstance(given, str | bytes | Mapping | torch.Tensor) or not isinstance(given, Iterable)
    return [given] if one else list(given)


def check_map(map: object) -> None:
    """Refuse what is no map.

    Raises:
        ConfigError: it is another object: a result, an observation, or a list of maps.
    """
    if not isinstance(map, AttentionMap):
        raise ConfigError(
            "expected an AttentionMap, such as generation.attention[site] or, of an observation, seen[site][0]; got "
            f"{type(map).__name__}"
        )


def check_index(name: str, index: object) -> None:
    """Refuse what is no index of a token.

    Raises:
        ConfigError: it is no int.
    """
    if not isinstance(index, int):
        raise ConfigError(f"{name}: expected the index of a token (int); got {type(index).__name__}: {shown(index)}")


def check_step(step: object, count: int) -> None:
    """Refuse a step that is no index of an output's tokens.

    Raises:
        ConfigError: it is no int, or there are fewer tokens.
    """
    check_index("step", step)
    assert isinstance(step, int)
    if not -count <= step < count:
        known = f": expected 0 to {count - 1}" if count else ""
        raise ConfigError(f"step {step} is none of the output's {count} tokens{known}")


def _usable(argument: Tensor) -> Tensor:
    """An argument that a gradient may need: what was made within `torch.inference_mode` is kept by none."""
    return argument.clone() if argument.is_inference() else argument


def as_pass(model: Any, inputs: Any) -> ForwardPass:
    """The forward pass of an input.

    Args:
        model: an nn.Module, or what `load` returns.
        inputs: the arguments of the module's forward by their names; or an input of the pipeline, whose output is found
            first and given to the decoder.

    Raises:
        ConfigError: a text for a bare module; arguments that its forward does not take; a pipeline without a forward
            pass of its inputs; a module in training mode that would give another output in every run; a weight or an
            argument on the meta device.
    """
    # a module may have a part of the name `model`: a transformers' Llama without its head
    module = model if isinstance(model, nn.Module) else getattr(model, "model", model)
    if isinstance(module, nn.Module):
        check_repeatable(module)
        check_numbers({**dict(module.named_parameters()), **(inputs if isinstance(inputs, Mapping) else {})})
    if isinstance(inputs, Mapping):
        device = next((part.device for part in module.parameters()), torch.device("cpu"))
        moved = {name: _usable(one.to(device)) if isinstance(one, Tensor) else one for name, one in inputs.items()}
        try:
            signature(module.forward).bind(**moved)
        except TypeError as error:
            raise ConfigError(
                f"{type(module).__name__}.forward: {error}; got {', '.join(moved) or 'no arguments'}"
            ) from error
        return ForwardPass(module, moved)
    if not isinstance(model, PassesForward):
        raise ConfigError(
            f"expected the arguments of {type(model).__name__}'s forward as a dict of their names and values; got a "
            f"{type(inputs).__name__} (a text is for what regard.load returns)"
        )
    return model.forward_pass(inputs)
