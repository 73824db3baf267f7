"""Variants of training pairs, as users type: fragments, phrases, words, names and numbers, haste, capitals, long lines.

`augment` makes them all, each by a setting of its own (`AugmentConfig`); development and test pairs stay as they are.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from unicodedata import combining, normalize

from pydantic import BaseModel, ConfigDict, Field

from regard.data.align import Aligner, Link, phrases
from regard.data.pairs import Pairs

Pair = tuple[str, str]
Share = Field(0.0, ge=0, le=1)

LEAST_WORD = 3  # occurrences of a pair of words before it is shown on its own
CERTAIN = 0.4  # share of a word's links that go to its most frequent partner
MADE_UP = 0.3  # share of the replaced names that are new words, spelled alike on both sides
JOINED_WORDS = 60  # words of a line of joined pairs, at most


class AugmentConfig(BaseModel):
    """Settings of the variants of training pairs that are added to them; each is off unless set."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    fragments: float = Share
    """Share of the training pairs that are repeated without final full stop and initial capital, as users type."""
    loose_spacing: float = Share
    """Share of the training sources whose no-break spaces before ? ! : ; are replaced by a space or removed."""
    phrases: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Average number of phrases per training pair that are added as pairs of their own: phrases whose words are aligned
    one to one."""
    turned: bool = False
    """Prefer phrases whose words change their order ("chat noir", "black cat")."""
    crossed: int = Field(0, ge=0, le=1000)
    """Number of copies of every distinct phrase whose words change their order, in lower case: a rare adjective is
    then reordered as often in training as a frequent one."""
    words: int = Field(0, ge=0, le=1000)
    """Number of copies of every word with its most frequent translation, as a pair of its own in lower case."""
    names: float = Share
    """Share of the pairs whose names (of the list that comes with regard) are replaced by other names of their kind on
    both sides; some of these are made up, so that a name never seen before is copied."""
    numbers: float = Share
    """Share of the pairs whose numbers, where both sides have the same digits, are replaced on both sides."""
    sloppy: float = Share
    """Share of the pairs that are repeated with a source typed in haste: without capitals, accents, apostrophes or
    final punctuation, each in half of the cases."""
    upper: float = Share
    """Share of the pairs that are repeated with a source in capitals; the target stays as it is."""
    joined: float = Share
    """Number of lines of two to five pairs that are added, as a share of the number of pairs."""


def augment(
    pairs: Pairs,
    config: AugmentConfig,
    seed: int,
    languages: tuple[str, str] = ("fr", "en"),
    aligner: Aligner | None = None,
    usual_in: Pairs | None = None,
) -> Pairs:
    """Training pairs, and the variants of them that the settings ask for.

    A first word is put in lower case only if it occurs in lower case more often than not inside the training
    sentences, so that I, Tom and Paris keep their capital.

    Args:
        pairs: the training pairs.
        config: which variants, and how many.
        seed: the same seed gives the same variants.
        languages: of source and target, for names that differ by language.
        aligner: for phrases and words; one that is learned from the pairs by default.
        usual_in: pairs that tell which words are written with a capital; the pairs themselves by default.
    """
    dice = random.Random(seed)
    known = pairs if usual_in is None else usual_in
    usual = [_usual_case(side) for side in (known.source, known.target)]
    aligned = config.phrases or config.crossed or config.words
    links: list[set[Link]] = [set()] * len(pairs)
    if aligned:
        links = (aligner or Aligner(list(pairs))).links(list(pairs))
    replace = _replacement(config, languages, dice)
    result: list[Pair] = []
    where: list[str] = []
    for number, (pair, own) in enumerate(zip(pairs, links, strict=True)):
        shown = [replace(pair), *_shorter(pair, own, config, dice, usual)]
        for s, t in shown:
            loose = dice.random() < config.loose_spacing
            result.append((re.sub("[\u00a0\u202f](?=[?!:;»])", dice.choice(["", " "]), s) if loose else s, t))
            where.append(pairs.where[number] if pairs.where else "")
    # drawn after the variants above, so that a setting added here changes nothing of what the others draw
    added = _crossed(pairs, links) * config.crossed + _words(pairs, links) * config.words
    added += [(in_haste(s, dice), t) for s, t in map(replace, _some(pairs, config.sloppy, dice))]
    added += [(s.upper(), t) for s, t in map(replace, _some(pairs, config.upper, dice))]
    added += list(_joined(pairs, round(config.joined * len(pairs)), dice, replace))
    return Pairs.of(result + added, where + [""] * len(added))


def _shorter(
    pair: Pair, links: set[Link], config: AugmentConfig, dice: random.Random, usual: Sequence[Counter[str]]
) -> list[Pair]:
    """The pair as a fragment, and some of its phrases."""
    found = [pair] if dice.random() < config.fragments else []
    wanted = int(config.phrases + dice.random())
    if wanted:
        some = phrases(pair[0].split(), pair[1].split(), links, turned=config.turned)
        found += dice.sample(some, min(wanted, len(some)))
    return [(_fragment(s, usual[0]), _fragment(t, usual[1])) for s, t in found]


def _crossed(pairs: Pairs, links: Sequence[set[Link]]) -> list[Pair]:
    """Every phrase whose words change their order, in lower case, each once."""
    found = {
        (here.lower(), there.lower())
        for (source, target), known in zip(pairs, links, strict=True)
        for here, there in phrases(source.split(), target.split(), known, crossed=True)
    }
    return sorted(found)


def _words(pairs: Pairs, links: Sequence[set[Link]]) -> list[Pair]:
    """Every source word with its most frequent partner, in lower case, where the two are seen together often enough."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for (source, target), known in zip(pairs, links, strict=True):
        here, there = source.split(), target.split()
        for t, s in known:
            seen[_bare(here[s])][_bare(there[t])] += 1
    found = []
    for word, partners in sorted(seen.items()):
        (partner, count), total = partners.most_common(1)[0], partners.total()
        if word and partner and count >= max(LEAST_WORD, CERTAIN * total):
            found.append((word, partner))
    return found


def _bare(word: str) -> str:
    """A word in lower case without the punctuation around it; empty if letters or digits are not all there is."""
    bare = word.lower().strip(' .,!?;:…«»"()\u00a0\u202f')
    return bare if bare.replace("-", "").isalpha() else ""


def _some(pairs: Pairs, share: float, dice: random.Random) -> Iterator[Pair]:
    yield from (pair for pair in pairs if dice.random() < share) if share else ()


def _joined(pairs: Pairs, count: int, dice: random.Random, replace: Callable[[Pair], Pair]) -> Iterator[Pair]:
    """Lines of two to five random pairs of sentences, one after the other."""
    for _ in range(count):
        parts = [replace(_at(pairs, dice.randrange(len(pairs)))) for _ in range(dice.choice((2, 2, 3, 3, 4, 5)))]
        while len(parts) > 2 and sum(len(s.split()) for s, _ in parts) > JOINED_WORDS:
            parts.pop()
        yield " ".join(s for s, _ in parts), " ".join(t for _, t in parts)


def _at(pairs: Pairs, place: int) -> Pair:
    return pairs.source[place], pairs.target[place]


def in_haste(text: str, dice: random.Random) -> str:
    """A text typed in haste: no capitals, accents, apostrophes or final punctuation, each in half of the cases."""
    if dice.random() < 0.5:
        text = text.lower()
    if dice.random() < 0.5:
        text = "".join(c for c in normalize("NFD", text.replace("œ", "oe")) if not combining(c))
    if dice.random() < 0.5:
        text = re.sub("(?<=\\w)['’](?=\\w)", dice.choice(["", " "]), text)
    if dice.random() < 0.5:
        text = text.rstrip(" .!?…\u00a0\u202f") or text
    return text


@dataclass(frozen=True)
class Names:
    """Names of one kind in two languages.

    Attributes:
        rows: (source, target) spellings of every name.
        place: from a spelling on the source side to the rows that have it.
    """

    rows: list[Pair]
    place: dict[str, list[int]]


@cache
def read_names(languages: tuple[str, str]) -> dict[str, Names]:
    """The names that come with regard, by kind, in two languages; a language without a column has the first one's."""
    lines = (files("regard.data") / "names.tsv").read_text("utf-8").splitlines()
    columns = lines[0].split("\t")
    here, there = (columns.index(language) if language in columns else 1 for language in languages)
    kinds: dict[str, list[Pair]] = defaultdict(list)
    for line in lines[1:]:
        cells = line.split("\t")
        cells += [cells[1]] * (len(columns) - len(cells))  # spelled alike
        kinds[cells[0]].append((cells[here], cells[there]))
    found = {}
    for kind, rows in kinds.items():
        place: dict[str, list[int]] = defaultdict(list)
        for number, (name, _) in enumerate(rows):
            place[name].append(number)
        found[kind] = Names(rows, dict(place))
    return found


def _replacement(config: AugmentConfig, languages: tuple[str, str], dice: random.Random) -> Callable[[Pair], Pair]:
    """A function that replaces names and numbers of a pair as often as the settings say."""
    if not config.names and not config.numbers:
        return lambda pair: pair

    def replace(pair: Pair) -> Pair:
        if config.names and dice.random() < config.names:
            pair = other_names(pair, languages, dice)
        if config.numbers and dice.random() < config.numbers:
            pair = other_numbers(pair, dice)
        return pair

    return replace


_NAME = re.compile(r"\b[^\W\d_][\w-]*")


def other_names(pair: Pair, languages: tuple[str, str], dice: random.Random) -> Pair:
    """A pair whose names are replaced on both sides by others of their kind, or by made-up ones."""
    source, target = pair
    for word in dict.fromkeys(_NAME.findall(source)):
        if not word[0].isupper():
            continue
        for names in read_names(languages).values():
            known = [names.rows[n] for n in names.place.get(word, ())]
            here = next((row for row in known if re.search(rf"\b{re.escape(row[1])}\b", target)), None)
            if here is None:
                continue
            new = (made_up(names, dice),) * 2 if dice.random() < MADE_UP else dice.choice(names.rows)
            source = re.sub(rf"\b{re.escape(here[0])}\b", lambda _: new[0], source)  # noqa: B023
            target = re.sub(rf"\b{re.escape(here[1])}\b", lambda _: new[1], target)  # noqa: B023
            break
    return source, target


def made_up(names: Names, dice: random.Random) -> str:
    """A new name: the beginning of one name of a kind and the end of another."""
    first, last = (dice.choice(names.rows)[0].split()[0] for _ in range(2))
    cut = dice.randint(2, 4)
    return (first[:cut] + last[-dice.randint(2, 5) :].lower()).strip("-")


def other_numbers(pair: Pair, dice: random.Random) -> Pair:
    """A pair whose numbers that have the same digits on both sides are replaced by others of the same length.

    The first two digits of a number of four stay as they are if it could be a year.
    """
    runs = [set(re.findall(r"\d+", side)) for side in pair]
    new = {}
    for digits in sorted(runs[0] & runs[1]):
        kept = digits[:2] if len(digits) == 4 and digits[:2] in ("18", "19", "20") else ""
        first = "" if kept else str(dice.randint(1, 9))
        rest = len(digits) - len(kept or first)
        new[digits] = (kept or first) + "".join(str(dice.randint(0, 9)) for _ in range(rest))
    source, target = (re.sub(r"\d+", lambda found: new.get(found[0], found[0]), side) for side in pair)
    return source, target


def _usual_case(sentences: list[str]) -> Counter[str]:
    """Counts of words inside sentences, their first words left out."""
    return Counter(word for sentence in sentences for word in re.findall(r"\w+", sentence)[1:])


def _fragment(sentence: str, usual: Counter[str]) -> str:
    if sentence.strip(".,").strip() and not sentence.endswith(".."):
        sentence = sentence.removesuffix(",").removesuffix(".")
    first = re.match(r"\w+", sentence)
    if first and usual[first[0].lower()] > usual[first[0]]:
        return sentence[0].lower() + sentence[1:]
    return sentence
