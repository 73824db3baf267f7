"""Vectors of the tokens and words of a text, layer by layer, from any model of one stack."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regard.device import device_of
from regard.errors import ConfigError
from regard.text.tokenizer import Span, word_of_each, words


@dataclass(frozen=True, eq=False)
class Vectors:
    """The vectors of each token.

    Attributes:
        text: the text.
        tokens: its tokens, special ones included.
        static: `[S, d]`, the tokens' own vectors, the same in every text.
        layers: `[L + 1, S, d]`: before the first block, then behind each; the last is behind the final norm too.
        spans: where each token stands in the text; empty for special ones.
    """

    text: str
    tokens: list[str]
    static: Float[Tensor, "S d"]
    layers: Float[Tensor, "L S d"]
    spans: list[Span]

    @property
    def words(self) -> list[str]:
        """The words of the text, as `str.split()` gives them."""
        return [self.text[a:b] for a, b in words(self.text)]

    @property
    def sentence(self) -> Float[Tensor, "d"]:
        """One vector of the text: the mean of the last layer over its tokens, special ones included, of length 1."""
        mean = self.layers[-1].mean(0)
        return torch.nn.functional.normalize(mean, dim=0)

    def of_word(self, place: int) -> Float[Tensor, "L d"]:
        """A word's vector in every layer: the mean over its tokens.

        Args:
            place: of the word, from 0.

        Raises:
            ConfigError: the text has no such word.
        """
        chosen = [n for n, word in enumerate(word_of_each(self.spans, self.text)) if word == place]
        if not chosen:
            raise ConfigError(f"place = {place}: the text has {len(self.words)} words, from 0")
        return self.layers[:, chosen].mean(1)


def vectors(model: Any, ids: list[int], spans: list[Span], text: str, tokenizer: Any) -> Vectors:
    """The vectors of token ids under a model with `encode` or `hidden`, on the CPU."""
    layers: list[Tensor] = []
    tokens = torch.tensor([ids], device=device_of(model))
    with torch.inference_mode():
        (model.encode if hasattr(model, "encode") else model.hidden)(tokens, collect=layers)
        static = model.embedding.weight[tokens[0]]
    return Vectors(text, tokenizer.tokens(ids), static.cpu().clone(), torch.cat(layers).cpu().clone(), spans)
