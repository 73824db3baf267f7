"""What a drawn file or figure holds."""

import re
import xml.etree.ElementTree as ET

from PIL import Image


def words_of(path):
    """The text of an SVG: one string per text element, in order."""
    root = ET.fromstring(path.read_bytes())
    return ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]


def check_opens(path):
    raw = path.read_bytes()
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 100
            assert len(image.convert("RGB").getcolors(2**24)) > 2
    elif path.suffix == ".svg":
        assert words_of(path)
    else:
        assert raw.startswith(b"%PDF-")
        assert raw.rstrip().endswith(b"%%EOF")
        assert len(re.findall(rb"/Type /Page\b", raw)) == 1


def panels_of(figure):
    return [axes for axes in figure.axes if axes.images and axes.get_visible() and axes.get_label() != "<colorbar>"]
