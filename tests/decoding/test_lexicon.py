"""A search within a list of words says them and no others, however much the model likes another spelling."""

from itertools import product

import pytest
import torch
from torch import Tensor

from regard.decoding.lexicon import begin_spelling, spelling_table, within
from regard.decoding.search import SearchConfig, search
from regard.errors import ConfigError

PAD, BOS, EOS, SPACE, A, B, C = range(7)
WORDS = [[A], [A, B], [C, A, B]]


class Nothing:
    def select(self, parents: Tensor) -> "Nothing":
        return self

    def keep(self, sentences: Tensor) -> "Nothing":
        return self


def likes(token: Tensor, state: Nothing) -> tuple[Tensor, Nothing]:
    """Every token by the one before it, whatever the words are."""
    torch.manual_seed(4)
    return torch.randn(7, 7).log_softmax(-1)[token], state


def spelled(ids: list[int]) -> bool:
    """Whether ids (without EOS) are whole words with one space between."""
    words: list[list[int]] = [[]]
    for i in ids:
        if i == SPACE:
            words.append([])
        else:
            words[-1].append(i)
    return not ids or all(word in WORDS for word in words)


def test_the_table_allows_exactly_the_words() -> None:
    table = spelling_table(WORDS, SPACE, EOS, 7)
    for length in range(5):
        for ids in product((SPACE, A, B, C), repeat=length):
            node, fine = 0, True
            for i in ids:
                fine = fine and int(table[node, i]) >= 0
                node = max(0, int(table[node, i]))
            whole = fine and int(table[node, EOS]) >= 0
            assert whole == spelled(list(ids)), ids


def test_search_finds_the_best_of_the_allowed_texts() -> None:
    table = spelling_table(WORDS, SPACE, EOS, 7)
    step = within(likes, table, BOS)
    found = search(step, begin_spelling(Nothing(), 2), [5, 5], SearchConfig(30, 0.0, 5), BOS, EOS, scored=True)
    scores = likes(torch.arange(7), Nothing())[0]

    def score(ids: tuple[int, ...]) -> float:
        return float(sum(scores[a, b] for a, b in zip((BOS, *ids), (*ids, EOS), strict=True)))

    texts = [ids for n in range(5) for ids in product((SPACE, A, B, C), repeat=n) if spelled(list(ids))]
    best = max(texts, key=score)
    for hypotheses in found:
        ended = [one for one in hypotheses if one.tokens[-1] == EOS]
        assert tuple(ended[0].tokens[:-1]) == best
        assert all(spelled(one.tokens[:-1]) for one in ended)


def test_a_table_that_is_too_large_is_refused() -> None:
    words = [[n % 50 + 3, n // 50 % 50 + 3, n // 2500 + 3] for n in range(30_000)]
    with pytest.raises(ConfigError, match="a table of spellings may"):
        spelling_table(words, 1, 2, 5000)
