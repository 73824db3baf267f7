"""Completions in batches are those of one text at a time."""

import pytest
import torch

import regard
from regard.errors import ConfigError

BEGINNINGS = ["ROMEO:", "O", "JULIET: what say", "the king"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"beam": 2}, {"seed": 5, "top_k": 20}])
def test_together_or_alone_the_same(settings: dict) -> None:
    completer = regard.load("shakespeare")
    together = completer(BEGINNINGS, length=12, **settings)
    index = {} if "seed" not in settings else {"first_index": 0}
    for n, (source, one) in enumerate(zip(BEGINNINGS, together, strict=True)):
        index = {"first_index": n} if index else {}
        own = completer(source, length=12, **settings, **index)
        assert (own.text, own.source) == (one.text, one.source)
        assert own.log_prob == pytest.approx(one.log_prob, abs=1e-3)
        assert list(own.attention) == list(one.attention)
        for site, seen in own.attention.items():
            assert one.attention[site].key_tokens == seen.key_tokens
            torch.testing.assert_close(one.attention[site].full(), seen.full(), atol=1e-4, rtol=1e-3)


def test_texts_of_one_seed_differ_and_the_first_is_that_of_one_text() -> None:
    completer = regard.load("shakespeare")
    first, second = completer(["ROMEO:", "ROMEO:"], length=20, seed=1)
    assert first.text != second.text
    assert completer("ROMEO:", length=20, seed=1).text == first.text


def test_stop_strings_and_lengths_hold_for_each_text() -> None:
    completer = regard.load("shakespeare")
    for made in completer(BEGINNINGS, length=30, temperature=0.0, stop=["e"]):
        assert "e" not in made.text
    assert [one.text for one in completer(BEGINNINGS[:2], length=0)] == ["", ""]
    assert completer([], length=3) == []


@pytest.mark.sampled(2)
@pytest.mark.parametrize("settings", [{"seed": 3}, {"beam": 2}])
def test_asking_to_see_changes_no_completion(settings: dict) -> None:
    completer = regard.load("shakespeare")
    plain = completer(BEGINNINGS, length=8, record=False, **settings)
    with regard.observe(completer) as seen:
        watched = completer(BEGINNINGS, length=8, record=False, **settings)
    assert [(one.ids, one.log_prob) for one in plain] == [(one.ids, one.log_prob) for one in watched]
    assert all(len(maps) == len(BEGINNINGS) for maps in seen.values())


def test_a_stream_is_observed_and_alternatives_need_a_search() -> None:
    model = regard.load("shakespeare")
    with regard.observe(model.model) as seen:
        list(model.stream("To be", length=3, temperature=0))
    assert len(seen) == len(model("To be", length=3, temperature=0).attention)
    with pytest.raises(ConfigError, match="n_best = 3 needs a search: give beam too"):
        model("To be", n_best=3)
    with pytest.raises(ConfigError, match="unknown setting 'beam': known are length, stop, record"):
        model.stream("To be", beam=2)
