"""White space and invisible characters of a source, made uniform before the tokenizer sees them.

A no-break space, a tab or a soft hyphen in a text that was copied from a page is a character that training hardly saw;
a translation then loses words. Visible characters are never changed.
"""

import re
from collections.abc import Callable
from unicodedata import category

_CAPITALS = re.compile(r"(?<![\w'’-])(?:I|[B-XZ](?!['’-]))(?!\w)|(\w+)")  # a letter alone, or a word
_GRAPHEME_JOINER = "\u034f"  # a mark that is never seen
ZWNJ, ZWJ, MONGOLIAN_SEPARATOR = "\u200c", "\u200d", "\u180e"

# blocks of scripts whose letters change their form beside a joiner or a non-joiner
_JOINING = (
    (0x0600, 0x08FF),  # Arabic, Syriac, Thaana, N'Ko, Samaritan, Mandaic
    (0x0900, 0x0DFF),  # Indic
    (0x0F00, 0x109F),  # Tibetan, Myanmar
    (0x1780, 0x18AF),  # Khmer, Mongolian
    (0x1900, 0x1CFF),  # Limbu … Vedic
    (0xA800, 0xABFF),  # Syloti Nagri … Meetei Mayek
    (0xFB50, 0xFDFF), (0xFE70, 0xFEFE),  # Arabic presentation forms
    (0x10A00, 0x10FFF),  # Kharoshthi … Rohingya, Sogdian
    (0x11000, 0x11FFF),  # Brahmi and its descendants
    (0x1E900, 0x1E95F),  # Adlam
)  # fmt: skip

# characters of category Cf that are seen: number and verse signs written around digits, Egyptian layout controls
_VISIBLE = frozenset(map(chr, (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD)))
_EGYPTIAN = (0x13430, 0x1345F)

_BLACK_FLAG, _TAGS = "\U0001f3f4", (0xE0020, 0xE007F)  # a flag of a region is a black flag, tag letters and an end tag


def clean(text: str, keep: str = "") -> str:
    """The text with uniform white space and without invisible formatting characters.

    Every character of white space, line ends included, becomes a plain space. Soft hyphens, zero-width spaces, marks
    of direction, byte order marks, control characters and their like are dropped. Joiners stay where they matter:
    beside letters of scripts that join (Persian, Hindi, …) and inside emoji.

    Args:
        text: any text.
        keep: characters that stay as they are, for instance "\\n".
    """
    if text.isprintable() and _GRAPHEME_JOINER not in text:  # no separators but plain spaces, nothing invisible
        return text
    kept: list[str] = []
    base = ""  # the last character that is kept and is no tag letter
    for n, character in enumerate(text):
        if character in keep:
            kept.append(character)
        elif character.isspace():
            kept.append(" ")
        elif not _is_invisible(character) or _is_needed(character, kept[-1:], text[n + 1 : n + 2], base):
            kept.append(character)
        else:
            continue
        if not _within(character, _TAGS):
            base = kept[-1]
    return "".join(kept)


def sentence_case(text: str, tokens: Callable[[str], int]) -> str:
    """A text of several words in capitals as a sentence would be written; any other text as it is.

    A translator that hardly saw capitals in training takes "OÙ EST LA GARE ?" apart letter by letter. The first letter
    stays a capital, and that of a word which is fewer tokens with it than without (Paris). A letter that stands alone
    is a name (I, X), unless it is a word in French or English: A, Y, or one with an accent.

    Args:
        text: any text.
        tokens: the number of a word's tokens.
    """
    words = [word for word in text.split() if sum(map(str.isalpha, word)) > 1]
    if len(words) < 2 or not text.isupper():
        return text

    def written(found: re.Match[str]) -> str:
        small, name = found[0].lower(), found[0].capitalize()
        return name if tokens(name) < tokens(small) else small

    small = _CAPITALS.sub(lambda found: written(found) if found[1] else found[0], text)
    first = next(n for n, character in enumerate(small) if character.isalpha())
    return small[:first] + small[first].upper() + small[first + 1 :]


def _is_invisible(character: str) -> bool:
    kind = category(character)
    if kind == "Cf":
        return character not in _VISIBLE and not _within(character, _EGYPTIAN)
    return kind == "Cc" or character == _GRAPHEME_JOINER


def _is_needed(character: str, before: list[str], after: str, base: str) -> bool:
    """Whether an invisible character changes how the visible ones around it look."""
    if not before:
        return False
    (last,) = before
    if character == ZWJ and _is_pictorial(last):
        return bool(after) and _is_pictorial(after)
    if character == ZWJ:
        return _joins(last)
    if character in (ZWNJ, MONGOLIAN_SEPARATOR):
        return _joins(last) and bool(after) and _joins(after)
    if _within(character, _TAGS):
        return base == _BLACK_FLAG
    return False


def _joins(character: str) -> bool:
    """Whether it is a letter or a mark of a joining script."""
    return category(character)[0] in "LM" and any(_within(character, block) for block in _JOINING)


def _is_pictorial(character: str) -> bool:
    """Whether an emoji may end or begin with it: a symbol, a skin tone, or the emoji style."""
    return category(character) in ("So", "Sm", "Sk") or character == "\ufe0f"


def _within(character: str, block: tuple[int, int]) -> bool:
    return block[0] <= ord(character) <= block[1]
