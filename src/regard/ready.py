"""What every loaded model has, whatever it does."""

from typing import Any

from regard.bundle import Bundle
from regard.errors import RegardError


class Refused(RegardError, ValueError):
    """One input of many that cannot be worked on; the message says why."""


class Ready:
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
