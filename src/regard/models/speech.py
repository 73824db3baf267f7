"""The speech Transformer (Radford et al. 2022, Whisper): from log-mel spectrograms to text."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import gelu

from regard.errors import ShapeError
from regard.models.seq2seq import Memory
from regard.models.transformer import PairConfig, Transformer
from regard.nn.embedding import normal


class SpeechConfig(PairConfig):
    """Settings of a speech Transformer (Radford et al. 2022)."""

    kind: Literal["speech"]
    bands: int = Field(80, gt=0)
    """Bands of the mel spectrogram."""
    moments: int = Field(1500, gt=0)
    """Number of positions of the encoder, two frames of the spectrogram each."""


class SpeechTransformer(Transformer):
    """An encoder of a spectrogram, two frames to a state, and a decoder of text.

    Args:
        vocabulary: number of tokens.
        config: the sizes and choices.
    """

    def __init__(self, vocabulary: int, config: SpeechConfig) -> None:
        super().__init__(vocabulary, config)
        self.first = nn.Conv1d(config.bands, config.width, 3, padding=1)
        self.second = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.moments = normal(config.moments, config.width, std=0.02)

    def encode(
        self, source: Float[Tensor, "B bands frames"], allowed: Bool[Tensor, "B S"] | None = None,
        collect: list[Tensor] | None = None,
    ) -> Memory:  # fmt: skip
        """States `[B, ceil(frames / 2), d]` of log-mel spectrograms.

        Args:
            source: `[B, bands, frames]`.
            allowed: `[B, ceil(frames / 2)]`, True at real states; None: all.
            collect: receives the input of every block, and the output.

        Raises:
            ShapeError: more frames than the model has positions for.
        """
        x = gelu(self.second(gelu(self.first(source)))).transpose(1, 2)
        if x.shape[1] > len(self.moments):
            raise ShapeError(f"sound of {source.shape[2]} frames is too long: this model reads {2 * len(self.moments)}")
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if allowed is None else allowed
        return Memory(self.encoder(self.dropout(x + self.moments[: x.shape[1]]), allowed, collect=collect), real)
