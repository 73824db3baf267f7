"""What survives a translation: addresses, placeholders, code, markup and numbers."""

import re
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import regard
from random_outputs import translator
from regard.errors import ConfigError
from regard.pipelines.base import InputError
from regard.pipelines.load import load
from regard.pipelines.protect import LETTERS, LONGEST, shield, translate_protected
from regard.pipelines.translator import Translator


@pytest.fixture(scope="module")
def model() -> Translator:
    found = load("fr-en")
    assert isinstance(found, Translator)
    return found


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "part",
    [
        "https://example.org/a?b=1&c=%20", "www.example.org/x_y", "ftp://example.org", "max.muster+x@example.co.uk",
        "https://example.org/{page}", "www.example.org/{a}/{b}?c", "{count}", "{{ user.name }}", "${HOME}", "%s",
        "%(name)s", "%1$d", "%05.2f", "`rm -rf x`", "R&amp;D", "API_KEY", "&eacute;t&eacute;",
    ],
)  # fmt: skip
def test_what_is_hidden_survives(model: Translator, part: str) -> None:
    text = f"Le chat noir dort chez {part}."
    found = shield(text)
    assert found.source == text
    assert list(found.stands_for.values()) == [part]
    assert part not in found.text
    made = model(text, protect=True)
    assert made.text.count(part) == 1
    assert made.source == text
    assert made.alignment.source == text.split()
    assert made.alignment.target == made.text.split()
    assert made.alignment.matrix.shape == (len(made.text.split()), len(text.split()))
    assert [word.text for word in made.words] == made.text.split()
    (scored,) = model.score([text], [made])
    assert scored.log_prob == pytest.approx(made.log_prob, abs=1e-4)


def test_a_part_that_is_there_twice_has_two_names() -> None:
    found = shield("X {a} et {b} et {a}")
    assert found.stands_for == {"Q": "{a}", "Z": "{b}", "K": "{a}"}  # the text has an X
    assert found.text == "X Q et Z et K"


def test_a_part_that_is_there_twice_stays_twice(model: Translator) -> None:
    for text in ("Bonjour {x}, merci {x}", "{0} et {0} et {1}", "le chat %s dort et le chien %s %s mange"):
        made = model(text, protect=True).text
        for part in re.findall(r"\{.\}|%s", text):
            assert made.count(part) == text.count(part), made


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{0}Le chat dort.", "{0}The cat is sleeping."),
        ("le {0}{1} chat dort", "the {0}{1} cat is sleeping"),
        ("Le chat{n} dort.", "The{n} cat is sleeping."),  # the second best output has a small x in its place
        ("Le chat et {n} et chien{n}", "The cat and {n} and dog{n}."),  # it touches a word once of two times
        ("<b>{0}</b>{1}", "<b>{0}</b>{1}"),
        ("le chat&nbsp;noir", "the&nbsp;black cat"),
    ],
)
def test_a_hidden_part_may_touch_a_word_or_another_one(model: Translator, text: str, wanted: str) -> None:
    made = model(text, protect=True, n_best=2)
    assert made.text == wanted
    assert made.source == text
    assert made.alignment.matrix.shape == (len(wanted.split()), len(text.split()))
    assert [word.text for word in made.words] == wanted.split()
    assert all(part in one.text for one in made.alternatives for part in shield(text).stands_for.values())
    (scored,) = model.score([text], [made])
    assert scored.log_prob == pytest.approx(made.log_prob, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("le <00:01.500>chat", r"the <00:01.500>cat"),
        ("le <i></i>chat dort", r"the <i></i>cat .*"),
        ("le chat<i></i>", r"the cat<i></i>"),
        ('Le <ph id="1">{0}</ph>chat dort.', r'The <ph id="1">\{0\}</ph>cat .*'),
        ("<bpt>&lt;b&gt;</bpt>le chat<ept>&lt;/b&gt;</ept>", r"<bpt>&lt;b&gt;</bpt>the cat<ept>&lt;/b&gt;</ept>"),
        ("le chat &lt;i&gt;noir&lt;/i&gt; dort", r"the &lt;i&gt;black&lt;/i&gt; cat .*"),
        ("<![CDATA[le chat dort]]>", r"<!\[CDATA\[the cat .*\]\]>"),
        ("Le <b>chat noir</b> dort.", r"The <b>black cat</b> .*"),
        ("Le chat <i>noir</i> dort.", r"The <i>black</i> cat .*"),
        ("<p>Le chat noir</p>", r"<p>.*</p>"),
        ('<a href="x y">Le <b>chat</b></a>', r'<a href="x y">.*<b>cat</b>.*</a>'),
        ("le chat noir<br/>", r"the black cat<br/>"),
        ("<!-- note --> le chat noir", r"<!-- note -->the black cat"),
        ("</b> le chat noir <b>", r"</b>the black cat<b>"),
    ],
)
def test_markup_is_set_around_the_same_words(model: Translator, text: str, wanted: str) -> None:
    made = model(text, protect=True)
    assert re.fullmatch(wanted, made.text), made.text
    assert re.findall(r"<[^>\[]*>", text) == re.findall(r"<[^>\[]*>", made.text)
    assert made.alignment.matrix.shape == (len(made.text.split()), len(text.split()))
    rows = made.alignment.matrix.sum(1)
    assert all(abs(float(row) - 1) < 1e-4 or row == 0 for row in rows)


def test_lost_numbers_are_searched_again(model: Translator) -> None:
    text = "Il y a 37 chats et 48 chiens en 1789."
    made = model(text, protect=True)
    assert set(re.findall(r"\d+", text)) <= set(re.findall(r"\d+", made.text))
    assert shield("12 et 12,5").lost_numbers("12.5 and 12") == []
    assert shield("12 et 12,5").lost_numbers("12") == ["12,5"]
    assert shield("de -12 à 3-4").lost_numbers("from 12 to 3-4") == ["-12"]
    assert shield("(-5) et +33, ±3").lost_numbers("(5) and 33, 3") == ["-5", "+33", "±3"]
    assert shield("(-5) et +33, ±3").lost_numbers("(−5) and +33, ± 3") == []
    assert shield("½ litre, ③, Ⅳ, 50 m²").lost_numbers("a litre, 3, 50 m²") == ["½", "③", "Ⅳ"]
    for kept in ("from -12", "from −12", "from minus 12"):
        assert shield("de -12").lost_numbers(kept) == []
    assert shield("à 18 h 45").lost_numbers("at 6:45 p.m.") == []
    assert shield("à 18 h").lost_numbers("at 16 p.m.") == ["18"]
    assert shield("de -1 et +12").lost_numbers("Plus 12 and -12") == ["1", "-1"]
    assert shield("at 6:45 p.m.").lost_numbers("à 18 h 45") == []
    assert shield("à 18 h 45").lost_numbers("at 6:45 a.m.") == ["18"]
    for kept in ("1,234 apples", "1 234 apples", "1234 apples", "1\u202f234 apples"):
        assert shield("1 234 pommes").lost_numbers(kept) == []
    assert shield("1 234 pommes").lost_numbers("234 apples, 1 pear") == ["1 234"]
    assert shield("3,5 et 12 345,67").lost_numbers("3.5 and 12,345.67") == []
    assert shield("7" * 5000).lost_numbers("none") == ["7" * 5000]


@pytest.mark.parametrize(
    "text",
    [
        "Il y a 3 chats et 3 chiens et 3 oiseaux.", "Le train de 5 heures part du quai 5 le 5 mai.", "Ouvrez -5 !",
        "Chambre 12, étage 12, porte 12.", "Il y a 5 maisons et 12 oiseaux et 40 euros et 2 enfants.",
        "Il y a 7 {n} et 7 chats et 7 chiens.", "Ajoutez ½ litre de lait.", "Le train part à (-5).",
        "Appelez le +33 6 12 34 56 78.", "6e fois 6e font beaucoup.", "44 % fois 44e font beaucoup.",
    ],
)  # fmt: skip
def test_numbers_are_there_as_often_as_in_the_source(model: Translator, text: str) -> None:
    made = model(text, protect=True)
    assert shield(text).lost_numbers(made.text) == []
    assert Counter(re.findall(r"\d+", text)) <= Counter(re.findall(r"\d+", made.text))
    assert made.text.count("{n}") == text.count("{n}")
    assert made.alignment.target == made.text.split()


def test_a_text_without_anything_to_protect_does_not_change(model: Translator) -> None:
    texts = ["le chat noir", "Le chien dort. Le chat mange.", ""]
    for one, other in zip(model(texts), model(texts, protect=True), strict=True):
        assert (one.text, one.ids, one.log_prob, type(one)) == (other.text, other.ids, other.log_prob, type(other))


def test_several_sentences(model: Translator) -> None:
    text = "<p>Le chat dort.</p> <p>Le chien noir mange {n} fois.</p>"
    made = model(text, protect=True, n_best=2)
    assert re.fullmatch(r"<p>.*\.</p> <p>.*\{n\}.*</p>", made.text)
    assert len(made.parts) == 2
    assert made.alignment.matrix.shape == (len(made.text.split()), len(text.split()))
    assert all("{n}" in one.text for one in made.alternatives)
    (scored,) = model.score([text], [made])
    assert scored.log_prob == pytest.approx(made.log_prob, abs=1e-4)


def test_protection_and_a_glossary_together(model: Translator) -> None:
    made = model("Le chat de {name}", protect=True, glossary={"chat": "kitten"})
    assert "{name}" in made.text
    assert "kitten" in made.text
    assert not torch.isnan(made.alignment.matrix).any()


def test_a_draw_is_not_protected(model: Translator) -> None:
    with pytest.raises(ConfigError, match="protect needs a search: leave out sample"):
        model("{a}", protect=True, sample=True)


def test_what_stands_for_a_part_is_a_word_that_the_vocabulary_has() -> None:
    assert shield("a {b} {c}", {"Q", "ZZ"}.__contains__).stands_for == {"Q": "{b}", "ZZ": "{c}"}
    limited = translator()  # its vocabulary has no capital letters and no digits
    assert limited("le chat 12", protect=True).source == "le chat 12"
    with pytest.raises(ConfigError, match=r"protect: this model's vocabulary spells none of the words .* for '\{a\}'"):
        shield("le {a}", lambda word: word not in LETTERS and len(word) > LONGEST)


def test_a_text_of_too_many_parts_is_refused_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regard.pipelines.protect.LONGEST", 1)
    found = regard.load("fr-en-fast").each(["le chien", "%s " * (len(LETTERS) + 1), "le {a} chat"], protect=True)
    first, second, third = found
    assert first.text == "the dog"
    assert isinstance(second, InputError)
    assert f"more than {len(LETTERS)} parts to protect: divide it, or leave out protect" in str(second)
    assert "{a}" in third.text


def test_translations_are_kept_where_no_word_can_stand_for_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regard.pipelines.protect.restored", lambda own, made: made)

    def translate(texts: list[str], terms: Any) -> list[Any]:
        return [SimpleNamespace(text=text.replace("7", "sept")) for text in texts]

    found = translate_protected(["a cat", "there are 7 cats"], translate, lambda word: False)
    assert [one.text for one in found] == ["a cat", "there are sept cats"]


@pytest.mark.parametrize(
    "wanted", [{"prefix": "a\ud800"}, {"force": ["\ud800"]}, {"forbid": ["\ud800"]}, {"glossary": {"\ud800": "a"}}]
)
def test_half_a_character_is_refused_where_outputs_are_to_have_it(wanted: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(wanted))}: .* is no text in Unicode: half of a character"):
        translator()("le chat", **wanted)


def test_line_breaks_and_the_source_stay(model: Translator) -> None:
    text = "Un chien court.\nUn homme\tdort.\r\n\r\nBonjour {x}\n"
    found = model(text, protect=True)
    assert found.source == text
    assert found.text == "A dog is running.\nA man is sleeping.\r\n\r\nHello, {x}"
    assert model("Un chien court.\nUn homme dort.", protect=True).text == "A dog is running.\nA man is sleeping."


def test_alternatives_are_distinct_with_their_parts(model: Translator) -> None:
    found = model("https://a.b/c", protect=True, n_best=3, beam=3)
    texts = [found.text, *(one.text for one in found.alternatives)]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    "tag",
    [
        '<a title="prix <10 €" href="y">', '<a title="a > b">', '<b x="<i>">', "<b title='a > b'>",
        '<a title="&quot;x&quot;">', '<a title="a\u00a0b">', '<a\ntitle="a">',
    ],
)  # fmt: skip
def test_attributes_of_a_tag_stay_as_they_are(model: Translator, tag: str) -> None:
    name = tag[1]
    assert model(f"{tag}le chat</{name}> dort", protect=True).text == f"{tag}the cat</{name}> is sleeping"


@pytest.mark.parametrize(
    "text", ["I have {a}, {b}, {c}, {d}, {e}, {f} and {g}.", "There are {0}, {1}, {2} and 12 in the box."]
)
def test_no_word_of_the_other_language_is_taken_for_a_part(text: str) -> None:
    made = regard.load("en-fr")(text, protect=True).text
    assert re.match(r"J'|Il y a ", made), made
    assert all(made.count(part) == 1 for part in re.findall(r"\{.\}", text)), made


def test_a_glossary_that_is_none_is_refused_beside_protected_parts(model: Translator) -> None:
    with pytest.raises(ConfigError, match="glossary must be terms with their translations, as a dict"):
        model("le chat {n}", protect=True, glossary=[("chat", "cat")])


def test_years_beside_numbers_are_two_numbers() -> None:
    assert shield("In 2010 300 people came.").lost_numbers("En 2010 300 personnes.") == []
    assert shield("le 5 mai 2020 500 hommes").lost_numbers("on 5 May 2020, 500 men") == []


def test_markup_over_several_lines() -> None:
    made = regard.load("fr-en-fast")("Voir <!-- a\nb --> ici.", protect=True, record=False)
    assert "<!-- a\nb -->" in made.text


@pytest.mark.parametrize("how", [{"glossary": {"chat": "X"}}, {"force": ["X"]}, {"prefix": "X"}, {"forbid": ["X"]}])
def test_no_word_that_is_asked_for_stands_for_a_part(how: dict[str, Any]) -> None:
    made = regard.load("fr-en")("Le chat mange {n} pommes.", protect=True, **how)
    assert made.text.count("{n}") == 1
    assert bool(re.search(r"\bX\b", made.text)) == ("forbid" not in how)
