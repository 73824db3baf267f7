"""Languages: detected among some, and named."""

from regard.serving.languages import detect, language_name


def test_the_most_probable_language_comes_first() -> None:
    assert detect("Bonjour, comment allez-vous ?")[0][0] == "fr"
    assert detect("This is an English sentence.")[0][0] == "en"
    found = detect("le chat noir", {"fr", "en", "zz"})
    assert [code for code, _ in found] == ["fr", "en"]
    assert abs(sum(share for _, share in found) - 1) < 1e-3


def test_codes_have_names() -> None:
    assert [language_name(code) for code in ("fr", "pt-BR", "zz", "not a code", "")] == [
        "French", "Portuguese", "zz", "not a code", "",
    ]  # fmt: skip
