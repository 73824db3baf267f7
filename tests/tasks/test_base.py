"""What all tasks share: some data for development, what is left out in words, and losses."""

from math import inf, isnan, nan

import pytest

from regard.errors import ConfigError
from regard.tasks.base import for_development, left_out, loss_numbers, perplexity


def test_training_data_stand_in_for_development() -> None:
    assert for_development(([1, 2, 3], [4]), "files.dev_share", 2) == ([4], "1 for development")
    some, sentence = for_development(([1, 2, 3], []), "files.dev_share", 2)
    assert some == [1, 2]
    assert sentence == "files.dev_share leaves none for development: 2 of them choose the best checkpoint"
    with pytest.raises(ConfigError, match="nothing to train on"):
        for_development(([], []), "files.dev_share", 2)


def test_what_is_left_out_is_counted_and_named() -> None:
    assert left_out([], "too long") == ""
    assert left_out(["a:3", "a:9"], "too long") == " (2 left out: too long, the first a:3)"
    assert left_out([""], "too long") == " (1 left out: too long)"


def test_nothing_is_decoded_by_a_model_that_diverged() -> None:
    assert loss_numbers(0.0, lambda: {"bleu": 3.0}) == {"loss": 0.0, "perplexity": 1.0, "bleu": 3.0}
    for loss in (nan, inf):
        assert loss_numbers(loss, lambda: 1 / 0).keys() == {"loss", "perplexity"}
    assert perplexity(1e9) == inf
    assert isnan(perplexity(nan)) or perplexity(nan) == inf
