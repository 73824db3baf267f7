"""Batches of sentences of about equal length, sized by tokens."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from regard.data.order import pools
from regard.data.ragged import CHANGED, lengths_of
from regard.errors import DataError

Ids = list[int]
POOL = 1 << 19  # examples
SEGMENTED_POOL = 1 << 16  # examples, where each is segmented before it is sorted: ten seconds of work
Links = Float[Tensor, "B T S"]
Segment = Callable[[Ids, random.Random], Any]  # to the ids of a random segmentation, and the token each comes from


@runtime_checkable
class Batch(Protocol):
    """A batch of any kind of data."""

    @property
    def target(self) -> Tensor:
        """`[B, T]`, the ids to predict."""

    @property
    def target_allowed(self) -> Tensor:
        """`[B, T]`, True where `target` holds an id to predict, whatever that id is."""

    @property
    def links(self) -> Links | None:
        """`[B, T, S]`, the source positions that each target token is aligned with, if known."""

    def hidden(self, model: Any) -> tuple[Tensor, Any]:
        """The input of the model's output layer at every position of the target; and the memory, if there is one."""


@runtime_checkable
class BatchSource(Protocol):
    """Training or development data in batches."""

    @property
    def pad(self) -> int:
        """The id of PAD."""

    def __len__(self) -> int:
        """Number of examples."""

    def padding_share(self) -> float:
        """Share of padding among the positions of all batches."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of one epoch from number `start` on; the same epoch always has the same batches."""

    def largest(self) -> Any:
        """A batch that needs as much memory as any; None where there is none."""


AnyBatch = TypeVar("AnyBatch")


def move(batch: AnyBatch, device: torch.device) -> AnyBatch:
    """A batch (any dataclass) with its tensors on `device`.

    To a CUDA device they go by way of pinned memory, so that the host does not wait for the copies.
    """

    def moved(tensor: Tensor) -> Tensor:
        pinned = device.type == "cuda" and tensor.device.type == "cpu"
        return tensor.pin_memory().to(device, non_blocking=True) if pinned else tensor.to(device)

    changed = {
        field.name: moved(value)
        for field in fields(batch)  # type: ignore[arg-type]
        if isinstance(value := getattr(batch, field.name), Tensor) and value.device != device
    }
    return replace(batch, **changed) if changed else batch  # type: ignore[type-var]


def some_rows(batch: AnyBatch, rows: Tensor) -> AnyBatch:
    """Some rows of a batch: of every tensor of the dataclass whose first axis is the batch."""
    size = len(batch.target)  # type: ignore[attr-defined]
    changed = {
        field.name: value[rows]
        for field in fields(batch)  # type: ignore[arg-type]
        if isinstance(value := getattr(batch, field.name), Tensor) and value.ndim and len(value) == size
    }
    return replace(batch, **changed)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Padded sentence pairs, or pictures or spectrograms with their texts.

    Attributes:
        source: `[B, S]` ids ending in EOS, or pictures or spectrograms `[B, …]`.
        source_allowed: `[B, S]`, True at real tokens or frames; None for pictures.
        previous: `[B, T]`, the target shifted right: BOS first.
        target: `[B, T]`, the ids to predict, EOS last.
        target_allowed: `[B, T]`, True at real target tokens.
        links: `[B, T, S]`, target tokens aligned with source tokens (a row sums to 1, or to 0 where no link is known).
    """

    source: Int[Tensor, "B S"] | Float[Tensor, "B ..."]
    source_allowed: Bool[Tensor, "B S"] | None
    previous: Int[Tensor, "B T"]
    target: Int[Tensor, "B T"]
    target_allowed: Bool[Tensor, "B T"]
    links: Links | None = None

    def hidden(self, model: Any) -> tuple[Tensor, Any]:
        """The input of the output layer at every position of the target; and the memory."""
        memory = model.encode(self.source, self.source_allowed)
        return model.hidden(memory, self.previous), memory

    def with_word_dropout(self, share: float, filler: int) -> "Batch":
        """The batch with a random share of the previous tokens replaced by `filler`; BOS stays."""
        dropped = torch.rand(self.previous.shape) < share
        dropped[:, 0] = False
        return replace(self, previous=self.previous.masked_fill(dropped.to(self.previous.device), filler))


def pair_batch(
    source: Tensor, source_allowed: Tensor | None, targets: Sequence[Ids], ends: tuple[int, int, int],
    links: Links | None = None,
) -> PairBatch:  # fmt: skip
    """A batch of sources with their targets.

    Args:
        source: `[B, …]`, collated.
        source_allowed: True at the source's real positions.
        targets: ids, without BOS and EOS.
        ends: ids of BOS, EOS and PAD.
        links: `[B, T, S]`, if known.
    """
    bos, eos, filler = ends
    rows = [[*row, eos] for row in targets]
    previous = pad([[bos, *row] for row in targets], filler)
    return PairBatch(source, source_allowed, previous, pad(rows, filler), lengths_mask(rows), links)


def pad(rows: Sequence[Ids], filler: int) -> Int[Tensor, "B n"]:
    """Rows of ids as one tensor, padded on the right with `filler`."""
    width = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows], dtype=torch.long).reshape(
        len(rows), width
    )


def lengths_mask(rows: Sequence[Ids]) -> Bool[Tensor, "B n"]:
    """True at the real tokens of what `pad` returns."""
    lengths = torch.tensor([len(row) for row in rows])
    return torch.arange(int(lengths.max()) if len(rows) else 0) < lengths[:, None]


def seeded(seed: int, *numbers: int) -> torch.Generator:
    """A CPU generator for one epoch (or one batch of it): other numbers, another sequence."""
    for number in numbers:
        seed = seed * 1_000_003 + number
    return torch.Generator().manual_seed(seed % 2**63)


@dataclass(frozen=True)
class Batches:
    """Sentence pairs as batches of at most `tokens` padded target (and source) tokens.

    Args:
        pairs: (source ids, target ids), without BOS and EOS.
        tokens: largest number of positions of a batch on either side; a longer pair is a batch of its own.
        bos, eos, pad: ids of the special tokens.
        seed: of the order.
        links: for each pair, (target token, source token) links for guided alignment.
        pool: number of examples that are sorted by length at a time.
        made_from: digest of the data that the pairs were made from, where they are not in memory.
        segment: from ids to a random segmentation of the same text (`regard.text.bpe_dropout`), for every example of
            every epoch anew; (seed, epoch, example) decide it, before examples are sorted by length.
    """

    pairs: Sequence[tuple[Ids, Ids]]
    tokens: int
    bos: int
    eos: int
    pad: int
    seed: int = 0
    links: Sequence[list[tuple[int, int]]] | None = None
    pool: int = POOL
    made_from: str = ""
    segment: Segment | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def identity(self) -> "Batches":
        """What is compared to tell whether two runs have the same batches: all of this, but for pairs that are not in
        memory `made_from` alone, so that no file is read through."""
        return replace(self, pairs=(), links=None) if self.made_from else self

    def order(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch as indices; the same epoch always has the same order."""
        return [batch for pool in self.pools(epoch) for batch in pool]

    def pools(self, epoch: int) -> Iterator[list[list[int]]]:
        """The batches of one epoch as indices, a pool of examples at a time."""
        generator = seeded(self.seed, epoch)
        key = int(torch.randint(2**62, (), generator=generator)) if len(self) > self.pool else 0
        for indices in pools(len(self), self.pool, key):
            lengths = self._lengths(indices, epoch)
            noise = torch.rand(len(indices), generator=generator).numpy()
            by_length = np.lexsort((noise, lengths[:, 0], lengths[:, 1]))
            batches = self._filled(indices[by_length].tolist(), (lengths[by_length].max(1, initial=0) + 1).tolist())
            shuffled = torch.randperm(len(batches), generator=generator).tolist()
            yield [batches[i] for i in shuffled]

    def _filled(self, indices: list[int], lengths: list[int]) -> list[list[int]]:
        """Consecutive indices as batches of at most `tokens` positions; `lengths` of the longer side, ends included."""
        batches: list[list[int]] = []
        batch: list[int] = []
        longest = 0
        for index, length in zip(indices, lengths, strict=True):
            if batch and max(longest, length) * (len(batch) + 1) > self.tokens:
                batches.append(batch)
                batch, longest = [], 0
            batch.append(index)
            longest = max(longest, length)
        return [*batches, batch] if batch else batches

    def collate(self, indices: Sequence[int], epoch: int | None = None) -> PairBatch:
        """The batch of some pairs; segmented for that epoch, if there is `segment`."""
        rows, known = self._rows(indices, epoch)
        sources = [[*source, self.eos] for source, _ in rows]
        targets = [target for _, target in rows]
        links = None if known is None else _link_tensor(known, sources, targets)
        ends = (self.bos, self.eos, self.pad)
        return pair_batch(pad(sources, self.pad), lengths_mask(sources), targets, ends, links)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[PairBatch]:
        """The batches of one epoch from number `start` on."""
        number = 0
        for pool in self.pools(epoch):
            for indices in pool[max(0, start - number) :]:
                yield self.collate(indices, epoch)
            number += len(pool)

    def _lengths(self, indices: NDArray[np.int64], epoch: int) -> Any:
        """`[n, 2]`, tokens of both sides of some pairs, as they are segmented for an epoch."""
        if self.segment is not None:
            rows, _ = self._rows(indices.tolist(), epoch)
            return np.array([[len(side) for side in row] for row in rows], np.int64).reshape(-1, 2)
        return lengths_of(self.pairs, slice(None) if len(indices) == len(self) else indices)

    def _rows(
        self, indices: Sequence[int], epoch: int | None
    ) -> tuple[list[tuple[Ids, Ids]], list[list[tuple[int, int]]] | None]:
        """Some pairs, segmented for an epoch if there is `segment`; and their links."""
        rows = [self.pairs[i] for i in indices]
        known = None if self.links is None else [self.links[i] for i in indices]
        if self.segment is None or epoch is None:
            return rows, known
        return self._segmented(self.segment, rows, known, [f"{self.seed} {epoch} {i}" for i in indices])

    def _segmented(
        self, segment: Segment, rows: list[tuple[Ids, Ids]], links: list[list[tuple[int, int]]] | None,
        seeds: list[str],
    ) -> tuple[list[tuple[Ids, Ids]], list[list[tuple[int, int]]] | None]:  # fmt: skip
        """Pairs in random segmentations, each drawn from its seed; and their links."""
        new_rows, new_links = [], []
        for n, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
            dice = random.Random(seed)
            sides = [segment(ids, dice) for ids in row]
            own = links[n] if links is not None else []
            sources: dict[int, list[int]] = {}  # from a given source token to those that come from it
            for place, origin in enumerate(sides[0].origins):
                sources.setdefault(origin, []).append(place)
            partners: dict[int, list[int]] = {}
            for target, source in own:
                partners.setdefault(target, []).extend(sources.get(source, []))
            new_rows.append((sides[0].ids, sides[1].ids))
            new_links.append([(t, s) for t, origin in enumerate(sides[1].origins) for s in partners.get(origin, [])])
        return new_rows, None if links is None else new_links

    def largest(self) -> PairBatch | None:
        """The batch with the most positions; of the first pool, where there are several."""
        pool = next(self.pools(0), [])
        found = max(pool, key=lambda indices: self._positions(indices)[1], default=None)
        return None if found is None else self.collate(found, 0)

    def padding_share(self) -> float:
        """Share of padding among the positions of all batches, both sides together; of the first pool, where there are
        several."""
        sizes = [self._positions(indices) for indices in next(self.pools(0), [])]
        real, padded = sum(size[0] for size in sizes), sum(size[1] for size in sizes)
        return 1 - real / padded if padded else 0.0

    def _positions(self, indices: Sequence[int]) -> tuple[int, int]:
        """Real positions of a batch of the first epoch on both sides together, and all of them."""
        lengths = self._lengths(np.asarray(indices, np.int64), 0) + 1
        return int(lengths.sum()), int(lengths.max(0).sum()) * len(indices)


def _link_tensor(
    links: Sequence[list[tuple[int, int]]], sources: Sequence[Ids], targets: Sequence[Ids]
) -> Float[Tensor, "B T S"]:
    """Links as rows of weights: a target token's weight of 1 is shared among the source tokens it is linked to."""
    table = torch.zeros(len(links), 1 + max(map(len, targets)), max(map(len, sources)))
    positions = [(n, t, s) for n, some in enumerate(links) for t, s in some]
    if any(not (0 <= t <= len(targets[n]) and 0 <= s < len(sources[n])) for n, t, s in positions):
        raise DataError(f"{CHANGED}: it links tokens that its sentences do not have")
    if positions:
        table[tuple(torch.tensor(positions).T)] = 1
    return table / table.sum(-1, keepdim=True).clamp(min=1)
