"""What every loaded model has, whatever it does."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar, overload

from regard.bundle import Bundle
from regard.errors import RegardError

Given = TypeVar("Given")
Made = TypeVar("Made")


class InputError(RegardError, ValueError):
    """One input of many that cannot be worked on; the message says why."""


class Pipeline(Generic[Given, Made]):
    """A trained model that is ready to use: what `regard.load` returns.

    Attributes:
        model: the nn.Module inside.
        tokenizer: text to ids and back.
        bundle: all of it, with the settings.
        name: what it was loaded by.
    """

    def __init__(self, bundle: Bundle, name: str) -> None:
        self.bundle, self.name = bundle, name
        self.model: Any = bundle.model
        self.tokenizer: Any = bundle.tokenizer

    @overload
    def __call__(self, source: Given, **settings: Any) -> Made: ...
    @overload
    def __call__(self, source: Sequence[Given], **settings: Any) -> list[Made]: ...
    def __call__(self, source: Any, **settings: Any) -> Any:
        """What `many` makes of one input, or of many: a list in, a list out, same order, same length."""
        if isinstance(source, Sequence) and not isinstance(source, str):
            return self.many(list(source), **settings)
        return self.many([source], **settings)[0]

    def many(self, sources: list[Given], *args: Any, **settings: Any) -> list[Made]:
        """What the model makes of each input; what it is, and the settings, say the models."""
        raise NotImplementedError
