"""Texts made so that a reader of theirs goes back, or looks far ahead, at each character: time grows with length alone.

Each text is so long that a reader whose time grows with the square of the length would need minutes.
"""

from collections.abc import Callable
from itertools import product

import pytest

from adversary.attempts import attempt, count
from regard.pipelines.protect import _tags, shield
from regard.pipelines.sentences import cut
from regard.serving.languages import COMMON, detect
from regard.serving.markup import Markup
from regard.text.normalize import clean
from regard.text.tokenizer import words

LENGTH = 200_000
SAMPLE = (
    "_", "0", "a", "<a ", "<!--", "<![", '<a b="', "<b>x ", "</b>", "<script>", "{0}", "%0", "\U0001f3f4", "\U000e0061",
)  # fmt: skip
MORE = (
    "é", "a_", "1.", "a. ", "? ", "'", '"', "<", "<a", "<b>", "</", "<?", "&", "&a", "&#", "{{", "${", "%(a", "%1",
    "http://", "www.", "a@", "a@b.", "`a ", "\u0301", "\u200d", "。", "\x00", "=", " ", "<p translate=", "<pre>", "-->",
)  # fmt: skip


def read_markup(text: str, inline: bool) -> None:
    markup = Markup(text, inline)
    assert markup.filled(markup.texts()) or not text


READERS: dict[str, Callable[[str], object]] = {
    "markup": lambda text: read_markup(text, True),
    "markup, cut at every tag": lambda text: read_markup(text, False),
    "protected": shield,
    "tags": lambda text: _tags(shield(text)),
    "white space": clean,
    "sentences": lambda text: cut(text, "fr"),
    "words": words,
    "language": lambda text: detect(text, COMMON),
}


def long(*units: str) -> str:
    """A long text of some units in turn."""
    unit = "".join(units)
    return unit * (LENGTH // len(unit))


def tried(readers: dict[str, Callable[[str], object]], texts: dict[str, list[str]]) -> list[str]:
    """The faults of every reader, each group of texts in a process of its own."""
    some = [
        (f"{name}: {label}", attempt(lambda read=read, own=own: [read(text) for text in own]))  # type: ignore[misc]
        for (name, read), (label, own) in product(readers.items(), texts.items())
    ]
    return count("long texts", 0, some)


def test_readers_of_texts_read_each_character_a_few_times() -> None:
    some = [long(unit)[: LENGTH // 8] for unit in SAMPLE]
    readers = {name: READERS[name] for name in ("markup", "tags", "white space")}
    assert not tried(readers, {"sample": [*some, "".join(f"{{{n}}}" for n in range(LENGTH // 32))]})


@pytest.mark.slow
def test_readers_of_all_kinds_of_long_texts() -> None:
    units = (*SAMPLE, *MORE)
    texts = {unit: [long(unit)] for unit in units}
    texts |= {f"{one} before {unit}": [one + long(unit)] for one in ("%", "<a ", "`a") for unit in units}
    texts |= {f"{one}{other}": [long(one, other)] for one, other in zip(units, units[7:] + units[:7], strict=True)}
    detect("a", COMMON)  # loads its model
    assert not tried(READERS, texts)
