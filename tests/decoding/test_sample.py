"""Sampling: every rule against its definition in plain Python, on logits that are known."""

import math
from math import exp

import pytest
import torch
from torch import Tensor

import regard
from regard.decoding.sample import SampleConfig, restrict, sample
from regard.errors import RegardError

LOGITS = torch.tensor([2.0, 1.0, 0.5, -0.3, -2.0, 1.7, 0.9])
SHARES = LOGITS.softmax(-1)


def left(earlier: list[int] = (), **rules: object) -> set[int]:
    kept = restrict(LOGITS, list(earlier), SampleConfig(**rules))
    return {i for i in range(len(LOGITS)) if kept[i] > -torch.inf}


def test_no_rule_leaves_all_as_it_is() -> None:
    assert torch.equal(restrict(LOGITS, [1, 2], SampleConfig()), LOGITS)


@pytest.mark.parametrize("k", range(1, 9))
def test_top_k_keeps_the_k_likeliest(k: int) -> None:
    assert left(top_k=k) == set(LOGITS.argsort(descending=True)[:k].tolist())


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.35, 0.5, 0.8, 0.99, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_top_p_keeps_the_fewest_that_reach_p(p: float, temperature: float) -> None:
    shares = (LOGITS / temperature).softmax(-1)
    wanted, total = set(), 0.0
    for i in LOGITS.argsort(descending=True).tolist():
        if total >= p:
            break
        wanted.add(i)
        total += float(shares[i])
    assert left(top_p=p, temperature=temperature) == wanted


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_min_p_is_a_share_of_the_likeliest(p: float) -> None:
    assert left(min_p=p) == {i for i in range(len(LOGITS)) if SHARES[i] >= p * SHARES.max() - 1e-7}


def test_repetition_makes_what_stood_before_less_likely() -> None:
    found = restrict(LOGITS, [0, 4, 4], SampleConfig(repetition=1.5))
    assert found.tolist() == pytest.approx([2 / 1.5, 1.0, 0.5, -0.3, -3.0, 1.7, 0.9])


@pytest.mark.parametrize(
    ("earlier", "n", "banned"),
    [
        ([1, 2, 3, 1, 2], 3, {3}),
        ([1, 2, 3, 1, 2], 2, {3}),
        ([1, 2, 3], 1, {1, 2, 3}),
        ([1, 2], 3, set()),
        ([5, 5, 5], 2, {5}),
        ([1, 2], 0, set()),
    ],
)
def test_no_sequence_comes_twice(earlier: list[int], n: int, banned: set[int]) -> None:
    assert left(earlier, no_repeat=n) == set(range(len(LOGITS))) - banned


def test_when_all_are_banned_none_is() -> None:
    assert left(list(range(7)), no_repeat=1) == set(range(7))
    only = torch.full((7,), -torch.inf)
    only[3] = -1.0  # as a constraint leaves a step
    assert restrict(only, [2, 3], SampleConfig(no_repeat=1)).isfinite().nonzero().tolist() == [[3]]


class Count:
    """A state that knows only how many steps were made."""

    def __init__(self, steps: int = 0) -> None:
        self.steps = steps

    def keep(self, sentences: Tensor) -> "Count":
        return self


def step(tokens: Tensor, state: Count) -> tuple[Tensor, Count]:
    """Logits that depend on the number of steps alone, the same for every sentence."""
    return LOGITS.roll(state.steps).expand(len(tokens), 1, -1), Count(state.steps + 1)


def constant(tokens: Tensor, state: Count) -> tuple[Tensor, Count]:
    return LOGITS.expand(len(tokens), 1, -1), state


def texts(*arguments, **settings) -> list[list[int]]:
    """The tokens of every sentence."""
    found: dict[int, list[int]] = {n: [] for n in range(len(arguments[2]))}
    for one in sample(*arguments, **settings):
        for row, token in zip(one.rows, one.tokens, strict=True):
            found[row].append(token)
    return list(found.values())


@pytest.mark.parametrize("setting", ["top_p", "typical_p"])
def test_a_share_that_float32_rounds_to_0_keeps_one_token(setting: str) -> None:
    assert len(left(**{setting: 5e-324})) == 1


def test_temperature_0_takes_the_likeliest_and_log_probs_are_the_models() -> None:
    drawn = list(sample(step, Count(), [[3]], [4], SampleConfig(temperature=0.0, top_k=2, repetition=1.0), ()))
    assert [one.tokens for one in drawn] == [[0], [1], [2], [3]]
    assert all(one.log_probs == [pytest.approx(float(SHARES[0].log()))] for one in drawn)
    assert [one.state.steps for one in drawn] == [1, 2, 3, 4]


def test_an_end_ends_it() -> None:
    assert texts(step, Count(), [[3]], [9], SampleConfig(temperature=0.0), (2,)) == [[0, 1, 2]]


def test_sentences_of_a_batch_end_on_their_own() -> None:
    """At a limit, at an end, at a stop; one that may add nothing never begins."""
    config = SampleConfig(temperature=0.0)
    found = texts(
        step, Count(), [[3]] * 4, [2, 0, 9, 9], config, (4,), stop=lambda row, tokens: row == 3 and 3 in tokens
    )
    assert found == [[0, 1], [], [0, 1, 2, 3, 4], [0, 1, 2, 3]]


def test_a_sample_depends_on_seed_and_index_alone() -> None:
    config = SampleConfig(seed=3)
    together = texts(constant, Count(), [[0]] * 5, [40, 3, 40, 17, 40], config, ())
    assert len({tuple(one) for one in together}) == 5
    for n, own in enumerate(together):
        assert texts(constant, Count(), [[0]], [len(own)], config, (), indices=[n]) == [own]


def test_draws_follow_the_probabilities_and_the_seed() -> None:
    (drawn,), (again,) = (
        texts(constant, Count(), [[0]], [4000], SampleConfig(temperature=2.0, seed=1), ()) for _ in range(2)
    )
    assert drawn == again
    total = sum(exp(x / 2) for x in LOGITS.tolist())
    for i, x in enumerate(LOGITS.tolist()):
        share = exp(x / 2) / total
        assert abs(drawn.count(i) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0 or more; got -1.0"),
        ({"temperature": 5e-324}, "temperature must be 0, or 1e-06 … 1e\\+06; got 5e-324"),
        ({"temperature": math.inf}, "temperature must be 0, or 1e-06 … 1e\\+06; got inf"),
        ({"repetition": 5e-324}, "repetition must be 1e-06 … 1e\\+06; got 5e-324"),
        ({"top_k": 0}, "top_k must be 1 or more; got 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"min_p": 2.0}, "min_p must be between 0 and 1"),
        ({"repetition": 0.0}, "repetition must be above 0"),
        ({"no_repeat": -1}, "no_repeat must be 0 or more"),
    ],
)
def test_rules_without_sense_are_refused(rules: dict, message: str) -> None:
    with pytest.raises(regard.ConfigError, match=message):
        SampleConfig(**rules)


def test_nothing_is_drawn_from_nan() -> None:
    class Nothing:
        def keep(self, sentences: torch.Tensor) -> "Nothing":
            return self

    def step(token: torch.Tensor, state: Nothing) -> tuple[torch.Tensor, Nothing]:
        return torch.full((len(token), 1, 5), torch.nan), state

    with pytest.raises(RegardError, match="the model's logits hold NaN or infinity"):
        next(sample(step, Nothing(), [[1]], [3], SampleConfig(seed=0), ()))


def test_typical_tokens() -> None:
    p = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05])
    entropy = float(-(p * p.log()).sum())
    order = sorted(range(5), key=lambda n: abs(-math.log(p[n]) - entropy))
    for least in (0.1, 0.3, 0.6, 0.9):
        kept, total = [], 0.0
        for n in order:
            if total >= least:
                break
            kept.append(n)
            total += float(p[n])
        found = restrict(p.log(), [], SampleConfig(typical_p=least))
        assert sorted(kept) == found.isfinite().nonzero()[:, 0].tolist()
