"""Encoders of what is not text: pictures in patches, sound in moments; the blocks behind them are the same."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import gelu

from regard.errors import ChoiceError, ShapeError
from regard.models.seq2seq import Memory
from regard.models.stack import BlocksConfig, Stack
from regard.models.transformer import PairConfig, Transformer
from regard.nn.dropout import Dropout


class PictureConfig(BlocksConfig):
    """Settings of an encoder of pictures (Dosovitskiy et al. 2021)."""

    kind: Literal["picture"]
    layers: int = Field(12, gt=0)
    """Blocks."""
    size: int = Field(224, gt=0)
    """Height and width of a picture, in points."""
    patch: int = Field(16, gt=0)
    """Height and width of a patch; divides the size."""
    channels: int = Field(3, gt=0)
    """Colours."""
    classes: int = Field(0, ge=0)
    """How many classes a picture may be of; 0 for no such head."""
    pooler: bool = False
    """A layer over the first state, tanh(W h_0 + b)."""


class PictureReader(nn.Module):
    """A picture's patches and one state more, which stands for the whole; each looks at all others.

    Args:
        config: the sizes and choices.

    Raises:
        ShapeError: a patch that does not divide the size.
    """

    def __init__(self, config: PictureConfig) -> None:
        super().__init__()
        if config.size % config.patch:
            raise ShapeError(f"patch must divide size; got {config.patch} and {config.size}")
        self.config = config
        self.patches = nn.Conv2d(config.channels, config.width, config.patch, config.patch)
        self.first = nn.Parameter(torch.randn(1, config.width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1 + (config.size // config.patch) ** 2, config.width) * 0.02)
        self.dropout = Dropout(config.dropout)
        self.encoder = Stack(config, config.layers, "both")
        self.pooler = nn.Linear(config.width, config.width) if config.pooler else None
        self.head = nn.Linear(config.width, config.classes) if config.classes else None

    def encode(self, pictures: Float[Tensor, "B C H W"], every: list[Tensor] | None = None) -> Memory:
        """States `[B, 1 + patches, d]`, the whole picture's first, patches row by row; `every` as in `Stack`.

        Raises:
            ShapeError: pictures of another size.
        """
        wanted = [self.config.channels, self.config.size, self.config.size]
        if list(pictures.shape[1:]) != wanted:
            raise ShapeError(f"pictures need shape [B, C, H, W] with {wanted}; got {list(pictures.shape)}")
        patches = self.patches(pictures).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(pictures), 1, -1), patches], 1) + self.positions
        states = self.encoder(self.dropout(x), None, every=every)
        summary = None if self.pooler is None else self.pooler(states[:, 0]).tanh()
        return Memory(states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device), summary)

    def forward(self, pictures: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        """Logits of the classes, from the whole picture's state.

        Raises:
            ChoiceError: the model has no such head.
        """
        if self.head is None:
            raise ChoiceError("this encoder has no head that tells classes: encode() gives its states")
        logits: Tensor = self.head(self.encode(pictures).states[:, 0])
        return logits


class SpeechConfig(PairConfig):
    """Settings of a transcriber of sound (Radford et al. 2022)."""

    kind: Literal["speech"]
    bands: int = Field(80, gt=0)
    """Bands of the mel spectrogram."""
    moments: int = Field(1500, gt=0)
    """Moments that the encoder tells apart, two frames of the spectrogram each."""


class Speech(Transformer):
    """A spectrogram's frames, two and two, read by an encoder; a decoder writes the text.

    Args:
        vocabulary: number of tokens.
        config: the sizes and choices.
    """

    def __init__(self, vocabulary: int, config: SpeechConfig) -> None:
        super().__init__(vocabulary, config)
        self.first = nn.Conv1d(config.bands, config.width, 3, padding=1)
        self.second = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.moments = nn.Parameter(torch.randn(config.moments, config.width) * 0.02)

    def encode(
        self, source: Float[Tensor, "B bands frames"], allowed: Bool[Tensor, "B S"] | None = None,
        every: list[Tensor] | None = None,
    ) -> Memory:  # fmt: skip
        """States `[B, ceil(frames / 2), d]` of log-mel spectrograms.

        Args:
            source: `[B, bands, frames]`.
            allowed: which moments are real; all, if None.
            every: gets the states before each block, and the last ones.

        Raises:
            ShapeError: more frames than the model tells apart.
        """
        x = gelu(self.second(gelu(self.first(source)))).transpose(1, 2)
        if x.shape[1] > len(self.moments):
            raise ShapeError(f"sound of {source.shape[2]} frames is too long: this model reads {2 * len(self.moments)}")
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if allowed is None else allowed
        return Memory(self.encoder(self.dropout(x + self.moments[: x.shape[1]]), allowed, every=every), real)
