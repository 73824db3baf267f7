"""Emoji in another style, for the config emoji-styles and `senses.py style`: an Iconify package as .png files.

    npm pack @iconify-json/openmoji && mkdir openmoji && tar xzf iconify-json-openmoji-*.tgz -C openmoji
    python benchmarks/emoji_styles.py openmoji/package styles/openmoji

The files are named by their code points (1F408.png), 136 points high. Needs the packages resvg-py and emoji; the
drawings' license stands in the package's info.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import emoji
import resvg_py
from rich.progress import track

POINTS = 136


def icons(package: Path) -> dict[str, tuple[str, int, int]]:
    """{name: its drawing as SVG elements, width, height}."""
    given: dict[str, Any] = json.loads((package / "icons.json").read_text())
    usual = given.get("width", 16), given.get("height", 16)
    found = {
        name: (one["body"], one.get("width", usual[0]), one.get("height", usual[1]))
        for name, one in given["icons"].items()
    }
    return found | {
        name: found[one["parent"]] for name, one in given.get("aliases", {}).items() if one["parent"] in found
    }


def draw(package: Path, folder: Path) -> int:
    """Draw every emoji that the package has, by its code points or else by its English name; how many there were."""
    folder.mkdir(parents=True, exist_ok=True)
    by_codes: dict[str, str] = json.loads((package / "chars.json").read_text())
    drawings, count = icons(package), 0
    for glyph, facts in track(emoji.EMOJI_DATA.items(), package.name):
        if facts["status"] != emoji.STATUS["fully_qualified"]:
            continue
        codes = [f"{ord(c):x}" for c in glyph if c != "\ufe0f"]
        spoken = facts["en"].strip(":").lower().replace("_", "-")
        drawing = drawings.get(by_codes.get("-".join(codes), spoken))
        if drawing:
            body, width, height = drawing
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{body}</svg>'
            where = folder / f"{'-'.join(codes).upper()}.png"
            where.write_bytes(resvg_py.svg_to_bytes(svg, width=POINTS, height=POINTS, skip_system_fonts=True))
            count += 1
    return count


if __name__ == "__main__":
    package, folder = map(Path, sys.argv[1:])
    print(f"{draw(package, folder)} drawings in {folder}")
