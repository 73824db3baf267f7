"""A model that says what is in a picture or a sound, ready to use."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from regard.attention.maps.map import AttentionMap
from regard.attention.watch import announce, has_search_listeners, unwatched
from regard.bundle import Bundle
from regard.data.media import stacked
from regard.data.pictures import as_tensor, read_frames, read_picture, square, thinned
from regard.data.sound import RATE, log_mel, segments, sound_blocks
from regard.decoding.ctc import begin, joined
from regard.decoding.lexicon import begin_spelling, spelling_table, within
from regard.decoding.search import Hypothesis, SearchConfig, search
from regard.errors import ConfigError, DataError
from regard.pipelines.base import InputError, Pipeline
from regard.pretrained.features import prepared
from regard.text.tokenizer import word_of_each

AT_ONCE = 32  # sources searched at a time
NOTHING = torch.zeros(0)
FRAMES = 100  # of a spectrogram in a second
SILENCE = 0.002  # the largest sample of a recording in which nothing is said


class DescribingConfig(BaseModel):
    """Default settings of the search for a picture's or a sound's text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    beam: int = Field(4, gt=0, le=100)
    """Hypotheses kept; 1 is greedy."""
    length_penalty: float = 0.6
    """α of the length penalty (Wu et al. 2016, equation 14)."""
    longest: int = Field(60, gt=0)
    """An output has at most so many tokens, and no more than the memory has states where it is a sound's."""
    ctc: float = Field(0.0, ge=0, le=1)
    """Share of CTC in the score of every token (Watanabe et al. 2017); needs model.ctc_head."""
    known_words: bool = False
    """Say only words that stand in the training texts; for tokens that are characters."""
    words: tuple[str, ...] = ()
    """Those words; a run fills them in."""


@dataclass(frozen=True, eq=False)
class Source:
    """What was read.

    Attributes:
        name: the file's.
        features: `[C, H, W]` or `[bands, frames]`, what the encoder takes.
        picture: as the model saw it, and as it is drawn; a moving one's first frame.
        frames: of a moving picture.
        samples: of a sound, 16 kHz.
        start: seconds before it, where it is a piece of a longer one.
    """

    name: str
    features: Tensor
    picture: Image.Image | None = None
    samples: Tensor | None = None
    start: float = 0.0
    frames: tuple[Image.Image, ...] = ()

    @property
    def silent(self) -> bool:
        """Whether it is a sound in which nothing is heard."""
        return self.samples is not None and (not len(self.samples) or float(self.samples.abs().max()) < SILENCE)


@dataclass(frozen=True, eq=False)
class Description:
    """What a model says about one picture or one sound.

    Attributes:
        text: what it says.
        tokens, ids: the same in tokens, with EOS if it was produced.
        score: what ranked the beam.
        log_prob: the sum of the tokens' log-probabilities, in nats (of attention and CTC together, where both score).
        alternatives: the other hypotheses asked for with n_best, best first.
        attention: {site: map `[heads, T, S]`}, rows are tokens, keys the memory's states.
        places: `[S, 2]` centres (row, column) of a picture's cells as shares, or `[S, 1]` frames of 10 ms.
        source: what was read.
        pieces: those of a recording that was cut because it is long; its text and tokens are theirs, joined, and each
            piece has its own attention.
    """

    text: str
    tokens: list[str] = field(repr=False)
    ids: list[int] = field(repr=False)
    score: float
    log_prob: float
    alternatives: "list[Description]" = field(repr=False)
    attention: dict[str, AttentionMap] = field(repr=False)
    positions: Tensor = field(repr=False)
    source: Source = field(repr=False)
    describer: "Captioner" = field(repr=False)
    pieces: "list[Description]" = field(default_factory=list, repr=False)

    @property
    def start(self) -> float:
        """Seconds before it, where it is a piece of a longer recording."""
        return self.source.start

    @property
    def picture(self) -> Image.Image | None:
        """What was read, where it is a picture."""
        return self.source.picture

    @cached_property
    def word_attention(self) -> tuple[list[str], Tensor]:
        """The words of the text, and where each looked `[words, S]`: the mean over its tokens and the chosen heads.

        Raises:
            ConfigError: it is a recording of several pieces, each of which has its own.
        """
        if self.pieces:
            raise ConfigError(f"{self.source.name} was read in {len(self.pieces)} pieces: ask .pieces, one by one")
        words = self.text.split()
        site, heads = self.describer.looking(self.attention)
        if not site:
            return words, torch.zeros(len(words), len(self.positions))
        weights = self.attention[site].full(force=True)[heads].mean(0)
        of = word_of_each(self.describer.tokenizer.target_spans(self.ids), self.text)
        rows = [[t for t, word in enumerate(of) if word == n and t < len(weights)] for n in range(len(words))]
        return words, torch.stack(
            [weights[r].mean(0) if r else weights.new_zeros(weights.shape[-1]) for r in rows]
            or [weights.new_zeros(0, weights.shape[-1])]
        ).reshape(len(words), weights.shape[-1])

    def plot(self, path: str | Path, smooth: bool = False) -> None:
        """Draw where each word looked: a strip of pictures, or the sound's spectrogram with times.

        Args:
            path: where to; the ending (.png, .svg, .pdf) says how.
            smooth: blend the cells into each other, and say so; exact cells otherwise.

        Raises:
            ConfigError: it is a recording of several pieces, each of which draws itself.
        """
        if self.pieces:
            raise ConfigError(f"{self.source.name} was read in {len(self.pieces)} pieces: draw .pieces, one by one")
        from regard.figures.overlay import draw_film, draw_sound, draw_strip

        words, weights = self.word_attention
        if self.source.frames:
            draw_film(self.source.frames, words, weights, path, smooth=smooth)
        elif self.source.picture is not None:
            draw_strip(self.source.picture, words, weights, path, smooth=smooth)
        else:
            assert self.source.samples is not None
            draw_sound(
                self.source.samples, self.source.features, words, weights, self.positions[:, 0], path,
                start=self.source.start,
            )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """Everything that `--json` prints."""
        if self.pieces:
            whole = {"source": self.source.name, "text": self.text, "log_prob": self.log_prob}
            return whole | {"pieces": [{"start": one.source.start, **one.as_json()} for one in self.pieces]}
        words, weights = self.word_attention
        found: dict[str, Any] = {
            "source": self.source.name, "text": self.text, "tokens": self.tokens, "score": self.score,
            "log_prob": self.log_prob,
            "alternatives": [{"text": a.text, "score": a.score, "log_prob": a.log_prob} for a in self.alternatives],
        }  # fmt: skip
        if len(weights) and float(weights.sum()) > 0:
            positions = self.positions
            names: tuple[str, ...] = ("time", "row", "column")[3 - positions.shape[1] :]
            if not self.source.picture:
                names, positions = ("frame", "seconds"), torch.cat([positions, self.start + positions / FRAMES], 1)
            best = positions[weights.argmax(-1)].tolist()
            found["looks"] = [
                {"word": word, **dict(zip(names, place, strict=True))}
                for word, place in zip(words, best, strict=True)
            ]  # fmt: skip
        return found


class Captioner(Pipeline[str | Path | Image.Image, Description]):
    """A captioner or transcriber that is ready to use: what `regard.load` returns for `caption` and `transcribe`."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        super().__init__(bundle, name)
        self.decoding = DescribingConfig(**bundle.decoding)

    def many(self, sources: list[str | Path | Image.Image], *args: Any, **settings: Any) -> list[Description]:
        """Describe pictures or transcribe recordings, each a file (or a picture); settings as in `describe`.

        Raises:
            ConfigError: a setting that makes no sense.
            Refused: a file that cannot be read.
        """
        if self.hears:
            return [self.hear(one, *args, **settings) for one in sources]
        return self.describe([self.read(one) for one in sources], *args, **settings)

    @property
    def encoder_config(self) -> Any:
        """The settings of what reads the source."""
        config: Any = self.bundle.model_config
        return config.source_encoder

    @property
    def hears(self) -> bool:
        """Whether sources are sounds."""
        return self.encoder_config.kind in ("sound", "pyramid")

    def read(self, source: str | Path | Image.Image) -> Source:
        """A picture as the encoder takes it.

        Raises:
            Refused: it cannot be read.
        """
        if isinstance(source, Image.Image):
            return (
                self.moving("picture", [source])
                if self.encoder_config.kind == "frames"
                else self.seen("picture", source)
            )
        try:
            if self.encoder_config.kind == "frames":
                return self.moving(str(source), read_frames(Path(source)))
            return self.seen(str(source), read_picture(Path(source)))
        except DataError as error:
            raise InputError(str(error)) from error

    def hear(
        self, source: str | Path | Image.Image, report: Callable[[float], None] = lambda _: None,
        each: Callable[[Description], None] | None = None, **settings: Any,
    ) -> Description:  # fmt: skip
        """One recording of any length: a long one is cut at quiet moments into pieces of at most 15 seconds.

        Args:
            source: a file.
            report: told how many seconds have been read.
            each: given every piece of a recording of several; then their sound and attention are not kept, which
                would be gigabytes of a long one.
            settings: as in `describe`; without `record` they are not kept, either.

        Raises:
            Refused: it cannot be read.
        """
        if isinstance(source, Image.Image):
            raise InputError(f"{self.name} transcribes sound; got a picture")
        found: list[Description] = []
        given = 0
        rest, start, end = torch.zeros(0), 0.0, False
        blocks = sound_blocks(Path(source))
        while not end:
            try:
                block = next(blocks, None)
            except DataError as error:
                raise InputError(str(error)) from error
            end = block is None
            rest = rest if block is None else torch.cat([rest, block])
            cuts = segments(rest) if end else segments(rest)[:-1]
            heard = [self.heard(str(source), rest[a:b].clone(), start + a / RATE) for a, b in cuts]
            found += self.describe(heard, **settings)
            if len(found) > 1 and (each or not settings.get("record", True)):
                for n in range(given, len(found)):
                    if each:
                        each(found[n])
                    found[n] = _light(found[n])
                given = len(found)
            if cuts:
                rest, start = rest[cuts[-1][1] :], start + cuts[-1][1] / RATE
            report(start)
        if len(found) == 1:
            return found[0]
        return replace(
            _light(found[0]), text=" ".join(one.text for one in found if one.text), pieces=found,
            tokens=[token for one in found for token in one.tokens], ids=[i for one in found for i in one.ids],
            log_prob=sum(one.log_prob for one in found), score=sum(one.score for one in found),
        )  # fmt: skip

    def seen(self, name: str, picture: Image.Image) -> Source:
        """A picture as the encoder takes it."""
        (points,) = prepared([picture], self.encoder_config)
        return Source(name, points, picture=square(picture.convert("RGB"), self.encoder_config.size))

    def moving(self, name: str, frames: list[Image.Image]) -> Source:
        """The frames of a moving picture as the encoder takes them."""
        shown = [
            square(one.convert("RGB"), self.encoder_config.size) for one in thinned(frames, self.encoder_config.frames)
        ]
        return Source(name, torch.stack([as_tensor(one) for one in shown]), picture=shown[0], frames=tuple(shown))

    def heard(self, name: str, samples: Tensor, start: float = 0.0) -> Source:
        """Samples as the encoder takes them."""
        return Source(name, log_mel(samples, self.encoder_config.bands), samples=samples, start=start)

    def describe(
        self, sources: list[Source], *, beam: int | None = None, length_penalty: float | None = None, n_best: int = 1,
        record: bool = True,
    ) -> list[Description]:  # fmt: skip
        """What is in sources that have been read.

        Args:
            sources: of `read`, or of `seen`, `moving`, `heard`.
            beam: hypotheses kept; the model's own number by default.
            length_penalty: α (Wu et al. 2016, equation 14); the model's own by default.
            n_best: alternatives kept, at most the beam.
            record: keep the attention.

        Raises:
            ConfigError: a setting that makes no sense.
        """
        beam = self.decoding.beam if beam is None else beam
        penalty = self.decoding.length_penalty if length_penalty is None else length_penalty
        config = SearchConfig(beam, penalty, n_best)
        made: dict[int, Description] = {}
        order = sorted(
            (n for n, one in enumerate(sources) if not one.silent), key=lambda n: sources[n].features.shape[-1]
        )
        for n, one in enumerate(sources):
            if one.silent:
                made[n] = Description("", [], [], 0.0, 0.0, [], {}, torch.zeros(0, 1), one, self)
        with torch.inference_mode(), unwatched():
            for first in range(0, len(order), AT_ONCE):
                group = order[first : first + AT_ONCE]
                found = self._search([sources[n] for n in group], config, record)
                made |= dict(zip(group, found, strict=True))
        for n in sorted(made) if has_search_listeners() else ():
            for returned in (made[n], *made[n].alternatives):
                announce(self.model, returned.attention)
        return [made[n] for n in range(len(sources))]

    def looking(self, attention: dict[str, AttentionMap]) -> tuple[str, list[int]]:
        """The site and heads to read where words looked: those chosen in training, else the last one's heads."""
        chosen = self.bundle.alignment
        if chosen.get("site") in attention:
            return chosen["site"], list(chosen["heads"])
        across = [site for site in attention if site.endswith("cross")]
        return (across[-1], list(range(attention[across[-1]].shape[-3]))) if across else ("", [])

    def _search(self, sources: list[Source], config: SearchConfig, record: bool) -> list[Description]:
        tokenizer = self.tokenizer
        memory = self.model.encode(*stacked([one.features for one in sources]))
        state = self.model.start(memory, record=record or has_search_listeners())
        real = memory.allowed.sum(1).tolist()
        limits = [min(self.decoding.longest, n) if self.hears else self.decoding.longest for n in real]
        step, share = self.model.step, self.decoding.ctc
        if share:
            log_p = self.model.ctc_head(memory.states).float().log_softmax(-1)
            state = begin(state, log_p, memory.allowed, tokenizer.pad)
            step = joined(step, share, tokenizer.pad, tokenizer.bos, tokenizer.eos)
        if self.decoding.known_words:
            state, step = begin_spelling(state, len(sources)), within(step, self._table, tokenizer.bos)
        found = search(step, state, limits, config, tokenizer.bos, tokenizer.eos, scored=share > 0)
        described = []
        for n, hypotheses in enumerate(found):
            positions = memory.positions[n, : real[n]]
            best, *others = [self._one(one, sources[n], positions) for one in hypotheses]
            best.alternatives.extend(others)
            described.append(best)
        return described

    @cached_property
    def _table(self) -> Tensor:
        """The tree of the known words."""
        words = [self.tokenizer.encode(word) for word in self.decoding.words]
        (space,) = self.tokenizer.encode(" ")
        return spelling_table(words, space, self.tokenizer.eos, len(self.tokenizer))

    def _one(self, found: Hypothesis, source: Source, positions: Tensor) -> Description:
        tokens = self.tokenizer.tokens(found.tokens)
        maps = {}
        for site, whole in self.model.maps(_innermost(found.state)).items():
            own = site.endswith(".self")
            weights = whole.select(0, 0).full(force=True)[..., : None if own else len(positions)]
            keys = [*self.tokenizer.tokens([self.tokenizer.bos]), *tokens[:-1]] if own else None
            maps[site] = AttentionMap.from_weights(weights, query_tokens=tokens, key_tokens=keys)
        text = self.tokenizer.decode(found.tokens).strip()
        return Description(text, tokens, found.tokens, found.score, found.log_prob, [], maps, positions, source, self)


def _light(piece: Description) -> Description:
    """A piece without its sound and its attention."""
    source = replace(piece.source, features=NOTHING, samples=NOTHING)
    return replace(piece, alternatives=[], attention={}, positions=torch.zeros(0, 1), source=source)


def _innermost(state: Any) -> Any:
    """The decoder's own state, within those of what scores beside it."""
    while hasattr(state, "inner"):
        state = state.inner
    return state
