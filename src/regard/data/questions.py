"""Questions about pictures with their answers: readers and batches."""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from regard.data.archive import Files
from regard.data.batching import lengths_mask, pad
from regard.data.datasets import easy_vqa
from regard.data.files import share_of
from regard.data.pictures import read_picture
from regard.data.scenes.questions import PictureQuestion, SceneQuestions
from regard.data.scenes.scene import SceneConfig
from regard.data.tables import Row, TableConfig, read_table


class PictureQuestionsConfig(BaseModel):
    """Settings of questions about pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    layout: Literal["table", "easy_vqa", "scenes"] = "table"
    """Source of the questions: a table, the package easy-vqa (its training part), or generated scenes of emoji."""
    scenes: SceneConfig | None = None
    """The scenes; every epoch has the same ones."""
    table: str | None = None
    """A .csv, .tsv or .jsonl table as in [files]. $NAME is taken from the environment."""
    files: str | None = None
    """The folder, or .tar archive, that holds the pictures."""
    file: str = "file"
    """The column of a picture's name."""
    ending: str = ""
    """Appended to the name in the table to form the file's name: ".jpg"."""
    question: str = "question"
    """The column of a question."""
    answer: str = "answer"
    """The column of an answer."""
    drop: str = ""
    """A regular expression whose matches are removed from every question: " in the image[0-9]+"."""
    dev_share: float = Field(0.1, ge=0, lt=1)
    """Share of the pictures that become development data."""
    most: int = Field(1000, gt=0)
    """Number of answers learned, the most frequent ones; any other answer counts as wrong."""

    @model_validator(mode="after")
    def _has_its_table(self) -> "PictureQuestionsConfig":
        if (self.table is None or self.files is None) == (self.layout == "table"):
            raise ValueError('questions.table, questions.files: layout = "table" needs both, the others have none')
        if (self.scenes is None) == (self.layout == "scenes") or (self.scenes and self.scenes.frames > 1):
            raise ValueError('questions.scenes: layout = "scenes" needs it, of one frame each; the others have none')
        return self

    @field_validator("drop")
    @classmethod
    def _is_an_expression(cls, drop: str) -> str:
        try:
            re.compile(drop)
        except re.error as error:
            raise ValueError(f"{drop!r} is no regular expression: {error}") from error
        return drop


Open = Callable[[str], Image.Image]  # from a picture's name to the picture


def read_questions(config: PictureQuestionsConfig, part: str = "train") -> tuple[list[PictureQuestion], Open]:
    """The questions, and a function that opens their pictures.

    Args:
        config: the settings.
        part: of easy-vqa, "train" or "test"; of scenes, "train" or "dev".

    Raises:
        DataError: a column is missing, a row is malformed, there is none, or a package or font is not installed.
    """
    if config.layout == "easy_vqa":
        triples, folder = easy_vqa.read(part)
        return [PictureQuestion(*triple) for triple in triples], open_from(str(folder))
    if config.scenes is not None:
        made = SceneQuestions(config.scenes)
        return made.questions(part == "dev"), made.open
    assert config.table is not None  # the settings have been checked
    assert config.files is not None
    rows: list[list[Row]] = [
        read_table(TableConfig(table=config.table, files=config.files, file=config.file, text=column))
        for column in (config.question, config.answer)
    ]
    questions = [
        PictureQuestion(q.file + config.ending, re.sub(config.drop, "", q.text), a.text)
        for q, a in zip(*rows, strict=True)
    ]
    return questions, open_from(config.files)


def question_parts(config: PictureQuestionsConfig) -> tuple[list[PictureQuestion], list[PictureQuestion], Open]:
    """Training and development questions, which share no picture, and a function that opens the pictures.

    Raises:
        DataError: as `read_questions`.
    """
    questions, opened = read_questions(config)
    if config.layout == "scenes":
        return questions, read_questions(config, "dev")[0], opened
    parts: tuple[list[PictureQuestion], list[PictureQuestion]] = ([], [])
    for one in questions:
        parts[share_of(one.file) < config.dev_share].append(one)
    return *parts, opened


def open_from(where: str) -> Open:
    """A function that opens the pictures of a folder or .tar archive by name."""
    files = Files(where)
    return lambda name: read_picture(files.read(name), str(files.path / name))


def count_answers(questions: Sequence[PictureQuestion], most: int) -> list[str]:
    """The most frequent answers in descending order of frequency."""
    return [answer for answer, _ in Counter(one.answer for one in questions).most_common(most)]


@dataclass(frozen=True, eq=False)
class QuestionBatch:
    """Pictures with questions.

    Attributes:
        pictures: `[B, C, H, W]`.
        question: `[B, n]`, ending in EOS.
        allowed: `[B, n]`, True at real tokens of the question.
        target: `[B, 1]`, classes of the answers; 0 for an answer outside the learned ones.
        links: None.
    """

    pictures: Float[Tensor, "B C H W"]
    question: Int[Tensor, "B n"]
    allowed: Bool[Tensor, "B n"]
    target: Int[Tensor, "B 1"]
    links: None = None

    @property
    def target_allowed(self) -> Bool[Tensor, "B 1"]:
        """True where the answer is one of the learned ones."""
        return self.target > 0

    def hidden(self, model: Any) -> tuple[Tensor, None]:
        """The input of the output layer, `[B, 1, h]`; there is no memory."""
        return model.hidden(self.pictures, self.question, self.allowed)[:, None], None


@dataclass(frozen=True)
class QuestionBatches:
    """Batches of questions, in another order in every epoch.

    Attributes:
        pictures: each once.
        of: index of each question's picture.
        questions: ids, without EOS.
        answers: classes, 0 for an answer outside the learned ones.
        batch: questions of a batch.
        eos, pad: ids of the special tokens.
        moves: shuffle in every epoch.
        seed: of the order.
    """

    pictures: Sequence[Tensor]
    of: Sequence[int]
    questions: Sequence[list[int]]
    answers: Sequence[int]
    batch: int
    eos: int
    pad: int
    moves: bool = True
    seed: int = 0

    def __len__(self) -> int:
        """Number of questions."""
        return len(self.questions)

    def largest(self) -> QuestionBatch | None:
        """Any batch: all are of one size."""
        return next(self.epoch(0), None)

    def padding_share(self) -> float:
        """Share of padding among the questions' positions."""
        longest = max((len(one) for one in self.questions), default=0) + 1
        return 1 - sum(len(one) + 1 for one in self.questions) / max(1, longest * len(self))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[QuestionBatch]:
        """The batches of one epoch from number `start` on."""
        order = list(range(len(self)))
        if self.moves:
            random.Random(f"{self.seed} {epoch}").shuffle(order)
        for first in range(start * self.batch, len(order), self.batch):
            group = order[first : first + self.batch]
            rows = [[*self.questions[n], self.eos] for n in group]
            yield QuestionBatch(
                torch.stack([self.pictures[self.of[n]] for n in group]), pad(rows, self.pad), lengths_mask(rows),
                torch.tensor([[self.answers[n]] for n in group]),
            )  # fmt: skip
