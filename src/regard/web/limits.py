"""Limits of a server, one default each."""

from dataclasses import dataclass, fields
from math import inf

from regard.errors import ConfigError, shown


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may ask for.

    Attributes:
        body: bytes of a request's body.
        texts: texts in a request.
        characters: characters of a text; models refuse by tokens, often earlier.
        sentences: sentences, or texts between the tags of HTML, in a request.
        waiting: characters of all texts that wait to be computed; a text counts `least` at least, and as many times as
            its beam holds the model's own.
        least: what the shortest text counts.
        batch: texts computed together.
        batch_characters: their characters together, where they are several.
        sound: seconds of a recording.
        connections: clients connected at a time.
        header_seconds: from a connection, or from the first byte of a further request on it, to the end of its header.
        body_seconds: from there to the end of its body.
        seconds: from there to the answer.
        read_seconds: in which a client takes 1,000 bytes a second of an answer that waits for it, or all that is left.
        linger_seconds: how long the rest of a body is read, and dropped, behind an answer that did not need it.
    """

    body: int = 2**20
    texts: int = 256
    characters: int = 20_000
    sentences: int = 10_000
    waiting: int = 100_000
    least: int = 32
    batch: int = 32
    batch_characters: int = 8_000
    sound: float = 120.0
    connections: int = 1_000
    header_seconds: float = 10.0
    body_seconds: float = 20.0
    seconds: float = 60.0
    read_seconds: float = 20.0
    linger_seconds: float = 3.0

    def __post_init__(self) -> None:
        """Refuse limits that are none.

        Raises:
            ConfigError: one is no number, or not above 0.
        """
        for one in fields(self):
            value, whole = getattr(self, one.name), isinstance(one.default, int)
            number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            least = "at least 0" if one.name == "linger_seconds" else "above 0"
            if not number or not (0 < value < inf or (value == 0 and least == "at least 0")):
                kind = "a whole number" if whole else "a finite number"
                raise ConfigError(f"Limits.{one.name} must be {kind} {least}; got {shown(value)}")
