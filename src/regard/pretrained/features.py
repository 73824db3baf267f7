"""Input of a picture encoder: pixels, or features of a pretrained network that stays as it is."""

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from regard.data.pictures import as_tensor, square
from regard.pretrained.efficientnet import features


def prepared(pictures: Sequence[Image.Image], encoder: Any) -> list[Tensor]:
    """Pictures of any size as input of the encoder with the settings `encoder`.

    Raises:
        BundleError: the network's package is not installed.
    """
    points = [as_tensor(square(picture.convert("RGB"), encoder.size)) for picture in pictures]
    return features(points, encoder.cell) if encoder.kind == "features" else points
