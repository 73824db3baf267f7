"""What an encoder takes of pictures: their points, or the features of a network that is not trained here."""

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from regard.data.pictures import as_tensor, square
from regard.pretrained.efficientnet import features


def prepared(pictures: Sequence[Image.Image], encoder: Any) -> list[Tensor]:
    """Pictures of any size as the encoder with the settings `encoder` takes them.

    Raises:
        BundleError: the network's package is not installed.
    """
    points = [as_tensor(square(picture.convert("RGB"), encoder.size)) for picture in pictures]
    return features(points, encoder.cell) if encoder.kind == "features" else points
