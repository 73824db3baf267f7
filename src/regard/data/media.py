"""Batches of pictures or sounds with their texts."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.data.batching import PairBatch, pad
from regard.data.pictures import as_tensor
from regard.data.scenes.glyphs import Glyphs
from regard.data.scenes.scenes import Scene, SceneConfig, scenes

Encode = Callable[[Sequence[str]], list[list[int]]]


def sensed_batch(sources: Sequence[Tensor], targets: Sequence[list[int]], ends: tuple[int, int, int]) -> PairBatch:
    """Pictures `[C, H, W]` of one size, or spectrograms `[bands, frames]` filled up on the right, with their texts.

    Args:
        sources: what the encoder reads.
        targets: ids, without BOS and EOS.
        ends: ids of BOS, EOS and PAD.
    """
    bos, eos, filler = ends
    source, allowed = stacked(sources)
    return PairBatch(
        source, allowed, pad([[bos, *row] for row in targets], filler), pad([[*row, eos] for row in targets], filler)
    )


def stacked(sources: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Sources as one tensor, and where spectrograms have frames `[B, frames]`."""
    if sources[0].ndim > 2:
        return torch.stack(list(sources)), None
    lengths = torch.tensor([one.shape[1] for one in sources])
    filled = [torch.nn.functional.pad(one, (0, int(lengths.max()) - one.shape[1])) for one in sources]
    return torch.stack(filled), torch.arange(int(lengths.max())) < lengths[:, None]


def scene_points(scene: Scene) -> Tensor:
    """A scene `[3, size, size]`, or a moving one `[frames, 3, size, size]`, as the encoder takes it."""
    return torch.stack([as_tensor(one) for one in scene.frames]) if scene.frames else as_tensor(scene.picture)


@dataclass(frozen=True)
class SceneBatches:
    """Scenes of emoji, other ones in every epoch.

    Attributes:
        sprites, config: what scenes are made of.
        encode: from texts to ids.
        batch: pictures at a time.
        ends: ids of BOS, EOS and PAD.
        seed: of the scenes.
        dev: development scenes, the same ones in every epoch.
    """

    sprites: Glyphs
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
        return self.config.dev_scenes if self.dev else self.config.scenes

    def padding_share(self) -> float:
        """Pictures have no padding."""
        return 0.0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[PairBatch]:
        """The batches of one epoch, from the `start`-th on."""
        seed = self.seed if self.dev else self.seed * 1_000_003 + epoch
        count = 1 if not self.dev and epoch < self.config.alone else None
        for n in range(start * self.batch, len(self), self.batch):
            numbers = range(n, min(n + self.batch, len(self)))
            made = list(scenes(self.sprites, self.config, numbers, seed, self.dev, count))
            pictures = [scene_points(scene) for scene in made]
            yield sensed_batch(pictures, self.encode([scene.caption for scene in made]), self.ends)


Change = Callable[[Tensor, random.Random], Tensor]


@dataclass(frozen=True)
class MediaBatches:
    """Pictures or sounds of files, with their texts, in batches of about equal length.

    Attributes:
        sources: `[C, H, W]`, `[bands, frames]`, or samples that `change` makes a spectrogram of.
        targets: ids, without BOS and EOS; several for one source where it has several texts.
        of: which source each target is of.
        sizes: of each target's source, in frames; 1 for pictures.
        batch: largest size of a batch times its number.
        ends: ids of BOS, EOS and PAD.
        change: what a source becomes in training, another in every epoch; as it is, if None.
        seed: of order and changes.
        join: share of the batches whose sounds are joined two by two, each with one of about its length.
        between: ids of what stands between their texts.
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
        return len(self.targets)

    def padding_share(self) -> float:
        """Share of the sources' places in a batch that hold nothing."""
        real = padded = 0
        for group in self._order(0):
            real += sum(self.sizes[n] for n in group)
            padded += max(self.sizes[n] for n in group) * len(group)
        return 1 - real / padded if padded else 0.0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[PairBatch]:
        """The batches of one epoch, from the `start`-th on."""
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
            yield sensed_batch(sources, targets, self.ends)

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
    """Rows as one, with ids between them."""
    return [i for n, row in enumerate(rows) for i in ([*ids, *row] if n else row)]
