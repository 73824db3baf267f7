"""The interactive page of attention maps, as one file that needs no network, and in a notebook.

A page is a document, which is plain data, and the tensors that it names. Its script, built from `frontend/`, computes
every row of every map itself, so the file holds queries and keys, not matrices.
"""

import base64
import gzip
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from regard.errors import ConfigError
from regard.figures.files import MADE, check_page, write_page
from regard.storage import without_halves

FORMAT = 1
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' blob:; worker-src blob:; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src data: blob:; connect-src 'none'; base-uri 'none'; form-action 'none'"
)

# until the tensors are read
OPENING = '<p style="font:15px system-ui,sans-serif;color:GrayText;padding:1rem">opening the page …</p>'

TITLE = "regard: attention"  # of its frame in a notebook
UNTRUSTED = "The interactive page is shown in a trusted notebook: trust this one, or run the cell."


@cache
def script() -> str:
    """The built front end, an ECMAScript module without imports."""
    return files("regard.figures").joinpath("look.mjs").read_text(encoding="utf-8")


@dataclass(frozen=True, eq=False)
class Page:
    """An interactive page, displayed by a notebook or saved as one file.

    Attributes:
        document: plain data, which `json` can write: the title, and the runs with their tokens, words and maps.
        tensors: what the maps are computed from, by the names in the document.
        still: an SVG picture, displayed where scripts are disabled.
    """

    document: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    still: str = field(default="", repr=False)

    @cached_property
    def plain(self) -> dict[str, Any]:
        """The document with its format, and null for numbers that JSON does not have."""
        found: dict[str, Any] = _finite({**self.document, "format": FORMAT})
        return found

    @cached_property
    def raw(self) -> bytes:
        """The tensors as safetensors."""
        return bytes(save({name: part.detach().cpu().contiguous().clone() for name, part in self.tensors.items()}))

    @cached_property
    def packed(self) -> str:
        """The tensors as safetensors, deflated, in base64."""
        return base64.b64encode(gzip.compress(self.raw, 6, mtime=0)).decode("ascii")

    @property
    def size(self) -> int:
        """Bytes of the file that `save` writes."""
        return len(self.html().encode("utf-8"))

    def html(self, live: Mapping[str, Any] | None = None) -> str:
        """The whole page as text; it loads nothing.

        Args:
            live: settings from the server that answers the page's requests; None for a page without a server.
        """
        document = {**self.plain, **({"live": live} if live else {})}
        policy = POLICY.replace("connect-src 'none'", "connect-src 'self'") if live else POLICY
        title = html.escape(str(self.document.get("title", "regard")))
        text = (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta name="generator" content="{MADE.decode()}">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            f"<title>{title}</title>\n<style>html,body{{margin:0;min-height:100%}}</style>\n</head>\n<body>\n"
            f'<main id="regard">{self.still or OPENING}</main>\n'
            f'<script type="application/json" id="document">{inert(document)}</script>\n'
            f'<script type="text/plain" id="tensors">{self.packed}</script>\n'
            f'<script type="module">{script()}</script>\n</body>\n</html>\n'
        )
        return without_halves(text)  # a token may be half of a surrogate pair

    def save(self, path: str | Path) -> None:
        """Write the page as one file.

        Raises:
            ConfigError: a name that does not end in .html; a file that was not drawn by regard.
            DataError: a folder, or a place that may not be written to; an existing file is unchanged.
        """
        write_page(check_page(path), self.html())

    def written(self, path: str | Path | None) -> "Page":
        """Itself, written to `path` where there is one."""
        if path is not None:
            self.save(path)
        return self

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:  # noqa: ARG002
        """What a notebook shows: the page in a frame of its own; a picture where frames or scripts are off.

        A notebook that is not trusted shows this HTML without the frame and the style that hides the picture.
        """
        framed = html.escape(self.html(), quote=True)
        picture = base64.b64encode(self.still.encode("utf-8")).decode("ascii")
        instead = f'<img src="data:image/svg+xml;base64,{picture}" alt="{TITLE}, a picture">' if self.still else ""
        found = {
            "text/html": (
                f'<iframe srcdoc="{framed}" sandbox="allow-scripts allow-downloads" '
                f'title="{TITLE}" style="width:100%;height:720px;border:0"></iframe>'
                f"<div>{instead}<p>{UNTRUSTED}</p></div>"
                f'<style>iframe[title="{TITLE}"] + div {{ display: none }}</style>'
            ),
            "text/plain": repr(self),
        }
        return found | ({"image/svg+xml": self.still} if self.still else {})

    def widget(self) -> Any:
        """The page as an anywidget, for notebooks that run widgets.

        Raises:
            ConfigError: anywidget is not installed.
        """
        try:
            import anywidget
            import traitlets
        except ImportError as error:
            raise ConfigError("a widget needs anywidget: pip install anywidget") from error

        class Widget(anywidget.AnyWidget):  # type: ignore[misc, unused-ignore]
            _esm = script()
            document = traitlets.Unicode().tag(sync=True)
            tensors = traitlets.Bytes().tag(sync=True)

        return Widget(document=inert(self.plain), tensors=self.raw)

    def __repr__(self) -> str:
        count = len(self.document.get("runs", []))
        return f"Page({self.document.get('title', '')!r}, {count} run{'s' * (count != 1)})"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def inert(document: Any) -> str:
    """JSON that is safe inside a script element: no text in it can close the element."""
    raw = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return without_halves(raw).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
