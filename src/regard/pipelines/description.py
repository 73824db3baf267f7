"""Descriptions of pictures and sounds: what captions and transcripts share, from a read input to a `Description`."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from regard.analysis.base import ForwardPass
from regard.attention.maps.map import AttentionMap
from regard.attention.maps.page import Draft
from regard.attention.watch import Call, announce, calls_by_site, has_search_listeners, unwatched, watching
from regard.bundle import Bundle
from regard.data.media import stacked
from regard.data.sound import HOP, RATE
from regard.decoding.constraints import Constraint
from regard.decoding.ctc import CTC
from regard.decoding.generate import generate
from regard.decoding.lexicon import Lexicon, spelling_table
from regard.decoding.search import LENGTH_PENALTY, Hypothesis, SearchConfig
from regard.errors import BundleError, ConfigError, RegardError, shown
from regard.figures.addresses import picture_address, sound_address, spectrogram_address
from regard.pipelines.base import InputError, Pipeline, decoder_maps
from regard.pipelines.reading import name_heads, reading_site
from regard.pipelines.result import Result, shorten
from regard.text.tokenizer import word_of_each

BATCH = 32  # inputs searched at a time
FRAMES = RATE // HOP  # of a spectrogram in a second
SILENCE = 0.002  # the largest sample of a recording in which nothing is heard


def check_media(source: object) -> None:
    """Refuse what is neither a file nor a picture.

    Raises:
        InputError: it is no path, no bytes and no picture.
    """
    if not isinstance(source, str | PathLike | bytes | Image.Image):
        raise InputError(
            f"expected a file's path, its bytes, or a picture; got {type(source).__name__}: {shown(source)}"
        )


class DescribingConfig(BaseModel):
    """Default settings of the search for the text of a picture or a sound."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    beam: int = Field(4, gt=0, le=100)
    """Hypotheses kept; 1 is greedy."""
    length_penalty: float = LENGTH_PENALTY
    """α of the length penalty (Wu et al. 2016, equation 14)."""
    longest: int = Field(60, gt=0, le=10_000)
    """Largest number of tokens in an output; for sounds, an output is also no longer than the encoder's states."""
    ctc: float = Field(0.0, ge=0, le=1)
    """Share of CTC in the score of every token (Watanabe et al. 2017); needs model.ctc_head."""
    known_words: bool = False
    """Write only words that occur in the training texts; for tokens that are characters."""
    words: tuple[str, ...] = ()
    """The words that `known_words` allows; training fills them in."""


@dataclass(frozen=True, eq=False)
class MediaInput:
    """A picture, a moving picture or a sound as the encoder takes it.

    Attributes:
        name: of the file.
        features: `[C, H, W]`, `[frames, C, H, W]` or `[bands, frames]`, the encoder's input.
        picture: as the model gets it, and as it is drawn; of a moving picture the first frame.
        samples: of a sound, 16 kHz.
        start: seconds before it, where it is a segment of a longer recording.
        frames: of a moving picture.
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


@dataclass(frozen=True, eq=False, kw_only=True)
class Description(Result):
    """The text of one picture or one sound.

    Attributes:
        source: the name of the file.
        log_prob: the sum of the tokens' log-probabilities, in nats (of attention and CTC together, where both score).
        attention: {site: map `[heads, T, S]`}, rows are tokens, keys the memory's states.
        positions: `[S, 2]` centers (row, column) of a picture's cells as shares, or `[S, 1]` frames of 10 ms.
        media: what was read.
        pieces: the descriptions of a long recording's segments; its text and tokens are theirs, joined, and each has
            its own attention.
        pipeline: the pipeline it came from.
    """

    positions: Tensor = field(repr=False)
    media: MediaInput = field(repr=False)
    pipeline: "Describer" = field(repr=False)
    pieces: "list[Description]" = field(default_factory=list, repr=False)

    @property
    def start(self) -> float:
        """Seconds before it, where it is a segment of a longer recording."""
        return self.media.start

    @property
    def picture(self) -> Image.Image | None:
        """The picture, where it is one."""
        return self.media.picture

    @cached_property
    def word_attention(self) -> tuple[list[str], Tensor]:
        """The words of the text, and the attention of each `[words, S]`: the mean over its tokens and the chosen heads.

        Raises:
            ConfigError: it is a recording of several segments, each of which has its own.
        """
        if self.pieces:
            raise ConfigError(f"{self.source} was read in {len(self.pieces)} pieces: ask .pieces, one by one")
        words = self.text.split()
        site, heads = reading_site(self.pipeline.bundle.alignment, self.attention)
        if not site:
            return words, torch.zeros(len(words), len(self.positions))
        weights = self.attention[site].full(force=True)[heads].mean(0).cpu()
        of = word_of_each(self.pipeline.tokenizer.target_spans(self.ids), self.text)
        rows = [[t for t, word in enumerate(of) if word == n and t < len(weights)] for n in range(len(words))]
        return words, torch.stack(
            [weights[r].mean(0) if r else weights.new_zeros(weights.shape[-1]) for r in rows]
            or [weights.new_zeros(0, weights.shape[-1])]
        ).reshape(len(words), weights.shape[-1])

    @property
    def title(self) -> str:
        """Model, file and text."""
        return f"{self.pipeline.name}: {Path(self.source).name} → {shorten(self.text, 72)}"

    def plot(self, path: str | Path | None = None, smooth: bool = False, theme: str = "light") -> Any:
        """Draw the attention of each word: a strip of pictures, or the sound's spectrogram with times.

        Args:
            path: a .png, .svg or .pdf file; None only makes the figure.
            smooth: blend the cells into each other, which the figure says; exact cells otherwise.
            theme: "light" or "dark".

        Returns:
            the matplotlib figure.

        Raises:
            ConfigError: it is a recording of several segments, each of which draws itself; or the model attends to
                nothing, or its attention was not kept.
        """
        if self.pieces:
            raise ConfigError(f"{self.source} was read in {len(self.pieces)} pieces: draw .pieces, one by one")
        if self.ids and not reading_site(self.pipeline.bundle.alignment, self.attention)[0]:
            raise ConfigError(
                f"{self.source}: there is no attention to draw: {self.pipeline.name} has none to its source, or it was "
                "not kept (record=True)"
            )
        from regard.figures.overlay import draw_film, draw_sound, draw_strip

        words, weights = self.word_attention
        site, heads = reading_site(self.pipeline.bundle.alignment, self.attention)
        about = {"title": self.title, "note": f"{site}, {name_heads(heads)}" if site else "", "theme": theme}
        if self.media.frames:
            return draw_film(self.media.frames, words, weights, path, smooth=smooth, **about)
        if self.media.picture is not None:
            return draw_strip(self.media.picture, words, weights, path, smooth=smooth, **about)
        assert self.media.samples is not None
        return draw_sound(
            self.media.samples, self.media.features, words, weights, self.positions[:, 0], path,
            start=self.media.start, **about,
        )  # fmt: skip

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows; None, for its text, where there is nothing to draw."""
        from regard.figures.files import as_png

        site, _ = reading_site(self.pipeline.bundle.alignment, self.attention)
        return as_png(self.plot()) if site and not self.pieces else None

    def forward_pass(self) -> ForwardPass:
        """The pass over the file and its text: logits `[1, T, V]`, one position for each of its tokens."""
        if self.pieces or not self.ids or not self.media.features.numel():
            raise ConfigError(
                f"{self.source} has no single forward pass to look into: its text is empty, was read in pieces, or was "
                "not kept with what it was read from"
            )
        tokenizer = self.pipeline.tokenizer
        before = [tokenizer.bos, *self.ids[:-1]]
        features, allowed = stacked([self.media.features])
        arguments = {"source": features, "target": torch.tensor([before]), "source_allowed": allowed}
        device = self.pipeline.device
        return ForwardPass(
            self.pipeline.model,
            {name: one.to(device) for name, one in arguments.items() if one is not None},
            tokenizer.tokens(before), [str(i) for i in range(len(self.positions))], list(self.ids),
        )  # fmt: skip

    def add_to(self, draft: Draft, label: str, whole: bool = True) -> None:
        """Add this description to a page, as every result does; with the picture or the sound."""
        from regard.pipelines import page

        tokenizer, alignment = self.pipeline.tokenizer, self.pipeline.bundle.alignment
        about, (site, heads) = self.headline(), reading_site(alignment, self.attention)
        if site:
            about["chosen"] = {"site": site, "heads": heads, "why": page.why_shown(alignment, site, heads)}
            if whole and self.ids and self.media.features.numel():
                about |= page.tested(draft, self.forward_pass(), site, [str(n) for n in range(len(self.positions))])
        if self.media.picture is not None:
            places = [place[-2:] for place in self.positions.tolist()]
            about["media"] = {"kind": "picture", "address": picture_address(self.media.picture), "positions": places}
        elif self.media.samples is not None:
            samples, seconds = self.media.samples, len(self.media.samples) / RATE
            about["media"] = {
                "kind": "sound", "address": sound_address(samples.numpy(), RATE), "seconds": seconds,
                "positions": [[frame / FRAMES] for (frame,) in self.positions.tolist()],
                "spectrogram": spectrogram_address(self.media.features.numpy()),
            }  # fmt: skip
        sequences = {
            "output": self.tokens, "source": [str(n) for n in range(len(self.positions))],
            "before": [*tokenizer.tokens([tokenizer.bos]), *self.tokens[:-1]],
        }  # fmt: skip
        words = {"output": page.named_words(self.text, tokenizer.target_spans(self.ids), len(self.tokens))}
        axes = {name: page.axes_of(name) for name in self.attention}
        maps = {name: one for name, one in self.attention.items() if whole or axes[name] == ("output", "source")}
        if whole and self.ids and self.media.features.numel():
            maps = page.with_values(maps, self.forward_pass())
        draft.add_run(label, maps, sequences, axes=axes, words=words, **about)

    def details(self) -> dict[str, Any]:
        """The cell or time of each word's greatest weight; the segments of a long recording."""
        if self.pieces:
            return {"pieces": [{"start": one.start, **one.as_json()} for one in self.pieces]}
        words, weights = self.word_attention
        if not len(weights) or float(weights.sum()) <= 0:
            return {}
        positions = self.positions
        names: tuple[str, ...] = ("time", "row", "column")[3 - positions.shape[1] :]
        if not self.picture:
            names, positions = ("frame", "seconds"), torch.cat([positions, self.start + positions / FRAMES], 1)
        best = positions[weights.argmax(-1)].tolist()
        return {
            "looks": [
                {"word": word, **dict(zip(names, place, strict=True))}
                for word, place in zip(words, best, strict=True)
            ]
        }  # fmt: skip


class Describer(Pipeline[Any, Description]):
    """What captioners and transcribers share: the search over what their encoder read."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        super().__init__(bundle, name)
        self.decoding = DescribingConfig(**bundle.decoding)
        if self.decoding.ctc and getattr(bundle.model, "ctc_head", None) is None:
            raise BundleError(f"{name}: decoding.ctc = {self.decoding.ctc}, and the model has no output layer for CTC")
        if self.decoding.known_words and len(bundle.tokenizer.encode(" ")) != 1:
            raise BundleError(
                f"{name}: decoding.known_words needs a tokenizer of characters, with one token for a space"
            )

    @property
    def encoder_config(self) -> Any:
        """Settings of the source encoder."""
        config: Any = self.bundle.model_config
        return config.source_encoder

    @property
    def hears(self) -> bool:
        """Whether inputs are sounds."""
        return self.task == "transcribe"

    def forward_pass(self, source: Any) -> ForwardPass:
        """The pass over a file and its own text: logits `[1, T, V]`, one position for each of the text's tokens.

        Raises:
            InputError: it cannot be read.
            ConfigError: its text is empty, or it is read in pieces.
        """
        (made,) = self.many([source])
        return made.forward_pass()

    def describe(
        self, sources: Sequence[MediaInput], *, beam: int | None = None, length_penalty: float | None = None,
        n_best: int = 1, record: bool = True,
    ) -> list[Description]:  # fmt: skip
        """The texts of inputs that have been read.

        Args:
            sources: the inputs.
            beam: hypotheses kept; the model's own number by default.
            length_penalty: α (Wu et al. 2016, equation 14); the model's own by default.
            n_best: outputs returned per input, at most the beam; all but the best as `alternatives`.
            record: keep the attention.

        Raises:
            ConfigError: a setting outside its range.
        """
        beam = self.decoding.beam if beam is None else beam
        penalty = self.decoding.length_penalty if length_penalty is None else length_penalty
        config = SearchConfig(beam, penalty, n_best)
        made: dict[int, Description] = {}
        encoder_maps: dict[int, dict[str, AttentionMap]] = {}
        order = sorted(
            (n for n, one in enumerate(sources) if not one.silent), key=lambda n: sources[n].features.shape[-1]
        )
        for n, one in enumerate(sources):
            if one.silent:
                made[n] = Description(text="", source=one.name, positions=torch.zeros(0, 1), media=one, pipeline=self)
        with torch.inference_mode(), unwatched():
            for first in range(0, len(order), BATCH):
                group = order[first : first + BATCH]
                found = self._search([sources[n] for n in group], config, record)
                for n, (description, maps) in zip(group, found, strict=True):
                    made[n], encoder_maps[n] = description, maps
        for n in sorted(made) if has_search_listeners() else ():
            for returned in (made[n], *made[n].alternatives):
                announce(self.model, {**encoder_maps.get(n, {}), **returned.attention})
        return [made[n] for n in range(len(sources))]

    def _search(
        self, sources: list[MediaInput], config: SearchConfig, record: bool
    ) -> list[tuple[Description, dict[str, AttentionMap]]]:
        """The description of each input, and its encoder's maps while the model is observed."""
        tokenizer, listening = self.tokenizer, has_search_listeners()
        calls: list[Call] = []
        with watching(calls.append) if listening else nullcontext():
            features, allowed = stacked([one.features for one in sources])
            allowed = None if allowed is None else allowed.to(self.device)
            memory = self.model.encode(features.to(self.device, self._dtype()), allowed)
        _, stepper = self.searched()
        state = stepper.start(memory, record=record or listening)
        real = memory.allowed.sum(1).tolist()
        limits = [min(self.decoding.longest, n) if self.hears else self.decoding.longest for n in real]
        found = generate(
            stepper, state, [[tokenizer.bos]] * len(sources), limits, config, [tokenizer.eos],
            constraints=self._constraints(memory),
        )  # fmt: skip
        by_site = calls_by_site(self.model, calls)
        described, places = [], memory.positions.cpu()
        for n, hypotheses in enumerate(found):
            positions = places[n, : real[n]]
            if not hypotheses:
                self.check_finite()
                raise RegardError(f"{sources[n].name}: this model has no text that it may give: its rules forbid all")
            best, *others = [self._one(one, sources[n], positions) for one in hypotheses]
            best.alternatives.extend(others)
            maps = {
                site: AttentionMap.from_spec(c.query, c.key, c.spec).select(n).frozen()
                for site, (c, *_) in by_site.items()
            }
            states = memory.allowed.shape[1]
            described.append(
                (best, {s: m.crop(real[n], 0, real[n]) if m.shape[-1] == states else m for s, m in maps.items()})
            )
        return described

    def _constraints(self, memory: Any) -> list[Constraint]:
        """CTC beside attention, and the list of known words, where the model's settings ask for them."""
        tokenizer = self.tokenizer
        found: list[Constraint] = []
        if self.decoding.ctc:
            log_p = self.model.ctc_head(memory.states).float().log_softmax(-1)
            ids = tokenizer.pad, tokenizer.bos, tokenizer.eos
            found.append(CTC(log_p, memory.allowed, self.decoding.ctc, *ids))
        if self.decoding.known_words:
            found.append(Lexicon(self._table.to(self.device), tokenizer.bos))
        return found

    @cached_property
    def _table(self) -> Tensor:
        """The tree of the known words."""
        words = [self.tokenizer.encode(word) for word in self.decoding.words]
        (space,) = self.tokenizer.encode(" ")
        return spelling_table(words, space, self.tokenizer.eos, len(self.tokenizer))

    def _one(self, found: Hypothesis, source: MediaInput, positions: Tensor) -> Description:
        return Description(
            text=str(self.tokenizer.decode(found.tokens)).strip(), source=source.name,
            tokens=self.tokenizer.tokens(found.tokens), ids=found.tokens, score=found.score, log_prob=found.log_prob,
            attention=decoder_maps(self.model, found, self.tokenizer, len(positions)), positions=positions,
            media=source, pipeline=self,
        )  # fmt: skip
