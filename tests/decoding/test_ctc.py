"""CTC's prefix probabilities against all paths one by one, and search with attention and CTC together."""

from itertools import groupby, product

import pytest
import torch
from torch import Tensor

from regard.decoding.ctc import begin, joined
from regard.decoding.search import SearchConfig, search

BLANK, BOS, EOS, V, S = 0, 1, 2, 5, 4


class Nothing:
    """A decoder without a state."""

    def select(self, parents: Tensor) -> "Nothing":
        return self

    def keep(self, sentences: Tensor) -> "Nothing":
        return self


def flat(token: Tensor, state: Nothing) -> tuple[Tensor, Nothing]:
    return torch.zeros(*token.shape, V), state


def log_p() -> Tensor:
    torch.manual_seed(1)
    made = torch.randn(2, S, V)
    made[..., [BOS, EOS]] = -torch.inf  # CTC never says where a text begins or ends
    return made.log_softmax(-1)


ALLOWED = torch.tensor([[True] * S, [True, True, True, False]])


def said(path: tuple[int, ...]) -> tuple[int, ...]:
    """What a path says: repeats are one, blanks are nothing."""
    return tuple(token for token, _ in groupby(path) if token != BLANK)


def probability(n: int, wanted: tuple[int, ...], whole: bool) -> float:
    """Of all texts that begin with `wanted`, or of it alone: path by path."""
    length = int(ALLOWED[n].sum())
    total = 0.0
    for path in product(range(V), repeat=length):
        text = said(path)
        if text == wanted if whole else text[: len(wanted)] == wanted:
            total += float(torch.stack([log_p()[n, t, i] for t, i in enumerate(path)]).sum().exp())
    return total


@pytest.mark.parametrize("texts", [((), (3, 3)), pytest.param(((3,), (4, 3)), marks=pytest.mark.slow)])
def test_prefixes_are_the_sums_of_all_paths(texts: tuple[tuple[int, ...], ...]) -> None:
    step = joined(flat, 1.0, BLANK, BOS, EOS)
    for text in texts:
        state, total, scores = begin(Nothing(), log_p(), ALLOWED, BLANK), torch.zeros(2), None
        for token in (BOS, *text):
            if scores is not None:
                total = total + scores[:, 0, token]
            scores, state = step(torch.full((2, 1), token), state)
        for n in range(2):
            assert float(total[n].exp()) == pytest.approx(probability(n, text, False), rel=1e-4, abs=1e-9)
            ended = float((total + scores[:, 0, EOS])[n].exp())
            assert ended == pytest.approx(probability(n, text, True), rel=1e-4, abs=1e-9)


def test_search_finds_the_likeliest_text() -> None:
    texts = {said(path) for path in product((0, 3, 4), repeat=S)}
    config = SearchConfig(beam=20, length_penalty=0.0)
    state = begin(Nothing(), log_p(), ALLOWED, BLANK)
    found = search(joined(flat, 1.0, BLANK, BOS, EOS), state, [6, 6], config, BOS, EOS, scored=True)
    for n, (best,) in enumerate(found):
        likeliest = max(texts, key=lambda text: probability(n, text, True))
        assert tuple(best.tokens[:-1]) == likeliest
        assert best.log_prob == pytest.approx(torch.tensor(probability(n, likeliest, True)).log().item(), abs=1e-3)


def test_a_share_mixes_both() -> None:
    def likes(token: Tensor, state: Nothing) -> tuple[Tensor, Nothing]:
        logits = torch.zeros(*token.shape, V)
        logits[..., 4] = 2.0
        return logits.log_softmax(-1), state

    state = begin(Nothing(), log_p(), ALLOWED, BLANK)
    bos = torch.full((2, 1), BOS)
    ctc, half = (joined(likes, share, BLANK, BOS, EOS)(bos, state)[0] for share in (1.0, 0.25))
    attention = likes(bos, Nothing())[0]
    real = ctc > -torch.inf
    assert torch.allclose(half[real], (0.75 * attention + 0.25 * ctc)[real], atol=1e-6)
