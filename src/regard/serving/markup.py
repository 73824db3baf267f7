"""HTML around texts: cut into markup, which stays, and texts, which are translated.

Elements within a line (<b>, <a>, …) belong to a text: they are set around the words that are aligned with theirs
(`regard.pipelines.protect`), unless the translator cannot do so; then they cut texts as all others do.

Texts come from clients, so that their time must grow with their length alone. Python's `HTMLParser` reads the rest of a
text again for each tag that is never closed (4 s for 20,000 characters in Python 3.11.7), raises AssertionErrors, and
loses what follows a <script> without an end; other parsers of HTML do not keep the text as it stands.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape, unescape
from itertools import groupby

from regard.pipelines.protect import TAG

VOID = ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr")
INLINE = (
    "a", "abbr", "b", "bdi", "bdo", "cite", "del", "dfn", "em", "font", "i", "ins", "label", "mark", "q", "s", "small",
    "span", "strong", "sub", "sup", "u",
)  # fmt: skip
RAW = ("script", "style")  # elements that hold no tags
KEPT = (*RAW, "code", "pre", "textarea")  # elements whose text stays as it is
_TAG = re.compile(TAG)
_SPACE = re.compile(r"\s++|&(?:nbsp|#160|#xa0);", re.IGNORECASE)
_SPACE_BEFORE = re.compile(r"(?:\s|&(?:nbsp|#160|#xa0);)\Z", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"""([^\s/>=]++)(?:\s*+=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s>]*+)))?+""")


class Markup:
    """An HTML text as pieces: what stays as it is, and texts.

    Args:
        html: the text.
        inline: whether elements within a line belong to a text.

    Attributes:
        pieces: (whether it is a text to be translated, the piece as it stands in the HTML); together they are the HTML.
    """

    def __init__(self, html: str, inline: bool) -> None:
        self.inline = INLINE if inline else ()
        self._kept: list[str] = []  # elements around the place that is read, whose text stays as it is
        self._in_text = False
        cut = [(self._is_text(*token), token[1]) for token in tokens(html)]
        runs = groupby(cut, lambda one: one[0])
        self.pieces = [(is_text, "".join(piece for _, piece in some)) for is_text, some in runs]

    def texts(self) -> list[str]:
        """The texts to be translated, without white space around them; with elements within a line, those are HTML."""
        read = _without_entities if self.inline else _unescaped
        return [read(piece).strip() for is_text, piece in self.pieces if is_text]

    def filled(self, texts: Sequence[str]) -> str:
        """The HTML with other texts in the places of its own."""
        left = iter(texts)
        written = _with_entities if self.inline else partial(escape, quote=False)
        return "".join(_within(piece, written(next(left))) if is_text else piece for is_text, piece in self.pieces)

    def _is_text(self, name: str | None, token: str) -> bool:
        """Whether a token belongs to a text to be translated."""
        if name is None:
            self._in_text = not self._kept and (self._in_text or bool(token.strip()))
        elif name in self.inline and not self._kept and not token.endswith("/>") and not _is_untranslated(token):
            self._in_text = self._in_text or not token.startswith("</")
        else:
            self._in_text = False
            self._enter(name, token)
        return self._in_text

    def _enter(self, name: str, token: str) -> None:
        """Keep account of the elements whose text stays as it is."""
        if token.startswith("</"):
            if name in self._kept[-1:]:
                self._kept.pop()
        elif name and name not in VOID and not token.endswith("/>"):
            self._kept += [name] * (name in KEPT or name in self._kept[-1:] or _is_untranslated(token))


def tokens(html: str) -> Iterator[tuple[str | None, str]]:
    """The tokens of an HTML text, in order; together they are the text.

    Yields:
        A tag with its name in lower case; a comment, a declaration, an instruction or the content of a <script> with
        the name ""; characters with None.
    """
    at = start = 0  # where characters begin, and where the next markup is looked for
    last = html.rfind(">"), html.rfind("-->")  # markup that is begun behind them has no end
    while (start := html.find("<", start)) >= 0:
        found = _TAG.match(html, start)
        end = found.end() if found else _end(html, start, *last)
        if end < 0:
            start += 1
            continue
        if start > at:
            yield None, html[at:start]
        name = found["tag"].lower() if found else ""
        yield name, html[start:end]
        if name in RAW and html[start + 1] != "/" and html[end - 2] != "/":
            closed = re.compile(rf"</{name}[\s/>]", re.IGNORECASE).search(html, end)
            at, end = end, closed.start() if closed else len(html)
            if end > at:
                yield "", html[at:end]
        at = start = end
    if at < len(html):
        yield None, html[at:]


def _end(html: str, start: int, last: int, last_comment: int) -> int:
    """Where a comment, a declaration or an instruction ends; -1 where none begins, or none ends."""
    if html.startswith("<!--", start):
        return html.find("-->", start + 2) + 3 if start < last_comment else -1
    return html.find(">", start) + 1 if start < last and html.startswith(("<!", "<?", "</"), start) else -1


def _is_untranslated(tag: str) -> bool:
    """Whether a tag says translate="no"."""
    values = (found for found in _ATTRIBUTE.finditer(tag, 1) if found[1].lower() == "translate")
    return any("no" in (found[2], found[3], found[4]) for found in values)


def _within(piece: str, text: str) -> str:
    """A text with the white space of the piece that it replaces, written as characters or as entities."""
    start, end = 0, len(piece)
    while found := _SPACE.match(piece, start):
        start = found.end()
    while end > start and (found := _SPACE_BEFORE.search(piece, max(start, end - 8), end)):
        end = found.start()
    return piece[:start] + text + piece[end:]


def _unescaped(text: str) -> str:
    """A text whose entities are characters; a number that no character has is U+FFFD, however long it is."""
    text = re.sub(r"(&#[xX]?)0++(?=[\da-fA-F])", r"\1", text)
    return unescape(re.sub(r"&#(?:0*+[1-9]\d{7,}+|[xX]0*+[1-9a-fA-F][\da-fA-F]{6,}+);?", "\ufffd", text))


def _without_entities(piece: str) -> str:
    """HTML whose entities are characters, but for those within tags and those that would be read as markup."""
    return _outside_tags(
        piece, lambda text: re.sub(r"&(?!lt;|gt;|amp;#?\w+;)#?\w+;", lambda found: _unescaped(found[0]), text)
    )


def _with_entities(text: str) -> str:
    """HTML in which a & that a translation wrote is an entity."""
    return _outside_tags(text, lambda some: re.sub(r"&(?!#?\w+;)", "&amp;", some))


def _outside_tags(html: str, change: Callable[[str], str]) -> str:
    """HTML whose characters are changed; tags stay as they are, byte for byte."""
    return "".join(change(token) if name is None else token for name, token in tokens(html))
