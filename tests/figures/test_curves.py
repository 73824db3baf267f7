"""Curves of a training run."""

from itertools import combinations

from matplotlib.text import Text

from regard.figures.curves import curves


def test_names_of_curves_that_end_together_stand_apart() -> None:
    training = [(100.0, 2.02), (200.0, 0.3), (300.0, 0.15), (400.0, 0.12)]
    development = [(100.0, 2.01), (200.0, 0.23), (300.0, 0.11), (400.0, 0.11)]
    figure = curves([("loss", [("training batch", training), ("development", development)])], best=400)
    figure.draw_without_rendering()
    names = [text for text in figure.findobj(Text) if text.get_text() in ("training batch", "development")]
    assert [text.get_text() for text in names] == ["training batch", "development"]
    lines = figure.axes[0].lines
    assert [text.get_color() for text in names] == [line.get_color() for line in lines[:2]]
    for one, other in combinations(names, 2):
        assert not one.get_window_extent().overlaps(other.get_window_extent())
    for line in lines[:2]:
        path = line.get_path().transformed(line.get_transform())
        assert not any(path.intersects_bbox(text.get_window_extent()) for text in names)
