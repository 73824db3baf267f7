"""Figures as files, and as a notebook shows them."""

import re
import warnings
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regard.errors import ConfigError, DataError
from regard.figures.style import fonts, quiet
from regard.storage import check_place, replacing, write_text, writing_to

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGES = "html", "htm"
MADE = b"drawn by regard"  # marks a file as drawn by regard
HEAD = 2048  # bytes within which a page and an SVG say so
# beginnings of pages of versions that did not mark them: those of a run, and those of maps
UNMARKED = (
    rb'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>[^<]*: training</title>'
    rb'<meta name="viewport" content="width=device-width, initial-scale=1"><style>',
    rb'<!doctype html>\n<html lang="en">\n<head>\n(?:<(?:meta|title|style)[^\n]*\n)+</head>\n<body>\n'
    rb'<main id="regard">',
)
DPI, POINTS = 160, 60e6  # of a picture: dots an inch, and in all, of which each takes a dozen bytes while it is drawn
# text stays text in an SVG, so the reader's own fonts serve every script
SVG: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "regard"}


def check_target(path: str | Path, page: bool = False) -> Path:
    """A path to which a figure can be drawn.

    Args:
        path: the file.
        page: whether a page (.html) may stand there too.

    Raises:
        DataError: the ending is none that can be drawn, the folder does not exist or may not be written to, or there
            is a folder of that name.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    path = Path(path)
    kinds = {*FigureCanvasBase.get_supported_filetypes(), *(PAGES if page else ())} - {"pgf"}  # which runs TeX
    if path.suffix.lower().removeprefix(".") not in kinds:
        raise DataError(
            f"{path}: cannot draw {path.suffix or 'a file without an ending'!r}: end it in .png, .svg"
            f"{', .pdf or .html' if page else ' or .pdf'}"
        )
    check_place(path)
    return path


def check_page(path: str | Path) -> Path:
    """A path to which a page can be written.

    Raises:
        ConfigError: a name that does not end in .html; a file that was not drawn by regard.
        DataError: the folder does not exist or may not be written to, or there is a folder of that name.
    """
    path = Path(path)
    if path.suffix.lower().removeprefix(".") not in PAGES:
        raise ConfigError(f"{path}: the page is an HTML file: end the name in .html")
    check_place(path)
    check_own(path)
    return path


def write_page(path: str | Path, text: str) -> None:
    """Write a page as one file.

    Args:
        path: the file.
        text: the page, with `MADE` in it.

    Raises:
        ConfigError, DataError: as `check_page`; there is no room for it, and an existing file is unchanged.
    """
    path = check_page(path)
    with writing_to(path):
        write_text(path, text)


def is_drawn(path: Path) -> bool:
    """Whether a file holds nothing that would be lost if it were drawn anew: it is empty, or a figure of regard's."""
    if not path.exists() or not path.stat().st_size:
        return True
    found = path.read_bytes()
    # a text says so in its beginning: an article may have a figure of regard's, and these words, within
    marked = found if found.startswith((b"%PDF", b"\x89PNG")) else found[:HEAD]
    return MADE in marked or any(re.match(start, found) for start in UNMARKED)


def check_own(path: str | Path) -> None:
    """Refuse to replace a file that was not drawn by regard.

    Raises:
        ConfigError: there is such a file.
    """
    if not is_drawn(Path(path)):
        raise ConfigError(f"{path}: this file exists and was not drawn by regard: give another name")


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a figure to a file.

    Raises:
        DataError: as `check_target`; there is no room for it.
    """
    import matplotlib

    path = check_target(path)
    ending = path.suffix.lower()
    style: dict[Any, Any] = {**SVG, "font.family": fonts()}
    with quiet(), matplotlib.rc_context(style), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        about: dict[str, dict[str, Any]] = {
            ".svg": {"Date": None, "Description": MADE.decode()}, ".pdf": {"Subject": MADE.decode()},
            ".png": {"Description": MADE.decode()},
        }  # fmt: skip
        try:
            with writing_to(path), replacing(path) as file:
                kind = ending.removeprefix(".")
                width, height = figure.get_size_inches()
                dpi = min(DPI, (POINTS / (width * height)) ** 0.5)
                figure.savefig(file, format=kind, dpi=dpi, bbox_inches="tight", metadata=about.get(ending))
        except AttributeError as error:  # what a .pdf's writer makes of an error of the disk
            raise DataError(f"{path}: could not be written: {error}") from error
    if ending != ".svg" and any("missing from font" in str(warning.message) for warning in caught):
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn(
                f"{path}: no installed font has some of the letters: install one (Debian: fonts-noto-core, "
                "fonts-noto-cjk), or draw an .svg",
                stacklevel=2,
            )


def finished(figure: "Figure", path: str | Path | None) -> "Figure":
    """A figure, written where `path` says so."""
    if path is not None:
        save_figure(figure, path)
    return figure


def as_png(figure: "Figure") -> bytes:
    """A figure as a notebook shows it."""
    import matplotlib

    buffer = BytesIO()
    with quiet(), matplotlib.rc_context({"font.family": fonts()}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that no font has
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return buffer.getvalue()


def as_svg(figure: "Figure") -> str:
    """A figure as an `<svg>` element, its text as text."""
    import matplotlib

    text = StringIO()
    with quiet(), matplotlib.rc_context({**SVG, "font.family": fonts()}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the reader's own fonts have
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
