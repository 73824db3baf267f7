"""HTML around texts: cut into markup, which stays, and texts, which are translated."""

from collections.abc import Sequence
from html import escape, unescape
from html.parser import HTMLParser

VOID = ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr")
KEPT = ("script", "style", "code", "pre", "textarea")  # elements whose text stays as it is


class Markup(HTMLParser):
    """An HTML text as pieces: what stays as it is, and texts.

    Attributes:
        pieces: (whether it is a text to be translated, the piece as it stands in the HTML).
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=False)
        self.pieces: list[tuple[bool, str]] = []
        self._kept: list[str] = []
        self.feed(html)
        self.close()

    def texts(self) -> list[str]:
        """The texts to be translated, without white space around them."""
        return [unescape(piece).strip() for is_text, piece in self.pieces if is_text]

    def filled(self, texts: Sequence[str]) -> str:
        """The HTML with other texts in the places of its own."""
        left = iter(texts)
        return "".join(_within(piece, next(left)) if is_text else piece for is_text, piece in self.pieces)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep a tag; within some elements, and those that say translate="no", keep the text too."""
        self._keep(self.get_starttag_text() or "")
        if tag not in VOID and (tag in KEPT or ("translate", "no") in attrs or tag in self._kept[-1:]):
            self._kept.append(tag)

    def handle_startendtag(self, *_: object) -> None:
        """Keep a tag that has no text."""
        self._keep(self.get_starttag_text() or "")

    def handle_endtag(self, tag: str) -> None:
        """Keep a tag."""
        self._keep(f"</{tag}>")
        if tag in self._kept[-1:]:
            self._kept.pop()

    def handle_data(self, data: str) -> None:
        """Add to a text."""
        is_text = not self._kept and bool(data.strip() or (self.pieces and self.pieces[-1][0]))
        if is_text and self.pieces and self.pieces[-1][0]:
            data = self.pieces.pop()[1] + data
        self.pieces.append((is_text, data))

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

    def _keep(self, piece: str) -> None:
        self.pieces.append((False, piece))


def _within(piece: str, text: str) -> str:
    """A text with the white space of the piece that it replaces."""
    start, end = piece[: len(piece) - len(piece.lstrip())], piece[len(piece.rstrip()) :]
    return start + escape(text, quote=False) + end
