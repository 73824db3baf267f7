"""What a decoder remembers between steps: a value that goes in and comes out, and never hides on a module."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class State:
    """A decoder's memory of N sentences with K hypotheses each.

    Attributes:
        sentence: what belongs to the sentence, `[N, 1, …]`: broadcast over hypotheses, never copied.
        hypothesis: what belongs to one hypothesis, `[N, K, …]`: follows it through a beam.
        asked: the queries of every site so far, `[N, K, heads, t, d]`, when they are recorded; else None.
    """

    sentence: Mapping[str, Tensor]
    hypothesis: Mapping[str, Tensor]
    asked: Mapping[str, Tensor] | None = None
    step: int = field(default=0)

    def select(self, parents: Int[Tensor, "N K"]) -> "State":
        """The state in which hypothesis k of sentence n goes on from hypothesis `parents[n, k]`."""
        return self._map_hypotheses(lambda tensor: gather_hypotheses(tensor, parents))

    def keep(self, sentences: Int[Tensor, "M"]) -> "State":
        """The state of some of the sentences."""
        moved = self._map_hypotheses(lambda tensor: tensor[sentences])
        return replace(moved, sentence={name: tensor[sentences] for name, tensor in self.sentence.items()})

    def advance(self, hypothesis: Mapping[str, Tensor], queries: Mapping[str, Tensor]) -> "State":
        """The state one step later, with `queries` `[N, K, heads, 1, d]` remembered if queries are recorded."""
        asked = self.asked
        if asked is not None:
            asked = {
                site: torch.cat([asked[site], query], -2) if site in asked else query for site, query in queries.items()
            }
        return replace(self, hypothesis=hypothesis, asked=asked, step=self.step + 1)

    def _map_hypotheses(self, change) -> "State":  # type: ignore[no-untyped-def]
        asked = None if self.asked is None else {site: change(tensor) for site, tensor in self.asked.items()}
        return replace(self, hypothesis={name: change(t) for name, t in self.hypothesis.items()}, asked=asked)


def gather_hypotheses(tensor: Tensor, parents: Tensor) -> Tensor:
    """`[N, K, …]` with hypothesis `parents[n, k]` of sentence n at place k."""
    sentences = torch.arange(parents.shape[0], device=parents.device)[:, None]
    return tensor[sentences, parents]
