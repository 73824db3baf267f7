"""Translations with random settings, and of random sentences with numbers: what is promised of each output holds."""

import random
import re
from collections import Counter
from typing import Any

import jaxtyping
import pytest

import regard
from adversary.attempts import judged
from regard.pipelines.translator import Translator

TEXTS = (
    "le chat noir", "", "   ", "Le chat dort. Il mange.", "é" * 50, "\u202eabc", "a\nb", "{x} et {y}", "😀 chat",
    "Mr. Dupont a 3 chats.\n\nIl est 18 h 45.", "<b>chat", "chat\x00", "l'été",
)  # fmt: skip
DEMANDS: dict[str, tuple[Any, ...]] = {
    "prefix": ("the", "", "the dark", "The\nx", " the "), "force": ([], ["cat"], ["cat", "black dog"], ["😀"], [""]),
    "forbid": ([], ["cat"], ["the"], ["."], [""]), "protect": (True, False), "split": (True, False),
    "glossary": ({}, {"chat": "cat"}, {"chat": ""}, {"chat": "dog", "le chat": "the dog"}), "n_best": (1, 2, 4, 8),
}  # fmt: skip
SEARCHES: dict[str, tuple[Any, ...]] = DEMANDS | {
    "beam": (1, 2, 4, 8, 33),
    "groups": (1, 2, 4),
    "diversity": (0.0, 10.0),
}
DRAWS: dict[str, tuple[Any, ...]] = DEMANDS | {
    "temperature": (0.1, 1.0, 5.0, 0.0), "top_k": (1, 5, 100_000), "top_p": (0.1, 0.9, 1.0), "min_p": (0.0, 0.1),
    "typical_p": (0.2, 0.9), "seed": (0, 1, -1), "mbr": (1, 2, 4),
}  # fmt: skip
NUMBERS = (
    "{n}", "-{n}", "+{n}", "{n},50", "{n} %", "{n} €", "8 h 45", "7 h 05", "12/07/1998", "1 234", "½", "n° {n}",
    "{n}-{m}", "01 23 45 67 89", "XIV", "{n}e", "−{n}",
)  # fmt: skip
SENTENCES = (
    "Le train part à {}.", "Il a {} pommes, {} poires et {} bananes.", "Entre {} et {}, il choisit {}.",
    "La page {} a {} mots.", "{} fois {} font beaucoup.", "Hier il y en avait {}, demain {}.",
)  # fmt: skip


@pytest.fixture(scope="module")
def fast() -> Translator:
    return regard.load("fr-en-fast")


def faults_of(made: Any, settings: dict[str, Any]) -> list[str]:
    """What is promised of an output and does not hold."""
    found = []
    drawn = bool(settings.get("sample"))
    if any(has(made.text, word) for word in settings.get("forbid", []) if word.strip(".")):
        found.append("forbidden")
    if made.source.strip() and not all(word in made.text for word in settings.get("force", [])):
        found.append("forced")
    begin = " ".join(settings.get("prefix", "").split())
    if made.source.strip() and not " ".join(re.sub("<[^>]*>", "", made.text).split()).startswith(begin):
        found.append("prefix")
    texts = [made.text, *(other.text for other in made.alternatives)]
    if len(set(texts)) < len(texts) and not drawn:
        found.append("alternatives")
    if len(made.words) != len(made.text.split()):
        found.append("words")
    if made.log_prob > 1e-4:
        found.append("log_prob")
    return found


def has(text: str, word: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def tried(model: Translator, seed: int, calls: int) -> list[str]:
    """Prints counts of calls with random settings; returns the faults."""
    draw, counts, faults = random.Random(seed), Counter[str](), []
    for _ in range(calls):
        sample = draw.random() < 0.3
        known = DRAWS if sample else SEARCHES
        names = draw.sample(sorted(known), draw.randint(1, 3))
        settings = {"sample": sample} | {name: draw.choice(known[name]) for name in names}
        texts = draw.sample(TEXTS, draw.randint(1, 3))
        made: list[Any] = []
        verdict, message = judged(lambda: made.extend(model(texts, **settings)))  # noqa: B023
        wrong = [message] if verdict == "fault" else [name for one in made for name in faults_of(one, settings)]
        counts[verdict] += 1
        faults += [f"{texts} {settings}: {name}" for name in wrong]
    print(f"settings: seed {seed}: {calls} calls: {dict(counts)}, {len(faults)} faults")
    return faults


@pytest.mark.parametrize("calls", [25, pytest.param(1500, marks=pytest.mark.slow)])
def test_random_settings_are_refused_or_hold(fast: Translator, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside the tests
    assert not tried(fast, 7, calls)


def sentence(draw: random.Random) -> str:
    """A sentence with numbers of many kinds, some of them several times."""
    frame = draw.choice(SENTENCES)
    n, m = draw.randint(2, 99), draw.randint(100, 2100)
    kinds = [draw.choice(NUMBERS).format(n=n, m=m) for _ in range(2)]
    return frame.format(*(draw.choice(kinds) for _ in range(frame.count("{}"))))


@pytest.mark.parametrize("count", [12, pytest.param(400, marks=pytest.mark.slow)])
def test_numbers_of_random_sentences_are_in_their_translations(fast: Translator, count: int) -> None:
    draw = random.Random(11)
    texts = [sentence(draw) for _ in range(count)]
    lost = []
    for one in fast(texts, protect=True):
        lacking = Counter(digits(one.source)) - Counter(digits(one.text))
        lost += [f"{one.source!r} -> {one.text!r}: {sorted(lacking)}"] if lacking else []
    print(f"numbers: seed 11: {count} sentences, {len(lost)} lost one")
    assert not lost


def digits(text: str) -> list[str]:
    """Its numbers, each as its digits."""
    text = re.sub(r"(?<=\d)[\s.,\u202f\u00a0](?=\d{3}(?!\d))", "", text)
    return [part.lstrip("0") or "0" for part in re.findall(r"\d+", text)]
