"""What confidences are worth: how often predictions of a given confidence are right."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from regard.arguments import check_arguments
from regard.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Calibration:
    """Predictions in bins of equal width over their confidence, empty bins left out (Guo et al. 2017, section 2)."""

    confidence: list[float]
    """Mean confidence of each bin."""
    right: list[float]
    """Share of right predictions of each bin."""
    count: list[int]
    """Number of predictions of each bin."""

    @property
    def error(self) -> float:
        """Expected calibration error, Σ_b n_b / n · abs(right_b − confidence_b), of 0 to 1 (equation 3)."""
        bins = zip(self.confidence, self.right, self.count, strict=True)
        return sum(count * abs(right - confidence) for confidence, right, count in bins) / max(1, sum(self.count))

    @check_arguments
    def plot(
        self, path: str | Path | None = None, title: str = "", theme: str = "light", *,
        right: str = "share right", counted: str = "predictions",
    ) -> "Figure":  # fmt: skip
        """A reliability diagram; the ending of `path` (.png, .svg, .pdf) gives the format.

        Args:
            path: the file; None only makes the figure.
            title: above the figure.
            theme: "light" or "dark".
            right: what the share of right predictions is called.
            counted: what the predictions are called.
        """
        from regard.figures.calibration import draw_calibration

        return draw_calibration(
            self.confidence, self.right, self.count, self.error, title, path, theme, share=right, counted=counted
        )


@check_arguments
def calibration(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> Calibration:
    """Whether predictions of confidence p are right in a share p of the cases.

    Args:
        confidence: a probability for each prediction, 0 to 1.
        right: whether each prediction is right.
        bins: number of bins of equal width.

    Raises:
        ShapeError: the two differ in length.
        ConfigError: a confidence is no probability, or there is no bin.
    """
    if len(confidence) != len(right):
        raise ShapeError(
            f"confidence has {len(confidence)} entries and right has {len(right)}: one for each prediction"
        )
    if bins < 1:
        raise ConfigError(f"bins is {bins}: at least one is needed")
    held: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for one, is_right in zip(confidence, right, strict=True):
        if not 0 <= one <= 1:
            raise ConfigError(f"a confidence is {one}: a probability lies between 0 and 1")
        held[min(bins - 1, int(one * bins))].append((one, is_right))
    full = [pairs for pairs in held if pairs]
    return Calibration(
        [sum(one for one, _ in pairs) / len(pairs) for pairs in full],
        [sum(is_right for _, is_right in pairs) / len(pairs) for pairs in full],
        [len(pairs) for pairs in full],
    )
