"""The table of tasks: how each one's data are prepared and how a trained model is measured on files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regard.errors import ConfigError
from regard.pipelines.answerer import Answerer
from regard.pipelines.base import Pipeline
from regard.pipelines.captioner import Captioner
from regard.pipelines.completer import Completer
from regard.pipelines.filler import Filler
from regard.pipelines.transcriber import Transcriber
from regard.pipelines.translator import Translator
from regard.tasks import description, language, questions, translation
from regard.tasks.base import Numbers, RunFolder, TaskData
from regard.tasks.config import ExperimentConfig

Evaluate = Callable[[Any, Path, Path | None, int | None], tuple[Numbers, list[str]]]


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        prepare: from a run's folder and settings to its data.
        pipeline: the class of a trained model that is ready to use.
        evaluate: from a pipeline, a source, a reference and a beam width to numbers and outputs.
    """

    prepare: Callable[[RunFolder, ExperimentConfig], TaskData]
    pipeline: type[Pipeline[Any, Any]]
    evaluate: Evaluate


TASKS = {
    "translate": Task(translation.prepare, Translator, translation.evaluate),
    "complete": Task(language.prepare, Completer, language.evaluate_completer),
    "fill": Task(language.prepare, Filler, language.evaluate_filler),
    "caption": Task(description.prepare, Captioner, description.evaluate),
    "transcribe": Task(description.prepare, Transcriber, description.evaluate),
    "answer": Task(questions.prepare, Answerer, questions.evaluate),
}


def evaluate(
    pipeline: Pipeline[Any, Any], source: Path, reference: Path | None = None, beam: int | None = None
) -> tuple[Numbers, list[str]]:
    """Measure a trained model of any task on files.

    Args:
        pipeline: what `regard.load` returns.
        source: a translator's sentences, one a line; a text; a table of files and texts, or of files, questions and
            answers.
        reference: a translator's references, one a line.
        beam: hypotheses kept, where the task searches; the model's own number by default.

    Returns:
        numbers: loss, tokens and perplexity, and the task's own measures: bleu and chrf with signatures;
            bits_per_character; exact, wer and bleu; or accuracy.
        outputs: what the model answered, one text an example; none for models that complete or fill.

    Raises:
        ConfigError: the task cannot be measured, or not with these files.
        DataError: a file is missing or malformed, or holds nothing to measure.
    """
    task = TASKS.get(pipeline.bundle.task)
    if task is None or not isinstance(pipeline, task.pipeline):
        raise ConfigError(
            f"{pipeline.name} cannot be measured: it is no model that {', '.join(TASKS)} work with; use .model"
        )
    source, reference = Path(source), None if reference is None else Path(reference)
    pipeline.model.eval()
    return task.evaluate(pipeline, source, reference, beam)
