"""Batches by token count, of sentences that are about equally long."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Ids = list[int]
Links = Float[Tensor, "B T S"]


@runtime_checkable
class Batch(Protocol):
    """A batch, of whatever kind."""

    @property
    def target(self) -> Tensor:
        """`[B, T]`, what is to be predicted; PAD where nothing is."""

    @property
    def links(self) -> Links | None:
        """`[B, T, S]`, where each target token should look, if known."""

    def hidden(self, model: Any) -> tuple[Tensor, Any]:
        """What the model's `project` turns into logits, at every place of the target; and the memory, if any."""


@runtime_checkable
class BatchSource(Protocol):
    """Training or development data in batches."""

    @property
    def pad(self) -> int:
        """The id of PAD."""

    def __len__(self) -> int: ...

    def padding_share(self) -> float:
        """Share of the places in a batch that hold nothing."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of one epoch, from the `start`-th on; the same epoch always has the same ones."""


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Padded sentences, or pictures or spectrograms with their texts.

    Attributes:
        source: `[B, S]`, ending in EOS; or `[B, …]` numbers.
        source_allowed: `[B, S]`, True at real tokens or frames; None for pictures.
        previous: `[B, T]`, the target shifted right: BOS first.
        target: `[B, T]`, what is to be predicted, EOS last; PAD where there is nothing.
        links: `[B, T, S]`, where each target token should look (rows sum to 1, or to 0 where nobody knows), if given.
    """

    source: Int[Tensor, "B S"] | Float[Tensor, "B ..."]
    source_allowed: Bool[Tensor, "B S"] | None
    previous: Int[Tensor, "B T"]
    target: Int[Tensor, "B T"]
    links: Links | None = None

    def hidden(self, model: Any) -> tuple[Tensor, Any]:
        """What the model's `project` turns into logits, at every place of the target; and the memory."""
        memory = model.encode(self.source, self.source_allowed)
        return model.hidden(memory, self.previous), memory

    def with_word_dropout(self, share: float, filler: int) -> "Batch":
        """The batch with `filler` in place of a share of the previous tokens, drawn at random; BOS stays."""
        forgotten = torch.rand(self.previous.shape) < share
        forgotten[:, 0] = False
        return replace(self, previous=self.previous.masked_fill(forgotten.to(self.previous.device), filler))


def pad(rows: Sequence[Ids], filler: int) -> Int[Tensor, "B n"]:
    """Rows of ids as one tensor, filled up on the right."""
    width = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows], dtype=torch.long).reshape(
        len(rows), width
    )


def lengths_mask(rows: Sequence[Ids]) -> Bool[Tensor, "B n"]:
    """True where `pad` put a real token."""
    lengths = torch.tensor([len(row) for row in rows])
    return torch.arange(int(lengths.max()) if len(rows) else 0) < lengths[:, None]


@dataclass(frozen=True)
class Batches:
    """Sentence pairs as batches of at most `tokens` padded target (and source) tokens.

    Args:
        pairs: (source ids, target ids), without BOS and EOS.
        tokens: the most places a batch may have on either side; a longer pair is a batch of its own.
        bos, eos, pad: ids of the special tokens.
        seed: of the order.
        links: for each pair, (target token, source token) links for guided alignment.
    """

    pairs: Sequence[tuple[Ids, Ids]]
    tokens: int
    bos: int
    eos: int
    pad: int
    seed: int = 0
    links: Sequence[list[tuple[int, int]]] | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def order(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch as indices; the same epoch always has the same order."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        noise = torch.rand(len(self.pairs), generator=generator).tolist()
        by_length = sorted(
            range(len(self.pairs)), key=lambda i: (len(self.pairs[i][1]), len(self.pairs[i][0]), noise[i])
        )
        batches: list[list[int]] = []
        batch: list[int] = []
        longest = 0
        for index in by_length:
            longest_with = max(longest, *(len(side) + 1 for side in self.pairs[index]))
            if batch and longest_with * (len(batch) + 1) > self.tokens:
                batches.append(batch)
                batch, longest_with = [], max(len(side) + 1 for side in self.pairs[index])
            batch.append(index)
            longest = longest_with
        if batch:
            batches.append(batch)
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[i] for i in shuffled]

    def collate(self, indices: Sequence[int]) -> PairBatch:
        """The batch of some pairs."""
        sources = [[*self.pairs[i][0], self.eos] for i in indices]
        targets = [self.pairs[i][1] for i in indices]
        return PairBatch(
            pad(sources, self.pad),
            lengths_mask(sources),
            pad([[self.bos, *row] for row in targets], self.pad),
            pad([[*row, self.eos] for row in targets], self.pad),
            None if self.links is None else _link_tensor([self.links[i] for i in indices], sources, targets),
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[PairBatch]:
        """The batches of one epoch, from the `start`-th on."""
        for indices in self.order(epoch)[start:]:
            yield self.collate(indices)

    def padding_share(self) -> float:
        """Share of the places in a batch that hold nothing, both sides together."""
        real = padded = 0
        for indices in self.order(0):
            for side in (0, 1):
                lengths = [len(self.pairs[i][side]) + 1 for i in indices]
                real, padded = real + sum(lengths), padded + max(lengths) * len(lengths)
        return 1 - real / padded if padded else 0.0


def _link_tensor(
    links: Sequence[list[tuple[int, int]]], sources: Sequence[Ids], targets: Sequence[Ids]
) -> Float[Tensor, "B T S"]:
    """Links as rows of weights: a target token shares its unit among the source tokens that it is linked to."""
    table = torch.zeros(len(links), 1 + max(map(len, targets)), max(map(len, sources)))
    positions = [(n, t, s) for n, some in enumerate(links) for t, s in some]
    if positions:
        table[tuple(torch.tensor(positions).T)] = 1
    return table / table.sum(-1, keepdim=True).clamp(min=1)
