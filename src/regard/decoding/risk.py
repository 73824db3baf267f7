"""Minimum Bayes risk: of several outputs, the one that is nearest to the others."""

from collections import Counter
from collections.abc import Sequence

from sacrebleu.metrics.chrf import CHRF


def utilities(texts: Sequence[str]) -> list[float]:
    """The mean chrF of each text with the others as references, between 0 and 100 (Eikema and Aziz 2022, equation 3).

    With texts drawn from a model, the one with the greatest utility has the least expected risk under it.

    Args:
        texts: at least one; 100 where it is alone.
    """
    metric, counts = CHRF(), Counter(texts)
    if len(texts) == 1:
        return [100.0]
    found = {}
    for text in counts:
        others = {one: count - (one == text) for one, count in counts.items()}
        total = sum(count * metric.sentence_score(text, [one]).score for one, count in others.items() if count)
        found[text] = total / (len(texts) - 1)
    return [found[text] for text in texts]
