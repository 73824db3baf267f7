"""The settings of a training run: data, tokenizer, model, training, decoding; and what each task requires of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from regard.data.parallel import DataConfig
from regard.data.questions import PictureQuestionsConfig
from regard.data.scenes.scene import SceneConfig
from regard.data.tables import TableConfig
from regard.data.texts import TextConfig
from regard.errors import ConfigError
from regard.models.build import ModelConfig, at_most, build
from regard.pipelines.description import DescribingConfig
from regard.pipelines.translator import DecodingConfig
from regard.text.tokenizer import TokenizerConfig
from regard.training.config import TrainingConfig


@dataclass(frozen=True)
class Requirements:
    """Settings that a task can be combined with.

    Attributes:
        data: sections, exactly one of which must be given.
        models: kinds of model.
        encoders: kinds of `model.source_encoder`; none for tasks whose source is text.
        metrics: measures of development data.
    """

    data: tuple[str, ...]
    models: tuple[str, ...]
    encoders: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("loss",)


DATA = ("data", "texts", "scenes", "files", "questions")
TASKS_OF = {  # settings of the training that act in some tasks only
    "guided_alignment": ("translate",), "concat_pairs": ("transcribe",),
    "coverage_loss": ("translate", "caption", "transcribe"), "ctc": ("translate", "caption", "transcribe"),
}  # fmt: skip
WEIGHTS = 20_000  # and biases of a model, each a matrix or a vector: about a thousand layers
PAIRS = ("transformer", "recurrent")
PICTURES = ("grid", "patches", "features")
TEXT_METRICS = ("loss", "exact", "wer", "bleu")
REQUIREMENTS = {
    "translate": Requirements(("data",), PAIRS, metrics=("bleu", "chrf", "loss")),
    "complete": Requirements(("texts",), ("decoder",)),
    "fill": Requirements(("texts",), ("encoder",)),
    "caption": Requirements(("scenes", "files"), PAIRS, (*PICTURES, "frames"), TEXT_METRICS),
    "transcribe": Requirements(("files",), PAIRS, ("sound", "pyramid"), TEXT_METRICS),
    "answer": Requirements(("questions",), ("stacked", "questions"), PICTURES, ("exact", "loss")),
}


class ExperimentConfig(BaseModel):
    """A training run: data, tokenizer, model, training, decoding."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    task: Literal["translate", "complete", "fill", "caption", "transcribe", "answer"] = "translate"
    """What the model learns: translation, continuing a text, filling masked words, captions of pictures, transcripts of
    recordings, answers to questions about pictures."""
    languages: tuple[str, str] = ("fr", "en")
    """Languages of source and target, for figures and the model card."""
    start: str | None = None
    """A run, a bundle's folder or a shipped model whose tokenizer and weights training starts from; settings must
    agree, but a Transformer may have fewer layers: it takes the first, the last and evenly spaced ones."""
    tokenizer_from: str | None = None
    """A run, a bundle's folder or a shipped model whose tokenizer is used instead of one that is learned; [tokenizer]
    must agree."""
    dev_sentences: int = Field(500, gt=0)
    """Development examples that are decoded (greedily) at each evaluation during training."""
    watched_sentences: int = Field(2, ge=0)
    """Development pairs whose attention is kept at each evaluation of a translator (`regard report` shows how it
    forms)."""
    data: DataConfig | None = None
    """Sentence pairs, for translation."""
    texts: TextConfig | None = None
    """Running text, for models that complete texts or fill masked words."""
    scenes: SceneConfig | None = None
    """Generated scenes of emoji, for captions."""
    files: TableConfig | None = None
    """Pictures or recordings with their texts, for captions and transcripts."""
    questions: PictureQuestionsConfig | None = None
    """Pictures with questions and answers."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig
    training: TrainingConfig = TrainingConfig()
    decoding: DecodingConfig = DecodingConfig()
    describing: DescribingConfig = DescribingConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> "ExperimentConfig":
        required = REQUIREMENTS[self.task]
        if sum(getattr(self, name) is not None for name in required.data) != 1:
            raise ValueError(f'task = "{self.task}" needs {" or ".join(f"[{name}]" for name in required.data)}')
        if other := [name for name in DATA if name not in required.data and getattr(self, name) is not None]:
            raise ValueError(f'task = "{self.task}" has no [{other[0]}]: leave it out')
        if self.model.kind not in required.models:
            raise ValueError(f'task = "{self.task}" needs model.kind = {_or(required.models)}')
        if self.training.metric not in required.metrics:
            raise ValueError(f'task = "{self.task}" needs training.metric = {_or(required.metrics)}')
        encoder = source_encoder(self.model)
        if bool(required.encoders) != (encoder is not None):
            raise ValueError(f'task = "{self.task}" needs {"" if required.encoders else "no "}[model.source_encoder]')
        if encoder is not None and encoder.kind not in required.encoders:
            raise ValueError(f'task = "{self.task}" cannot have model.source_encoder.kind = "{encoder.kind}"')
        if self.scenes is not None and encoder is not None and encoder.size != self.scenes.size:
            raise ValueError(f"scenes.size = {self.scenes.size} must be model.source_encoder.size = {encoder.size}")
        for name, tasks in TASKS_OF.items():
            if getattr(self.training, name) and self.task not in tasks:
                raise ValueError(f"training.{name} needs task = {_or(tasks)}")
        if self.training.ctc and not getattr(self.model, "ctc_head", False):
            raise ValueError("training.ctc needs model.ctc_head = true: a linear layer from memory states to tokens")
        if self.training.ctc_halfway and not self.training.ctc:
            raise ValueError("training.ctc_halfway needs training.ctc: it is a share of that loss")
        if self.describing.ctc and not self.training.ctc:
            raise ValueError("describing.ctc needs training.ctc: the output layer that it reads would not be trained")
        if self.start is not None and self.tokenizer_from is not None:
            raise ValueError(
                "tokenizer_from: a run that starts from a model takes its tokenizer: leave one of them out"
            )
        if self.training.bpe_dropout and (self.task != "translate" or self.tokenizer.kind not in ("bpe", "byte_bpe")):
            raise ValueError('training.bpe_dropout needs task = "translate" and tokenizer.kind = "bpe" or "byte_bpe"')
        if self.training.hard == "reinforce" and getattr(self.model, "normalizer", None) != "hard":
            raise ValueError('training.hard = "reinforce" needs model.kind = "recurrent" and model.normalizer = "hard"')
        stacks = getattr(self.model, "encoder_layers", 0), getattr(self.model, "decoder_layers", 0)
        windows = getattr(self.model, "window_layers", None) or ()
        if any(stacks) and max(windows, default=0) >= max(stacks):
            expected = f"expected numbers of the {max(stacks)} layers, 0 to {max(stacks) - 1}"
            raise ValueError(f"model.window_layers = {list(windows)}: {expected}")
        frames = getattr(encoder, "frames", 1)
        if self.task == "caption" and (self.scenes.frames if self.scenes else 1) != frames:
            raise ValueError(f"scenes.frames must be model.source_encoder.frames = {frames}")
        return self


def source_encoder(model: ModelConfig) -> Any:
    """The settings of the encoder of pictures or sound, or None where the source is text."""
    return getattr(model, "source_encoder", None)


def positions_of(model: ModelConfig) -> int | None:
    """Number of positions that a model has vectors for; None where there is no limit."""
    return int(model.length) if getattr(model, "positions", None) == "learned" else None  # type: ignore[union-attr]


def check_sizes(config: ExperimentConfig) -> None:
    """Refuse sizes of which no model can be built, before any data are read.

    Raises:
        ConfigError: widths, heads or other sizes do not fit together.
    """
    refusal = ConfigError(f"config: model: more than {WEIGHTS:,} weights and biases: set fewer layers")
    try:
        with at_most(WEIGHTS, refusal), torch.device("meta"):
            build(config.tokenizer.vocabulary, config.model)
    except ConfigError:
        raise
    except (ValueError, RuntimeError, ArithmeticError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"config: model: no {config.model.kind} model of these sizes: {reason}") from error


def _or(names: Sequence[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)
