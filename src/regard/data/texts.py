"""Running text: windows of it for a decoder-only model, sentences with masked tokens for an encoder-only model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from regard.data.batching import Ids, Links, lengths_mask, pad, seeded
from regard.data.files import expand, read_lines, share_of
from regard.errors import DataError


class TextConfig(BaseModel):
    """Settings of running text: files, split, windows."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    train: str | tuple[str, ...]
    """Text files; each may be compressed (.gz, .zip). $NAME is taken from the environment."""
    dev: str | tuple[str, ...] | None = None
    """Development texts; taken from `train` by `dev_share` unless given."""
    documents: Literal["files", "lines"] = "files"
    """Unit of text; no token attends to a token of another document."""
    column: int | None = Field(None, ge=0)
    """The column of a TSV file that holds the text (from 0); the whole line unless set."""
    dev_share: float = Field(0.1, ge=0, lt=1)
    """Share that becomes development data: the end of a single document, or some of several documents."""
    length: int = Field(256, gt=0)
    """Tokens of a window; largest number of tokens of a sentence, special tokens included."""
    masked: float = Field(0.15, gt=0, lt=1)
    """Share of the tokens that an encoder must predict."""
    whole_words: bool = False
    """Mask all tokens of a word together."""


@dataclass(frozen=True)
class Texts:
    """Documents for training and for development."""

    train: list[str]
    dev: list[str]


def read_texts(config: TextConfig) -> Texts:
    """Training and development documents.

    A single document gives its end to development, and so does each of several files none of which was chosen.

    Raises:
        DataError: a file is missing, damaged, not UTF-8, or has too few columns; with file and line.
    """
    documents = _documents(config.train, config)
    if config.dev is not None:
        return Texts(documents, _documents(config.dev, config))
    chosen = [share_of(text) < config.dev_share for text in documents]
    if len(documents) == 1 or (config.documents == "files" and not any(chosen)):
        ends = [len(text) - round(config.dev_share * len(text)) for text in documents]
        return Texts(
            [text[:end] for text, end in zip(documents, ends, strict=True) if end],
            [text[end:] for text, end in zip(documents, ends, strict=True) if end < len(text)],
        )
    return Texts(
        [text for text, dev in zip(documents, chosen, strict=True) if not dev],
        [text for text, dev in zip(documents, chosen, strict=True) if dev],
    )


def _documents(where: str | tuple[str, ...], config: TextConfig) -> list[str]:
    found = []
    for path in [expand(name) for name in ([where] if isinstance(where, str) else where)]:
        lines = read_lines(path)
        if config.column is not None:
            lines = [_column(line, config.column, f"{path}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
        texts = lines if config.documents == "lines" else ["\n".join(lines) + "\n" if lines else ""]
        found += [text for text in texts if text.strip()]
    return list(dict.fromkeys(found)) if config.documents == "lines" else found


def _column(line: str, column: int, where: str) -> str:
    cells = line.split("\t")
    if column >= len(cells):
        raise DataError(f"{where}: {len(cells)} columns, and texts.column is {column} (counted from 0)")
    return cells[column]


@dataclass(frozen=True, eq=False)
class TextBatch:
    """Input tokens with the ids to predict.

    Attributes:
        tokens: `[B, T]`, the input.
        target: `[B, T]`, the id to predict at each position.
        target_allowed: `[B, T]`, True where `target` holds an id to predict.
        allowed: `[B, T]`, True at real input tokens; None: all are.
        documents: `[B, T]`, the number of each token's document, where there are several.
    """

    tokens: Int[Tensor, "B T"]
    target: Int[Tensor, "B T"]
    target_allowed: Bool[Tensor, "B T"]
    allowed: Bool[Tensor, "B T"] | None = None
    documents: Int[Tensor, "B T"] | None = None
    links: Links | None = None

    def hidden(self, model: Any) -> tuple[Tensor, None]:
        """The input of the output layer at every position; there is no memory."""
        more = {} if self.documents is None else {"documents": self.documents}
        return model.hidden(self.tokens, self.allowed, **more), None


@dataclass(frozen=True)
class Windows:
    """Windows of concatenated documents, for predicting every token from those before it.

    Every epoch draws another offset for the windows. A window may hold several documents; attention stays within one.

    Args:
        documents: their ids. If there are several, each gets `bos` in front and `eos` behind.
        length: tokens of a window, which is no longer than the text.
        tokens: largest number of positions of a batch; a batch has at least one window.
        bos, eos, pad: special tokens.
        seed: of offsets and order.
        moves: draw an offset and an order for every epoch; if False, windows begin at the first token, in order.
    """

    documents: Sequence[Ids]
    length: int
    tokens: int
    bos: int
    eos: int
    pad: int
    seed: int = 0
    moves: bool = True

    def __len__(self) -> int:
        """Number of windows."""
        return ceil(max(0, self._total() - 1) / self.length)

    def _total(self) -> int:
        ends = 2 * len(self.documents) if len(self.documents) > 1 else 0
        return sum(map(len, self.documents)) + ends

    def largest(self) -> TextBatch | None:
        """Any batch: all are of one size."""
        return next(self.epoch(0), None)

    def padding_share(self) -> float:
        """Share of padding among the positions of all windows."""
        predicted = max(0, self._total() - 1)
        positions = len(self) * min(self.length, predicted)
        return 1 - predicted / positions if positions else 0.0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[TextBatch]:
        """The batches of one epoch from number `start` on."""
        several = len(self.documents) > 1
        rows = [[self.bos, *row, self.eos] if several else row for row in self.documents]
        stream = torch.tensor([i for row in rows for i in row], dtype=torch.long)
        if len(stream) < 2:
            return
        ids = torch.tensor([n for n, row in enumerate(rows) for _ in row]) if several else None
        generator = seeded(self.seed, epoch)
        first = int(torch.randint(self.length, (1,), generator=generator)) if self.moves else 0
        first = min(first, max(0, len(stream) - 1 - self.length))
        starts = torch.arange(first, max(1, len(stream) - 1), self.length)
        if self.moves:
            starts = starts[torch.randperm(len(starts), generator=generator)]
        for some in starts.split(max(1, self.tokens // self.length))[start:]:
            positions = some[:, None] + torch.arange(min(self.length, len(stream) - 1))
            inside = positions < len(stream) - 1
            positions = positions.clamp(max=len(stream) - 2)
            target = stream[positions + 1]
            documents = None if ids is None else ids[positions]
            if ids is not None:  # the first token of a document is not predicted from the end of the previous one
                inside = inside & (ids[positions] == ids[positions + 1])
            yield TextBatch(stream[positions], target.masked_fill(~inside, self.pad), inside, None, documents)


@dataclass(frozen=True)
class Masked:
    """Sentences in which some tokens are masked and must be predicted (Devlin et al. 2019, section 3.1).

    Of the chosen tokens 80 % are replaced by the mask token, 10 % by a random one, 10 % stay.

    Args:
        sentences: their ids, with the special tokens that the tokenizer puts around them.
        units: for each sentence, groups of positions that are chosen together: single tokens, or whole words.
        share: of the tokens that are chosen; at least one unit of every sentence.
        ordinary: ids from which random tokens are drawn: all but special ones.
        mask: the mask token.
        tokens: largest number of positions of a batch.
        pad: the padding token.
        seed: of order and choice.
        moves: draw another order and other tokens in every epoch.
    """

    sentences: Sequence[Ids]
    units: Sequence[Sequence[Sequence[int]]]
    share: float
    ordinary: Sequence[int]
    mask: int
    tokens: int
    pad: int
    seed: int = 0
    moves: bool = True

    def __len__(self) -> int:
        """Number of sentences."""
        return len(self.sentences)

    def largest(self) -> TextBatch | None:
        """The batch with the most positions."""
        order = self._order(0)
        sizes = [len(some) * max(len(self.sentences[n]) for n in some) for some in order]
        return next(self.epoch(0, sizes.index(max(sizes))), None) if sizes else None

    def padding_share(self) -> float:
        """Share of padding among the positions of all batches."""
        real = padded = 0
        for some in self._order(0):
            lengths = [len(self.sentences[n]) for n in some]
            real, padded = real + sum(lengths), padded + max(lengths) * len(lengths)
        return 1 - real / padded if padded else 0.0

    def _order(self, epoch: int) -> list[list[int]]:
        generator = seeded(self.seed, epoch)
        noise = torch.rand(len(self.sentences), generator=generator).tolist()
        by_length = sorted(range(len(self.sentences)), key=lambda n: (len(self.sentences[n]), noise[n]))
        batches: list[list[int]] = [[]]
        for n in by_length:  # the last is the longest
            if batches[-1] and len(self.sentences[n]) * (len(batches[-1]) + 1) > self.tokens:
                batches.append([])
            batches[-1].append(n)
        shuffled = torch.randperm(len(batches), generator=generator).tolist() if batches[-1] else []
        return [batches[i] for i in shuffled]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[TextBatch]:
        """The batches of one epoch from number `start` on."""
        epoch = epoch if self.moves else 0
        ordinary = torch.tensor(self.ordinary, dtype=torch.long)
        for number, some in list(enumerate(self._order(epoch)))[start:]:
            generator = seeded(self.seed, epoch, number)
            rows = [self.sentences[n] for n in some]
            tokens, allowed = pad(rows, self.pad), lengths_mask(rows)
            chosen = torch.zeros_like(allowed)
            for row, n in enumerate(some):
                chosen[row, self._choose(n, generator)] = True
            how = torch.rand(tokens.shape, generator=generator)
            other = ordinary[torch.randint(len(ordinary), tokens.shape, generator=generator)]
            shown = torch.where(chosen & (how < 0.8), self.mask, tokens)
            shown = torch.where(chosen & (how >= 0.9), other, shown)
            yield TextBatch(shown, tokens.masked_fill(~chosen, self.pad), chosen, allowed)

    def _choose(self, n: int, generator: torch.Generator) -> Tensor:
        """The positions of the tokens of one sentence that must be predicted."""
        units = self.units[n]
        wanted = max(1, round(self.share * sum(map(len, units))))
        found: list[int] = []
        for unit in torch.randperm(len(units), generator=generator).tolist():
            if len(found) >= wanted:
                break
            found += units[unit]
        return torch.tensor(found, dtype=torch.long)


def units_of(words: Sequence[int | None] | None, length: int, first: int = 1) -> list[list[int]]:
    """The positions of a sentence's tokens in groups that are masked together.

    Args:
        words: the number of each token's word, None for a token of no word; None: every token is a group of its own.
        length: number of tokens, special ones not counted.
        first: position of the first token, behind the special tokens before it.
    """
    if words is None:
        return [[first + place] for place in range(length)]
    known = [(word, first + place) for place, word in enumerate(words) if word is not None]
    return [[place for _, place in group] for _, group in groupby(known, key=lambda pair: pair[0])]
