"""Pairs of sentences with numbers, times, dates, prices, names and places, written from Unicode's CLDR by Babel.

A parallel corpus of everyday sentences has few figures in it, and every figure once: a model that sees "18 h 45" for
the first time invents. Here carriers ("Le bus part à {time}." and "The bus leaves at {time}.") are filled with values
that CLDR writes in both languages. The source takes any usual form of a value ("18h45", "18:45", "18 heures 45"), the
target always the same one.
"""

import random
import re
from collections.abc import Callable, Iterator
from datetime import date, time
from functools import cache
from importlib.resources import files
from typing import Any

from regard.data.augment import made_up, read_names
from regard.errors import ConfigError

Pair = tuple[str, str]
Slot = Callable[["Writer"], Pair]

LANGUAGES = ("fr", "en")  # those that carriers.tsv is written in
TALKED = ("fr", "en", "de", "es", "it", "pt", "nl", "ru", "zh", "ja", "ar", "pl", "sv", "el", "tr", "ko", "hi", "da")
UNITS = ("length-kilometer", "length-meter", "length-centimeter")
_HOURS = {
    "fr": ["une", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf", "dix", "onze", "midi"],
    "en": ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "noon"],
}


def expressions(source: str, target: str, count: int, seed: int = 0) -> Iterator[Pair]:
    """Pairs of sentences with values that differ from pair to pair.

    Args:
        source, target: "fr" or "en".
        count: how many pairs.
        seed: the same seed gives the same pairs.

    Raises:
        ConfigError: a language without carriers; Babel is not installed.
    """
    for language in (source, target):
        if language not in LANGUAGES:
            raise ConfigError(f"expressions: no sentences in {language!r}, only in {' and '.join(LANGUAGES)}")
    carriers = read_carriers((source, target))
    writer = Writer((source, target), random.Random(seed))
    for _ in range(count):
        yield writer.fill(writer.dice.choice(carriers))


@cache
def read_carriers(languages: tuple[str, str]) -> tuple[Pair, ...]:
    """The carriers in two languages, slots in braces."""
    return tuple((row[languages[0]], row[languages[1]]) for row in _rows("carriers.tsv"))


def _rows(name: str) -> list[dict[str, str]]:
    lines = (files("regard.data") / name).read_text("utf-8").splitlines()
    columns = lines[0].split("\t")
    return [dict(zip(columns, line.split("\t"), strict=True)) for line in lines[1:]]


class Writer:
    """Values in two languages at once.

    Args:
        languages: of source and target; the source's form of a value varies.
        dice: draws the values.
    """

    def __init__(self, languages: tuple[str, str], dice: random.Random) -> None:
        try:
            import babel
        except ImportError as error:
            raise ConfigError("expressions need the package Babel: pip install babel") from error
        self.languages, self.dice = languages, dice
        self.locales: list[Any] = [babel.Locale(name) for name in languages]
        self.countries = _rows("countries.tsv")

    def fill(self, carrier: Pair) -> Pair:
        """A carrier with a new value in every slot; equal slots are filled in the order of the source."""
        here, there = carrier
        for name in re.findall(r"\{(\w+)\}", here):
            slot = "country" if name in ("incountry", "fromcountry") else name
            other = f"{{{name if f'{{{name}}}' in there else slot}}}"
            if name == "thelanguage" or (name == "language" and "{thelanguage}" in there):
                other = "{language}" if "{language}" in there else "{thelanguage}"
            elif slot == "country" and other not in there:
                other = next(f"{{{form}}}" for form in ("incountry", "fromcountry", "country") if form in there)
            value = self.value(name, other[1:-1])
            here = here.replace(f"{{{name}}}", value[0], 1)
            there = there.replace(other, value[1], 1)
        here, there = (
            _elided(text) if name == "fr" else text for text, name in zip((here, there), self.languages, strict=True)
        )
        return _capital(here, carrier[0]), _capital(there, carrier[1])

    def value(self, here: str, there: str) -> Pair:
        """A new value in both languages, in the forms that the two slots ask for."""
        if "country" in here:
            row = self.dice.choice(self.countries)
            forms = [self._country(row, n, form) for n, form in enumerate((here, there))]
            return forms[0], forms[1]
        if "language" in here:
            code = self.dice.choice(TALKED)
            forms = [self._language(code, n, form) for n, form in enumerate((here, there))]
            return forms[0], forms[1]
        written: Pair = getattr(self, f"_{here}")()
        return written

    def _country(self, row: dict[str, str], side: int, form: str) -> str:
        name = str(self.locales[side].territories[row["code"]])
        if self.languages[side] != "fr":
            return f"the {name}" if row["code"] in ("US", "GB", "NL") else name
        return row[{"country": "fr", "incountry": "fr_in", "fromcountry": "fr_from"}[form]]

    def _language(self, code: str, side: int, form: str) -> str:
        name = str(self.locales[side].languages[code])
        if form == "language" or self.languages[side] != "fr":
            return name
        return f"l'{name}" if name[0] in "aeiouéhy" else f"le {name}"

    def _number(self) -> Pair:
        return self._both(str(self._figure(self.dice.choice((1, 2, 2, 2, 3)))))

    def _small(self) -> Pair:
        return self._both(str(self.dice.randint(2, 30)))

    def _age(self) -> Pair:
        return self._both(str(self.dice.randint(3, 99)))

    def _year(self) -> Pair:
        return self._both(str(self.dice.randint(1700, 2035)))

    def _day(self) -> Pair:
        return self._both(str(self.dice.randint(2, 28)))

    def _code(self) -> Pair:
        digits = "".join(str(self.dice.randint(0, 9)) for _ in range(self.dice.randint(3, 6)))
        return self._both(self.dice.choice("ABCDEFGH") + digits if self.dice.random() < 0.15 else digits)

    def _flight(self) -> Pair:
        return self._both(f"{self.dice.choice(('AF', 'BA', 'LH', 'KL', 'EZY'))}{self._figure(3)}")

    def _phone(self) -> Pair:
        digits = [self.dice.randint(0, 99) for _ in range(5)]
        digits[0] = self.dice.randint(1, 9)
        joint = self.dice.choice((" ", " ", " ", ".", "-", ""))
        if self.dice.random() < 0.25:
            return self._both("-".join(str(self._figure(n)) for n in (3, 3, 4)[self.dice.randint(0, 1) :]))
        return self._both(joint.join(f"{part:02d}" for part in digits))

    def _big(self) -> Pair:
        from babel.numbers import format_decimal

        number = self._figure(self.dice.randint(4, 7))
        if self.dice.random() < 0.6:
            number = round(number, -self.dice.randint(2, 3)) or 1000
        here, there = (str(format_decimal(number, locale=locale)) for locale in self.locales)
        return self._spaced(here), there

    def _price(self) -> Pair:
        from babel.numbers import format_currency

        amount = round(self.dice.choice((self.dice.uniform(1, 20), self.dice.uniform(1, 999))), 2)
        if self.dice.random() < 0.5:
            amount = float(max(1, int(amount)))
        currency = self.dice.choice(("EUR", "EUR", "USD", "GBP"))
        whole = amount.is_integer()
        form = {"fr": "#,##0 ¤" if whole else "#,##0.00 ¤", "en": "¤#,##0" if whole else "¤#,##0.00"}
        both = [
            str(
                format_currency(amount, currency, form[name], locale=self._money(name, currency), currency_digits=False)
            )
            for name in self.languages
        ]
        if self.dice.random() < 0.4:  # in words
            number = [one.strip("€$£US \u00a0\u202f") for one in both]
            words = {
                "fr": {"EUR": "euros", "USD": "dollars", "GBP": "livres"},
                "en": {"EUR": "euros", "USD": "dollars", "GBP": "pounds"},
            }
            both = [f"{n} {words[name][currency]}" for n, name in zip(number, self.languages, strict=True)]
        both = [one.replace("£GB", "£") for one in both]
        return self._spaced(both[0]), both[1]

    def _money(self, language: str, currency: str) -> str:
        """A locale in which the currency's own sign is enough: $ and not $US."""
        return {"USD": "fr_CA", "GBP": "fr_FR"}.get(currency, "fr") if language == "fr" else language

    def _percent(self) -> Pair:
        from babel.numbers import format_percent

        share = self.dice.randint(1, 100) / 100
        here, there = (str(format_percent(share, locale=locale)) for locale in self.locales)
        return self._spaced(here), there

    def _temperature(self) -> Pair:
        degrees = self.dice.randint(-15, 100)
        if self.dice.random() < 0.5:
            words = {"fr": "degrés", "en": "degrees"}
            return f"{degrees} {words[self.languages[0]]}", f"{degrees} {words[self.languages[1]]}"
        return self._spaced(f"{degrees}\u00a0°C"), f"{degrees}\u00a0°C" if self.languages[
            1
        ] == "fr" else f"{degrees} °C"

    def _measure(self) -> Pair:
        return self._unit(self.dice.choice(UNITS))

    def _weight(self) -> Pair:
        return self._unit(self.dice.choice(("mass-kilogram", "mass-gram")))

    def _unit(self, unit: str) -> Pair:
        from babel.units import format_unit

        amount = self.dice.randint(2, 900)
        length: Any = self.dice.choice(("long", "long", "short"))
        here, there = (str(format_unit(amount, unit, length, locale=locale)) for locale in self.locales)
        return self._spaced(here), there

    def _time(self) -> Pair:
        """A time of day: of 24 hours in French, of 12 in English."""
        hour, minute = (
            self.dice.randint(0, 23),
            self.dice.choice((0, 0, 5, 10, 15, 15, 20, 25, 30, 30, 35, 40, 45, 45, 50, 55)),
        )
        if self.dice.random() < 0.3:
            minute = self.dice.randint(0, 59)
        at = time(hour, minute)
        return self.dice.choice(_time_forms(at, self.languages[0])), _time_forms(at, self.languages[1])[0]

    def _clock(self) -> Pair:
        """A time of day in words."""
        hour, quarter = self.dice.randint(0, 11), self.dice.randint(0, 3)
        here, there = (_in_words(hour, quarter, name) for name in self.languages)
        return here, there

    def _date(self) -> Pair:
        return self._dated(("d MMMM y", "MMMM d, y"))

    def _daymonth(self) -> Pair:
        return self._dated(("d MMMM", "MMMM d"))

    def _dayname(self) -> Pair:
        return self._dated(("EEEE", "EEEE"), whole=False)

    def _month(self) -> Pair:
        return self._dated(("MMMM", "MMMM"), whole=False)

    def _dated(self, forms: Pair, whole: bool = True) -> Pair:
        from babel.dates import format_date

        day = date(self.dice.randint(1850, 2030), self.dice.randint(1, 12), self.dice.randint(1, 28))
        written = {"fr": forms[0], "en": forms[1]}
        here, there = (str(format_date(day, written[name], locale=name)) for name in self.languages)
        if whole and self.languages[0] == "en":
            here = self.dice.choice(_english_dates(day, here, "y" in forms[0]))
        if whole and day.day == 1:
            here, there = (
                re.sub(r"^1\b", "1er", text) if name == "fr" else text
                for text, name in zip((here, there), self.languages, strict=True)
            )
        return here, there

    def _man(self) -> Pair:
        return self._name("man")

    def _woman(self) -> Pair:
        return self._name("woman")

    def _family(self) -> Pair:
        return self._name("family")

    def _city(self) -> Pair:
        return self._name("city")

    def _name(self, kind: str) -> Pair:
        names = read_names(self.languages)[kind]
        if self.dice.random() < 0.2:
            return self._both(made_up(names, self.dice))
        return self.dice.choice(names.rows)

    def _figure(self, digits: int) -> int:
        return self.dice.randint(10 ** (digits - 1) + (digits == 1), 10**digits - 1)

    def _spaced(self, text: str) -> str:
        """A source whose no-break spaces are typed as plain ones, or left out, as often as not."""
        return re.sub("[\u00a0\u202f]", self.dice.choice(("\u00a0", " ", " ")), text)

    def _both(self, text: str) -> Pair:
        return text, text


def _time_forms(at: time, language: str) -> list[str]:
    """The usual ways to write a time of day; the first is the one that a target has."""
    hour, minute = at.hour, at.minute
    if language == "fr":
        if not minute:
            return [f"{hour} h", f"{hour}h", f"{hour} heures", f"{hour}:00", f"{hour} h 00"]
        digits = f"{minute:02d}"
        return [
            f"{hour} h {digits}",
            f"{hour}h{digits}",
            f"{hour}:{digits}",
            f"{hour} heures {digits}",
            f"{hour} h {digits}",
        ]
    half, twelve = ("a.m." if hour < 12 else "p.m."), hour % 12 or 12
    digits = f"{twelve}:{minute:02d}"
    short = [digits] if minute else [digits, str(twelve)]
    return [
        f"{digits} {half}",
        *(f"{one}{mark}" for one in short for mark in (f" {half}", f" {half.replace('.', '')}", half[0] + "m")),
    ]


def _english_dates(day: date, usual: str, year: bool) -> list[str]:
    """The usual ways to write a date in English; the first is the one that CLDR gives."""
    month, last = usual.split()[0], 10 < day.day < 20
    ending = "th" if last else {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    tail = f" {day.year}" if year else ""
    return [usual, usual, f"{day.day} {month}{tail}", f"{month} {day.day}{ending}" + (f", {day.year}" if year else ""),
            f"the {day.day}{ending} of {month}{tail}"]  # fmt: skip


def _in_words(hour: int, quarter: int, language: str) -> str:
    """A time of day in words: hour 0 … 11 is one o'clock … noon, and quarters follow it."""
    name = _HOURS[language][hour]
    following = _HOURS[language][(hour + 1) % 12]
    if language == "en":
        if not quarter:
            return name if name == "noon" else f"{name} o'clock"
        before = "twelve" if name == "noon" else name
        return (
            f"a quarter past {before}",
            f"half past {before}",
            f"a quarter to {'twelve' if following == 'noon' else following}",
        )[quarter - 1]
    spoken = [word if word == "midi" else f"{word} heure{'' if word == 'une' else 's'}" for word in (name, following)]
    return (spoken[0], f"{spoken[0]} et quart", f"{spoken[0]} et {'demi' if name == 'midi' else 'demie'}",
            f"{spoken[1]} moins le quart")[quarter]  # fmt: skip


def _elided(text: str) -> str:
    """French with "que" and "de" elided before a vowel: qu'Avignon."""
    return re.sub(r"\b(qu|d)e (?=[AEIOUÉÈ])", r"\1'", text)


def _capital(text: str, carrier: str) -> str:
    """A sentence begins with a capital also where a value does, and ends with one full stop; a value alone is left as
    it is."""
    text = text.removesuffix(".") if text.endswith("..") else text
    return text[0].upper() + text[1:] if carrier.startswith("{") and carrier[-1] in ".?!" else text
