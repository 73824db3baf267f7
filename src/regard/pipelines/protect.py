"""Numbers, addresses, placeholders and markup survive a translation.

    addresses, placeholders, code    a letter stands for each in what is translated, and the translation must have it
    markup                           is left out, and set again around the words aligned with those that it was around
    numbers                          are translated as any word; where one is lost, the text is searched again with
                                     it, and where it is lost then, too, with a letter for each place that it has

So the translation of a text without any of these does not change.
"""

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise, product
from typing import Any, NamedTuple

import torch

from regard.decoding.phrases import folded
from regard.errors import ConfigError
from regard.pipelines.base import InputError
from regard.pipelines.generation import Alignment, Generation, Word
from regard.text.normalize import clean
from regard.text.tokenizer import words as word_spans

LETTERS = "XQZKWVBGFHPR"  # of what stands for a protected text: letters that are no words, as y and j are
LONGEST = 4  # of these letters in a stand-in: 22,620 different ones
# possessive, and begun only where a run of characters begins: each character of a text is read a few times, however
# long the text is
# A tag with quoted values, its name as the group `tag`; it ends before the next "<" where a quote is never closed. Of
# all tags that are begun, at most three read the same character: one is outside of quotes, one in each kind.
TAG = r"""</?(?P<tag>[A-Za-z][^\s/<>]*+)(?:(?:[^<>"']++|"[^"]*+"|'[^']*+')*+>|[^<>]*+>)"""
ESCAPED = r"&lt;/?[A-Za-z](?:(?!&[lg]t;)[^<>])*+&gt;"  # a tag within those of another format, as XLIFF has them
MARKUP = "|".join(
    (
        rf"{TAG}|<!--(?:(?!-->|<!--).)*+-->|<!\[CDATA\[|\]\]>",
        ESCAPED,
        r"<\d[\d:.]*+>",  # the time of a word of a subtitle: <00:01.500>
    )
)
ADDRESS = r"(?:(?:[^\s<>\"{}]*+\{[^\s<>\"{}]*+\})++(?:[^\s<>\"]*[^\s<>\".,;:!?)\]}»])?|[^\s<>\"]*[^\s<>\".,;:!?)\]}»])"
SPACE = r"(?:nbsp|ensp|emsp|thinsp|#160|#8239|#x(?:[aA]0|202[fF]))"  # white space of HTML, which belongs to no word
PROTECTED = "|".join(
    (
        r"`[^`\s](?:[^`]*[^`\s])?`",  # code
        rf"(?:(?:https?|ftp)://|www\.){ADDRESS}",  # https://example.org/{page}, too
        r"(?<![\w.+-])[\w.+-]++@[\w-]++(?:\.[\w-]+)+",
        r"\{\{[^{}]*+\}\}|\$?\{[^{}]*+\}",  # {{ name }}, ${name}, {0}
        r"%\([\w.]++\)[#0\- +]*+[\d.*]*+[a-zA-Z]|%(?:\d++\$)?[#0\-+]*+[\d.*]*+[sdifgxu](?!\w)|%[A-Z_]++%",
        rf"&{SPACE};",
        rf"(?:(?<!\w)\w++)?(?:(?!{ESCAPED}|&{SPACE};)&(?:\w++|#\d++|#x[0-9a-fA-F]++);\w*+)++",  # R&amp;D
        r"\b[A-Za-z]++(?:_[A-Za-z0-9]+)+\b",  # names_of_variables
    )
)
_CUT = re.compile(f"(?P<markup>{MARKUP})|(?P<part>{PROTECTED})", re.DOTALL)
NUMERALS = "¼½¾⅐-ↈ①-⒛"  # fractions, Roman and circled numbers
GROUPS = r"\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?!\d)"  # 1 234 567
_NUMBER = re.compile(rf"(?<!\d)(?:{GROUPS}|\d+)(?:[.,:/]\d+)*|[{NUMERALS}]")
# 1 234, 1,234 and 1234 are one number
_GROUPED = re.compile(r"(?<!\d)\d{1,3}(?:[ \u00a0\u202f.,]\d{3})+(?!\d)")
_SIGNED = re.compile(r"(?<![\w-])([-−‑+±])(\d+)")
# as a translation may have it
_SIGNS = re.compile(r"(?:(?P<plus>\+|plus)|(?P<both>±)|[-−‑–]|minus|moins)\s?(?P<number>\d+)", re.IGNORECASE)
_AFTERNOON = re.compile(r"(?<!\d)(\d\d?)(?::\d+)?\s?p\.?\s?m", re.IGNORECASE)  # 6:45 p.m.


class Segment(NamedTuple):
    """A segment of a text.

    Attributes:
        outer: as it stands in the text; nothing, where only what is translated has a space.
        inner: as it is translated: the same, a stand-in, or nothing.
    """

    outer: str
    inner: str


GAP = Segment("", " ")  # keeps a stand-in apart from what it touches in the text: a word, or another stand-in


def has_markup(text: str) -> bool:
    """Whether a text has markup, which is set again by the alignment."""
    return bool(re.search(MARKUP, text, re.DOTALL))


@dataclass(frozen=True)
class Shielded:
    """A source whose protected parts are hidden.

    Attributes:
        source: as it was given.
        pieces: in a row, the source as it is read and as it is translated.
        stands_for: {stand-in: what it stands for}.
    """

    source: str
    pieces: list[Segment]
    stands_for: dict[str, str]

    @property
    def text(self) -> str:
        """What is translated."""
        return "".join(piece.inner for piece in self.pieces)

    @property
    def read(self) -> str:
        """The source with uniform white space, but for line breaks, and without invisible characters."""
        return "".join(piece.outer for piece in self.pieces)

    @cached_property
    def touching(self) -> set[tuple[str, bool]]:
        """The stand-ins that touch what precedes them (False), or what follows (True)."""
        inner = [piece for piece in self.pieces if piece.inner]
        sides = [(one.inner, True) for one, following in pairwise(inner) if following == GAP]
        sides += [(one.inner, False) for before, one in pairwise(inner) if before == GAP]
        return {side for side in sides if side[0] in self.stands_for}

    @property
    def numbers(self) -> list[str]:
        """The numbers of what is translated."""
        return [found[0] for found in _NUMBER.finditer(self.text)]

    def lost_numbers(self, text: str) -> list[str]:
        """The numbers of the source whose digits, or whose sign, a translation does not have; 18 may be 6 p.m."""
        there, lost = _digits(text), []
        afternoon = [frozenset(_AFTERNOON.findall(one)) for one in (self.text, text)]
        for number in self.numbers:
            spelled = (one for one in _spellings(number, *afternoon) if all(there[run] >= n for run, n in one.items()))
            if (found := next(spelled, None)) is None:
                lost.append(number)
            else:
                there.subtract(found)
        signs = {((one["plus"] and "+") or one["both"], one["number"]) for one in _SIGNS.finditer(text)}
        signed = _SIGNED.finditer(self.text)
        return lost + [one[0] for one in signed if (one[1] if one[1] in "+±" else None, one[2]) not in signs]


def _digits(text: str) -> Counter[str]:
    """The runs of digits of a text and how often each is there; groups of three are one run."""
    return Counter(re.findall(rf"\d+|[{NUMERALS}]", _GROUPED.sub(_joined, text)))


def _joined(found: re.Match[str]) -> str:
    return re.sub(r"\D", "", found[0])


def _spellings(number: str, source: Collection[str], target: Collection[str]) -> Iterator[Counter[str]]:
    """The digits of a number of the source, and those of the same hour in a translation that counts to 12, or to 24.

    Args:
        number: as it stands in the source.
        source, target: the hours p.m. of the source and of its translation.
    """
    digits = _digits(number)
    yield digits
    for hour in (one for one in digits if re.fullmatch(r"\d\d?", one)):
        for other, afternoon in ((int(hour) - 12, target), (int(hour) + 12, source)):
            twelve = min(other, int(hour))
            if 0 < twelve < 12 and str(twelve) in afternoon:
                yield digits - Counter([hour]) + Counter([str(other)])


def shield(
    text: str, spells: Callable[[str], bool] = lambda _: True, numbers: Collection[str] = ()
) -> Shielded:  # fmt: skip
    """Hide the protected parts of a text.

    Args:
        text: the source.
        spells: whether the model's vocabulary has a word, as a stand-in must be.
        numbers: those that are protected parts, too.

    Raises:
        ConfigError: it has none of the words that could stand for them.
        InputError: the text has more parts than there are such words.
    """
    made: list[Segment] = []
    stands_for: dict[str, str] = {}  # one for each place: a part that stands twice must be there twice
    names = filter(spells, _stand_ins(text))
    end = 0
    some = "|".join(re.escape(one).replace("\\ ", r"\s") for one in sorted(numbers, key=len, reverse=True))
    own = rf"{PROTECTED}|(?<![\w.,:/])[^\W\d_]*(?:{some})(?!\d|[.,:/]\w)\w*"  # with letters that touch it: 6e, 8h45
    cut = re.compile(f"(?P<markup>{MARKUP})|(?P<part>{own})", re.DOTALL) if numbers else _CUT
    for found in cut.finditer(text):
        between = clean(text[end : found.start()], keep="\r\n")
        made.append(Segment(between, between))
        end = found.end()
        if found["markup"]:
            made.append(Segment(found["markup"], ""))
            continue
        part, name = found["part"], next(names, "")
        if not name and stands_for:
            raise InputError(f"it has more than {len(stands_for):,} parts to protect: divide it, or leave out protect")
        if not name:
            raise ConfigError(
                f"protect: this model's vocabulary spells none of the words that could stand for {part!r} "
                f"(of the letters {', '.join(LETTERS)}): leave out protect"
            )
        stands_for[name] = part
        made.append(Segment(part, name))
    rest = clean(text[end:], keep="\r\n")
    made.append(Segment(rest, rest))
    return Shielded(text, list(_apart(made)), stands_for)


def _apart(pieces: Sequence[Segment]) -> Iterator[Segment]:
    """The pieces of a source, with gaps where a stand-in would be part of a longer word: {n}th would be translated as
    Xth, which is not the X that the translation must have."""
    last = Segment("", "")
    for piece in pieces:
        if piece.inner:
            hides = any(one.inner != one.outer for one in (last, piece))
            if hides and re.fullmatch(r"\w\w", last.inner[-1:] + piece.inner[0]):
                yield GAP
            last = piece
        if piece.outer:
            yield piece


def _stand_ins(text: str) -> Iterator[str]:
    """Short words that a text does not have."""
    names = ("".join(letters) for size in range(1, LONGEST + 1) for letters in product(LETTERS, repeat=size))
    there = set(re.findall(r"\w+", folded(text)))
    return (name for name in names if folded(name) not in there)


# texts and a glossary → results, errors in their place
Translate = Callable[[list[str], Mapping[str, str]], Sequence[Any]]


def translate_protected(texts: Sequence[str], translate: Translate, spells: Callable[[str], bool]) -> list[Any]:
    """The translations of some texts; their protected parts survive.

    Args:
        texts: the sources.
        translate: gives the translations of texts under a glossary.
        spells: whether the model's vocabulary has a word.

    Raises:
        ConfigError: as `shield`.
    """
    found: list[Any] = [_tried(text, spells) for text in texts]
    if not all(isinstance(one, Shielded) for one in found):
        rest = iter(translate_protected([one.source for one in found if isinstance(one, Shielded)], translate, spells))
        return [next(rest) if isinstance(one, Shielded) else one for one in found]
    shields: list[Shielded] = found
    made = _by_glossary(shields, [{name: name for name in one.stands_for} for one in shields], translate)
    pairs = zip(shields, made, strict=True)
    lost = [[] if isinstance(one, Exception) else own.lost_numbers(one.text) for own, one in pairs]
    again = [n for n, numbers in enumerate(lost) if numbers]
    terms = [{name: name for name in (*shields[n].stands_for, *filter(spells, lost[n]))} for n in again]
    for n, one in zip(again, _by_glossary([shields[n] for n in again], terms, translate), strict=True):
        if not isinstance(one, Exception):
            lost[n], made[n] = shields[n].lost_numbers(one.text), one
    numbers = {n: shields[n].numbers for n in again}
    for whole in (False, True):  # stand-ins for the numbers that are lost, then for all
        again = [n for n in again if lost[n]]
        tried = [_tried(texts[n], spells, [*lost[n], *(numbers[n] if whole else ())]) for n in again]
        again = [n for n, one in zip(again, tried, strict=True) if isinstance(one, Shielded)]
        hidden = [one for one in tried if isinstance(one, Shielded)]
        terms = [{name: name for name in one.stands_for} for one in hidden]
        for n, own, one in zip(again, hidden, _by_glossary(hidden, terms, translate), strict=True):
            still = lost[n] if isinstance(one, Exception) else own.lost_numbers(one.text)
            if len(still) < len(lost[n]):
                lost[n], shields[n], made[n] = still, own, one
    return [one if isinstance(one, Exception) else restored(own, one) for own, one in zip(shields, made, strict=True)]


def _tried(text: str, spells: Callable[[str], bool], numbers: Collection[str] = ()) -> Shielded | InputError:
    """`shield`, or why this text has none."""
    try:
        return shield(text, spells, numbers)
    except InputError as error:
        return error
    except ConfigError as error:
        if not numbers:
            raise
        return InputError(str(error))  # its translation without them is kept


def _by_glossary(shields: Sequence[Shielded], terms: Sequence[dict[str, str]], translate: Translate) -> list[Any]:
    """The translations of texts, each under its own glossary: those with the same one are translated together."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for n, own in enumerate(terms):
        groups.setdefault(tuple(sorted(own)), []).append(n)
    found: dict[int, Any] = {}
    for members in groups.values():
        results = translate([shields[n].text for n in members], terms[members[0]])
        found |= dict(zip(members, results, strict=True))
    return [found[n] for n in range(len(shields))]


@dataclass(frozen=True, eq=False, kw_only=True)
class Restored(Generation):
    """A translation with the protected parts of its source. Its tokens and maps are those of what was translated.

    Attributes:
        inner: the translation with stand-ins.
        parts: those of its sentences, with stand-ins, where it has several.
        given: the pieces of the source.
        made: the pieces of the translation.
    """

    inner: Generation = field(repr=False)
    parts: list[Generation] = field(default_factory=list, repr=False)
    given: list[Segment] = field(default_factory=list, repr=False)
    made: list[Segment] = field(default_factory=list, repr=False)

    @cached_property
    def alignment(self) -> Alignment:
        """Word alignment, from that of what was translated; a word of markup alone is aligned with none.

        Raises:
            ConfigError: the attention was not kept.
        """
        own = self.inner.alignment
        rows, columns = _mixed(self.made, len(own.target)), _mixed(self.given, len(own.source))
        matrix = rows / rows.sum(1, keepdim=True).clamp(min=1) @ own.matrix @ (columns / columns.sum(0).clamp(min=1)).T
        sums = matrix.sum(1, keepdim=True)
        matrix = torch.where(sums > 0, matrix / sums, 0.0)
        words = self.source.split(), self.text.split()
        return Alignment(matrix, *words, own.site, own.heads, self.title, own.chosen)

    @cached_property
    def words(self) -> list[Word]:
        """The output's words; one that stands for a protected part has the log-probability of its stand-in."""
        rows = _mixed(self.made, len(self.inner.text.split()))
        log_probs = torch.tensor([[word.log_prob, word.entropy] for word in self.inner.words]).reshape(-1, 2)
        shared = rows / rows.sum(0).clamp(min=1) @ log_probs
        mean = rows / rows.sum(1, keepdim=True).clamp(min=1) @ log_probs
        spans = word_spans(self.text)
        numbers = zip(spans, shared[:, 0].tolist(), mean[:, 1].tolist(), strict=True)
        return [Word(self.text[a:b], log_prob, entropy, (a, b)) for (a, b), log_prob, entropy in numbers]

    @property
    def searched(self) -> list[Generation]:
        """The translations that a search found, with stand-ins."""
        return self.inner.searched

    @cached_property
    def trace(self) -> Any:
        """The decoding of what was translated."""
        return self.inner.trace


def _mixed(pieces: Sequence[Segment], size: int) -> torch.Tensor:
    """`[outer words, inner words]`, 1 where a word of a text has characters of a word of what was translated.

    Args:
        pieces: of the text.
        size: number of inner words.
    """
    outer, inner = ("".join(getattr(piece, side) for piece in pieces) for side in ("outer", "inner"))
    of_inner = {i: n for n, (a, b) in enumerate(word_spans(inner)) for i in range(a, b)}
    origin: list[int | None] = []  # of each character of the text, one of what was translated
    start = 0
    for piece in pieces:
        same = piece.outer == piece.inner
        origin += [start + k if same else start if piece.inner else None for k in range(len(piece.outer))]
        start += len(piece.inner)
    spans = word_spans(outer)
    found = torch.zeros(len(spans), size)
    for n, (a, b) in enumerate(spans):
        for i in origin[a:b]:
            if i is not None and i in of_inner:
                found[n, of_inner[i]] = 1.0
    return found


def restored(shielded: Shielded, generation: Generation) -> Generation:
    """A translation with the protected parts in it; the same where there are none.

    Args:
        shielded: its source.
        generation: the translation of what was left.
    """
    if all(piece.outer == piece.inner for piece in shielded.pieces):
        return replace(generation, source=shielded.source) if generation.source != shielded.source else generation
    pieces = _pieces(shielded, generation)
    text = "".join(piece.outer for piece in pieces)
    others: dict[str, Generation] = {}
    for one in (restored(shielded, one) for one in generation.alternatives):
        if one.text != text:
            others.setdefault(one.text, one)
    kept = {name: getattr(generation, name) for name in Generation.__dataclass_fields__}
    kept |= {"text": text, "source": shielded.source, "alternatives": list(others.values()), "read": shielded.read}
    parts = getattr(generation, "parts", [])
    return Restored(**kept, inner=generation, parts=parts, given=shielded.pieces, made=pieces)


def _pieces(shielded: Shielded, generation: Generation) -> list[Segment]:
    """The translation in pieces: stand-ins undone, markup beside the words that it belongs to."""
    spans = [found.span() for found in re.finditer(r"\S+", generation.text)]
    words = [generation.text[start:end] for start, end in spans]
    gaps = [" ", *(generation.text[end:start] for (_, end), (start, _) in pairwise(spans))]
    before, after = _markup(shielded, generation, len(words))
    found: list[Segment] = [Segment(tag, "") for tag in before.get(len(words), [])] if not words else []
    stands_for = _as_written(shielded.stands_for, generation.text)
    names = "|".join(map(re.escape, sorted(stands_for, key=len, reverse=True)))
    last, there = "", set[str]()
    for n, (word, gap) in enumerate(zip(words, gaps, strict=False)):
        parts = [one for one in re.split(rf"(?<!\w)({names})(?!\w)", word) if one] if names else [word]
        surplus = []  # the text has each stand-in once, and so has its translation
        for part in parts:
            surplus.append(part in there)
            there |= {part} & stands_for.keys()
        touches = surplus[0] or {(last.upper(), True), (parts[0].upper(), False)} & shielded.touching
        between = gap if "\n" in gap else " "
        found += [GAP if touches and between == " " else Segment(between, between)] * bool(n)
        found += [Segment(tag, "") for tag in before.get(n, [])]
        found += [
            Segment("" if more else stands_for.get(part, part), part) for part, more in zip(parts, surplus, strict=True)
        ]
        found += [Segment(tag, "") for tag in after.get(n, [])]
        last = parts[-1]
    return found


def _as_written(stands_for: Mapping[str, str], text: str) -> dict[str, str]:
    """The stand-ins as they stand in a translation, which must have them whatever the case of their letters."""
    there = re.findall(r"\w+", text)
    others = {word.upper(): word for word in reversed(there)}
    return {name if name in there else others.get(name, name): part for name, part in stands_for.items()}


class Tag(NamedTuple):
    """A tag of a source.

    Attributes:
        text: the tag.
        first, last: the words [first, last) of what is translated that it is around; the next one, where nothing ends
            what it begins.
        closes: whether it stands behind them.
    """

    text: str
    first: int
    last: int
    closes: bool


def _tags(shielded: Shielded) -> list[Tag]:
    """The tags of a source, in order."""
    spans = word_spans(shielded.text)
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    found: list[Tag] = []
    waiting: list[tuple[str, int]] = []  # names of tags without an end so far, and their numbers
    open_tags: Counter[str] = Counter()  # how often each name waits
    at = 0
    for piece in shielded.pieces:
        at += len(piece.inner)
        if piece.inner:
            continue
        following, behind = bisect_right(ends, at), bisect_left(starts, at)
        outer = piece.outer.replace("&lt;", "<")
        named = re.match(r"</?([\w:-]+)", outer)
        name = named[1].lower() if named else ""
        if outer.startswith("</") and open_tags[name]:
            while True:  # what was begun within it ends with it
                begun, number = waiting.pop()
                open_tags[begun] -= 1
                if begun == name:
                    break
            if behind > found[number].first:
                found[number] = found[number]._replace(last=behind)
                found.append(Tag(piece.outer, found[number].first, behind, True))
            else:  # around nothing: it stays with its begin
                found.append(Tag(piece.outer, following, following + 1, False))
        else:
            found.append(Tag(piece.outer, following, following + 1, False))
            if not outer.startswith(("</", "<!", "]")):
                waiting.append((name, len(found) - 1))
                open_tags[name] += 1
    return found


def _markup(shielded: Shielded, generation: Generation, size: int) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """The tags before and after each word of a translation: around the words that are aligned with those that they are
    around in the source, or at the same share of the text where none is; those of an empty translation before word 0.
    """
    before: dict[int, list[str]] = {}
    after: dict[int, list[str]] = {}
    tags, total = _tags(shielded), len(shielded.text.split())
    pairs = generation.alignment.pairs if tags else []
    for tag in tags:
        own = [i for i, j in pairs if tag.first <= j < tag.last]
        share = [min(size - 1, n * size // max(1, total)) for n in (tag.first, max(tag.first, tag.last - 1))]
        if size and (tag.closes or tag.first >= total):
            after.setdefault(max(own, default=share[1]), []).append(tag.text)
        else:
            before.setdefault(max(0, min(own, default=share[0])), []).append(tag.text)
    return before, after
