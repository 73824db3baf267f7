"""The language of a text, by py3langid (Lui and Baldwin 2012), and languages' names."""

from collections.abc import Collection, Sequence
from copy import copy
from functools import cache, lru_cache
from typing import Any

from babel import Locale, UnknownLocaleError

# languages that many texts are in; a short text looks like some rare language too easily
COMMON = frozenset(
    {
        "ar", "az", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "eo", "es", "et", "eu", "fa", "fi", "fr", "ga",
        "gl", "he", "hi", "hu", "id", "it", "ja", "ko", "lt", "lv", "ms", "nb", "nl", "no", "pl", "pt", "ro", "ru",
        "sk", "sl", "sq", "sr", "sv", "th", "tl", "tr", "uk", "ur", "vi", "zh",
    }
)  # fmt: skip


@cache
def _whole() -> Any:
    """The classifier over all its languages."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@lru_cache(maxsize=16)
def _identifier(languages: frozenset[str]) -> Any:
    """A classifier over the languages that it knows; over all where it knows none of them."""
    made = copy(_whole())
    if some := set(made.labels) & languages:
        made.set_languages(sorted(some))
    return made


def detect(text: str, among: Collection[str] = COMMON) -> list[tuple[str, float]]:
    """(language, probability) of a text, the most probable first.

    Args:
        text: any text.
        among: codes of the languages to choose from.
    """
    return list(_identifier(frozenset(among)).rank(text))


def language_name(code: str) -> str:
    """A language's English name; its code where it has none."""
    try:
        return str(Locale.parse(code, sep="-").get_language_name("en") or code)
    except (UnknownLocaleError, ValueError, TypeError):
        return code


def pairs_of(translators: Sequence[Any]) -> dict[tuple[str, str], Any]:
    """{(source, target): the first translator of this pair}."""
    found: dict[tuple[str, str], Any] = {}
    for one in translators:
        found.setdefault(tuple(one.bundle.languages), one)
    return found
