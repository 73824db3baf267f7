"""A family of models: the names of its settings and weights in the Hugging Face layout and in ours.

A table of weights is used both ways: from a folder in the Hugging Face layout into our model, and back.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from regard.errors import BundleError, shown
from regard.models.build import ModelConfig
from regard.untrusted import FLOATS, Stored, named

REQUIRED = object()

# keys of a config.json that change no logits of given tokens; rules of generating are read in rules.py
_EFFECTLESS = """
    _name_or_path _attn_implementation architectures model_type transformers_version torch_dtype dtype auto_map
    use_cache output_attentions output_hidden_states return_dict return_dict_in_generate output_scores torchscript
    use_bfloat16 gradient_checkpointing initializer_range initializer_factor init_std pretraining_tp
    id2label label2id num_labels problem_type finetuning_task task_specific_params tokenizer_class prefix
    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id cls_token_id mask_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id classifier_dropout classif_dropout
    classifier_proj_size encoder_layerdrop decoder_layerdrop layerdrop
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences exponential_decay_length_penalty
    suppress_tokens begin_suppress_tokens remove_invalid_values is_composition
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
"""
WITHOUT_EFFECT = frozenset(_EFFECTLESS.split())


class Keys:
    """A config.json in which every key is read, is known to have no effect, or is refused by name.

    Args:
        values: the file's contents.
        where: its path, for messages.
        tensors: the names of the weights beside it.
    """

    def __init__(self, values: Mapping[str, Any], where: str, tensors: Collection[str] = ()) -> None:
        self.values, self.where, self.tensors = dict(values), where, tensors
        self._read: set[str] = set()

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """A setting; a missing one is refused unless there is a default, which also replaces null."""
        self._read.add(name)
        value = self.values.get(name)
        if value is not None:
            return value
        if default is REQUIRED:
            raise BundleError(f"{self.where}: no {name}: it is needed to build the model")
        return default

    def size(self, name: str, default: Any = REQUIRED) -> int:
        """A setting that is a whole number from 1 on, small enough for a tensor's axis."""
        value = self.take(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise self.refusal(name, "expected a whole number from 1 to 2147483647")
        return value

    def layers(self, name: str, default: Any = REQUIRED) -> int:
        """A number of layers; each has weights, so there are no more of them than weights."""
        value = self.size(name, default)
        if value > len(self.tensors):
            raise self.refusal(name, f"the files have {len(self.tensors)} weights")
        return value

    def whole(self, name: str, default: Any = REQUIRED) -> int:
        """A setting that is a whole number from 0 on, small enough for a tensor's axis."""
        value = self.take(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
            raise self.refusal(name, "expected a whole number from 0 to 2147483647")
        return value

    def number(self, name: str, default: Any = REQUIRED) -> float:
        """A setting that is a number."""
        value = self.take(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.refusal(name, "expected a number")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A setting that is true or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self.refusal(name, "expected true or false")
        return value

    def expect(self, name: str, *allowed: Any) -> None:
        """A setting that may only be absent, null, or one of these."""
        value = self.take(name, None)
        if value is not None and value not in allowed:
            raise self.refusal(
                name, f"only {', '.join(map(repr, allowed))} can be read" if allowed else "it must be null"
            )

    def choose(self, name: str, choices: Mapping[str, str], default: str | None = None) -> str:
        """A setting, translated to our name for its value."""
        value = self.take(name, REQUIRED if default is None else default)
        if not isinstance(value, str) or value not in choices:
            raise self.refusal(name, f"known are {', '.join(map(repr, choices))}")
        return choices[value]

    def refusal(self, name: str, reason: str) -> BundleError:
        """The error that refuses a setting by name."""
        return BundleError(f"{self.where}: {name} = {shown(self.values.get(name))} cannot be read: {reason}")

    def has(self, start: str) -> bool:
        """Whether the name of a weight starts with `start`."""
        return any(name.startswith(start) for name in self.tensors)

    def done(self) -> None:
        """Refuse settings that were not read and are not known to have no effect."""
        unknown = sorted(set(self.values) - self._read - WITHOUT_EFFECT)
        if unknown:
            listed = ", ".join(f"{named(name)} = {shown(self.values[name])}" for name in unknown[:5])
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise BundleError(
                f"{self.where}: unknown settings {listed}{more}: "
                "regard does not know what they change, and loads nothing rather than something else"
            )


@dataclass(frozen=True)
class Weight:
    """One tensor of theirs, and the ones of ours that it is made of.

    Attributes:
        theirs: its name, without the model's prefix.
        ours: names of our parameters, joined along their first axis.
        transposed: theirs is stored `[in, out]`.
        row: theirs has one more axis of size 1 in front.
        unread: theirs exists and no model uses it; it is only written.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    row: bool = False
    unread: bool = False


def weight(theirs: str, *ours: str) -> Weight:
    """A tensor under another name."""
    return Weight(theirs, ours)


def layer(theirs: str, *ours: str, bias: bool = True, transposed: bool = False) -> Iterator[Weight]:
    """A linear layer or a norm: its weight and, where there is one, its bias."""
    yield Weight(f"{theirs}.weight", tuple(f"{name}.weight" for name in ours), transposed)
    if bias:
        yield Weight(f"{theirs}.bias", tuple(f"{name}.bias" for name in ours))


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        types: its `model_type`s.
        kind: the class of our settings.
        read: from a config.json to our settings.
        weights: the table of weights of a model with such settings.
        write: from our settings and the vocabulary's size to a config.json.
        prefix: of the names, where the file holds a model with an output layer.
        heads: starts of names that never have the prefix.
        copies: patterns of names of tied copies, and the parameter of ours that each must equal.
        ignored: a pattern of names that are no weights of the model: position ids, masks, heads of other tasks.
    """

    types: tuple[str, ...]
    kind: type[BaseModel]
    read: Callable[[Keys], ModelConfig]
    weights: Callable[[Any], Iterator[Weight]]
    write: Callable[[Any, int], dict[str, Any]]
    prefix: str = ""
    heads: tuple[str, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    ignored: str = r"(?!)"

    def table(self, config: ModelConfig, stored: Mapping[str, Stored], where: str) -> list[Weight]:
        """The entries of `weights`, each of which is stored; the first one that is not ends the search.

        Args:
            config: settings of unknown origin: their number of layers may be anything.
            stored: the files' tensors, by their names without the prefix.
            where: the folder, for messages.

        Raises:
            BundleError: a weight is missing.
        """
        found = []
        for entry in self.weights(config):
            if entry.theirs not in stored and not entry.unread:
                raise BundleError(f"{where}: no weight {entry.theirs}, which a model with this config.json has")
            found.append(entry)
        return found

    def without_prefix(self, names: Collection[str], where: str) -> dict[str, str]:
        """The names of the files, by the names without the model's prefix.

        Raises:
            BundleError: a weight stands there with the prefix and without it.
        """
        found: dict[str, str] = {}
        for name in names:
            short = name.removeprefix(self.prefix)
            if short in found:
                raise BundleError(f"{where}: two weights are {named(short)}: {named(found[short])} and {named(name)}")
            found[short] = name
        return found

    def check(self, model: nn.Module, table: list[Weight], stored: Mapping[str, Stored], where: str) -> None:
        """Compare what the headers say with the model, before a tensor is read.

        Args:
            model: on `meta`.
            table: of `table`.
            stored: the files' tensors, by their names without the prefix.
            where: the folder, for messages.

        Raises:
            BundleError: a weight has another shape, is no floating-point number, or is left over.
        """
        parameters = dict(model.state_dict())
        left = {name for name in stored if not re.fullmatch(self.ignored, name)}
        empty = set(parameters)
        for entry in table:
            left.discard(entry.theirs)
            if entry.unread:
                continue
            if not set(entry.ours) <= set(parameters):
                raise BundleError(f"{where}: {entry.theirs} belongs to no part of a model with this config.json")
            shapes = [tuple(parameters[name].shape) for name in entry.ours]
            _check_one(entry.theirs, stored[entry.theirs], _their_shape(shapes, entry), where)
            empty -= set(entry.ours)
        for name in sorted(left):
            for pattern, ours in self.copies:
                if re.fullmatch(pattern, name):
                    _check_one(name, stored[name], tuple(parameters[ours].shape), where)
                    left.discard(name)
        if left:
            raise BundleError(f"{where}: weights that a model with this config.json does not have: {_some(left)}")
        if empty:
            raise AssertionError(f"the table of {self.types[0]} forgets {_some(empty)}")

    def fill(
        self, model: nn.Module, table: list[Weight], names: Collection[str], read: Callable[[str], Tensor], where: str
    ) -> None:
        """Give a model on `meta` its weights; everything about them was checked but their numbers.

        Args:
            model: on `meta`; afterward it has the tensors.
            table: of `table`.
            names: of all stored tensors, without the prefix.
            read: from such a name to the tensor in float32.
            where: the folder, for messages.

        Raises:
            BundleError: numbers that are infinite or NaN; a copy that differs from what it is tied to.
        """
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        filled: dict[str, Tensor] = {}
        for entry in table:
            if entry.unread:
                continue
            whole = read(entry.theirs)
            whole = whole.T.contiguous() if entry.transposed else whole
            whole = whole[0] if entry.row else whole
            sizes = [shapes[name][0] for name in entry.ours]
            for name, piece in zip(entry.ours, whole.split(sizes), strict=True):
                filled[name] = piece.clone() if len(sizes) > 1 else piece
        taken = {entry.theirs for entry in table}
        for name in sorted(names):
            for pattern, ours in self.copies:
                tied = re.fullmatch(pattern, name) and name not in taken
                if tied and not torch.equal(read(name), filled[ours]):
                    raise BundleError(f"{where}: {name} differs from what config.json says it is tied to")
        model.load_state_dict(filled, assign=True)

    def name_all(self, model: nn.Module, config: ModelConfig) -> dict[str, Tensor]:
        """A model's weights under their names."""
        parameters = dict(model.state_dict())
        prefix = "" if getattr(config, "head", None) == "none" else self.prefix
        named = {}
        for entry in self.weights(config):
            whole = torch.cat([parameters[name] for name in entry.ours])
            whole = whole[None] if entry.row else whole
            name = entry.theirs if entry.theirs.startswith(self.heads) else prefix + entry.theirs
            named[name] = (whole.T if entry.transposed else whole).contiguous().clone()
        return named


def _their_shape(ours: list[tuple[int, ...]], entry: Weight) -> tuple[int, ...]:
    """The shape of a tensor of theirs that is made of parameters with these shapes."""
    whole = (sum(shape[0] for shape in ours), *ours[0][1:])
    whole = (1, *whole) if entry.row else whole
    return whole[::-1] if entry.transposed else whole


def _check_one(name: str, stored: Stored, shape: tuple[int, ...], where: str) -> None:
    if stored.shape != shape:
        raise BundleError(f"{where}: {name} has shape {list(stored.shape)}, and config.json makes it {list(shape)}")
    if stored.kind not in FLOATS:
        raise BundleError(f"{where}: {name} is of kind {stored.kind}; expected {', '.join(FLOATS)}")


def _some(names: set[str]) -> str:
    listed = [named(name) for name in sorted(names)]
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
