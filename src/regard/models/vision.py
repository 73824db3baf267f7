"""The Vision Transformer (Dosovitskiy et al. 2021): an encoder of pictures cut into patches."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from regard.errors import ChoiceError, ShapeError
from regard.models.seq2seq import Memory
from regard.models.stack import BlocksConfig, Stack
from regard.nn.dropout import Dropout
from regard.nn.embedding import normal


class VisionConfig(BlocksConfig):
    """Settings of an encoder of pictures (Dosovitskiy et al. 2021)."""

    kind: Literal["picture"]
    layers: int = Field(12, gt=0)
    """Blocks."""
    size: int = Field(224, gt=0)
    """Height and width of a picture, in points."""
    patch: int = Field(16, gt=0)
    """Height and width of a patch; divides the size."""
    channels: int = Field(3, gt=0)
    """Colors."""
    classes: int = Field(0, ge=0)
    """Number of classes; 0 for no classifier."""
    pooler: bool = False
    """A layer over the first state, tanh(W h_0 + b)."""


class VisionTransformer(nn.Module):
    """A picture's patches and one further state for the whole picture; each attends to all others.

    Args:
        config: the sizes and choices.

    Raises:
        ShapeError: a patch that does not divide the size.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        if config.size % config.patch:
            raise ShapeError(f"patch must divide size; got {config.patch} and {config.size}")
        self.config = config
        self.patches = nn.Conv2d(config.channels, config.width, config.patch, config.patch)
        self.first = normal(1, config.width, std=0.02)
        self.positions = normal(1 + (config.size // config.patch) ** 2, config.width, std=0.02)
        self.dropout = Dropout(config.dropout)
        self.encoder = Stack(config, config.layers, "both")
        self.pooler = nn.Linear(config.width, config.width) if config.pooler else None
        self.head = nn.Linear(config.width, config.classes) if config.classes else None

    def encode(self, pictures: Float[Tensor, "B C H W"], collect: list[Tensor] | None = None) -> Memory:
        """States `[B, 1 + patches, d]`, the whole picture's first, patches row by row; `collect` as in `Stack`.

        Raises:
            ShapeError: pictures of another size.
        """
        wanted = [self.config.channels, self.config.size, self.config.size]
        if list(pictures.shape[1:]) != wanted:
            raise ShapeError(f"pictures need shape [B, C, H, W] with {wanted}; got {list(pictures.shape)}")
        patches = self.patches(pictures).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(pictures), 1, -1), patches], 1) + self.positions
        states = self.encoder(self.dropout(x), None, collect=collect)
        summary = None if self.pooler is None else self.pooler(states[:, 0]).tanh()
        return Memory(states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device), summary)

    def forward(self, pictures: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        """Logits of the classes, from the whole picture's state.

        Raises:
            ChoiceError: the model has no classifier.
        """
        if self.head is None:
            raise ChoiceError("this encoder has no classifier: encode() gives its states")
        logits: Tensor = self.head(self.encode(pictures).states[:, 0])
        return logits
