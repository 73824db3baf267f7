"""What a translation holds: its text and attention, its word alignment, its words' probabilities."""

from dataclasses import asdict, dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from regard.analysis.base import ForwardPass
from regard.attention.maps.page import Draft
from regard.decoding.forced import Forced
from regard.errors import ConfigError
from regard.pipelines.reading import name_heads, reading_site
from regard.pipelines.result import Result
from regard.text.protocol import Span
from regard.text.tokenizer import tokens_of_words, word_of_each
from regard.text.tokenizer import words as word_spans

if TYPE_CHECKING:
    from regard.pipelines.translator import Translator


@dataclass(frozen=True, eq=False)
class Alignment:
    """Word alignment: the attention of output words to source words.

    Sub-words are joined (sum over the source pieces, mean over the output pieces), the row and column
    of EOS are dropped, and rows are divided by their sum.

    Attributes:
        matrix: `[output words, source words]`.
        source, target: the words, as `str.split()` gives them.
        site, heads: the attention that is read, averaged over these heads.
        title: of which model and sentence it is.
        chosen: whether site and heads were chosen on development data when the model was trained.
    """

    matrix: torch.Tensor
    source: list[str]
    target: list[str]
    site: str
    heads: list[int]
    title: str = ""
    chosen: bool = False

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(output word, source word), 0-based: every output word with the source word of its greatest weight."""
        if not self.matrix.numel():
            return []
        return [(i, int(row.argmax())) for i, row in enumerate(self.matrix) if float(row.sum()) > 0]

    def plot(
        self, path: str | Path | None = None, *, title: str | None = None, note: str = "", theme: str = "light"
    ) -> Any:  # fmt: skip
        """Draw the heatmap of words with words.

        Args:
            path: a .png, .svg or .pdf file; None only makes the figure.
            title: above the figure; model, source and translation by default.
            note: under the title, after which attention it is: `generation.tested`, say.
            theme: "light" or "dark".

        Returns:
            the matplotlib figure.

        Raises:
            ConfigError: the model does not attend to its source: there is nothing to draw.
        """
        from regard.figures.heatmap import SIDES, heatmap

        if self.target and not self.site:
            raise ConfigError("the model does not attend to its source: there is no alignment to show")
        return heatmap(
            self.matrix.tolist(), self.target, self.source, self.title if title is None else title, SIDES,
            note=". ".join(filter(None, [self.why, note])), theme=theme, path=path,
        )  # fmt: skip

    @property
    def why(self) -> str:
        """Which attention is read, and why this one."""
        if not self.site:
            return ""
        several = len(self.heads) > 1
        chosen = f"the head{'s' * several} that aligned best on development data"
        return f"{self.site}, {name_heads(self.heads)}" + (f": {chosen}" if self.chosen else "")

    def _repr_svg_(self) -> str | None:
        """What a notebook shows; None, for its text, where there is nothing to draw."""
        from regard.figures.files import as_svg

        return as_svg(self.plot()) if self.site and self.matrix.numel() else None

    def as_json(self) -> dict[str, Any]:
        """The alignment as plain data."""
        return {
            "source": self.source,
            "target": self.target,
            "pairs": self.pairs,
            "matrix": [[round(float(x), 6) for x in row] for row in self.matrix],
            "site": self.site,
            "heads": self.heads,
        }


@dataclass(frozen=True)
class Word:
    """A word of an output, as `str.split()` gives it.

    Attributes:
        text: the word.
        log_prob: the sum of its tokens' log-probabilities, in nats; white space belongs to the word that follows.
        entropy: the mean of the entropies of the distributions that its tokens were taken from, in nats.
        span: its first character in the output, and the one behind its last.
    """

    text: str
    log_prob: float
    entropy: float
    span: Span


@dataclass(frozen=True)
class Scored:
    """A target under a model, given its source.

    Attributes:
        log_prob: the sum over its tokens, in nats.
        token_log_probs: of each token, EOS counted.
        tokens: the tokens, EOS last.
    """

    log_prob: float
    token_log_probs: list[float]
    tokens: list[str]


@dataclass(frozen=True, eq=False, kw_only=True)
class Generation(Result):
    """The translation of one source.

    Attributes:
        source_tokens: the input's tokens, with EOS.
        source_ids: their ids.
        read: the source as the tokenizer was given it: uniform white space, no invisible characters.
        recorded: whether the attention was kept.
        translator: the pipeline it came from.
    """

    source_tokens: list[str] = field(default_factory=list, repr=False)
    source_ids: list[int] = field(default_factory=list, repr=False)
    read: str = field(default="", repr=False)
    recorded: bool = field(default=True, repr=False)
    translator: "Translator" = field(repr=False)

    @property
    def title(self) -> str:
        """Model, source and translation."""
        return f"{self.translator.name}: {super().title}"

    @property
    def searched(self) -> "list[Generation]":
        """The translations that a search found, of which this one is made; itself alone."""
        return [self]

    @cached_property
    def alignment(self) -> Alignment:
        """Word alignment, read from the site and heads chosen when the model was trained (`reading_site`).

        Its matrix is zero, and there are no pairs, where the model does not attend to its source.

        Raises:
            ConfigError: the attention was not kept.
        """
        source, target = self.read.split(), self.text.split()
        site, heads = reading_site(self.translator.bundle.alignment, self.attention)
        if not self.recorded and self.ids:
            raise ConfigError("the attention of this translation was not kept: translate with record=True")
        if not site:
            return Alignment(torch.zeros(len(target), len(source)), source, target, site, heads)
        from regard.analysis.alignment import join_words

        weights = self.attention[site].full(force=True)[heads].mean(0).cpu()
        tokenizer = self.translator.tokenizer
        matrix = join_words(
            weights, tokenizer.target_spans(self.ids), self.text, tokenizer.source_spans(self.read), self.read
        )
        chosen = "heads" in self.translator.bundle.alignment and self.translator.bundle.alignment["site"] == site
        return Alignment(matrix, source, target, site, heads, self.title, chosen)

    @cached_property
    @torch.inference_mode(False)  # within such a block of the caller's there would be no gradient
    def tested(self) -> str:
        """Whether the map that the alignment is read from may be believed for this output, in one sentence.

        The weights are shuffled and the keys' values taken away, as on the page (`regard.analysis.dependence`): some
        dozen forward passes. Empty where that is not done: a text of several sentences, more than 160 tokens, an
        engine without the model's own attention, an output without an alignment.
        """
        from regard.pipelines.page import LONGEST, dependence_of

        site = self.alignment.site
        if not self.ids or not site or len(self.tokens) + len(self.source_tokens) > LONGEST:
            return ""
        try:
            given = self.forward_pass()
        except ConfigError:
            return ""
        return str(dependence_of(given, site, self.source_tokens, left_out=False)["sentence"])

    @cached_property
    def words(self) -> list[Word]:
        """The output's words with their log-probabilities and entropies, computed when they are first asked for, by the
        model as it is then."""
        (found,) = self.translator.forced([self.source_ids], [self.ids]) if self.ids else [Forced([], [])]
        return self.words_of(found)

    def words_of(self, found: Forced) -> list[Word]:
        """The output's words, from what the model gives its tokens."""
        made: list[Word] = []
        owned = self._tokens_of_words()
        for number, (first, end) in enumerate(word_spans(self.text)):
            own = owned.get(number, [])
            log_prob = sum(found.log_probs[place] for place in own)
            entropy = sum(found.entropies[place] for place in own) / max(1, len(own))
            made.append(Word(self.text[first:end], log_prob, entropy, (first, end)))
        return made

    def word_tokens(self) -> list[tuple[str, list[int]]]:
        words = self.text.split()
        return [(words[number], own) for number, own in self._tokens_of_words().items()]

    def _tokens_of_words(self) -> dict[int, list[int]]:
        """{word: indices of its tokens}; the end token belongs to none."""
        owners = word_of_each(self.translator.tokenizer.target_spans(self.ids), self.text)
        return tokens_of_words(owners[:-1] if self.ids[-1:] == [self.translator.tokenizer.eos] else owners)

    def _repr_html_(self) -> str:
        """What a notebook shows: source, translation, and the alignment where it was kept."""
        from regard.figures.files import as_svg

        kept = self.ids and self.recorded and self.alignment.site
        shown = as_svg(self.alignment.plot(title="")) if kept else ""
        numbers = f"{self.translator.name} · log-probability {self.log_prob:.2f} · score {self.score:.3f}"
        return (
            f'<div><div dir="auto">{escape(self.source)}</div><div dir="auto"><b>{escape(self.text)}</b></div>'
            f'<div style="opacity:.65;font-size:.85em">{escape(numbers)}</div>{shown}</div>'
        )

    def forward_pass(self) -> ForwardPass:
        """The pass over source and translation: logits `[1, T, V]`, one position for each of its tokens."""
        tokenizer, device = self.translator.tokenizer, self.translator.device
        if not self.ids:
            raise ConfigError("an empty translation has no forward pass to look into")
        before = [tokenizer.bos, *self.ids[:-1]]
        arguments = {
            name: torch.tensor([ids], dtype=torch.long, device=device)
            for name, ids in (("source", self.source_ids), ("target", before))
        }
        return ForwardPass(
            self.translator.model, arguments, tokenizer.tokens(before), list(self.source_tokens), list(self.ids),
            self.read, list(tokenizer.source_spans(self.read)),
        )  # fmt: skip

    @cached_property
    def trace(self) -> Any:
        """The decoding worked through, step by step (`regard.analysis.trace.Trace`)."""
        from regard.analysis.trace import trace

        site, heads = reading_site(self.translator.bundle.alignment, self.attention)
        return trace(self.translator.bundle, self.source, self.source_ids, self.ids, site, heads)

    def add_to(self, draft: Draft, label: str, whole: bool = True) -> None:
        """Add this translation to a page, as every result does; with words, trace, layers, and a test of its map."""
        from regard.pipelines import page

        if not self.ids:
            draft.add_run(label, {}, {}, **self.headline())
            return
        tokenizer, alignment, given = self.translator.tokenizer, self.translator.bundle.alignment, self.forward_pass()
        maps = page.recorded(given) if whole else {}
        if not maps:  # of a decoder that attends step by step, or an alternative: those of the search
            own = {site: one for site, one in self.attention.items() if whole or site.endswith("cross")}
            maps = page.with_values(own, given)
        source = page.named_words(self.read, tokenizer.source_spans(self.read), len(self.source_tokens))
        output = page.named_words(self.text, tokenizer.target_spans(self.ids), len(self.tokens))
        output |= {name: [getattr(word, name) for word in self.words] for name in ("log_prob", "entropy")}
        about, (site, heads) = self.headline(), reading_site(alignment, maps)
        if site:
            about["chosen"] = {"site": site, "heads": heads, "why": page.why_shown(alignment, site, heads)}
        if whole and len(self.ids) <= page.LONGEST:
            about["trace"] = [asdict(step) for step in self.trace.steps]
            about["lens"] = page.lens_of(given, "before", tokenizer)
        if whole and site:
            about |= page.tested(draft, given, site, self.source_tokens)
        sequences = {"source": self.source_tokens, "output": self.tokens, "before": given.tokens}
        axes = {name: page.axes_of(name) for name in maps}
        draft.add_run(label, maps, sequences, axes=axes, words={"source": source, "output": output}, **about)

    def details(self) -> dict[str, Any]:
        """The source's tokens and the word alignment; null where the attention was not kept."""
        alignment = self.alignment.as_json() if self.recorded or not self.ids else None
        return {"source_tokens": self.source_tokens, "alignment": alignment}
