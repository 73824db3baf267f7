"""Learning-rate schedules: a factor of the peak rate for every step, after a linear warm-up."""

from math import cos, pi, sqrt

from regard.errors import unknown

SCHEDULES = ("inverse_sqrt", "cosine", "constant")


def factor(schedule: str, step: int, warmup: int, steps: int) -> float:
    """The rate of step 1, 2, … as a share of the peak rate.

    Args:
        schedule: "inverse_sqrt" √(warmup/step) (Vaswani et al. 2017, equation 3), "cosine" to 0 at `steps`
            (Loshchilov and Hutter 2017), or "constant".
        step: counted from 1.
        warmup: steps of linear growth from 0.
        steps: where the cosine ends.

    Raises:
        ChoiceError: an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    if step <= warmup:
        return step / max(1, warmup)
    if schedule == "inverse_sqrt":
        return sqrt(max(1, warmup) / step)
    if schedule == "cosine":
        return 0.5 * (1 + cos(pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
    return 1.0
