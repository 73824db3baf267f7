"""Encoders of sources that are not text: from a picture or a sound to a memory of states with positions.

A modality is one encoder; the decoders that attend to the memory are those of text.
"""

from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import pad

from regard.errors import ConfigError, ShapeError
from regard.models.seq2seq import Memory
from regard.nn.dropout import Dropout
from regard.nn.embedding import normal, sinusoids
from regard.nn.recurrent import RecurrentEncoder


class GridConfig(BaseModel):
    """Settings of a small convolutional network that turns a picture into a grid of states."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["grid"]
    size: int = Field(96, gt=0, le=4096)
    """Height and width of a picture, in points."""
    first: int = Field(32, gt=0)
    """Channels of the first layer, which halves the picture."""
    channels: tuple[PositiveInt, ...] = (64, 128)
    """Channels of the residual blocks that halve it again, one each."""
    width: int = Field(192, gt=0)
    """Width of a state: the last block's channels."""
    norm: Literal["group", "batch"] = "group"
    """Of every convolution: by groups of channels within a picture, or by channels over a batch (learns faster)."""


class PatchesConfig(BaseModel):
    """Settings of plain patches (Dosovitskiy et al. 2021), which an encoder's blocks relate to each other."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["patches"]
    size: int = Field(96, gt=0, le=4096)
    """Height and width of a picture, in points."""
    patch: int = Field(8, gt=0)
    """Height and width of a patch; divides the size."""
    width: int = Field(192, gt=0)
    """Width of a state."""


class FeaturesConfig(BaseModel):
    """Settings of a grid of features from a pretrained network that stays as it is (EfficientNet-lite0)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["features"]
    network: Literal["efficientnet-lite0"] = "efficientnet-lite0"
    """The network that gives the features."""
    size: int = Field(224, gt=0, le=4096)
    """Height and width of a picture, in points."""
    cell: Literal[16, 32] = 32
    """Height and width of the grid's cells, in points: 32, or 16 with features of the network's fifth stage added."""
    width: int = Field(256, gt=0)
    """Width of a state."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """On the features."""

    @property
    def depth(self) -> int:
        """Width of a feature."""
        return 320 if self.cell == 32 else 112 + 320


class FramesConfig(GridConfig):
    """Settings of a moving picture: the network of `GridConfig` on each frame, its grids one after the other."""

    kind: Literal["frames"]  # type: ignore[assignment]
    frames: int = Field(6, gt=1)
    """Frames of a moving picture; of more, evenly spaced ones are taken; of fewer, some are repeated."""


class SoundConfig(BaseModel):
    """Settings of two convolutions over a spectrogram that leave a quarter of its frames (Dong et al. 2018)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["sound"]
    bands: int = Field(80, gt=0)
    """Bands of the mel spectrogram."""
    channels: int = Field(64, gt=0)
    """Of the convolutions."""
    width: int = Field(192, gt=0)
    """Width of a state."""


class PyramidConfig(BaseModel):
    """Settings of a pyramid of bidirectional LSTMs (Chan et al. 2016, section 2.1)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["pyramid"]
    bands: int = Field(80, gt=0)
    """Bands of the mel spectrogram."""
    layers: int = Field(3, gt=0)
    """Layers, each of which joins two states of the layer below into one input."""
    width: int = Field(256, gt=0, multiple_of=2)
    """Width of a state, both directions together: an even number."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Between the layers."""


EncoderParts = Annotated[
    GridConfig | FramesConfig | PatchesConfig | FeaturesConfig | SoundConfig | PyramidConfig,
    Field(discriminator="kind"),
]
GROUPS = 8  # of channels, in a group norm
Pictures = Float[Tensor, "B C H W"]


class ResidualBlock(nn.Module):
    """y = relu(conv(relu(conv(x))) + x), each convolution normed; a stride halves both axes."""

    def __init__(self, before: int, after: int, stride: int, norm: str = "group") -> None:
        super().__init__()
        if norm == "group" and after % GROUPS:
            raise ConfigError(
                f'norm = "group" needs channels and width that are multiples of {GROUPS}; got {after}: '
                'choose another number, or norm = "batch"'
            )
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(
            nn.GroupNorm(GROUPS, after) if norm == "group" else nn.BatchNorm2d(after) for _ in range(2)
        )
        same = before == after and stride == 1
        self.passed = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inside = torch.relu(self.norms[0](self.first(x)))
        result: Tensor = torch.relu(self.norms[1](self.second(inside)) + self.passed(x))
        return result


class OnGrid(nn.Module):
    """A grid of vectors as a memory, row by row, with learned row and column embeddings added.

    Args:
        rows, columns: of the grid.
        width: of a state.
    """

    def __init__(self, rows: int, columns: int, width: int) -> None:
        super().__init__()
        self.rows = normal(rows, 1, width, std=0.1)
        self.columns = normal(1, columns, width, std=0.1)

    def forward(self, grid: Float[Tensor, "B d rows columns"]) -> Memory:
        states = (grid.permute(0, 2, 3, 1) + self.rows + self.columns).flatten(1, 2)
        return Memory(
            states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device), states.mean(1),
            grid_positions(grid.shape[2], grid.shape[3], len(states)),
        )  # fmt: skip


class GridEncoder(nn.Module):
    """A picture `[B, 3, size, size]` (0 … 1) through convolutions to a grid of states."""

    def __init__(self, config: GridConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.stem = nn.Conv2d(3, config.first, 5, 2, 2)
        wide = [config.first, *config.channels]
        self.blocks = nn.Sequential(
            *(ResidualBlock(a, b, 2, config.norm) for a, b in zip(wide, config.channels, strict=False)),
            ResidualBlock(wide[-1], config.width, 1, config.norm),
        )
        side = -(-config.size // 2 ** (1 + len(config.channels)))
        self.grid = OnGrid(side, side, config.width)

    def forward(self, source: Pictures, _allowed: Bool[Tensor, "B _"] | None = None) -> Memory:
        """The memory of pictures.

        Raises:
            ShapeError: pictures of another size.
        """
        _check_size(source, self.config.size)
        return self.grid(self.blocks(torch.relu(self.stem(source - 0.5))))  # type: ignore[no-any-return]


class FramesEncoder(nn.Module):
    """A moving picture `[B, frames, 3, size, size]`: every frame's grid, with a learned frame embedding added."""

    def __init__(self, config: FramesConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.each = GridEncoder(config)
        self.times = normal(config.frames, 1, config.width, std=0.1)

    def forward(self, source: Float[Tensor, "B F C H W"], _allowed: Bool[Tensor, "B _"] | None = None) -> Memory:
        """The memory of moving pictures; positions are (frame, row, column), each from 0 to 1.

        Raises:
            ShapeError: another number of frames, or frames of another size.
        """
        batch, frames = source.shape[:2]
        if frames != self.config.frames:
            raise ShapeError(f"moving pictures need {self.config.frames} frames; got {frames}")
        one = self.each(source.flatten(0, 1))
        states = one.states.unflatten(0, (batch, frames)) + self.times
        cells, where = states.shape[2], one.positions[0]
        when = ((torch.arange(frames) + 0.5) / frames).repeat_interleave(cells)
        positions = torch.cat([when[:, None], where.repeat(frames, 1)], 1)
        states = states.flatten(1, 2)
        return Memory(
            states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device), states.mean(1),
            positions.expand(batch, -1, -1),
        )  # fmt: skip


class PatchesEncoder(nn.Module):
    """A picture `[B, 3, size, size]` in patches, one linear layer over each.

    Raises:
        ShapeError: a patch that does not divide the size.
    """

    def __init__(self, config: PatchesConfig) -> None:
        super().__init__()
        if config.size % config.patch:
            raise ShapeError(f"patch must divide size; got {config.patch} and {config.size}")
        self.config, self.width = config, config.width
        self.patches = nn.Conv2d(3, config.width, config.patch, config.patch)
        self.grid = OnGrid(config.size // config.patch, config.size // config.patch, config.width)

    def forward(self, source: Pictures, _allowed: Bool[Tensor, "B _"] | None = None) -> Memory:
        """The memory of pictures.

        Raises:
            ShapeError: pictures of another size.
        """
        _check_size(source, self.config.size)
        return self.grid(self.patches(source - 0.5))  # type: ignore[no-any-return]


class FeaturesEncoder(nn.Module):
    """A grid of pretrained features `[B, depth, rows, columns]` through one linear layer."""

    def __init__(self, config: FeaturesConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        if config.size % config.cell:
            raise ShapeError(f"cell must divide size; got {config.cell} and {config.size}")
        side = config.size // config.cell
        self.norm = nn.LayerNorm(config.depth)
        self.dropout = Dropout(config.dropout)
        self.narrow = nn.Linear(config.depth, config.width)
        self.grid = OnGrid(side, side, config.width)

    def forward(self, source: Pictures, _allowed: Bool[Tensor, "B _"] | None = None) -> Memory:
        """The memory of features.

        Raises:
            ShapeError: features of another size.
        """
        side = self.config.size // self.config.cell
        if list(source.shape[1:]) != [self.config.depth, side, side]:
            raise ShapeError(f"features need shape [B, {self.config.depth}, {side}, {side}]; got {list(source.shape)}")
        states = self.narrow(self.dropout(self.norm(source.permute(0, 2, 3, 1))))
        return self.grid(states.permute(0, 3, 1, 2))  # type: ignore[no-any-return]


class SoundEncoder(nn.Module):
    """A log-mel spectrogram `[B, bands, frames]` through two convolutions of stride 2, plus sinusoidal positions."""

    def __init__(self, config: SoundConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, config.channels, 3, 2, 1) for before in (1, config.channels)
        )
        self.narrow = nn.Linear(config.channels * _quarter(config.bands), config.width)

    def forward(
        self, source: Float[Tensor, "B bands frames"], allowed: Bool[Tensor, "B frames"] | None = None
    ) -> Memory:
        """The memory of spectrograms; `allowed` is True at real frames.

        Raises:
            ShapeError: another number of bands.
        """
        real = _real_frames(source, allowed, self.config.bands)
        x = source.masked_fill(~real[:, None], 0.0)[:, None]
        for convolution in self.convolutions:
            real = real[:, ::2]
            x = torch.relu(convolution(x)).masked_fill(~real[:, None, None], 0.0)
        states = self.narrow(x.permute(0, 3, 1, 2).flatten(2))
        states = states + sinusoids(torch.arange(states.shape[1], device=states.device), self.width).to(states.dtype)
        return Memory(states, real, _mean(states, real), time_positions(real, 4))


class PyramidEncoder(nn.Module):
    """A log-mel spectrogram `[B, bands, frames]` through bidirectional LSTMs; each joins two states into one input."""

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.norm = nn.LayerNorm(config.bands)
        wide = [2 * config.bands, *[2 * config.width] * (config.layers - 1)]
        self.layers = nn.ModuleList(RecurrentEncoder("lstm", w, config.width // 2) for w in wide)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, source: Float[Tensor, "B bands frames"], allowed: Bool[Tensor, "B frames"] | None = None
    ) -> Memory:
        """The memory of spectrograms; `allowed` is True at real frames.

        Raises:
            ShapeError: another number of bands.
        """
        real = _real_frames(source, allowed, self.config.bands)
        x, summary = self.norm(source.transpose(1, 2)), None
        for number, layer in enumerate(self.layers):
            x, real = _join_two(x, real)
            x, summary = layer(x, real)
            x = self.dropout(x) if number < len(self.layers) - 1 else x
        return Memory(x, real, summary, time_positions(real, 2 ** len(self.layers)))


def make_encoder(config: EncoderParts) -> Any:
    """The encoder that a config describes."""
    match config:
        case FramesConfig():
            return FramesEncoder(config)
        case GridConfig():
            return GridEncoder(config)
        case PatchesConfig():
            return PatchesEncoder(config)
        case FeaturesConfig():
            return FeaturesEncoder(config)
        case SoundConfig():
            return SoundEncoder(config)
        case PyramidConfig():
            return PyramidEncoder(config)


def grid_positions(rows: int, columns: int, batch: int) -> Float[Tensor, "B S 2"]:
    """Centers (row, column) of a grid's cells, row by row, each from 0 to 1."""
    down, across = ((torch.arange(n) + 0.5) / n for n in (rows, columns))
    return torch.cartesian_prod(down, across).expand(batch, -1, -1)


def time_positions(real: Bool[Tensor, "B S"], frames: int) -> Float[Tensor, "B S 1"]:
    """Center of each state, in frames of the spectrogram."""
    positions = (torch.arange(real.shape[1], device=real.device) + 0.5) * frames
    return positions[None, :, None].expand(len(real), -1, -1)


def _check_size(source: Tensor, size: int) -> None:
    if list(source.shape[1:]) != [3, size, size]:
        raise ShapeError(f"pictures need shape [B, 3, {size}, {size}]; got {list(source.shape)}")


def _real_frames(source: Tensor, allowed: Tensor | None, bands: int) -> Tensor:
    if source.shape[1] != bands:
        raise ShapeError(f"spectrograms need shape [B, {bands}, frames]; got {list(source.shape)}")
    return torch.ones_like(source[:, 0], dtype=torch.bool) if allowed is None else allowed


def _quarter(n: int) -> int:
    return (n + 3) // 4


def _mean(states: Tensor, real: Tensor) -> Tensor:
    """The mean of the real states, 0 where there are none."""
    total = states.masked_fill(~real[..., None], 0.0).sum(1)
    return total / real.sum(1, keepdim=True).clamp(min=1)


def _join_two(x: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Neighboring states `[B, n, d]` joined in pairs to `[B, ⌈n/2⌉, 2d]`; an odd last one is joined with zeros."""
    x = x.masked_fill(~real[..., None], 0.0)
    if x.shape[1] % 2:
        x, real = pad(x, (0, 0, 0, 1)), pad(real, (0, 1))
    return x.reshape(len(x), x.shape[1] // 2, -1), real[:, ::2]
