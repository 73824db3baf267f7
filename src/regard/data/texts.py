"""Running text: windows of it for a decoder alone, sentences with hidden words for an encoder alone."""

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from regard.data.batching import Ids, Links, lengths_mask, pad
from regard.data.parallel import expand, read_lines
from regard.errors import DataError


class TextConfig(BaseModel):
    """Where the texts are and how they are cut."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    train: str | tuple[str, ...]
    """Text files; each may end in .gz. $NAME is taken from the environment."""
    dev: str | tuple[str, ...] | None = None
    """Development texts; taken from `train` by `dev_share` unless given."""
    documents: Literal["files", "lines"] = "files"
    """What a document is. Documents do not see each other."""
    column: int | None = Field(None, ge=0)
    """The column of a TSV file that holds the text (from 0); the whole line unless set."""
    dev_share: float = Field(0.1, ge=0, lt=1)
    """Share that becomes development data: the end of a single document, else some of the documents."""
    length: int = Field(256, gt=0)
    """Tokens of a window, or of a sentence at most."""
    masked: float = Field(0.15, gt=0, lt=1)
    """Share of the tokens that an encoder must find."""
    whole_words: bool = False
    """Hide whole words rather than tokens."""


@dataclass(frozen=True)
class Texts:
    """Documents for training and for development."""

    train: list[str]
    dev: list[str]


def read_texts(config: TextConfig) -> Texts:
    """Training and development documents.

    Raises:
        DataError: a file is missing, damaged, not UTF-8, or has too few columns; with file and line.
    """
    documents = _documents(config.train, config)
    if config.dev is not None:
        return Texts(documents, _documents(config.dev, config))
    if len(documents) == 1:
        end = len(documents[0]) - round(config.dev_share * len(documents[0]))
        return Texts([documents[0][:end]], [documents[0][end:]] if end < len(documents[0]) else [])
    chosen = [_place(text) < config.dev_share for text in documents]
    return Texts(
        [text for text, dev in zip(documents, chosen, strict=True) if not dev],
        [text for text, dev in zip(documents, chosen, strict=True) if dev],
    )


def _documents(where: str | tuple[str, ...], config: TextConfig) -> list[str]:
    found = []
    for path in [expand(name) for name in ([where] if isinstance(where, str) else where)]:
        lines = read_lines(path)
        if config.column is not None:
            lines = [_column(line, config.column, f"{path}:{n}") for n, line in enumerate(lines, 1)]
        texts = lines if config.documents == "lines" else ["\n".join(lines) + "\n" if lines else ""]
        found += [text for text in texts if text.strip()]
    return list(dict.fromkeys(found)) if config.documents == "lines" else found


def _column(line: str, column: int, where: str) -> str:
    cells = next(csv.reader([line], delimiter="\t", quoting=csv.QUOTE_NONE), [])
    if column >= len(cells):
        raise DataError(f"{where}: {len(cells)} columns, and texts.column is {column} (counted from 0)")
    return cells[column]


def _place(text: str) -> float:
    """A number in [0, 1) that is the text's own."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


@dataclass(frozen=True, eq=False)
class TextBatch:
    """Tokens and what is to be predicted.

    Attributes:
        tokens: `[B, T]`.
        target: `[B, T]`, what is to be predicted at each place; PAD where nothing is.
        allowed: `[B, T]`, True at real tokens; None: all are.
        documents: `[B, T]`, which document a token is of, where they are several.
    """

    tokens: Int[Tensor, "B T"]
    target: Int[Tensor, "B T"]
    allowed: Bool[Tensor, "B T"] | None = None
    documents: Int[Tensor, "B T"] | None = None
    links: Links | None = None

    def hidden(self, model: Any) -> tuple[Tensor, None]:
        """What the model's `project` turns into logits, at every place; there is no memory."""
        more = {} if self.documents is None else {"documents": self.documents}
        return model.hidden(self.tokens, self.allowed, **more), None


@dataclass(frozen=True)
class Windows:
    """Windows of documents that stand one after the other, for predicting every token from those before it.

    Each epoch cuts at other places; a window may hold several documents, which do not see each other.

    Args:
        documents: their ids. Where there are several, each begins with `bos` and ends with `eos`.
        length: tokens of a window.
        tokens: places of a batch, at most; one window at least.
        bos, eos, pad: special tokens.
        seed: of the places and the order.
        moves: whether each epoch cuts at other places; else always from the first token on.
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
        return ceil(max(0, self._total() - 1) / self.length)

    def _total(self) -> int:
        ends = 2 * len(self.documents) if len(self.documents) > 1 else 0
        return sum(map(len, self.documents)) + ends

    def padding_share(self) -> float:
        """Share of the places in a batch that hold nothing."""
        positions = len(self) * self.length
        return 1 - max(0, self._total() - 1) / positions if positions else 0.0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[TextBatch]:
        """The batches of one epoch, from the `start`-th on."""
        several = len(self.documents) > 1
        rows = [[self.bos, *row, self.eos] if several else row for row in self.documents]
        stream = torch.tensor([i for row in rows for i in row], dtype=torch.long)
        ids = torch.tensor([n for n, row in enumerate(rows) for _ in row]) if several else None
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        first = int(torch.randint(self.length, (1,), generator=generator)) if self.moves else 0
        first = min(first, max(0, len(stream) - 1 - self.length))
        starts = torch.arange(first, max(1, len(stream) - 1), self.length)
        if self.moves:
            starts = starts[torch.randperm(len(starts), generator=generator)]
        for some in starts.split(max(1, self.tokens // self.length))[start:]:
            positions = some[:, None] + torch.arange(self.length)
            inside = positions < len(stream) - 1
            positions = positions.clamp(max=len(stream) - 2)
            target = stream[positions + 1]
            documents = None if ids is None else ids[positions]
            if ids is not None:  # what follows a document's end is nobody's to know
                target = target.masked_fill(ids[positions] != ids[positions + 1], self.pad)
            yield TextBatch(stream[positions], target.masked_fill(~inside, self.pad), None, documents)


@dataclass(frozen=True)
class Masked:
    """Sentences in which some tokens are hidden and must be found (Devlin et al. 2019, section 3.1).

    Of the chosen tokens 80 % become the mask token, 10 % a random one, 10 % stay.

    Args:
        sentences: their ids, without BOS and EOS, which are added.
        words: for each sentence, which word each token is of (None: no word); None: every token is chosen on its own.
        share: of the tokens that are chosen, one at least.
        vocabulary: number of tokens; random ones are none of the special ones.
        specials: number of special tokens, which come first.
        mask: the mask token.
        tokens: places of a batch, at most.
        bos, eos, pad: special tokens.
        seed: of order and choice.
        moves: whether each epoch has another order and other hidden tokens.
    """

    sentences: Sequence[Ids]
    words: Sequence[Sequence[int | None]] | None
    share: float
    vocabulary: int
    specials: int
    mask: int
    tokens: int
    bos: int
    eos: int
    pad: int
    seed: int = 0
    moves: bool = True

    def __len__(self) -> int:
        return len(self.sentences)

    def padding_share(self) -> float:
        """Share of the places in a batch that hold nothing."""
        real = padded = 0
        for some in self._order(0):
            lengths = [len(self.sentences[n]) + 2 for n in some]
            real, padded = real + sum(lengths), padded + max(lengths) * len(lengths)
        return 1 - real / padded if padded else 0.0

    def _order(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        noise = torch.rand(len(self.sentences), generator=generator).tolist()
        by_length = sorted(range(len(self.sentences)), key=lambda n: (len(self.sentences[n]), noise[n]))
        batches: list[list[int]] = [[]]
        for n in by_length:  # the last is the longest
            if batches[-1] and (len(self.sentences[n]) + 2) * (len(batches[-1]) + 1) > self.tokens:
                batches.append([])
            batches[-1].append(n)
        shuffled = torch.randperm(len(batches), generator=generator).tolist() if batches[-1] else []
        return [batches[i] for i in shuffled]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[TextBatch]:
        """The batches of one epoch, from the `start`-th on."""
        epoch = epoch if self.moves else 0
        for number, some in list(enumerate(self._order(epoch)))[start:]:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) * 1_000_003 + number)
            rows = [[self.bos, *self.sentences[n], self.eos] for n in some]
            tokens, allowed = pad(rows, self.pad), lengths_mask(rows)
            chosen = torch.zeros_like(allowed)
            for row, n in enumerate(some):
                chosen[row, self._choose(n, generator)] = True
            how = torch.rand(tokens.shape, generator=generator)
            other = torch.randint(self.specials, self.vocabulary, tokens.shape, generator=generator)
            shown = torch.where(chosen & (how < 0.8), self.mask, tokens)
            shown = torch.where(chosen & (how >= 0.9), other, shown)
            yield TextBatch(shown, tokens.masked_fill(~chosen, self.pad), allowed)

    def _choose(self, n: int, generator: torch.Generator) -> Tensor:
        """The places, BOS counted, of the tokens of one sentence that must be found."""
        length = len(self.sentences[n])
        if self.words is None:
            units = [[place] for place in range(length)]
        else:
            known = [(word, place) for place, word in enumerate(self.words[n]) if word is not None]
            units = [[place for _, place in group] for _, group in groupby(known, key=lambda pair: pair[0])]
        wanted = max(1, round(self.share * length))
        found: list[int] = []
        for unit in torch.randperm(len(units), generator=generator).tolist():
            if len(found) >= wanted:
                break
            found += units[unit]
        return torch.tensor(found, dtype=torch.long) + 1
