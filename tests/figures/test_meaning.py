"""A word's way through the layers."""

from typing import Any, cast
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation

from regard.figures.meaning import draw_meaning


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_path_goes_through_a_layers_number(theme: str) -> None:
    path = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 0.0]]])  # layer 1's number stands on the way up
    meaning: Any = Mock(word="cat", texts=["a cat"], projection=path, explained=(0.7, 0.2), after=[[("dog", 0.9)]])
    figure = draw_meaning(meaning, theme=theme)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (number,) = [text for text in figure.findobj(Annotation) if text.get_text() == "1" and text.get_fontsize() < 8]
    box = cast(Annotation, number).get_window_extent(cast(Any, canvas.get_renderer()))
    pixels = np.asarray(canvas.buffer_rgba())[:, :, :3].astype(int)
    inside = pixels[len(pixels) - int(box.y1) : len(pixels) - int(box.y0), int(box.x0) + 1 : int(box.x1)]
    assert inside.size
    assert (inside.max(-1) - inside.min(-1)).max() < 60  # ink and paper are gray, paths are colored
