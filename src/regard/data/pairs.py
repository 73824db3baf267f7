"""Parallel sentences in memory."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Pairs:
    """Parallel sentences.

    Attributes:
        source, target: the sentences.
        where: file and line of each pair, for messages; empty where the pairs were not read from files.
    """

    source: list[str]
    target: list[str]
    where: list[str] = field(default_factory=list, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(zip(self.source, self.target, strict=True))

    def sample(self, count: int) -> "Pairs":
        """At most `count` pairs, evenly spaced: corpora are often sorted by length."""
        return self.at([n * len(self) // count for n in range(count)]) if len(self) > count else self

    def at(self, positions: Sequence[int]) -> "Pairs":
        """The pairs at these positions."""
        where = [self.where[n] for n in positions] if self.where else []
        return Pairs([self.source[n] for n in positions], [self.target[n] for n in positions], where)

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]], where: Iterable[str] = ()) -> "Pairs":
        """Pairs from (source, target) tuples."""
        both = list(pairs)
        return cls([s for s, _ in both], [t for _, t in both], list(where))

    @classmethod
    def together(cls, parts: Iterable["Pairs"]) -> "Pairs":
        """Several lists of pairs as one."""
        some = list(parts)
        where = [name for part in some for name in part.where or [""] * len(part)]
        source, target = ([text for part in some for text in getattr(part, side)] for side in ("source", "target"))
        return cls(source, target, where)
