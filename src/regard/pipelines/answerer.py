"""A model that answers questions about pictures, ready to use."""

from dataclasses import dataclass, field
from functools import cached_property
from math import log
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor

from regard.arguments import check_whole
from regard.attention.maps.page import Draft
from regard.attention.watch import announce, unwatched
from regard.data.batching import lengths_mask, pad
from regard.data.pictures import given_picture, read_picture, square
from regard.errors import ConfigError, DataError
from regard.figures.addresses import picture_address
from regard.pipelines.base import LONGEST, InputError, Pipeline, check_characters, check_tokens
from regard.pipelines.description import check_media
from regard.pipelines.result import Result, shorten
from regard.pretrained.features import prepared
from regard.text.normalize import clean
from regard.text.tokenizer import UNK, word_of_each


@dataclass(frozen=True, eq=False, kw_only=True)
class Answer(Result):
    """The answer to one question about one picture.

    Attributes:
        text: the most probable answer.
        probability: its own.
        alternatives: (answer, probability), the next ones.
        source, question: the question as it was given.
        tokens: of the question, with EOS.
        score, log_prob: the logarithm of the probability.
        attention: {site: map `[heads, T, S]`}: T is 1 for stacked attention, the question's tokens for a Transformer.
        positions: `[S, 2]` centers (row, column) of the picture's cells as shares.
        picture: as the model gets it.
        answerer: the pipeline it came from.
    """

    probability: float
    positions: Tensor = field(repr=False)
    picture: Image.Image = field(repr=False)
    answerer: "Answerer" = field(repr=False)

    @property
    def question(self) -> str:
        """The question as it was given."""
        return self.source

    @property
    def unknown(self) -> list[str]:
        """Words of the question that no training question had: the answer is given as if they were one word."""
        words = self.question.split()
        return [word for word in words if UNK in self.answerer.tokenizer.encode(word.lower())]

    @cached_property
    def word_attention(self) -> tuple[list[str], Tensor]:
        """Names and weights `[n, S]`: of every look of stacked attention; of the question's words otherwise, in the
        last block, the mean over its heads, and of the answer (the end of the question)."""
        if not self.attention:
            return [], torch.zeros(0, len(self.positions))
        maps = [attention.full(force=True).mean(-3).cpu() for attention in self.attention.values()]
        if maps[0].shape[-2] == 1:
            return [f"look {n}" for n in range(1, len(maps) + 1)], torch.cat(maps)
        words, read = clean(self.question).split(), clean(self.question).lower()
        of = [*word_of_each(self.answerer.tokenizer.source_spans(read), read), None]
        rows = [[t for t, word in enumerate(of) if word == n] for n in range(len(words))] + [[len(of) - 1]]
        weights = [maps[-1][r].mean(0) if r else maps[-1].new_zeros(maps[-1].shape[-1]) for r in rows]
        return [*words, f"→ {self.text}"], torch.stack(weights)

    @property
    def title(self) -> str:
        """Model, question and answer."""
        return f"{self.answerer.name}: {shorten(self.question, 60)} → {shorten(self.text, 60)}"

    def plot(self, path: str | Path | None = None, smooth: bool = False, theme: str = "light") -> Any:
        """Draw the attention to the picture under question and answer.

        Args:
            path: a .png, .svg or .pdf file; None only makes the figure.
            smooth: blend the cells into each other, which the figure says; exact cells otherwise.
            theme: "light" or "dark".

        Returns:
            the matplotlib figure.

        Raises:
            ConfigError: the model does not attend to the picture.
        """
        from regard.figures.overlay import draw_strip

        if not self.attention:
            raise ConfigError(f"{self.answerer.name} does not attend to the picture: there is no attention to draw")
        last = list(self.attention)[-1]
        words = self.attention[last].shape[-2] > 1
        note = f"{last}, the mean of its heads" if words else "every look of stacked attention"
        return draw_strip(
            self.picture, *self.word_attention, path, smooth=smooth, title=self.title, note=note, theme=theme
        )

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows; None, for its text, where the model does not attend to the picture."""
        from regard.figures.files import as_png

        return as_png(self.plot()) if self.attention else None

    def add_to(self, draft: Draft, label: str, whole: bool = True) -> None:  # noqa: ARG002
        """Add this answer to a page, as every result does, all of it; with the picture."""
        from regard.pipelines import page

        tokenizer, maps = self.answerer.tokenizer, self.attention
        stacked = [site for site, one in maps.items() if one.shape[-2] == 1]  # a row for each look, else for each token
        rows = {site: f"look {number}" for number, site in enumerate(stacked, 1)}
        sequences = {
            "question": self.tokens, "source": [str(n) for n in range(len(self.positions))],
            **{name: [name] for name in rows.values()},
        }  # fmt: skip
        read = clean(self.question).lower()
        words = page.named_words(read, tokenizer.source_spans(read), len(self.tokens))
        media = {"kind": "picture", "address": picture_address(self.picture), "positions": self.positions.tolist()}
        draft.add_run(
            label, maps, sequences, axes={site: (rows.get(site, "question"), "source") for site in maps},
            words={"question": words}, **self.headline(), media=media,
            untested="an answer is one of a list, and the test is of an output of tokens",
        )  # fmt: skip

    def details(self) -> dict[str, Any]:
        """The question, the answer's probability, unknown words, and the cell of each greatest weight."""
        names, weights = self.word_attention
        best = self.positions[weights.argmax(-1)].tolist() if len(weights) else []
        return {
            "question": self.question,
            "probability": self.probability,
            "unknown": self.unknown,
            "looks": [{"name": n, "row": row, "column": column} for n, (row, column) in zip(names, best, strict=False)],
        }

    @staticmethod
    def as_alternative(one: Any) -> dict[str, Any]:
        """An answer and its probability."""
        text, probability = one
        return {"text": text, "probability": probability}


class Answerer(Pipeline[Any, Answer]):
    """What `regard.load` returns for a run with task = "answer"."""

    task = "answer"

    @property
    def answers(self) -> list[str]:
        """What it can answer."""
        return list(self.bundle.decoding["answers"])

    @overload  # type: ignore[override]
    def __call__(self, picture: str | Path | Image.Image, question: str, *, top: int = 5) -> Answer: ...
    @overload
    def __call__(self, picture: str | Path | Image.Image, question: list[str], *, top: int = 5) -> list[Answer]: ...
    def __call__(
        self, picture: str | Path | Image.Image, question: str | list[str], *, top: int = 5
    ) -> Answer | list[Answer]:
        """Answer one question about a picture, or many: a list in, a list out, same order, same length.

        Args:
            picture: a file, or a picture.
            question: a question or a list of them.
            top: how many answers are listed, the best one among them.

        Raises:
            ConfigError: top below 1.
            InputError: a file that cannot be read; a question that is empty.
        """
        seen = self.read(picture)
        if isinstance(question, str):
            return self.run(seen, [question], top)[0]
        return self.run(seen, list(question), top)

    def read(self, picture: str | Path | Image.Image) -> Image.Image:
        """A picture as the model sees it.

        Raises:
            InputError: it cannot be read.
        """
        check_media(picture)
        try:
            whole = given_picture(picture) if isinstance(picture, Image.Image) else read_picture(Path(picture))
        except DataError as error:
            raise InputError(str(error)) from error
        config: Any = self.bundle.model_config
        return square(whole.convert("RGB"), config.source_encoder.size)

    def run(self, picture: Image.Image, questions: list[str], top: int = 5) -> list[Answer]:
        """`__call__` for a picture that has been read."""
        check_whole("top", top)
        if top < 1:
            raise ConfigError(f"top must be at least 1; got {top}")
        return [self._one(picture, question, top) for question in questions]

    def _one(self, picture: Image.Image, question: str, top: int) -> Answer:
        ids = [*self.encode(question), self.tokenizer.eos]
        config: Any = self.bundle.model_config
        points = prepared([picture], config.source_encoder)[0][None].to(self._dtype())
        with torch.inference_mode(), unwatched():
            inputs = points, pad([ids], self.tokenizer.pad), lengths_mask([ids])
            logits, maps, where = self.model.looking(*(tensor.to(self.device) for tensor in inputs))
            share = logits[0, 1:].cpu().float().softmax(-1)
            positions = where[0].cpu()
            attention = {site: m.select(0).frozen() for site, m in maps.items()}
        best, numbers = share.topk(min(top, len(share)))
        found = [(self.answers[int(n)], float(p)) for n, p in zip(numbers, best, strict=True)]
        tokens = self.tokenizer.tokens(ids)
        announce(self.model, attention)
        return Answer(
            text=found[0][0], probability=found[0][1], score=log(found[0][1]), log_prob=log(found[0][1]),
            alternatives=found[1:], source=question, tokens=tokens, ids=ids, attention=attention, positions=positions,
            picture=picture, answerer=self,
        )  # fmt: skip

    def encode(self, question: str) -> list[int]:
        """A question's ids, without EOS, in small letters as the model learned them.

        Raises:
            InputError: it is empty, or too long.
        """
        check_characters(question, LONGEST)
        if not question.strip():
            raise InputError("an empty question: ask something about the picture")
        ids = list(self.tokenizer.encode(clean(question).lower()))
        check_tokens(ids, LONGEST)
        return ids
