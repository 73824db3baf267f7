"""What every pipeline returns: a text, its tokens and scores, its alternatives, and its attention."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regard.analysis.base import ForwardPass
from regard.attention.maps.map import AttentionMap, know_origin
from regard.attention.maps.page import Draft
from regard.errors import ConfigError


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """The output of one input.

    Attributes:
        text: the output.
        source: the input as text: a text, a question, or the name of a file.
        tokens: the output's tokens, without BOS, with the end token if it was produced.
        ids: their ids.
        score: the number that ranked the output.
        log_prob: log-probability of the output, in nats.
        alternatives: other outputs, best first.
        attention: {site: map `[heads, T, S]`}, lazy; rows are output tokens.
    """

    text: str
    source: str
    tokens: list[str] = field(default_factory=list, repr=False)
    ids: list[int] = field(default_factory=list, repr=False)
    score: float = field(default=0.0, repr=False)
    log_prob: float = 0.0
    alternatives: "list[Any]" = field(default_factory=list, repr=False)
    attention: Mapping[str, AttentionMap] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.attention):
            known = know_origin(self.attention, self.forward_pass, self.title)
            object.__setattr__(self, "attention", known)  # the dataclass is frozen

    @property
    def title(self) -> str:
        """What figures of it are called: input and output, shortened."""
        return f"{shorten(self.source, 48)} → {shorten(self.text, 48)}"

    def as_json(self) -> dict[str, Any]:
        """Everything that `--json` prints: the keys of all results, then those of the task."""
        return {
            "source": self.source,
            "text": self.text,
            "tokens": self.tokens,
            "score": self.score,
            "log_prob": self.log_prob,
            "alternatives": [self.as_alternative(one) for one in self.alternatives],
            **self.details(),
        }

    def details(self) -> dict[str, Any]:
        """The keys that only this task's results have."""
        return {}

    def look(self, path: str | Path | None = None) -> Any:
        """The interactive page of this result's attention; a notebook displays it.

        Args:
            path: an .html file to write, which needs no network; None only makes the page.

        Returns:
            the `regard.figures.page.Page`.
        """
        from regard.pipelines.page import page_of

        return page_of(self).written(path)

    def add_to(self, draft: Draft, label: str, whole: bool = True) -> None:
        """Add this result to a page.

        Args:
            draft: the page.
            label: its name among the page's runs.
            whole: with the maps of all sites and what was measured; else with the maps to the source alone, or where
                there is none, those within the text.
        """
        from regard.pipelines.page import add_pass, pipeline_of

        try:
            given = self.forward_pass()
        except ConfigError:
            draft.add_run(label, self.attention, {}, **self.headline())
            return
        add_pass(draft, given, label, self.headline(), pipeline_of(self).tokenizer if whole else None)

    def headline(self) -> dict[str, Any]:
        """What a page says of any result."""
        return {"source": self.source, "text": self.text, "score": self.score, "log_prob": self.log_prob}

    def forward_pass(self) -> ForwardPass:
        """The pass over the input and this output: the tokens were taken from the logits of its last positions.

        Raises:
            ConfigError: there is none: the output is empty, or made of several.
        """
        raise ConfigError(f"a {type(self).__name__} has no single forward pass to look into")

    def word_tokens(self) -> list[tuple[str, list[int]]]:
        """The output's words and the indices of their tokens; white space belongs to the word that follows.

        Raises:
            ConfigError: the output's words are not made of its tokens.
        """
        raise ConfigError(f"a {type(self).__name__} has no words made of tokens")

    @staticmethod
    def as_alternative(one: Any) -> dict[str, Any]:
        """An alternative as it stands in the JSON of the result it belongs to."""
        return {"text": one.text, "score": one.score, "log_prob": one.log_prob}


def shorten(text: str, width: int) -> str:
    """A text of one line, of so many characters at most."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1].rstrip()}…"
