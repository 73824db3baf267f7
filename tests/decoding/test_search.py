"""Search knows no model: tested on made step functions whose every output can be enumerated."""

import itertools
from dataclasses import dataclass
from math import exp, inf, log

import pytest
import torch
from torch import Tensor

from regard.decoding.search import Followed, Hypothesis, SearchConfig, largest, search, search_steps
from regard.errors import ConfigError

BOS, EOS = 1, 2
V = 5


@dataclass(frozen=True)
class Trail:
    """A state that is the path of tokens which led to it: `paths[n][k]`."""

    sentences: list[int]
    paths: list[list[tuple[int, ...]]]

    def select(self, parents: Tensor) -> "Trail":
        chosen = [[row[p] for p in ps] for row, ps in zip(self.paths, parents.tolist(), strict=True)]
        return Trail(self.sentences, chosen)

    def keep(self, sentences: Tensor) -> "Trail":
        some = sentences.tolist()
        return Trail([self.sentences[n] for n in some], [self.paths[n] for n in some])


def fresh(sentences: int | list[int]) -> Trail:
    names = list(range(sentences)) if isinstance(sentences, int) else sentences
    return Trail(names, [[()] for _ in names])


def logits_after(sentence: int, path: tuple[int, ...], sharp: float = 2.0) -> Tensor:
    """The model: any numbers that depend on sentence and whole path; BOS is never said."""
    seed = hash((sentence, *path)) % 2**31
    logits = sharp * torch.randn(V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    logits[BOS] = -inf
    return logits


def step(tokens: Tensor, state: Trail) -> tuple[Tensor, Trail]:
    paths = [
        [(*path, token) for path, token in zip(row, said, strict=True)]
        for row, said in zip(state.paths, tokens.tolist(), strict=True)
    ]
    logits = [[logits_after(n, path) for path in row] for n, row in zip(state.sentences, paths, strict=True)]
    return torch.stack([torch.stack(row) for row in logits]), Trail(state.sentences, paths)


def log_prob(sentence: int, tokens: tuple[int, ...]) -> float:
    total, path = 0.0, (BOS,)
    for token in tokens:
        total += float(logits_after(sentence, path).log_softmax(-1)[token])
        path = (*path, token)
    return total


def run(sentences, limits, **config) -> list[list[Hypothesis]]:
    return search(step, fresh(sentences), limits, SearchConfig(**config), BOS, EOS)


def outputs(limit: int):
    """Every output that search may give: ended by EOS, or cut at the limit."""
    words = [t for t in range(V) if t not in (BOS, EOS)]
    for n in range(limit):
        for body in itertools.product(words, repeat=n):
            yield (*body, EOS)
    yield from itertools.product(words, repeat=limit)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("sentence", range(5))
def test_a_beam_wide_enough_for_everything_finds_the_best_of_all(sentence: int, limit: int, alpha: float) -> None:
    ranked = sorted(
        ((log_prob(sentence, o) / ((5 + len(o)) / 6) ** alpha, list(o)) for o in outputs(limit)), reverse=True
    )
    found = run([sentence], [limit], beam=64, n_best=64, length_penalty=alpha)[0]
    assert [h.tokens for h in found] == [o for _, o in ranked]
    assert [h.score for h in found] == pytest.approx([s for s, _ in ranked])


def beam_by_hand(sentence: int, limit: int, width: int) -> list[tuple[float, tuple[int, ...]]]:
    """The definition, with lists: the `width` best continuations stay; endings among them are finished."""
    living, finished = [(0.0, ())], []
    for length in range(1, limit + 1):
        everything = []
        for total, path in living:
            log_p = logits_after(sentence, (BOS, *path)).log_softmax(-1).tolist()
            everything += [(total + p, (*path, token)) for token, p in enumerate(log_p) if p > -inf]
        everything.sort(reverse=True)
        finished += [c for c in everything[:width] if c[1][-1] == EOS]
        living = [c for c in everything if c[1][-1] != EOS][:width]
        if length == limit:
            finished += [c for c in everything[: 2 * width] if c[1][-1] != EOS][:width]
        if len(finished) >= width or not living:
            break
    return finished


@pytest.mark.parametrize("width", [1, 2, 3, 5])
@pytest.mark.parametrize("limit", [1, 3, 7])
def test_equals_the_definition_with_lists(width: int, limit: int) -> None:
    for sentence in range(7):
        want = {path: total for total, path in beam_by_hand(sentence, limit, width)}
        ranked = sorted(want, key=lambda path: -want[path] / ((5 + len(path)) / 6) ** 0.6)[:width]
        found = run([sentence], [limit], beam=width, n_best=width)[0]
        assert [tuple(h.tokens) for h in found] == ranked
        assert [h.log_prob for h in found] == pytest.approx([want[path] for path in ranked])


@pytest.mark.parametrize("limit", [1, 4, 9])
def test_a_beam_of_one_is_greedy(limit: int) -> None:
    for sentence in range(11):
        path: tuple[int, ...] = (BOS,)
        while len(path) - 1 < limit and path[-1] != EOS:
            path = (*path, int(logits_after(sentence, path).argmax()))
        found = run([sentence], [limit], beam=1)
        assert [h.tokens for h in found[0]] == [list(path[1:])]


@pytest.mark.parametrize("width", [1, 3, 4])
def test_batch_mates_and_their_limits_change_nothing(width: int) -> None:
    limits = [3, 7, 1, 5, 2]
    together = run(5, limits, beam=width, n_best=width)
    for n, limit in enumerate(limits):
        alone = run([n], [limit], beam=width, n_best=width)[0]
        assert [(h.tokens, h.score, h.log_prob) for h in together[n]] == [
            (h.tokens, h.score, h.log_prob) for h in alone
        ]


def test_no_output_is_longer_than_its_sentences_limit() -> None:
    limits = [1, 2, 3, 5, 8, 13]
    for limit, found in zip(limits, run(6, limits, beam=3, n_best=3), strict=True):
        for hypothesis in found:
            assert len(hypothesis.tokens) <= limit
            assert hypothesis.tokens[-1] == EOS or len(hypothesis.tokens) == limit
            assert EOS not in hypothesis.tokens[:-1]
            assert BOS not in hypothesis.tokens


@pytest.mark.parametrize("width", [1, 2, 4])
def test_every_hypothesis_keeps_its_own_state_and_probability(width: int) -> None:
    for n, found in enumerate(run(5, [6] * 5, beam=width, n_best=width, length_penalty=0.8)):
        assert 1 <= len(found) <= width
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        assert len({tuple(h.tokens) for h in found}) == len(found)
        for h in found:
            assert h.state.sentences == [n]
            assert h.state.paths == [[(BOS, *h.tokens[:-1])]]  # what was fed to reach the last token
            assert h.log_prob == pytest.approx(log_prob(n, tuple(h.tokens)))
            assert h.score == pytest.approx(h.log_prob / ((5 + len(h.tokens)) / 6) ** 0.8)


def test_n_best_takes_the_first_of_the_beam() -> None:
    all_of_them, first_two = (run(3, [5] * 3, beam=4, n_best=n) for n in (4, 2))
    for many, few in zip(all_of_them, first_two, strict=True):
        assert [h.tokens for h in few] == [h.tokens for h in many[:2]]


def test_no_sentences() -> None:
    assert run(0, []) == []


def test_a_model_that_can_say_nothing_gives_no_hypothesis() -> None:
    def silent(tokens: Tensor, state: Trail) -> tuple[Tensor, Trail]:
        logits, state = step(tokens, state)
        return torch.where(torch.tensor(state.sentences)[:, None, None] == 1, torch.nan, logits), state

    found = search(silent, fresh(3), [4, 4, 4], SearchConfig(beam=2), BOS, EOS)
    assert [len(h) for h in found] == [1, 0, 1]


def test_a_vocabulary_smaller_than_the_beam() -> None:
    def only_eos(tokens: Tensor, state: Trail) -> tuple[Tensor, Trail]:
        logits, state = step(tokens, state)
        return logits.masked_fill(torch.arange(V) != EOS, -inf), state

    found = search(only_eos, fresh(2), [4, 4], SearchConfig(beam=7, n_best=7), BOS, EOS)
    assert [[h.tokens for h in hs] for hs in found] == [[[EOS]], [[EOS]]]
    assert found[0][0].log_prob == pytest.approx(0)


def test_half_precision_logits_are_summed_in_single() -> None:
    def half(tokens: Tensor, state: Trail) -> tuple[Tensor, Trail]:
        return torch.zeros(*tokens.shape, V, dtype=torch.bfloat16), step(tokens, state)[1]

    best = search(half, fresh(1), [3], SearchConfig(beam=1, length_penalty=0.0), BOS, EOS)[0][0]
    assert best.log_prob == pytest.approx(-len(best.tokens) * log(V), rel=1e-6)


def test_logits_with_gradients_are_searched_without_a_warning() -> None:
    def learned(tokens: Tensor, state: Trail) -> tuple[Tensor, Trail]:
        logits, state = step(tokens, state)
        return logits.requires_grad_(), state

    got = search(learned, fresh(1), [3], SearchConfig(beam=2), BOS, EOS)[0][0]
    assert got.tokens == run(1, [3], beam=2)[0][0].tokens


@pytest.mark.parametrize(("length", "alpha"), [(1, 0.6), (7, 0.0), (11, 1.0)])
def test_the_score_is_that_of_wu_et_al(length: int, alpha: float) -> None:
    penalty = exp(alpha * (log(5 + length) - log(6)))
    assert SearchConfig(length_penalty=alpha).score(-3.0, length) == pytest.approx(-3.0 / penalty)


def test_followed_is_a_protocol() -> None:
    assert isinstance(fresh(1), Followed)


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("size", [5, 64, 600, 2048, 8001])
def test_the_largest_numbers_of_a_row_are_topks(size, count):
    numbers = torch.randn(3, 2, size, generator=torch.Generator().manual_seed(size))
    numbers[0, 0, size // 2 :] = -torch.inf
    found, places = largest(numbers, count)
    expected = numbers.topk(min(count, size)).values
    assert torch.equal(found, expected)
    assert torch.equal(numbers.gather(-1, places), expected)
    assert all(len(set(row.tolist())) == row.numel() for row in places.flatten(0, 1))


def test_the_largest_of_a_row_of_nothing_but_minus_infinity_exist():
    found, places = largest(torch.full((1, 1, 8001), -torch.inf), 8)
    assert (found == -torch.inf).all()
    assert places.shape == (1, 1, 8)
    for size in (2049, 8001):  # one finite number, as behind a forced token: the rest are places of the row
        numbers = torch.full((40, 1, size), -torch.inf)
        numbers[:, :, 3] = 0.0
        found, places = largest(numbers, 8)
        assert (places[..., 0] == 3).all()
        assert int(places.max()) < size


def groups_by_hand(sentence: int, limit: int, groups: int, width: int, strength: float) -> dict[tuple[int, ...], float]:
    """Algorithm 1 of Vijayakumar et al. 2018 with lists, all continuations of all hypotheses compared."""
    living = [[(0.0, ())] for _ in range(groups)]
    ended = [0] * groups
    finished: dict[tuple[int, ...], float] = {}
    for length in range(1, limit + 1):
        taken: list[int] = []
        for g in range(groups):
            if ended[g] >= width:
                continue
            everything = []
            for total, path in living[g]:
                log_p = logits_after(sentence, (BOS, *path)).log_softmax(-1).tolist()
                everything += [(total + p, (*path, token)) for token, p in enumerate(log_p) if p > -inf]
            everything.sort(key=lambda one: strength * taken.count(one[1][-1]) - one[0])
            closed = [one for one in everything[:width] if one[1][-1] == EOS]
            going = [one for one in everything[: 2 * width] if one[1][-1] != EOS][:width]
            taken += [one[1][-1] for one in (*going, *closed)]
            done = closed + (going if length == limit else [])
            finished |= {path: total for total, path in done}
            ended[g] += len(done)
            living[g] = going
    return finished


@pytest.mark.parametrize(("groups", "width"), [(2, 1), (2, 2), (3, 1), (4, 2)])
@pytest.mark.parametrize("strength", [0.0, 0.4, 3.0])
def test_groups_equal_the_definition_with_lists(groups: int, width: int, strength: float) -> None:
    for sentence in range(5):
        want = groups_by_hand(sentence, 4, groups, width, strength)
        ranked = sorted(want, key=lambda path: -want[path] / ((5 + len(path)) / 6) ** 0.6)
        how = {"beam": groups * width, "groups": groups, "diversity": strength}
        found = run([sentence], [4], n_best=groups * width, **how)[0]
        ranked = ranked[: groups * width]  # more may have ended in the last step
        assert [tuple(h.tokens) for h in found] == ranked
        assert [h.log_prob for h in found] == pytest.approx([want[path] for path in ranked])
        for h in found:
            assert h.log_prob == pytest.approx(log_prob(sentence, tuple(h.tokens)))
            assert h.state.paths == [[(BOS, *h.tokens[:-1])]]
        first = run([sentence], [4], n_best=1, **how)[0]  # which may stop earlier
        assert [h.tokens for h in first] == [found[0].tokens]


def test_groups_differ_the_more_the_greater_the_diversity_and_not_by_their_batch_mates() -> None:
    shared = []
    for strength in (0.0, 1.0, 50.0):
        how = {"beam": 3, "n_best": 3, "groups": 3, "diversity": strength}
        together = run(4, [5, 3, 6, 2], **how)
        for n, limit in enumerate([5, 3, 6, 2]):
            assert [h.tokens for h in run([n], [limit], **how)[0]] == [h.tokens for h in together[n]]
        shared.append(sum(len({h.tokens[0] for h in found}) for found in together))
    assert shared[0] == 4  # without diversity the groups of one are the same greedy output, which is given once
    assert [len(found) for found in run(4, [5] * 4, beam=3, n_best=3, groups=3, diversity=0.0)] == [1] * 4
    assert shared[0] < shared[1] <= shared[2] == 12


def test_groups_where_few_tokens_have_a_probability() -> None:
    def only_eos(tokens: Tensor, state: Trail) -> tuple[Tensor, Trail]:
        logits, state = step(tokens, state)
        return logits.masked_fill(torch.arange(V) != EOS, -inf), state

    found = search(only_eos, fresh(2), [4, 4], SearchConfig(beam=6, n_best=6, groups=3), BOS, EOS)
    assert [[h.tokens for h in hs] for hs in found] == [[[EOS]], [[EOS]]]


@pytest.mark.parametrize("how", [{"groups": 3}, {"groups": 0}, {"groups": 2, "diversity": -0.1}, {"diversity": inf}])
def test_groups_that_make_no_sense(how) -> None:
    with pytest.raises(ConfigError, match=r"groups must divide|diversity must be a finite number"):
        SearchConfig(beam=4, **how)


@pytest.mark.parametrize("how", [{"beam": 1}, {"beam": 3}, {"beam": 4, "groups": 2}])
def test_settled_tokens_are_those_that_the_output_begins_with(how) -> None:
    early = 0
    for sentence in range(40):
        best = run([sentence], [7], **how)[0][0].tokens
        before: list[int] = []
        for now in search_steps(step, fresh([sentence]), [7], SearchConfig(**how), BOS, EOS):
            settled = now.settled(0)
            assert settled[: len(before)] == before
            assert best[: len(settled)] == settled
            early += bool(settled) and now.beams[0].results is None
            before = settled
        assert before == best
    assert early > 5  # some are known before the end
