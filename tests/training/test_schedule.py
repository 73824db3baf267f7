"""The schedules against their formulas."""

from math import cos, pi

import pytest

from regard.errors import ChoiceError
from regard.training.schedule import SCHEDULES, factor


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [1, 7, 100])
def test_warmup_grows_in_a_line_to_the_peak(schedule, warmup):
    assert [factor(schedule, step, warmup, 1000) for step in range(1, warmup + 1)] == pytest.approx(
        [step / warmup for step in range(1, warmup + 1)]
    )


@pytest.mark.parametrize("step", [101, 400, 10_000])
def test_inverse_sqrt_is_equation_3(step):
    d_model, warmup = 512, 100  # lrate = d^-0.5 · min(step^-0.5, step · warmup^-1.5), as a share of its peak
    rate, peak = (d_model**-0.5 * min(s**-0.5, s * warmup**-1.5) for s in (step, warmup))
    assert factor("inverse_sqrt", step, warmup, 1000) == pytest.approx(rate / peak)
    assert factor("inverse_sqrt", 400, 100, 1) == 0.5


def test_cosine_goes_from_one_to_nothing():
    assert factor("cosine", 60, 10, 110) == pytest.approx(0.5)  # half way
    assert factor("cosine", 35, 10, 110) == pytest.approx((1 + cos(pi / 4)) / 2)
    assert factor("cosine", 110, 10, 110) == pytest.approx(0)
    assert factor("cosine", 999, 10, 110) == pytest.approx(0)  # and stays there
    rates = [factor("cosine", step, 10, 110) for step in range(10, 111)]
    assert rates == sorted(rates, reverse=True)


def test_constant_stays():
    assert {factor("constant", step, 3, 9) for step in range(3, 30)} == {1.0}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_warmup(schedule):
    assert factor(schedule, 1, 0, 10) == pytest.approx({"cosine": (1 + cos(pi / 10)) / 2}.get(schedule, 1.0))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_warmup_longer_than_the_run(schedule):
    assert factor(schedule, 5, 10, 5) == 0.5
    assert factor(schedule, 11, 10, 5) >= 0


def test_unknown_schedule_is_refused_also_during_warmup():
    with pytest.raises(ChoiceError, match="unknown schedule 'cosin': expected one of 'cosine'"):
        factor("cosin", 1, 10, 10)
