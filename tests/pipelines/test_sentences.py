"""A text of several sentences: each has its translation, and together they are one result."""

import pytest
import torch

import regard
from regard.errors import ConfigError
from regard.pipelines import sentences
from regard.pipelines.base import InputError
from regard.pipelines.load import load
from regard.pipelines.sentences import Joined, between, cut, laid_out
from regard.pipelines.translator import Translator

THREE = "Le chat noir dort.  Le chien rouge mange. Le lapin vert court !"


@pytest.fixture
def translator(tiny_run) -> Translator:
    return load(tiny_run)


@pytest.mark.parametrize(
    ("text", "language", "sentences"),
    [
        ("Bonjour M. Dupont. Ça va ?", "fr", ["Bonjour M. Dupont.", "Ça va ?"]),
        ("Mr. Smith left.  Why?", "en", ["Mr. Smith left.", "Why?"]),
        ("le chat noir", "fr", ["le chat noir"]),
        ("Il est 18.45. Viens.", "", ["Il est 18.45.", "Viens."]),
        ("Il dit : « Viens ! » Puis il part.", "fr", ["Il dit : « Viens ! »", "Puis il part."]),
        ("你好。我很好！再见", "zh", ["你好。", "我很好！", "再见"]),
        ("p6L0I0i8x2M2E9?i8", "fr", ["p6L0I0i8x2M2E9?i8"]),
        ("What?No. Yes", "fr", ["What?No.", "Yes"]),
        ("", "fr", []),
    ],
)
def test_cutting(text: str, language: str, sentences: list[str]) -> None:
    assert cut(text, language) == sentences


@pytest.mark.parametrize("space", ["\u00a0", "\u2028", " \u3000", "\u202f "])
def test_white_space_before_a_period_may_be_wide(space: str) -> None:
    text = f"Le plan A{space}. Le chat dort."  # sentencex panics at "A\u00a0."
    for language in ("fr", "en", "de", "ru", "ja", "hi", ""):
        plain = cut(text.replace(space, " " * len(space)), language)
        assert [one.replace(space, " " * len(space)) for one in cut(text, language)] == plain


def test_a_text_at_which_sentencex_fails_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As Rust's is named."""

    def segment(language: str, text: str) -> list[str]:
        raise PanicException

    monkeypatch.setattr(sentences, "segment", segment)
    assert cut(" A. B. ", "fr") == ["A. B."]


def test_long_texts_are_cut_as_short_ones() -> None:
    some = [f"Le chat numéro {n} dort sur le canapé de Paul." for n in range(1_000)]
    assert cut(" ".join(some), "fr") == some
    one = "mot " * 9_000
    assert cut(one, "fr") == [one.strip()]


@pytest.mark.parametrize("settings", [{"beam": 2}, {"beam": 3, "n_best": 2}, {"sample": True, "seed": 3}])
def test_every_sentence_has_its_own_translation(translator: Translator, settings: dict) -> None:
    made = translator(THREE, **settings)
    assert isinstance(made, Joined)
    assert [part.source for part in made.parts] == cut(THREE, "fr")
    assert made.source == THREE
    assert made.text == " ".join(part.text for part in made.parts if part.text)
    assert made.log_prob == pytest.approx(sum(part.log_prob for part in made.parts))
    assert translator.score([made.source], [made])[0].log_prob == pytest.approx(made.log_prob, abs=1e-3)
    assert [word.text for word in made.words] == made.text.split()
    assert [made.text[slice(*word.span)] for word in made.words] == made.text.split()
    if "beam" in settings:
        alone = [translator(part.source, **settings) for part in made.parts]
        assert [part.text for part in made.parts] == [one.text for one in alone]


def test_alignment_is_joined_and_attention_is_with_the_parts(translator: Translator) -> None:
    made = translator(THREE)
    matrix = made.alignment.matrix
    assert matrix.shape == (len(made.text.split()), len(THREE.split()))
    row = column = 0
    for part in made.parts:
        own = part.alignment.matrix
        torch.testing.assert_close(matrix[row : row + own.shape[0], column : column + own.shape[1]], own)
        row, column = row + own.shape[0], column + own.shape[1]
    assert float(matrix.sum()) == pytest.approx(sum(float(part.alignment.matrix.sum()) for part in made.parts))
    with pytest.raises(ConfigError, match=r"each of \.parts has its own attention; split=False translates"):
        made.attention["decoder.cross"]
    with pytest.raises(ConfigError, match=r"each of \.parts"):
        _ = made.trace
    assert made.as_json()["alignment"]["target"] == made.text.split()
    assert made.parts[0].attention


def test_a_text_can_be_translated_as_one(translator: Translator) -> None:
    whole = translator(THREE, split=False)
    assert not isinstance(whole, Joined)
    assert whole.attention
    assert not isinstance(translator("le chat noir dort."), Joined)


def test_length_is_no_limit_and_a_sentence_that_is_too_long_is_named(translator: Translator) -> None:
    many = " ".join(["Le chat noir dort."] * 200)
    with pytest.raises(InputError, match="too long"):
        translator(many, split=False)
    assert len(translator(many, beam=1, record=False).parts) == 200
    one, other = translator.each([f"Bonjour. {'chat ' * 400}. Merci.", "le chat"])
    assert isinstance(one, InputError)
    assert other.ids


def test_observed_sentences_are_seen_one_by_one(translator: Translator) -> None:
    with regard.observe(translator) as seen:
        made = translator(THREE)
    site = next(site for site in seen if site.endswith("cross"))
    assert [one.shape for one in seen[site]] == [part.attention[site].shape for part in made.parts]


def test_draws_depend_on_the_text_alone(translator: Translator) -> None:
    settings = {"sample": True, "seed": 1, "temperature": 1.5}
    together = translator(["le chat", THREE, "la maison"], **settings)
    assert translator([THREE], first_index=1, **settings)[0].tokens == together[1].tokens


def test_line_breaks_stay(translator: Translator) -> None:
    text = "Le chat dort.\n\nLe chien mange. Il est noir.\r\n- oui\n"
    assert cut(text, "fr") == ["Le chat dort.", "Le chien mange.", "Il est noir.", "- oui"]
    found = translator(text)
    assert found.text == laid_out([part.text for part in found.parts], ["\n\n", " ", "\r\n"])[0]
    assert "\n\n" in found.text
    assert [found.text[slice(*word.span)] for word in found.words] == [word.text for word in found.words]
    streamed = translator.stream(text)
    assert "".join(streamed) == streamed.result.text == found.text


def test_gaps_between_texts() -> None:
    assert between("a\n \nb c\r\nd", ["a", "b", "c", "d"]) == ["\n\n", " ", "\r\n"]
    assert laid_out(["A", "", "C", "D"], ["\n\n", " ", " "]) == ("A\n\nC D", [0, 1, 3, 5])
    assert laid_out(["", "B"], ["\n"]) == ("B", [0, 0])
