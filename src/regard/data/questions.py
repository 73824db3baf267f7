"""Questions about pictures, with their answers: reading, and batches."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from regard.data.batching import lengths_mask, pad
from regard.data.parallel import place
from regard.data.pictures import read_picture
from regard.data.scenes.questions import Asked, SceneQuestions
from regard.data.scenes.scenes import SceneConfig
from regard.data.tables import Files, Row, TableConfig, read_table
from regard.errors import DataError


class AskedConfig(BaseModel):
    """Where pictures, questions and answers are."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    layout: Literal["table", "easy_vqa", "scenes"] = "table"
    """In a table, as the package easy-vqa has them (its training part), or made about scenes of emoji."""
    scenes: SceneConfig | None = None
    """The scenes; every epoch asks about the same ones."""
    table: str | None = None
    """A .csv or .tsv file (.gz too) whose first line names the columns. $NAME is taken from the environment."""
    files: str | None = None
    """The folder, or .tar archive, that holds the pictures."""
    file: str = "file"
    """The column of a picture's name."""
    ending: str = ""
    """What is put behind the name to find the file: ".jpg"."""
    question: str = "question"
    """The column of a question."""
    answer: str = "answer"
    """The column of an answer."""
    drop: str = ""
    """A regular expression; what it matches is taken out of every question: " in the image[0-9]+" names the picture."""
    dev_share: float = Field(0.1, ge=0, lt=1)
    """Share of the pictures that become development data."""
    most: int = Field(1000, gt=0)
    """The most frequent answers that are learned; the others count as wrong."""

    @model_validator(mode="after")
    def _has_its_table(self) -> "AskedConfig":
        if (self.table is None or self.files is None) == (self.layout == "table"):
            raise ValueError('asked.table, asked.files: layout = "table" needs both, the others have none')
        if (self.scenes is None) == (self.layout == "scenes") or (self.scenes and self.scenes.frames > 1):
            raise ValueError('asked.scenes: layout = "scenes" needs it, of one frame each; the others have none')
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


def read_asked(config: AskedConfig, part: str = "train") -> tuple[list[Asked], Open]:
    """The questions, and what opens their pictures.

    Args:
        config: where they are.
        part: of easy-vqa, "train" or "test"; of scenes, "train" or "dev".

    Raises:
        DataError: a column is missing, a row is crooked, there is none, or a package or font is not installed.
    """
    if config.layout == "easy_vqa":
        return _easy_vqa(part)
    if config.scenes is not None:
        made = SceneQuestions(config.scenes)
        return made.asked(part == "dev"), made.open
    assert config.table is not None  # the settings have been checked
    assert config.files is not None
    rows: list[list[Row]] = [
        read_table(TableConfig(table=config.table, files=config.files, file=config.file, text=column))
        for column in (config.question, config.answer)
    ]
    asked = [Asked(q.file + config.ending, re.sub(config.drop, "", q.text), a.text) for q, a in zip(*rows, strict=True)]
    return asked, _opens(config.files)


def asked_parts(config: AskedConfig) -> tuple[list[Asked], list[Asked], Open]:
    """Training and development questions, and what opens their pictures; no picture is on both sides.

    Raises:
        DataError: as `read_asked`.
    """
    asked, opened = read_asked(config)
    if config.layout == "scenes":
        return asked, read_asked(config, "dev")[0], opened
    parts: tuple[list[Asked], list[Asked]] = ([], [])
    for one in asked:
        parts[place(one.file) < config.dev_share].append(one)
    return *parts, opened


def _opens(where: str) -> Open:
    files = Files(where)
    return lambda name: read_picture(files.read(name), str(files.path / name))


def _easy_vqa(part: str) -> tuple[list[Asked], Open]:
    try:
        import easy_vqa
    except ImportError as error:
        raise DataError("easy_vqa: the package is not installed: pip install easy-vqa") from error
    folder = Path(easy_vqa.__file__).parent / "data" / part
    rows: list[Any] = json.loads((folder / "questions.json").read_text("utf-8"))
    asked = [Asked(f"{number}.png", question, answer) for question, answer, number in rows]
    return asked, _opens(str(folder / "images"))


def count_answers(asked: Sequence[Asked], most: int) -> list[str]:
    """The most frequent answers, first the most frequent."""
    return [answer for answer, _ in Counter(one.answer for one in asked).most_common(most)]


@dataclass(frozen=True, eq=False)
class AskedBatch:
    """Pictures with questions.

    Attributes:
        pictures: `[B, C, H, W]`.
        question: `[B, n]`, ending in EOS.
        allowed: `[B, n]`, True at real tokens.
        target: `[B, 1]`, the answers' classes; 0 where an answer is unknown.
        links: none.
    """

    pictures: Float[Tensor, "B C H W"]
    question: Int[Tensor, "B n"]
    allowed: Bool[Tensor, "B n"]
    target: Int[Tensor, "B 1"]
    links: None = None

    def hidden(self, model: Any) -> tuple[Tensor, None]:
        """What the answer is read from, `[B, 1, h]`."""
        return model.hidden(self.pictures, self.question, self.allowed)[:, None], None


@dataclass(frozen=True)
class QuestionBatches:
    """Questions in batches, in another order in every epoch.

    Attributes:
        pictures: each once.
        of: which picture each question is about.
        questions: ids, without EOS.
        answers: classes, 0 for one that is unknown.
        batch: questions at a time.
        eos, pad: ids.
        moves: mix the order.
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
        return len(self.questions)

    def padding_share(self) -> float:
        """Share of the questions' places in a batch that hold nothing."""
        longest = max((len(one) for one in self.questions), default=0) + 1
        return 1 - sum(len(one) + 1 for one in self.questions) / max(1, longest * len(self))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[AskedBatch]:
        """The batches of one epoch, from the `start`-th on."""
        order = list(range(len(self)))
        if self.moves:
            random.Random(f"{self.seed} {epoch}").shuffle(order)
        for first in range(start * self.batch, len(order), self.batch):
            group = order[first : first + self.batch]
            rows = [[*self.questions[n], self.eos] for n in group]
            yield AskedBatch(
                torch.stack([self.pictures[self.of[n]] for n in group]), pad(rows, self.pad), lengths_mask(rows),
                torch.tensor([[self.answers[n]] for n in group]),
            )  # fmt: skip
