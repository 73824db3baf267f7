"""The exception family, and the one sentence that every refusal is made of.

A refusal says what was expected, what came, where, and what to do.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from reprlib import Repr


class RegardError(Exception):
    """Everything that regard refuses on purpose."""

    def __str__(self) -> str:
        """The sentence; half a character in it, which no file could hold, is shown as `\\ud800`."""
        return super().__str__().encode("utf-8", "backslashreplace").decode("utf-8")


class ShapeError(RegardError, ValueError):
    """Tensors whose sizes do not fit together."""


class KernelError(RegardError, ValueError):
    """A kernel was asked for by name and cannot do the work."""


class ChoiceError(RegardError, ValueError):
    """An unknown name; the message carries the nearest known one."""


class ConfigError(RegardError, ValueError):
    """A setting that does not exist or does not make sense."""


class DataError(RegardError, ValueError):
    """Input data that cannot be read; the message names file and line."""


class BundleError(RegardError, ValueError):
    """A saved model or checkpoint that is missing, damaged or changed."""


# what a terminal obeys or hides: control characters, the marks that turn the direction of text, lone surrogates
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

BITS = 4096  # of a whole number that is written with its digits
_short = Repr()
_short.maxstring = _short.maxother = 80
_short.maxlong = 40
_short.maxlist = _short.maxtuple = _short.maxdict = 8
_short.maxlevel = 3


def harmless(text: str, keep: str = "") -> str:
    """Text from outside as a terminal may be given it, on one line: control characters are shown, as `\\x1b`.

    Args:
        text: the text.
        keep: characters that stay what they are, such as `"\\n"`.
    """

    def shown(found: re.Match[str]) -> str:
        letter = found[0]
        return letter if letter in keep else letter.encode("unicode_escape").decode("ascii")

    return _OBEYED.sub(shown, text)


def not_utf8(error: UnicodeDecodeError) -> str:
    """The words of every refusal of text that is not UTF-8: the byte and its position."""
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x} at position {error.start})"


def shown(value: object) -> str:
    """A value from outside within a sentence: its repr on one line, shortened where it is long."""
    if isinstance(value, int) and value.bit_length() > BITS:  # Python refuses to write thousands of digits
        return f"a number of {value.bit_length():,} bits"
    return " ".join(line.strip() for line in _short.repr(value).splitlines())


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """The known words, those spelled most like `word` first."""
    names = sorted(known)
    close = get_close_matches(word, names, n=len(names), cutoff=0.5) if names else []
    return close + [name for name in names if name not in close]


def unknown(kind: str, given: object, known: Iterable[str]) -> ChoiceError:
    """A `ChoiceError` for `given`, listing what is known, nearest spelling first."""
    names = nearest(str(given), known)
    line = shown(given) if isinstance(given, int) else " ".join(part.strip() for part in repr(given).splitlines())
    line = line if len(line) <= 200 else f"{line[:197]}…"
    return ChoiceError(f"unknown {kind} {line}: expected one of {', '.join(map(repr, names))}")
