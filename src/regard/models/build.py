"""From numbers to a model."""

from typing import Annotated

from pydantic import Field

from regard.models.recurrent import Recurrent, RecurrentConfig
from regard.models.seq2seq import Seq2Seq
from regard.models.transformer import Transformer, TransformerConfig

ModelConfig = Annotated[RecurrentConfig | TransformerConfig, Field(discriminator="kind")]


def build(vocabulary: int, config: ModelConfig) -> Seq2Seq:
    """The model that a config describes, with fresh random weights."""
    match config:
        case RecurrentConfig():
            return Recurrent(vocabulary, config)
        case TransformerConfig():
            return Transformer(vocabulary, config)
