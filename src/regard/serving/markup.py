"""HTML around texts: cut into markup, which stays, and texts, which are translated.

Elements within a line (<b>, <a>, …) belong to a text: they are set around the words that are aligned with theirs
(`regard.pipelines.protect`), unless the translator cannot do so; then they cut texts as all others do.
"""

import re
from collections.abc import Sequence
from functools import partial
from html import escape, unescape
from html.parser import HTMLParser

VOID = ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr")
INLINE = (
    "a", "abbr", "b", "bdi", "bdo", "cite", "del", "dfn", "em", "font", "i", "ins", "label", "mark", "q", "s", "small",
    "span", "strong", "sub", "sup", "u",
)  # fmt: skip
KEPT = ("script", "style", "code", "pre", "textarea")  # elements whose text stays as it is


class Markup(HTMLParser):
    """An HTML text as pieces: what stays as it is, and texts.

    Args:
        html: the text.
        inline: whether elements within a line belong to a text.

    Attributes:
        pieces: (whether it is a text to be translated, the piece as it stands in the HTML).
    """

    def __init__(self, html: str, inline: bool) -> None:
        super().__init__(convert_charrefs=False)
        self.inline = INLINE if inline else ()
        self.pieces: list[tuple[bool, str]] = []
        self._kept: list[str] = []
        self.feed(html)
        self.close()

    def texts(self) -> list[str]:
        """The texts to be translated, without white space around them; with elements within a line, those are HTML."""
        read = _without_entities if self.inline else unescape
        return [read(piece).strip() for is_text, piece in self.pieces if is_text]

    def filled(self, texts: Sequence[str]) -> str:
        """The HTML with other texts in the places of its own."""
        left = iter(texts)
        written = _with_entities if self.inline else partial(escape, quote=False)
        return "".join(_within(piece, written(next(left))) if is_text else piece for is_text, piece in self.pieces)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep a tag; within some elements, and those that say translate="no", keep the text too."""
        if tag in self.inline and not self._kept and ("translate", "no") not in attrs:
            self._add(self.get_starttag_text() or "", True)
            return
        self._keep(self.get_starttag_text() or "")
        if tag not in VOID and (tag in KEPT or ("translate", "no") in attrs or tag in self._kept[-1:]):
            self._kept.append(tag)

    def handle_startendtag(self, *_: object) -> None:
        """Keep a tag that has no text."""
        self._keep(self.get_starttag_text() or "")

    def handle_endtag(self, tag: str) -> None:
        """Keep a tag."""
        if tag in self.inline and not self._kept:
            self._add(f"</{tag}>", bool(self.pieces) and self.pieces[-1][0])
            return
        self._keep(f"</{tag}>")
        if tag in self._kept[-1:]:
            self._kept.pop()

    def handle_data(self, data: str) -> None:
        """Add to a text."""
        self._add(data, not self._kept and bool(data.strip() or (self.pieces and self.pieces[-1][0])))

    def handle_entityref(self, name: str) -> None:
        """Add to a text."""
        self.handle_data(f"&{name};")

    def handle_charref(self, name: str) -> None:
        """Add to a text."""
        self.handle_data(f"&#{name};")

    def handle_comment(self, data: str) -> None:
        """Keep a comment."""
        self._keep(f"<!--{data}-->")

    def handle_decl(self, decl: str) -> None:
        """Keep a declaration."""
        self._keep(f"<!{decl}>")

    def handle_pi(self, data: str) -> None:
        """Keep an instruction."""
        self._keep(f"<?{data}>")

    def unknown_decl(self, data: str) -> None:
        """Keep a marked section."""
        self._keep(f"<![{data}]>")

    def _add(self, data: str, is_text: bool) -> None:
        if is_text and self.pieces and self.pieces[-1][0]:
            data = self.pieces.pop()[1] + data
        self.pieces.append((is_text, data))

    def _keep(self, piece: str) -> None:
        self.pieces.append((False, piece))


def _within(piece: str, text: str) -> str:
    """A text with the white space of the piece that it replaces."""
    start, end = piece[: len(piece) - len(piece.lstrip())], piece[len(piece.rstrip()) :]
    return start + text + end


def _without_entities(piece: str) -> str:
    """HTML whose entities are characters, but for those that would be read as markup."""
    return re.sub(r"&(?!lt;|gt;|amp;#?\w+;)#?\w+;", lambda found: unescape(found[0]), piece)


def _with_entities(text: str) -> str:
    """HTML in which a & that a translation wrote is an entity."""
    return re.sub(r"&(?!#?\w+;)", "&amp;", text)
