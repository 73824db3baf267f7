"""The Transformer encoder–decoder (Vaswani et al. 2017)."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from regard.attention.maps.map import AttentionMap
from regard.attention.watch import Call, calls_by_site
from regard.errors import ConfigError
from regard.models.encoders import EncoderParts, make_encoder
from regard.models.seq2seq import Memory, Seq2Seq, Source
from regard.models.stack import BlocksConfig, Embeds, Stack
from regard.nn.embedding import count_positions, normal
from regard.nn.state import DecoderState


class PairConfig(BlocksConfig):
    """Settings of an encoder and a decoder."""

    encoder_layers: int = Field(6, ge=0)
    """Blocks in the encoder."""
    decoder_layers: int = Field(6, gt=0)
    """Blocks in the decoder."""
    scaled_output: bool = False
    """States are divided by √width before the output layer (T5 with tied embeddings)."""


class TransformerConfig(PairConfig):
    """Settings of the Transformer encoder–decoder."""

    kind: Literal["transformer"]
    source_encoder: EncoderParts | None = None
    """Encoder of pictures or sounds in front of the blocks; the source is tokens unless set."""
    convolution: int = Field(0, ge=0)
    """Number of states on each side in the convolutions of a Conformer encoder (Gulati et al. 2020); 0 for a
    Transformer encoder."""
    ctc_head: bool = False
    """Add a layer from the encoder's states to logits of tokens, for CTC beside attention."""


class Decoder(Stack):
    """A stack whose tokens attend to earlier ones, and its output layer.

    Attributes:
        bias: of the output, where there is one.
        output: the output's own weights, where they are not the embedding's.
    """

    def __init__(self, vocabulary: int, config: BlocksConfig, layers: int, cross: bool = False) -> None:
        super().__init__(config, layers, "forward", cross)
        self.bias = nn.Parameter(torch.zeros(vocabulary)) if config.output_bias else None
        self.output = None if config.tied else normal(vocabulary, config.width, std=config.width**-0.5)

    def readout(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of o = W h + b."""
        weight = embedding if self.output is None else self.output
        return weight, weight.new_zeros(len(weight)) if self.bias is None else self.bias


class Transformer(Embeds, Seq2Seq[DecoderState]):
    """Encoder and decoder of attention blocks; 6 + 6 layers by default, every size a setting.

    Args:
        vocabulary: number of tokens, source and target together.
        config: the sizes and choices.
    """

    config: PairConfig

    def __init__(self, vocabulary: int, config: PairConfig) -> None:
        super().__init__(vocabulary, config)
        settings = getattr(config, "source_encoder", None)
        if settings is not None and settings.width != config.width:
            raise ConfigError(f"model.source_encoder.width = {settings.width} must be model.width = {config.width}")
        self.source_encoder = None if settings is None else make_encoder(settings)
        self.encoder = Stack(config, config.encoder_layers, "both", reach=getattr(config, "convolution", 0))
        self.decoder = Decoder(vocabulary, config, config.decoder_layers, cross=True)
        self.ctc_head = nn.Linear(config.width, vocabulary) if getattr(config, "ctc_head", False) else None

    def encode(
        self, source: Source, allowed: Bool[Tensor, "B _"] | None = None, collect: list[Tensor] | None = None
    ) -> Memory:
        grid = None
        if self.source_encoder is not None:
            memory = self.source_encoder(source, allowed)
            x, allowed, grid = self.dropout(memory.states), memory.allowed, memory.positions
            positions = count_positions(allowed)
        else:
            allowed = torch.ones_like(source, dtype=torch.bool) if allowed is None else allowed
            positions = count_positions(allowed)
            x = self.embed(source, positions)
        between: list[Tensor] = [] if collect is None else collect
        states = self.encoder(x, allowed, positions, collect=between)
        halfway = self.encoder.norm(between[len(self.encoder.layers) // 2]) if self.ctc_head is not None else None
        return Memory(states, allowed, None, grid, halfway)

    def start(self, memory: Memory, record: bool = False) -> DecoderState:
        return self.decoder.start(memory.states, memory, record)

    def hidden(
        self, memory: Memory, target: Int[Tensor, "B T"], collect: list[Tensor] | None = None
    ) -> Float[Tensor, "B T h"]:
        positions = torch.arange(target.shape[1], device=target.device)
        x = self.embed(target, positions.expand_as(target))
        return self._scaled(self.decoder(x, None, memory=memory, collect=collect))

    def step_hidden(
        self, token: Int[Tensor, "N K"], state: DecoderState
    ) -> tuple[Float[Tensor, "N K h"], DecoderState]:
        positions = state.positions(token)
        hidden, state = self.decoder.step(self.embed(token, positions), state, positions)
        return self._scaled(hidden), state

    def readout(self) -> tuple[Float[Tensor, "V h"], Float[Tensor, "V"]]:
        return self.decoder.readout(self.embedding.weight)

    def maps(self, state: DecoderState) -> dict[str, AttentionMap]:
        return self.decoder.maps(state, "decoder")

    def encoder_sites(self) -> list[str]:
        return [f"encoder.layers.{i}.self" for i in range(self.config.encoder_layers)]

    def guided(self, calls: list[Call]) -> Float[Tensor, "B T S"]:
        """Head 0 of the last layer but one, as Garg et al. 2019 do."""
        site = f"decoder.layers.{max(0, self.config.decoder_layers - 2)}.cross"
        (call,) = calls_by_site(self, calls)[site]
        return AttentionMap.from_spec(call.query[:, :1], call.key[:, :1], call.spec).full(force=True)[:, 0]

    @property
    def output_scale(self) -> float:
        """What the decoder's states are multiplied by before the output layer."""
        return self.config.width**-0.5 if self.config.scaled_output else 1.0

    def _scaled(self, hidden: Tensor) -> Tensor:
        return hidden * self.output_scale if self.config.scaled_output else hidden
