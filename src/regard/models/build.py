"""From numbers to a model."""

from typing import Annotated

from pydantic import Field

from regard.models.language import DecoderConfig, EncoderConfig, Language, Reader
from regard.models.questions import Answering, Questions, QuestionsConfig, Stacked, StackedConfig
from regard.models.recurrent import Recurrent, RecurrentConfig
from regard.models.senses import PictureConfig, PictureReader, Speech, SpeechConfig
from regard.models.seq2seq import Seq2Seq
from regard.models.transformer import Transformer, TransformerConfig

ModelConfig = Annotated[
    RecurrentConfig
    | TransformerConfig
    | DecoderConfig
    | EncoderConfig
    | PictureConfig
    | SpeechConfig
    | StackedConfig
    | QuestionsConfig,
    Field(discriminator="kind"),
]
Model = Seq2Seq | Language | Reader | PictureReader | Answering


def build(vocabulary: int, config: ModelConfig) -> Model:
    """The model that a config describes, with fresh random weights."""
    match config:
        case RecurrentConfig():
            return Recurrent(vocabulary, config)
        case TransformerConfig():
            return Transformer(vocabulary, config)
        case DecoderConfig():
            return Language(vocabulary, config)
        case EncoderConfig():
            return Reader(vocabulary, config)
        case PictureConfig():
            return PictureReader(config)
        case SpeechConfig():
            return Speech(vocabulary, config)
        case StackedConfig():
            return Stacked(vocabulary, config)
        case QuestionsConfig():
            return Questions(vocabulary, config)
