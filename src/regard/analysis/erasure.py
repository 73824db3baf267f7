"""The probability of an output when words of its input are taken out: the points of deletion and insertion curves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regard.analysis.base import ForwardPass
from regard.data.batching import lengths_mask, pad
from regard.errors import ConfigError
from regard.text.tokenizer import word_of_each

AT_ONCE = 512  # tokens of the input in one forward
SOURCE, TOKENS = "source", "tokens"  # arguments of an encoder–decoder, and of a decoder alone


def check_words(given: ForwardPass) -> None:
    """Refuse a pass whose input is not a text.

    Raises:
        ConfigError: the input is a picture or a sound, or the model is of another kind.
    """
    if not given.spans or not (SOURCE in given.arguments or TOKENS in given.arguments):
        raise ConfigError(
            "the input has no words that could be taken out: expected a translation or a completion, got the output for"
            " a picture or a sound; `contributions(generation, step).parts` has what each of its positions gave"
        )


@dataclass(frozen=True, eq=False)
class Erasure:
    """One forward pass, repeated without some words of the input.

    The tokens of a word are taken out, as if they had never been written, and the other positions close up (DeYoung et
    al. 2020, section 4). Tokens of no word (EOS, BOS, lone spaces) always stay.

    Attributes:
        given: the pass of an encoder–decoder over a source and its output, or of a decoder over a text.
        words: (word, positions of its tokens); of a decoder alone those of the text before the tokens that it predicts.
    """

    given: ForwardPass
    words: list[tuple[str, list[int]]]
    _known: dict[tuple[bool, ...], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, given: ForwardPass, before: int | None = None) -> "Erasure":
        """The words of a pass's source, or of the text of a decoder alone.

        Args:
            given: the pass.
            before: of a decoder alone: positions from here on stay; where no other position would be left, the last
                word too.

        Raises:
            ConfigError: an input without words (a picture, a sound), or of another model.
        """
        check_words(given)
        crossing = SOURCE in given.arguments
        owners = word_of_each(given.spans, given.text)[: None if crossing else before]
        found: dict[int, list[int]] = {}
        for place, owner in enumerate(owners):
            if owner is not None:
                found.setdefault(owner, []).append(place)
        if not crossing and all(owner is not None for owner in owners) and found:
            found.popitem()
        spans = [(given.spans[places[0]][0], given.spans[places[-1]][1]) for places in found.values()]
        words = [given.text[first:end].strip() for first, end in spans]
        return cls(given, list(zip(words, found.values(), strict=True)))

    @classmethod
    def of_tokens(cls, given: ForwardPass) -> "Erasure | None":
        """The single tokens of a pass's source, or of the text of a decoder alone before the tokens that it predicts.

        None for an input of another kind (a picture, a sound), and where there is no token that could be left out.
        """
        ids = given.arguments.get(SOURCE, given.arguments.get(TOKENS))
        if not isinstance(ids, Tensor) or ids.is_floating_point() or not hasattr(given.module, "hidden"):
            return None
        crossing = SOURCE in given.arguments
        # a position has to stay from which the first token is predicted
        places = range(ids.shape[1] if crossing else ids.shape[1] - len(given.predicted))
        names = given.source_tokens if crossing else given.tokens
        words = [(names[place], [place]) for place in places]
        return cls(given, words) if words and ids.shape[1] > 1 else None

    def __call__(self, kept: Bool[Tensor, "n words"]) -> Float[Tensor, "n T"]:
        """log p of each output token, in float64, with only the kept words in the input; results are cached."""
        asked = [tuple(row) for row in kept.tolist()]
        # by length, for little padding
        new = sorted({row for row in asked if row not in self._known}, key=lambda row: len(self._left(row)))
        size = max(1, AT_ONCE // len(self._ids))
        for start in range(0, len(new), size):
            some = new[start : start + size]
            self._known.update(zip(some, self._run([self._left(row) for row in some]), strict=True))
        return torch.stack([self._known[row] for row in asked])

    @property
    def _ids(self) -> list[int]:
        ids: list[int] = self.given.arguments[SOURCE if self.crossing else TOKENS][0].tolist()
        return ids

    def _left(self, kept: Sequence[bool]) -> list[int]:
        """Positions that stay."""
        out = {place for (_, places), stays in zip(self.words, kept, strict=True) if not stays for place in places}
        return [place for place in range(len(self._ids)) if place not in out]

    def _run(self, positions: list[list[int]]) -> Tensor:
        """`[n, T]` for the positions that stay in each row."""
        own: Any = self.given.module
        ids, predicted = self._ids, self.given.predicted
        device = self.given.arguments[SOURCE if self.crossing else TOKENS].device
        rows = [[ids[place] for place in row] for row in positions]
        tokens, allowed = pad(rows, 0).to(device), lengths_mask(rows).to(device)
        with torch.no_grad():
            if self.crossing:
                target = self.given.arguments["target"]
                hidden = own.hidden(own.encode(tokens, allowed), target.expand(len(rows), -1))
                hidden = hidden[:, -len(predicted) :]
            else:
                states = own.hidden(tokens, allowed)
                last = torch.tensor([len(row) for row in rows], device=device)[:, None]
                places = last - len(predicted) + torch.arange(len(predicted), device=device)
                hidden = states[torch.arange(len(rows), device=device)[:, None], places]
            logits: Tensor = own.project(hidden).double()
            wanted = torch.tensor(predicted, device=device).expand(len(rows), -1)
            chosen = logits.gather(-1, wanted[..., None])[..., 0]
            return (chosen - logits.logsumexp(-1)).cpu()

    @property
    def crossing(self) -> bool:
        """Whether the words are those of an encoder's source."""
        return SOURCE in self.given.arguments
