"""Batches of pictures or recordings with their texts."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.data.batching import PairBatch, pair_batch
from regard.data.pictures import as_tensor
from regard.data.scenes.glyphs import Glyphs
from regard.data.scenes.scene import Scene, SceneConfig
from regard.data.scenes.scenes import scenes

Encode = Callable[[Sequence[str]], list[list[int]]]


def media_batch(sources: Sequence[Tensor], targets: Sequence[list[int]], ends: tuple[int, int, int]) -> PairBatch:
    """A batch of pictures `[C, H, W]` of one size, or of spectrograms `[bands, frames]` padded on the right.

    Args:
        sources: the encoder's inputs.
        targets: ids of the texts, without BOS and EOS.
        ends: ids of BOS, EOS and PAD.
    """
    return pair_batch(*stacked(sources), targets, ends)


def stacked(sources: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Sources as one tensor, and for spectrograms the mask of their real frames, `[B, frames]`."""
    if sources[0].ndim > 2:
        return torch.stack(list(sources)), None
    lengths = torch.tensor([one.shape[1] for one in sources])
    filled = [torch.nn.functional.pad(one, (0, int(lengths.max()) - one.shape[1])) for one in sources]
    return torch.stack(filled), torch.arange(int(lengths.max())) < lengths[:, None]


def scene_points(scene: Scene) -> Tensor:
    """The encoder's input for a scene: `[3, size, size]`, or `[frames, 3, size, size]` for a moving one."""
    return torch.stack([as_tensor(one) for one in scene.frames]) if scene.frames else as_tensor(scene.picture)


@dataclass(frozen=True)
class SceneBatches:
    """Batches of emoji scenes, generated anew for every epoch.

    Attributes:
        glyphs, config: glyphs and settings that scenes are made from.
        encode: from texts to ids.
        batch: pictures of a batch.
        ends: ids of BOS, EOS and PAD.
        seed: of the scenes.
        dev: development scenes, the same in every epoch.
    """

    glyphs: Glyphs
    config: SceneConfig
    encode: Encode
    batch: int
    ends: tuple[int, int, int]
    seed: int = 0
    dev: bool = False

    @property
    def pad(self) -> int:
        """The id of PAD."""
        return self.ends[2]

    def __len__(self) -> int:
        """Number of scenes of an epoch."""
        return self.config.dev_scenes if self.dev else self.config.scenes

    def largest(self) -> PairBatch | None:
        """Any batch: all are of one size."""
        return next(self.epoch(0), None)

    def padding_share(self) -> float:
        """0: pictures have one size."""
        return 0.0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[PairBatch]:
        """The batches of one epoch from number `start` on."""
        seed = self.seed if self.dev else self.seed * 1_000_003 + epoch
        count = 1 if not self.dev and epoch < self.config.single_epochs else None
        for n in range(start * self.batch, len(self), self.batch):
            numbers = range(n, min(n + self.batch, len(self)))
            made = list(scenes(self.glyphs, self.config, numbers, seed, self.dev, count))
            pictures = [scene_points(scene) for scene in made]
            yield media_batch(pictures, self.encode([scene.caption for scene in made]), self.ends)


Change = Callable[[Tensor, random.Random], Tensor]


@dataclass(frozen=True)
class MediaBatches:
    """Pictures or recordings from files, with their texts, in batches of about equal length.

    Attributes:
        sources: `[C, H, W]`, `[bands, frames]`, or samples that `change` turns into a spectrogram.
        targets: ids of the texts, without BOS and EOS; a source may have several texts.
        of: index of each target's source.
        sizes: frames of each target's source; states, for pictures.
        batch: largest size of a batch: its largest source times its number of sources.
        ends: ids of BOS, EOS and PAD.
        change: augmentation of a source, drawn anew in every epoch; None for no change.
        seed: of order and augmentation.
        join: share of the batches whose recordings are concatenated two by two, with one of about equal length.
        between: ids inserted between the texts of concatenated recordings.
    """

    sources: Sequence[Tensor]
    targets: Sequence[list[int]]
    of: Sequence[int]
    sizes: Sequence[int]
    batch: int
    ends: tuple[int, int, int]
    change: Change | None = None
    seed: int = 0
    join: float = 0.0
    between: Sequence[int] = ()

    @property
    def pad(self) -> int:
        """The id of PAD."""
        return self.ends[2]

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.targets)

    def largest(self) -> PairBatch | None:
        """The batch with the most positions."""
        sizes = [len(group) * max(self.sizes[n] for n in group) for group in self._order(0)]
        return next(self.epoch(0, sizes.index(max(sizes))), None) if sizes else None

    def padding_share(self) -> float:
        """Share of padding among the sources' positions of all batches."""
        real = padded = 0
        for group in self._order(0):
            real += sum(self.sizes[n] for n in group)
            padded += max(self.sizes[n] for n in group) * len(group)
        return 1 - real / padded if padded else 0.0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[PairBatch]:
        """The batches of one epoch from number `start` on."""
        for number, group in enumerate(self._order(epoch)):
            if number < start:
                continue
            dice = random.Random(f"{self.seed} {epoch} {number}")
            sources, targets = [self.sources[self.of[n]] for n in group], [self.targets[n] for n in group]
            if self.join and dice.random() < self.join:
                order = dice.sample(range(len(group)), len(group))
                pairs = [order[i : i + 2] for i in range(0, len(order), 2)]
                sources = [torch.cat([sources[i] for i in pair], -1) for pair in pairs]
                targets = [_between([targets[i] for i in pair], self.between) for pair in pairs]
            if self.change is not None:
                sources = [self.change(one, dice) for one in sources]
            yield media_batch(sources, targets, self.ends)

    def _order(self, epoch: int) -> list[list[int]]:
        dice = random.Random(f"{self.seed} {epoch}")
        noise = [dice.random() for _ in self.targets]
        groups: list[list[int]] = []
        for n in sorted(range(len(self.targets)), key=lambda n: (self.sizes[n], noise[n])):
            if not groups or self.sizes[n] * (len(groups[-1]) + 1) > self.batch:
                groups.append([])
            groups[-1].append(n)
        dice.shuffle(groups)
        return groups


def _between(rows: Sequence[list[int]], ids: Sequence[int]) -> list[int]:
    """Rows concatenated, with `ids` between them."""
    return [i for n, row in enumerate(rows) for i in ([*ids, *row] if n else row)]
