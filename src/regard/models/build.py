"""From numbers to a model."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.nn.modules.module import register_module_parameter_registration_hook

from regard.errors import BundleError, RegardError
from regard.models.language import DecoderConfig, DecoderLM, EncoderConfig, MaskedLM
from regard.models.questions import Answering, Questions, QuestionsConfig, StackedAttention, StackedAttentionConfig
from regard.models.recurrent import Recurrent, RecurrentConfig
from regard.models.seq2seq import Seq2Seq
from regard.models.speech import SpeechConfig, SpeechTransformer
from regard.models.transformer import Transformer, TransformerConfig
from regard.models.vision import VisionConfig, VisionTransformer
from regard.untrusted import first_line

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


def build_shapes(vocabulary: int, config: ModelConfig, most: int, where: str) -> Model:
    """The model that a config describes, on torch's `meta` device: kinds and shapes of its parameters, no memory.

    Args:
        vocabulary: number of tokens.
        config: settings of unknown origin.
        most: number of stored weights; building stops at about twice as many, so that a layer count of 10¹² costs no
            time either.
        where: the file of the settings, for messages.

    Raises:
        BundleError: too many parameters; settings that fit no model.
    """
    refusal = BundleError(f"{where}: its settings make a model of more weights than the {most} that are stored")
    try:
        with (
            at_most(2 * most + 64, refusal),
            torch.device("meta"),
        ):  # modules may replace parameters when they are built
            return build(vocabulary, config).eval()
    except BundleError:
        raise
    except (ValueError, TypeError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise BundleError(f"{where}: describes no model: {first_line(error)}") from error


@contextmanager
def at_most(parameters: int, refusal: RegardError) -> Iterator[None]:
    """A block in which this thread's modules register so many parameters at most; the next one raises the refusal."""
    mine, count = threading.get_ident(), 0

    def stop(*_: object) -> None:  # the hook sees the modules that other threads build, too
        nonlocal count
        count += threading.get_ident() == mine
        if count > parameters and threading.get_ident() == mine:
            raise refusal

    watching: Any = register_module_parameter_registration_hook(stop)
    try:
        yield
    finally:
        watching.remove()
