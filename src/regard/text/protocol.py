"""The interface of every tokenizer, ours and those of pretrained folders, that pipelines and analysis rely on."""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

Span = tuple[int, int]  # first character, and the one behind the last


def unnamed(number: int) -> str:
    """What is shown of a token of the model's that its tokenizer has no name for."""
    return f"<{number}>"


@runtime_checkable
class TextTokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
        pad: id of padding.
        bos: id that a decoder is given first; None where there is none.
        eos: id that ends a text; None where there is none.
        mask: id that hides a word; None where there is none.
        lowers: whether texts are put in lower case, so that a model writes no capitals.
        parses_specials: whether the name of a special token within a text is read as that token.
    """

    @property
    def pad(self) -> int: ...
    @property
    def bos(self) -> int | None: ...
    @property
    def eos(self) -> int | None: ...
    @property
    def mask(self) -> int | None: ...
    @property
    def lowers(self) -> bool: ...
    @property
    def parses_specials(self) -> bool: ...

    def __len__(self) -> int:
        """Number of tokens."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens around it."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts."""
        ...

    def marked(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids of a text with the special tokens an encoder expects around it, and the span of each in the text."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens are left out."""
        ...

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The tokens' own strings."""
        ...

    def source_spans(self, text: str) -> list[Span]:
        """Span in `text` of each token of `encode(text)`, in characters."""
        ...

    def target_spans(self, ids: Sequence[int]) -> list[Span]:
        """Span in `decode(ids)` of each token, in characters."""
        ...

    def identity(self) -> tuple[object, ...]:
        """Vocabulary, merges, rules and special ids: tokenizers of one identity read and write every text alike."""
        ...
