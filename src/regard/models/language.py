"""Transformers of one stack: a decoder that continues a text, an encoder of a text."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from regard.attention.maps.map import AttentionMap
from regard.attention.masks import documents as documents_mask
from regard.attention.tracing import are_hidden
from regard.errors import ChoiceError, ShapeError
from regard.models.seq2seq import Memory, Step
from regard.models.stack import BlocksConfig, Embeds, Stack
from regard.models.transformer import Decoder
from regard.nn.blocks import ACTIVATIONS, make_norm
from regard.nn.embedding import count_positions, normal
from regard.nn.state import DecoderState


class DecoderConfig(BlocksConfig):
    """Settings of a decoder alone (GPT)."""

    kind: Literal["decoder"]
    layers: int = Field(6, gt=0)
    """Blocks."""


class EncoderConfig(BlocksConfig):
    """Settings of an encoder alone (BERT)."""

    kind: Literal["encoder"]
    layers: int = Field(6, gt=0)
    """Blocks."""
    kinds: int = Field(0, ge=0)
    """Token types, for sentences A and B; 0 for none."""
    head: Literal["words", "none"] = "words"
    """Output layer: logits of the token at every position, or none."""
    pooler: bool = False
    """A layer over the first state, tanh(W h_0 + b), as in BERT's next-sentence task."""


class DecoderLM(Embeds):
    """A decoder alone: every token attends to itself and earlier ones, and the next one is predicted.

    Args:
        vocabulary: number of tokens.
        config: the sizes and choices.
    """

    config: DecoderConfig

    def __init__(self, vocabulary: int, config: DecoderConfig) -> None:
        super().__init__(vocabulary, config)
        self.decoder = Decoder(vocabulary, config, config.layers)

    def hidden(
        self, tokens: Int[Tensor, "B T"], allowed: Bool[Tensor, "B T"] | None = None,
        collect: list[Tensor] | None = None, documents: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T h"]:  # fmt: skip
        """Input of `project`.

        Args:
            tokens: `[B, T]`.
            allowed: True at real tokens; padding on either side changes nothing for these.
            collect: receives the input of every block, and the output.
            documents: index of each token's document, where a row holds several: tokens attend within their own
                document, whose positions begin at 0.

        Raises:
            ChoiceError: a model whose queries have a context, and rows of several documents.
        """
        if documents is not None:
            if self.config.context != "none":
                raise ChoiceError(
                    f"model.context = {self.config.context!r} would read from one document of a row into the next: "
                    'choose "none", or train on one document'
                )
            positions = _positions_within(documents)
            x = self.embed(tokens, positions)
            return self.decoder(x, allowed, positions, collect=collect, within=documents_mask(documents))  # type: ignore[no-any-return]
        if allowed is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            return self.decoder(self.embed(tokens, positions.expand_as(tokens)), None, collect=collect)  # type: ignore[no-any-return]
        positions = count_positions(allowed)
        states: Tensor = self.decoder(self.embed(tokens, positions), allowed, positions, collect=collect)
        return states

    def forward(self, tokens: Int[Tensor, "B T"], allowed: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B T V"]:
        """Logits `[B, T, V]` of the token after each."""
        return self.project(self.hidden(tokens, allowed))

    def readout(self) -> tuple[Float[Tensor, "V h"], Float[Tensor, "V"]]:
        """Weight and bias of o = W h + b."""
        return self.decoder.readout(self.embedding.weight)

    def project(self, hidden: Float[Tensor, "*n h"]) -> Float[Tensor, "*n V"]:
        """Logits o = W h + b."""
        return linear(hidden, *self.readout())

    def read(
        self, tokens: Int[Tensor, "N P"], allowed: Bool[Tensor, "N P"] | None = None, record: bool = False
    ) -> DecoderState:
        """The state after N prompts, in one pass; `step` continues from it.

        Args:
            tokens: `[N, P]`; P may be 0.
            allowed: True at real tokens; all, if None. Padding stands on the left, and may stand on the right where
                there is no window and positions are neither ALiBi nor relative.
            record: keep the queries of every later step, for `maps`.
        """
        real = torch.ones_like(tokens, dtype=torch.bool) if allowed is None else allowed
        padded = allowed is not None and (are_hidden(real) or not bool(real.all()))
        places = self.config.window is not None or self.config.positions in ("alibi", "relative")
        if padded and places and not are_hidden(real) and bool((real[:, 1:] < real[:, :-1]).any()):
            raise ShapeError(
                "read: prompts of a decoder with a window, ALiBi or relative positions are padded on the left: the "
                "steps after them count the places of the padding"
            )
        if self.config.context != "none":
            return self._read_by_steps(tokens, padded, record)
        positions = count_positions(real)
        blocks = self.decoder.read(self.embed(tokens, positions), real, positions, padded, record)
        prompt = real[:, None] if padded else None
        first = real.sum(-1, keepdim=True)
        return DecoderState(blocks, record=record, first_position=first, prompt_allowed=prompt)

    def _read_by_steps(self, tokens: Tensor, padded: bool, record: bool) -> DecoderState:
        if padded:
            raise ChoiceError("a decoder with a context reads prompts of one length at a time")
        state = self.decoder.start(self.embedding.weight.new_zeros(len(tokens), 0), record=record)
        for token in tokens.T:
            _, state = self.step(token[:, None], state)
        return state

    def step(self, token: Int[Tensor, "N K"], state: DecoderState) -> Step:
        """Logits `[N, K, V]` of the next token after `token`, and the state after it."""
        positions = state.positions(token)
        hidden, state = self.decoder.step(self.embed(token, positions), state, positions)
        return Step(self.project(hidden), state)

    def maps(self, state: DecoderState) -> dict[str, AttentionMap]:
        """The maps of every site, `[N, K, heads, T, S]`, of a state that was read with `record`."""
        return self.decoder.maps(state, "decoder")


def _positions_within(documents: Tensor) -> Tensor:
    """Position of each token in its own document."""
    positions = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return positions - torch.where(begins, positions, 0).cummax(1).values


class WordHead(nn.Module):
    """Logits of the token at each position: a layer, an activation, a norm, then the embedding's weights (BERT)."""

    def __init__(self, vocabulary: int, config: EncoderConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.width, config.width)
        self.activation = ACTIVATIONS[config.activation]()
        self.norm = make_norm(config.normalization, config.width, config.epsilon)
        self.bias = nn.Parameter(torch.zeros(vocabulary)) if config.output_bias else None
        self.output = None if config.tied else normal(vocabulary, config.width, std=config.width**-0.5)

    def forward(self, states: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """States before the output's weights."""
        result: Tensor = self.norm(self.activation(self.inner(states)))
        return result


class MaskedLM(Embeds):
    """An encoder alone: every token attends to all others.

    Args:
        vocabulary: number of tokens.
        config: the sizes and choices.
    """

    config: EncoderConfig

    def __init__(self, vocabulary: int, config: EncoderConfig) -> None:
        super().__init__(vocabulary, config, config.kinds)
        self.encoder = Stack(config, config.layers, "both")
        self.head = WordHead(vocabulary, config) if config.head == "words" else None
        self.pooler = nn.Linear(config.width, config.width) if config.pooler else None

    def encode(
        self, tokens: Int[Tensor, "B S"], allowed: Bool[Tensor, "B S"] | None = None,
        kinds: Int[Tensor, "B S"] | None = None, collect: list[Tensor] | None = None,
    ) -> Memory:  # fmt: skip
        """The states of texts; padding, where `allowed` is False, on either side changes nothing.

        Args:
            tokens: `[B, S]`.
            allowed: True at real tokens; all, if None.
            kinds: token types; 0 unless given.
            collect: receives the input of every block, and the output.

        Returns:
            states `[B, S, d]`, and the pooled first one as `summary` where there is a pooler.
        """
        real = torch.ones_like(tokens, dtype=torch.bool) if allowed is None else allowed
        positions = count_positions(real)
        states = self.encoder(self.embed(tokens, positions, kinds), allowed, positions, collect=collect)
        return Memory(states, real, self._pool(states, real))

    def hidden(
        self, tokens: Int[Tensor, "B S"], allowed: Bool[Tensor, "B S"] | None = None,
        kinds: Int[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B S d"]:  # fmt: skip
        """Input of `project`."""
        if self.head is None:
            raise ChoiceError("this encoder has no output layer that predicts tokens: encode() gives its states")
        found: Tensor = self.head(self.encode(tokens, allowed, kinds).states)
        return found

    def readout(self) -> tuple[Float[Tensor, "V h"], Float[Tensor, "V"]]:
        """Weight and bias of o = W h + b."""
        assert self.head is not None  # hidden() refuses before
        weight = self.embedding.weight if self.head.output is None else self.head.output
        return weight, weight.new_zeros(len(weight)) if self.head.bias is None else self.head.bias

    def project(self, hidden: Float[Tensor, "*n h"]) -> Float[Tensor, "*n V"]:
        """Logits o = W h + b."""
        return linear(hidden, *self.readout())

    def forward(
        self, tokens: Int[Tensor, "B S"], allowed: Bool[Tensor, "B S"] | None = None,
        kinds: Int[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B S V"]:  # fmt: skip
        """Logits `[B, S, V]` of the token at each position."""
        return self.project(self.hidden(tokens, allowed, kinds))

    def _pool(self, states: Tensor, real: Tensor) -> Tensor | None:
        if self.pooler is None:
            return None
        first = real.long().argmax(-1)
        return self.pooler(states[torch.arange(states.shape[0], device=states.device), first]).tanh()  # type: ignore[no-any-return]
