"""State of a decoder between two steps: a value that goes into a step and comes out of it, and hides on no module."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.nn.kv_cache import KVCache

Own = TypeVar("Own", bound="State")  # typing.Self, which beartype does not take on a method
Change = Callable[[Tensor], Tensor]
Queries = Float[Tensor, "N K heads t d_head"]


class State:
    """State of N sentences with K hypotheses each.

    Every tensor has leading axes `[N, K, …]`, or `[N, 1, …]` where it belongs to the sentence: such a tensor is
    broadcast over the hypotheses and never copied for each. Subclasses give `map`.
    """

    def map(self: Own, sentence: Change, hypothesis: Change) -> Own:
        """The state with `sentence` applied to every tensor `[N, 1, …]` and `hypothesis` to every `[N, K, …]`."""
        raise NotImplementedError

    def plain(self) -> "State":
        """The state as the model's own step has it."""
        return self

    def companions(self) -> Hashable:
        """States for which this is equal can be made one by `together`; None where a state stays alone."""
        return None

    def together(self: Own, states: Sequence[Own]) -> Own:
        """The state of the hypotheses of several states of `one`, with equal `companions`, for their maps."""
        raise NotImplementedError

    def one(self, sentence: int, hypothesis: int) -> "State":
        """The state of one hypothesis, for its maps: no step goes on from it."""
        kept = self.map(lambda of: of[sentence : sentence + 1], lambda of: of[sentence : sentence + 1])
        return kept.map(lambda of: of, lambda of: of[:, hypothesis : hypothesis + 1])

    def select(self: Own, parents: Int[Tensor, "N K"]) -> Own:
        """The state in which hypothesis k of sentence n continues hypothesis `parents[n, k]`."""
        return self.map(lambda tensor: tensor, lambda tensor: gather_hypotheses(tensor, parents))

    def keep(self: Own, sentences: Int[Tensor, "M"]) -> Own:
        """The state of the sentences with these indices."""
        return self.map(lambda tensor: tensor[sentences], lambda tensor: tensor[sentences])


@dataclass(frozen=True, eq=False)
class SelfAttentionState(State):
    """State of a block's self-attention.

    Attributes:
        cache: keys and values `[N, K, key_heads, t, d_head]` of the tokens so far.
        context: state of the queries' context `[N, K, …]`, where there is one.
        queries: the queries of all steps, where they are recorded.
    """

    cache: KVCache
    context: Tensor | None = None
    queries: Queries | None = None

    def map(self, sentence: Change, hypothesis: Change) -> "SelfAttentionState":  # noqa: ARG002 - nothing here belongs to the sentence
        return replace(
            self, cache=self.cache.map(hypothesis), context=_changed(self.context, hypothesis),
            queries=_changed(self.queries, hypothesis),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class CrossAttentionState(State):
    """State of a block's attention to the memory.

    Attributes:
        key: keys of the memory `[N, 1, key_heads, S, d_head]`.
        value: values of the memory, likewise.
        context: state of the queries' context `[N, K, …]`, where there is one.
        queries: the queries of all steps, where they are recorded.
    """

    key: Float[Tensor, "N 1 key_heads S d_head"]
    value: Float[Tensor, "N 1 key_heads S d_head"]
    context: Tensor | None = None
    queries: Queries | None = None

    def map(self, sentence: Change, hypothesis: Change) -> "CrossAttentionState":
        return replace(
            self, key=sentence(self.key), value=sentence(self.value), context=_changed(self.context, hypothesis),
            queries=_changed(self.queries, hypothesis),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class BlockState(State):
    """State of one decoder block; `cross_attention` is None where the block has no memory."""

    self_attention: SelfAttentionState
    cross_attention: CrossAttentionState | None = None

    def map(self, sentence: Change, hypothesis: Change) -> "BlockState":
        cross = self.cross_attention
        return replace(
            self, self_attention=self.self_attention.map(sentence, hypothesis),
            cross_attention=None if cross is None else cross.map(sentence, hypothesis),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class DecoderState(State):
    """State of a stack of decoder blocks.

    Attributes:
        blocks: of every block.
        step: number of steps taken.
        record: whether steps record their queries, which maps need.
        memory_allowed: `[N, 1, S]`, True at real states of the memory, where there is one.
        first_position: `[N, 1]`, position of the first step's token, where a prompt was read before it; else 0.
        prompt_allowed: `[N, 1, P]`, True at real tokens of the prompt; None where all are real.
    """

    blocks: tuple[BlockState, ...]
    step: int = 0
    record: bool = False
    memory_allowed: Bool[Tensor, "N 1 S"] | None = None
    first_position: Int[Tensor, "N 1"] | None = None
    prompt_allowed: Bool[Tensor, "N 1 P"] | None = None

    def map(self, sentence: Change, hypothesis: Change) -> "DecoderState":
        return replace(
            self, blocks=tuple(block.map(sentence, hypothesis) for block in self.blocks),
            memory_allowed=_changed(self.memory_allowed, sentence),
            first_position=_changed(self.first_position, sentence),
            prompt_allowed=_changed(self.prompt_allowed, sentence),
        )  # fmt: skip

    def positions(self, token: Int[Tensor, "N K"]) -> Int[Tensor, "N K"]:
        """Position of the next token of every hypothesis."""
        if self.first_position is None:
            return torch.full_like(token, self.step)
        return (self.first_position + self.step).expand_as(token)

    def real_keys(self, keys: int, steps: int) -> Bool[Tensor, "N 1 keys"] | None:
        """True at real tokens among the last `keys` of prompt and `steps` steps; None where all are real."""
        if self.prompt_allowed is None:
            return None
        prompt = self.prompt_allowed
        return torch.cat([prompt, prompt.new_ones(*prompt.shape[:-1], steps)], -1)[..., -keys:]


def record_query(queries: Tensor | None, query: Float[Tensor, "N K heads 1 d_head"]) -> Tensor:
    """The recorded queries `[N, K, heads, t, d_head]` with those of one more step."""
    return query if queries is None else torch.cat([queries, query], -2)


def gather_hypotheses(tensor: Tensor, parents: Tensor) -> Tensor:
    """`[N, K, …]` whose hypothesis k of sentence n is hypothesis `parents[n, k]` of `tensor`."""
    sentences = torch.arange(parents.shape[0], device=parents.device)[:, None]
    return tensor[sentences, parents]


def _changed(tensor: Tensor | None, change: Change) -> Tensor | None:
    return None if tensor is None else change(tensor)
