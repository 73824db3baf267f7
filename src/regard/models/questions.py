"""Questions about pictures: the question attends to the picture's grid, and one of the known answers is chosen."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from regard.attention.maps.map import AttentionMap
from regard.attention.operator import attend
from regard.attention.plain import is_plain_linear
from regard.attention.scores import Additive
from regard.attention.spec import make_spec
from regard.attention.watch import Call, calls_by_site, owned, watching
from regard.errors import ConfigError
from regard.models.encoders import EncoderParts, make_encoder
from regard.models.seq2seq import Memory
from regard.models.stack import BlocksConfig, Embeds, Stack
from regard.nn.dropout import Dropout
from regard.nn.embedding import Embedding, count_positions
from regard.nn.recurrent import RecurrentEncoder, as_weights


class StackedAttentionConfig(BaseModel):
    """Settings of stacked attention (Yang et al. 2016)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["stacked"]
    source_encoder: EncoderParts
    """Encoder of the picture."""
    answers: int = Field(1, gt=0)
    """Number of known answers; training counts those of its data."""
    embedding: int = Field(128, gt=0)
    """Width of a question token's vector."""
    hops: int = Field(2, ge=0)
    """Number of attentions to the picture, one after the other; with 0 the answer sees the mean of its states alone."""
    score_width: int = Field(128, gt=0)
    """Width inside the tanh of the score."""
    normalizer: Literal["softmax", "hard"] = "softmax"
    """How scores become weights."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """On the question's vectors and before the answer."""


class QuestionsConfig(BlocksConfig):
    """Settings of a question whose tokens attend to the picture in a decoder's blocks."""

    kind: Literal["questions"]
    source_encoder: EncoderParts
    """Encoder of the picture."""
    answers: int = Field(1, gt=0)
    """Number of known answers; training counts those of its data."""
    layers: int = Field(2, gt=0)
    """Blocks."""


class Answering(nn.Module):
    """Logits of answers from a picture and a question. Class 0 is "none": an answer that training never saw.

    Subclasses give `state`.
    """

    config: StackedAttentionConfig | QuestionsConfig

    def _make(self, config: StackedAttentionConfig | QuestionsConfig, width: int) -> None:
        self.source_encoder = make_encoder(config.source_encoder)
        self.answer = nn.Linear(width, 1 + config.answers)

    def state(self, memory: Memory, question: Int[Tensor, "B n"], allowed: Bool[Tensor, "B n"]) -> Float[Tensor, "B h"]:
        """Input of the answer's layer."""
        raise NotImplementedError

    def forward(
        self, pictures: Float[Tensor, "B C H W"], question: Int[Tensor, "B n"],
        allowed: Bool[Tensor, "B n"] | None = None,
    ) -> Float[Tensor, "B A"]:  # fmt: skip
        """Logits of the answers; class 0 is "none"."""
        return self.answer(self.hidden(pictures, question, allowed))  # type: ignore[no-any-return]

    def hidden(
        self, pictures: Float[Tensor, "B C H W"], question: Int[Tensor, "B n"],
        allowed: Bool[Tensor, "B n"] | None = None,
    ) -> Float[Tensor, "B h"]:  # fmt: skip
        """Input of the answer's layer; `allowed` is True at real tokens (None: all)."""
        real = torch.ones_like(question, dtype=torch.bool) if allowed is None else allowed
        return self.state(self.source_encoder(pictures), question, real)

    def readout(self) -> tuple[Float[Tensor, "A h"], Float[Tensor, "A"]]:
        """Weight and bias of o = W h + b."""
        if not is_plain_linear(self.answer):
            raise ConfigError("answer is a layer of its own, or has hooks: it is more than a weight and a bias")
        return self.answer.weight, self.answer.bias

    def encoder_sites(self) -> list[str]:
        """Paths of the encoder's attentions: none."""
        return []

    def looking(
        self, pictures: Float[Tensor, "B C H W"], question: Int[Tensor, "B n"], allowed: Bool[Tensor, "B n"]
    ) -> tuple[Float[Tensor, "B A"], dict[str, AttentionMap], Float[Tensor, "B S c"] | None]:
        """Logits; {site: map `[B, heads, T, S]`} of the attentions to the picture; positions of its cells."""
        calls: list[Call] = []
        with watching(calls.append):
            memory = self.source_encoder(pictures)
            logits = self.answer(self.state(memory, question, allowed))
        return logits, self.maps(calls), memory.positions

    def maps(self, calls: list[Call]) -> dict[str, AttentionMap]:
        """{site: map `[B, heads, T, S]`} of the attentions to the picture among the calls of one pass."""
        raise NotImplementedError


class StackedAttention(Answering):
    """The question's state attends to the grid and adds the context found, several times: u_k = u_{k-1} + c_k.

    The answer's layer takes [u_K; W q ⊙ V c_K]; the product compares question and context (Antol et al. 2015).

    Args:
        vocabulary: number of question tokens.
        config: the sizes and choices.
    """

    def __init__(self, vocabulary: int, config: StackedAttentionConfig) -> None:
        super().__init__()
        self.config = config
        width = config.source_encoder.width
        self._make(config, 2 * width)
        self.embedding = Embedding(vocabulary, config.embedding, dropout=config.dropout)
        self.question = RecurrentEncoder("gru", config.embedding, width, direction="forward")
        self.scores = nn.ModuleList(Additive(width, width, config.score_width) for _ in range(config.hops))
        # normed: a product of two small vectors has hardly any gradient at first
        self.asks, self.found = (nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width)) for _ in range(2))
        self.join = nn.Linear(2 * width, 2 * width)
        self.dropout = Dropout(config.dropout)

    def state(self, memory: Memory, question: Int[Tensor, "B n"], allowed: Bool[Tensor, "B n"]) -> Float[Tensor, "B h"]:
        _, asked = self.question(self.embedding(question), allowed)
        u = asked[:, None]
        found = memory.states.mean(1, keepdim=True)  # without attention
        for score in self.scores:
            normalizer = as_weights(self.config.normalizer, draw=self.training)
            with owned(score):
                found = attend(u, memory.states, memory.states, score=score, normalizer=normalizer)
            u = u + found
        product = self.asks(asked) * self.found(found[:, 0])
        both = torch.cat([u[:, 0].to(product.dtype), product], -1)
        result: Tensor = self.dropout(torch.relu(self.join(both)))
        return result

    def maps(self, calls: list[Call]) -> dict[str, AttentionMap]:
        found = {}
        for site, (call,) in calls_by_site(self, calls).items():
            spec = make_spec(call.spec.score, as_weights(self.config.normalizer), None, None)
            found[site] = AttentionMap.from_spec(call.query[:, None], call.key[:, None], spec)
        return found


class Questions(Answering, Embeds):
    """A question's tokens attend to earlier ones and to the grid; the last one's state gives the answer.

    Args:
        vocabulary: number of question tokens.
        config: the sizes and choices.
    """

    def __init__(self, vocabulary: int, config: QuestionsConfig) -> None:
        Embeds.__init__(self, vocabulary, config)
        self.config: QuestionsConfig = config
        self._make(config, config.width)
        self.decoder = Stack(config, config.layers, "forward", cross=True)
        self.narrow = nn.Linear(config.source_encoder.width, config.width)

    def state(self, memory: Memory, question: Int[Tensor, "B n"], allowed: Bool[Tensor, "B n"]) -> Float[Tensor, "B h"]:
        positions = count_positions(allowed)
        seen = Memory(self.narrow(memory.states), memory.allowed)
        states = self.decoder(self.embed(question, positions), allowed, positions, memory=seen)
        last = (allowed.long() * torch.arange(1, allowed.shape[1] + 1, device=allowed.device)).argmax(1)
        result: Tensor = states[torch.arange(len(states), device=states.device), last]
        return result

    def maps(self, calls: list[Call]) -> dict[str, AttentionMap]:
        return {
            site: AttentionMap.from_spec(call.query, call.key, call.spec)
            for site, (call,) in calls_by_site(self, calls).items()
            if site.endswith(".cross")
        }
