"""What is invisible or another white space in a source never reaches the tokenizer; what is seen always does."""

import sys
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.text.normalize import clean, sentence_case

ZWNJ, ZWJ = "\u200c", "\u200d"


@pytest.mark.parametrize(
    "space", ["\u00a0", "\t", "\u202f", "\u2009", "\u3000", "\n", "\r", "\u2028", "\x85", "\x0b", "\x1f"]
)
def test_every_white_space_is_a_plain_space(space: str) -> None:
    assert clean(f"le{space}chat{space}") == "le chat "


@pytest.mark.parametrize(
    "invisible",
    ["\u00ad", "\u200b", "\u2060", "\ufeff", "\u200e", "\u200f", "\u202a", "\u202c", "\u2066", "\u2069", "\u061c",
     "\u2063", "\u034f", "\ufff9", "\x00", "\x1b", "\x7f", "\x9b", "\U000e0041", ZWNJ, ZWJ, "\u180e"],
)  # fmt: skip
def test_what_is_invisible_is_dropped(invisible: str) -> None:
    assert clean(f"{invisible}le ch{invisible}at{invisible}") == "le chat"


@pytest.mark.parametrize(
    "text",
    [
        f"می{ZWNJ}خواهم",  # Persian: I want
        f"क्{ZWJ}ष क्{ZWNJ}ष",  # Devanagari: half form and visible virama
        f"അവന്{ZWJ} വന്നു",  # Malayalam: a chillu at the end of a word
        f"ශ්{ZWJ}රී",  # Sinhala
        f"👩{ZWJ}👩{ZWJ}👧 👩🏽{ZWJ}🚀 ❤️{ZWJ}🔥 🙂{ZWJ}↔️ 🏳️{ZWJ}🌈 👩{ZWJ}❤️{ZWJ}💋{ZWJ}👨",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # the flag of England
        "❤️ 1️⃣ ☎︎",
        "\u0600\u06f1 \u06dd",  # Arabic number sign, end of ayah: seen
        "naïve “œuvre” – 3 ½ € ♥ 日本語 한국어 עברית العربية",
        "",
    ],
)
def test_what_is_seen_stays(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (f"می{ZWNJ} خواهم{ZWNJ}", "می خواهم"),  # a non-joiner before nothing does nothing
        (f"{ZWJ}क", "क"),
        (f"क्{ZWJ}{ZWJ}ष", f"क्{ZWJ}ष"),
        (f"👩{ZWJ} 👧{ZWJ}", "👩 👧"),
        (f"Auf{ZWNJ}lage", "Auflage"),
        ("a\U000e0067\U000e007f🏴", "a🏴"),
        (f"می\u00ad{ZWNJ}خواهم", f"می{ZWNJ}خواهم"),
        ("le\u00a0chat\u202f!\tDo\u00adnau\u200b", "le chat ! Donau"),
    ],
)
def test_mixtures(text: str, want: str) -> None:
    assert clean(text) == want


def test_characters_to_keep() -> None:
    assert clean("To be,\nor\tnot\r\n", keep="\n") == "To be,\nor not \n"


@given(st.text())
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    assert clean(clean(text)) == clean(text)


def test_no_letter_digit_mark_or_sign_is_ever_changed() -> None:
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        if category(character)[0] in "LNPS" or (category(character) in ("Mn", "Mc", "Me") and character != "\u034f"):
            assert clean(f"a{character}b") == f"a{character}b"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("OÙ EST LA GARE ?", "Où est la gare ?"),
        ("« JE VAIS À PARIS »", "« Je vais à Paris »"),
        ("PARIS ET L'EAU D'ICI", "Paris et l'eau d'ici"),
        ("Y A-T-IL UN CHAT ?", "Y a-t-il un chat ?"),
        ("MAY I SEE POINT X?", "May I see point X?"),
        ("I'M NOT SURE I'LL COME", "I'm not sure I'll come"),
        ("IL Y A 18 CHATS À 7H30", "Il y a 18 chats à 7h30"),
        # a word alone may be a name, and one small letter says that capitals are meant
        ("NATO", "NATO"),
        ("STOP !", "STOP !"),
        ("I AM", "I AM"),
        ("A B C", "A B C"),
        ("LE chat NOIR", "LE chat NOIR"),
        ("Le chat noir", "Le chat noir"),
        ("18 : 30", "18 : 30"),
        ("", ""),
    ],
)
def test_capitals_become_a_sentence(text: str, want: str) -> None:
    assert sentence_case(text, lambda word: 1 if word == "Paris" else 2) == want


@given(st.text())
def test_the_case_alone_is_changed(text: str) -> None:
    assert sentence_case(text, len).casefold() == text.casefold() or "İ" in text
