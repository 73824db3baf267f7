"""From numbers to a model."""

from typing import Annotated

from pydantic import Field

from regard.models.language import DecoderConfig, DecoderLM, EncoderConfig, MaskedLM
from regard.models.questions import Answering, Questions, QuestionsConfig, StackedAttention, StackedAttentionConfig
from regard.models.recurrent import Recurrent, RecurrentConfig
from regard.models.seq2seq import Seq2Seq
from regard.models.speech import SpeechConfig, SpeechTransformer
from regard.models.transformer import Transformer, TransformerConfig
from regard.models.vision import VisionConfig, VisionTransformer

ModelConfig = Annotated[
    RecurrentConfig
    | TransformerConfig
    | DecoderConfig
    | EncoderConfig
    | VisionConfig
    | SpeechConfig
    | StackedAttentionConfig
    | QuestionsConfig,
    Field(discriminator="kind"),
]
Model = Seq2Seq | DecoderLM | MaskedLM | VisionTransformer | Answering


def build(vocabulary: int, config: ModelConfig) -> Model:
    """The model that a config describes, with fresh random weights."""
    match config:
        case RecurrentConfig():
            return Recurrent(vocabulary, config)
        case TransformerConfig():
            return Transformer(vocabulary, config)
        case DecoderConfig():
            return DecoderLM(vocabulary, config)
        case EncoderConfig():
            return MaskedLM(vocabulary, config)
        case VisionConfig():
            return VisionTransformer(config)
        case SpeechConfig():
            return SpeechTransformer(vocabulary, config)
        case StackedAttentionConfig():
            return StackedAttention(vocabulary, config)
        case QuestionsConfig():
            return Questions(vocabulary, config)
