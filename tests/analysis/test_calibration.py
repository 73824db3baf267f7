"""What confidences are worth."""

from pathlib import Path

import pytest
from matplotlib.text import Text

from regard.analysis.calibration import calibration
from regard.errors import ConfigError, DataError, ShapeError
from regard.figures.calibration import draw_calibration


def test_bins_and_the_error_by_hand() -> None:
    found = calibration([0.05, 0.15, 0.95, 0.85, 1.0], [False, True, True, False, True], bins=2)
    assert found.confidence == pytest.approx([0.1, 2.8 / 3])
    assert found.right == pytest.approx([0.5, 2 / 3])
    assert found.count == [2, 3]
    assert found.error == pytest.approx(2 / 5 * 0.4 + 3 / 5 * (2.8 / 3 - 2 / 3))


def test_calibrated_confidences_have_no_error() -> None:
    assert calibration([0.5] * 4 + [1.0], [True, False, True, False, True]).error == pytest.approx(0)
    assert calibration([], []).error == 0


def test_what_cannot_be() -> None:
    with pytest.raises(ShapeError, match=r"confidence has 1 entries and right has 2: one for each prediction"):
        calibration([0.5], [True, False])
    with pytest.raises(ConfigError, match=r"a confidence is 1\.5: a probability lies between 0 and 1"):
        calibration([1.5], [True])
    with pytest.raises(ConfigError, match=r"bins is 0"):
        calibration([0.5], [True], bins=0)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_figure(tmp_path: Path, theme: str) -> None:
    found = calibration([0.2, 0.9, 0.95], [False, True, True])
    figure = found.plot(tmp_path / "a.svg", "a model", theme)
    upper, lower = figure.axes
    assert "a model" in upper.get_title(loc="left")
    assert "3 predictions" in upper.get_title(loc="left")
    assert [bar.get_height() for bar in lower.patches] == [1, 2]
    assert (tmp_path / "a.svg").exists()
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("share right", "number of\npredictions")
    with pytest.raises(DataError):
        found.plot(tmp_path / "a.txt")


def test_the_axes_say_what_was_counted() -> None:
    found = calibration([0.2, 0.9, 0.95], [False, True, True])
    upper, lower = found.plot(right="share in the reference", counted="words").axes
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("share in the reference", "number of\nwords")
    assert "3 words" in upper.get_title(loc="left")


@pytest.mark.parametrize("right", [[0.12, 0.2, 0.33, 0.93], [0.25, 0.35, 0.45, 0.97]])
def test_the_diagonals_name_is_not_on_the_curve(right: list[float]) -> None:
    figure = draw_calibration([0.15, 0.25, 0.35, 0.95], right, [3, 5, 7, 11], 0.03)
    figure.draw_without_rendering()
    upper = figure.axes[0]
    (name,) = [text for text in figure.findobj(Text) if text.get_text() == "calibrated"]
    for line in upper.lines:
        assert not line.get_path().transformed(line.get_transform()).intersects_bbox(name.get_window_extent())
    assert "calibrated" in {line.get_label() for line in upper.lines if line.get_linestyle() == "--"}
