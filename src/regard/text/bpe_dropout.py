"""BPE-dropout: random segmentations of a text whose tokens are known (Provilkov et al. 2020).

The tokenizers library has it as well, but draws from a generator without a seed: no run could be resumed bit for bit.
"""

import random
from dataclasses import dataclass

from regard.errors import ConfigError
from regard.text.tokenizer import UNK, Tokenizer

BEGINS = ("▁", "Ġ")  # the first character of a word's first token, in bpe and in byte_bpe
NEVER = 1 << 60


@dataclass(frozen=True)
class Segmented:
    """A random segmentation.

    Attributes:
        ids: of its tokens.
        origins: for each token, the position of the given token in which it begins.
    """

    ids: list[int]
    origins: list[int]


class BpeDropout:
    """From the ids of a text to the ids of a random segmentation of the same text.

    A word is built from its characters again. At every step each possible merge is left out with probability p, and
    the earliest learned of the others is made; the word is done when none is left (Provilkov et al. 2020, algorithm 1).
    p = 0 gives the tokenizer's own segmentation, p = 1 characters. (In byte_bpe, ids do not tell where the tokenizer
    cut a word before it joined characters, at an apostrophe, say: there, tokens may be joined across such a cut.)

    Args:
        tokenizer: of kind "bpe" or "byte_bpe".
        share: p, at least 0 and below 1.
        longest: a text whose random segmentation has more tokens than this keeps its own.

    Raises:
        ConfigError: a tokenizer of another kind, which has no merges.
    """

    def __init__(self, tokenizer: Tokenizer, share: float, longest: int = NEVER) -> None:
        merges = tokenizer.merges()
        if not merges:
            raise ConfigError(
                f'training.bpe_dropout needs tokenizer.kind = "bpe" or "byte_bpe"; got "{tokenizer.kind}", which has '
                "no merges"
            )
        self.share, self.longest = share, longest
        self.tokens = tokenizer.tokens(range(len(tokenizer)))
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        self.rank = {pair: n for n, pair in enumerate(merges)}

    def __call__(self, ids: list[int], dice: random.Random) -> Segmented:
        """A random segmentation of the text that `ids` spell."""
        found = Segmented([], [])
        word: list[tuple[str, int]] = []  # characters, each with the token that it comes from
        for place, number in enumerate(ids):
            token = self.tokens[number]
            if number <= UNK or token.startswith(BEGINS):
                self._add(found, word, dice)
                word = []
            if number <= UNK:
                found.ids.append(number)
                found.origins.append(place)
            else:
                word += [(character, place) for character in token]
        self._add(found, word, dice)
        return found if len(found.ids) <= self.longest else Segmented(list(ids), list(range(len(ids))))

    def _add(self, found: Segmented, word: list[tuple[str, int]], dice: random.Random) -> None:
        """Append the tokens of one word."""
        pieces, places = [piece for piece, _ in word], [place for _, place in word]
        while len(pieces) > 1:
            best, at = NEVER, -1
            for n in range(len(pieces) - 1):
                rank = self.rank.get((pieces[n], pieces[n + 1]), NEVER)
                if rank < best and dice.random() >= self.share:
                    best, at = rank, n
            if at < 0:
                break
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
            del places[at + 1]
        found.ids.extend(self.ids[piece] for piece in pieces)
        found.origins.extend(places)
