"""Input of a picture encoder: pixels, or features of a pretrained network that stays as it is."""

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from regard.data.pictures import as_tensor, square
from regard.pretrained.efficientnet import features


def prepared(pictures: Sequence[Image.Image], reads: Any) -> list[Tensor]:
    """Pictures of any size as input of the encoder with the settings `reads`.

    Raises:
        BundleError: the network's package is not installed.
    """
    points = [as_tensor(square(picture.convert("RGB"), reads.size)) for picture in pictures]
    return features(points, reads.cell) if reads.kind == "features" else points
