"""Search within a list of words: a text is spelled of known words alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from regard.decoding.constraints import StepFunction
from regard.errors import ConfigError
from regard.nn.state import gather_hypotheses

LARGEST = 2**26  # cells of a table of spellings


@dataclass(frozen=True, eq=False)
class SpelledState:
    """A state beside how far the word is spelled that is being said.

    Attributes:
        inner: the state.
        node: `[N, K]`, places in the table.
    """

    inner: Any
    node: Tensor

    def select(self, parents: Int[Tensor, "N K"]) -> "SpelledState":
        """The state in which hypothesis k of sentence n goes on from hypothesis `parents[n, k]`."""
        return SpelledState(self.inner.select(parents), gather_hypotheses(self.node, parents))

    def keep(self, sentences: Int[Tensor, "M"]) -> "SpelledState":
        """The state of some of the sentences."""
        return SpelledState(self.inner.keep(sentences), self.node[sentences])


def spelling_table(words: Sequence[Sequence[int]], space: int, eos: int, vocabulary: int) -> Int[Tensor, "nodes V"]:
    """Where each token leads from each node of the words' tree; -1 where it may not stand. Node 0 begins a text.

    A text may end, and a space stand, behind a whole word; an empty text may end at once.

    Args:
        words: each one's tokens.
        space, eos: ids.
        vocabulary: number of tokens.

    Raises:
        ConfigError: the table would be larger than 512 MiB.
    """
    rows: list[dict[int, int]] = [{}]
    ends = []
    for word in words:
        node = 0
        for token in word:
            if token not in rows[node]:
                rows.append({})
                rows[node][token] = len(rows) - 1
            node = rows[node][token]
        ends.append(node)
    rows.append(dict(rows[0]))  # behind a space a word must come; before anything else the text may also end
    rows[0][eos] = 0
    for node in ends:
        rows[node][space], rows[node][eos] = len(rows) - 1, 0
    if len(rows) * vocabulary > LARGEST:
        raise ConfigError(
            f"{len(words):,} words of {len(rows):,} beginnings, in {vocabulary:,} tokens: a table of spellings may "
            f"have {LARGEST:,} cells: give fewer words"
        )
    table = torch.full((len(rows), vocabulary), -1)
    cells = [(node, token, there) for node, row in enumerate(rows) for token, there in row.items()]
    nodes, tokens, leads = torch.tensor(cells).T
    table[nodes, tokens] = leads
    return table


@dataclass(frozen=True, eq=False)
class Lexicon:
    """A list of words as a constraint of `regard.decoding.generate`: a text is spelled of them alone.

    Attributes:
        table: of `spelling_table`, on the device of the decoder's state.
        bos: the token before the first one.
    """

    table: Tensor
    bos: int
    scored: bool = False

    def begin(self, state: Any, sentences: int) -> "SpelledState":
        """The state before the first token."""
        return begin_spelling(state, sentences, self.table.device)

    def around(self, step: StepFunction) -> StepFunction:
        """The step with -inf at every token that would leave the words."""
        return within(step, self.table, self.bos)


def begin_spelling(inner: Any, sentences: int, device: torch.device | None = None) -> SpelledState:
    """The state before the first token, on the device of the table."""
    return SpelledState(inner, torch.zeros(sentences, 1, dtype=torch.long, device=device))


def within(step: StepFunction, table: Int[Tensor, "nodes V"], bos: int) -> StepFunction:
    """A step that says -inf of every token that would leave the words.

    Args:
        step: of the inner state.
        table: of `spelling_table`.
        bos: the token before the first one.
    """

    def spelled(token: Tensor, state: SpelledState) -> tuple[Tensor, SpelledState]:
        scores, inner = step(token, state.inner)
        node = torch.where(token == bos, 0, table[state.node, token]).clamp(min=0)
        return scores.masked_fill(table[node] < 0, -torch.inf), SpelledState(inner, node)

    return spelled
