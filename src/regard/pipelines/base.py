"""What every loaded model has, whatever its task: one input in, one result out; a list in, a list out."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from inspect import Parameter, signature
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, overload

import torch

from regard.arguments import check_settings
from regard.attention.maps.map import AttentionMap, LazyMaps
from regard.attention.watch import is_changing
from regard.bundle import Bundle
from regard.decoding.constraints import Constraint, Ruled
from regard.decoding.generate import maps_of
from regard.decoding.sample import NOT_FINITE
from regard.decoding.search import Hypothesis
from regard.device import device_of
from regard.errors import ChoiceError, ConfigError, RegardError, shown
from regard.models.planned import Plans, refusal
from regard.nn.products import has_fast_int8
from regard.pretrained.rules import GenerationRules

Given = TypeVar("Given")
Made = TypeVar("Made")


class InputError(RegardError, ValueError):
    """One input of many that cannot be worked on; the message says why."""


def half_character(text: str) -> str:
    """The first half of a character (U+D800 to U+DFFF) in a text, in the words of a refusal; empty where none is."""
    found = re.search("[\ud800-\udfff]", text)
    return f"half of a character, U+{ord(found[0]):04X}, at place {found.start() + 1}" if found else ""


BATCH_TOKENS = 4096  # input tokens worked on at a time
LONGEST = 16_384  # tokens of a text for a model whose positions have no end
CHARACTERS = 50  # of a token, more than any real text has


def as_inputs(sources: Any) -> list[Any]:
    """Several inputs, of a generator or an open file too.

    Raises:
        InputError: a single text.
    """
    if isinstance(sources, str | bytes) or not isinstance(sources, Iterable):
        raise InputError(f"expected several inputs, in a list; got {type(sources).__name__}: {shown(sources)}")
    return list(sources)


def check_text(text: object) -> None:
    """Refuse what is no text: a missing value of a table, say.

    Raises:
        InputError: it is no str.
    """
    if not isinstance(text, str):
        raise InputError(f"expected a text (str); got {type(text).__name__}: {shown(text)}")


def check_characters(text: str, limit: int) -> None:
    """Refuse a text that no tokenizer takes, or that has more tokens than a model takes, whatever its tokens are.

    Args:
        text: the input.
        limit: tokens that the model takes.

    Raises:
        InputError: it is no text, is too long, or has half a character (U+D800 to U+DFFF), which is not in Unicode.
    """
    check_text(text)
    if half := half_character(text):
        raise InputError(f"no text in Unicode: {half}")
    if len(text) > CHARACTERS * limit:
        raise InputError(
            f"a text of {len(text):,} characters is too long: this model takes {limit:,} tokens; cut it into sentences"
        )


def check_tokens(ids: Sequence[int], limit: int) -> None:
    """Refuse a text that has more tokens than a model takes.

    Args:
        ids: of the text.
        limit: tokens that the model takes.

    Raises:
        InputError: it is too long.
    """
    if len(ids) > limit:
        raise InputError(
            f"a text of {len(ids):,} tokens is too long: this model takes {limit:,}; cut it into sentences"
        )


class Encoded(NamedTuple):
    """A text, its ids without EOS, and the text that the tokenizer was given (`regard.text.normalize.clean`)."""

    text: str
    ids: list[int]
    read: str = ""


class Pipeline(Generic[Given, Made]):
    """A trained model ready to use: what `regard.load` returns.

    A subclass gives `prepare`, from one input to what the model takes, and `run`, from many prepared inputs to results.

    Attributes:
        task: the command-line verb that this pipeline serves; None for one that serves none.
        model: the nn.Module inside.
        tokenizer: text to ids and back.
        bundle: all of it, with the settings.
        name: the name it was loaded by.
    """

    task: ClassVar[str | None] = None
    draws: ClassVar[bool] = False  # `run` takes the indices of its inputs among all texts of a seed

    def __init__(self, bundle: Bundle, name: str) -> None:
        self.bundle, self.name = bundle, name
        self.model: Any = bundle.model
        self.tokenizer: Any = bundle.tokenizer
        self.plans = Plans()

    def searched(self) -> tuple[Any, Any]:
        """What encodes and what takes steps in a search: the model's plan; the model, where it may be changed."""
        return (self.model, self.model) if is_changing() else self.plans.of(self.model)

    def use(self, precision: str, device: torch.device | None = None) -> None:
        """Search in a precision of products from now on.

        Args:
            precision: "float32", "bfloat16", "int8" or "auto", as `regard.load` takes them.
            device: where the model will compute; its own by default.

        Raises:
            ConfigError: an unknown precision; a model that is searched in float32 only.
        """
        names = "float32", "bfloat16", "int8", "auto"
        if precision not in names:
            raise ConfigError(f"precision must be one of {', '.join(names)}; got {precision!r}")
        why = refusal(self.model)
        if not why and (device or self.device).type != "cpu":
            why = "products in another precision are for a CPU"
        if precision == "auto":
            precision = "int8" if not why and has_fast_int8() else "float32"
        if why and precision != "float32":
            raise ConfigError(
                f'{self.name}: precision = "{precision}" is not for this model: {why}; take "float32", or "auto"'
            )
        self.plans = Plans(precision)

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters, to which inputs are moved; `model.to(…)` changes it."""
        return device_of(self.model)

    @overload
    def __call__(self, source: Given, **settings: Any) -> Made: ...
    @overload
    def __call__(self, source: Sequence[Given], **settings: Any) -> list[Made]: ...
    def __call__(self, source: Any, **settings: Any) -> Any:
        """The result of one input, or of many: a list in, a list out, same order, same length.

        Raises:
            InputError: an input that cannot be worked on.
        """
        check_settings(settings)
        if isinstance(source, Sequence) and not isinstance(source, str | bytes):
            return self.many(list(source), **settings)
        return self.many([source], **settings)[0]

    def many(self, sources: Iterable[Given], **settings: Any) -> list[Made]:
        """The results of many inputs; settings as in `run`.

        Raises:
            InputError: the first input that cannot be worked on.
        """
        self._check(settings)
        return self.run([self.prepare(one) for one in as_inputs(sources)], **settings)

    def each(self, sources: Iterable[Given], **settings: Any) -> list[Made | InputError]:
        """The result of every input, in its order; where one cannot be worked on, the error that says why."""
        self._check(settings)
        prepared: list[Any] = []
        for one in as_inputs(sources):
            try:
                prepared.append(self.prepare(one))
            except InputError as error:
                prepared.append(error)
        good = [n for n, one in enumerate(prepared) if not isinstance(one, InputError)]
        if self.draws:  # what a text draws depends on its own place, not on those that cannot be worked on
            first = settings.pop("first_index", 0)
            indices = settings.pop("indices", range(first, first + len(prepared)))
            settings["indices"] = [indices[n] for n in good]
        made = iter(self.run([prepared[n] for n in good], **settings))
        return [one if isinstance(one, InputError) else next(made) for one in prepared]

    def _check(self, settings: dict[str, Any]) -> None:
        """Refuse settings of another type, or of a name that this model's search does not know.

        Raises:
            ConfigError: there is one.
        """
        check_settings(settings)
        known = signature(getattr(self, "describe", self.run)).parameters
        if any(one.kind is Parameter.VAR_KEYWORD for one in known.values()):
            return  # what these are is known to `run`
        names = [name for name, one in known.items() if one.kind is Parameter.KEYWORD_ONLY]
        if other := next((name for name in settings if name not in names), ""):
            raise ConfigError(f"unknown setting {other!r}: known are {', '.join(names)}")

    def prepare(self, source: Given) -> Any:
        """What `run` takes of one input.

        Raises:
            InputError: it cannot be worked on.
        """
        raise NotImplementedError

    def run(self, *prepared: Any, **settings: Any) -> list[Made]:
        """The results of a list of prepared inputs, in their order."""
        raise NotImplementedError

    def check_finite(self) -> None:
        """Tell a model that can say nothing, since its weights are NaN, from one that may say nothing under its rules.

        Raises:
            RegardError: its weights hold NaN or infinity.
        """
        if not all(bool(one.isfinite().all()) for one in self.model.parameters()):
            raise RegardError(NOT_FINITE)

    def _dtype(self) -> torch.dtype:
        """The type of the model's numbers, in which it is given pictures and recordings."""
        return next((one.dtype for one in self.model.parameters() if one.is_floating_point()), torch.float32)

    def ends(self) -> list[int]:
        """Tokens that end an output."""
        own = self.tokenizer.eos
        return list(self.bundle.rules.ends) or ([] if own is None else [own])

    def rule_constraints(self, before: Sequence[Sequence[int]], limits: Sequence[int]) -> list[Constraint]:
        """The rules of the model's folder as a constraint; none where it states none.

        Args:
            before: tokens that precede each output.
            limits: output tokens at most.
        """
        rules = replace(self.bundle.rules, ends=())
        return [] if rules == GenerationRules() else [Ruled(rules, before, limits, self.device)]


class ModelOnly(Pipeline[Any, Any]):
    """A loaded model for whose task there is no pipeline: `.model` is the nn.Module inside."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Refuse.

        Raises:
            ChoiceError: always.
        """
        raise self.refusal()

    def refusal(self) -> ChoiceError:
        """One sentence: what the model is for, and what can be done with it."""
        return ChoiceError(f"{self.name} is for `regard {self.bundle.task}`, which is not there yet: use .model")


def length_groups(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices in groups of about equal length, each of at most `tokens` positions, padding included; shortest first."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if group and lengths[i] * (len(group) + 1) > tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def decoder_maps(model: Any, found: Hypothesis, tokenizer: Any, source: Sequence[str] | int) -> LazyMaps:
    """{site: map `[heads, T, S]`} of one output of an encoder–decoder, lazy, without the padding of its batch.

    Args:
        model: the encoder–decoder.
        found: the output.
        tokenizer: names its tokens.
        source: the source's tokens, or the number of its memory's states.
    """
    tokens = tokenizer.tokens(found.tokens)
    states, names = (source, None) if isinstance(source, int) else (len(source), list(source))

    def cropped(site: str, whole: AttentionMap) -> AttentionMap:
        if site.split(".")[-1] == "self":
            before = [*tokenizer.tokens([tokenizer.bos]), *tokens[:-1]]
            return whole.crop(len(tokens), 0, whole.shape[-1], tokens, before)
        return whole.crop(len(tokens), 0, states, tokens, names)

    return maps_of(model, found).changed(cropped)
