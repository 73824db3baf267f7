"""Sentences with figures and names, written from CLDR."""

import random
import re

import pytest

from regard.data.expressions import Writer, expressions, read_carriers
from regard.errors import ConfigError

BOTH = [("fr", "en"), ("en", "fr")]


@pytest.mark.parametrize("languages", BOTH)
def test_every_carrier_is_filled(languages):
    writer = Writer(languages, random.Random(0))
    for carrier in read_carriers(languages):
        for _ in range(5):
            for side in writer.fill(carrier):
                assert side.strip() == side
                assert not re.search(r"[{}]|\.\.|  ", side), carrier


@pytest.mark.parametrize("languages", BOTH)
def test_figures_are_the_same_on_both_sides(languages):
    writer = Writer(languages, random.Random(1))
    for slot in ("number", "code", "phone", "year", "big", "price", "percent", "measure", "temperature"):
        for _ in range(50):
            here, there = (re.sub(r"\D", "", side) for side in writer.value(slot, slot))
            assert here == there, slot


def test_times_of_day():
    writer = Writer(("fr", "en"), random.Random(0))
    for _ in range(200):
        here, there = writer.value("time", "time")
        hour, *minute = map(int, re.findall(r"\d+", here))
        assert there == f"{hour % 12 or 12}:{(minute or [0])[0]:02d} {'a.m.' if hour < 12 else 'p.m.'}"


@pytest.mark.parametrize(("hour", "quarter", "fr", "en"), [
    (7, 0, "huit heures", "eight o'clock"), (7, 1, "huit heures et quart", "a quarter past eight"),
    (7, 2, "huit heures et demie", "half past eight"), (7, 3, "neuf heures moins le quart", "a quarter to nine"),
    (0, 0, "une heure", "one o'clock"), (11, 0, "midi", "noon"), (11, 2, "midi et demi", "half past twelve"),
    (10, 3, "midi moins le quart", "a quarter to twelve"),
])  # fmt: skip
def test_clocks_in_words(hour, quarter, fr, en):
    class Dice(random.Random):
        def randint(self, a, b):
            return hour if b == 11 else quarter

    assert Writer(("fr", "en"), Dice()).value("clock", "clock") == (fr, en)


def test_the_first_of_a_month_and_elision():
    found = list(expressions("fr", "en", 6000))
    assert any("1er " in here and " 1" in there for here, there in found)
    assert not any(re.search(r"\bque [AEIOU]|\b1 (janvier|mai|août)|\bde [AEIOU]", here) for here, _ in found)
    assert any("qu'" in here for here, _ in found)


def test_the_same_seed_gives_the_same_pairs():
    assert list(expressions("en", "fr", 50, 3)) == list(expressions("en", "fr", 50, 3))
    assert list(expressions("en", "fr", 50, 3)) != list(expressions("en", "fr", 50, 4))


def test_a_language_without_carriers_is_refused():
    with pytest.raises(ConfigError, match="no sentences in 'de', only in fr and en"):
        next(expressions("de", "en", 1))
