"""Debian's package descriptions as parallel sentences."""

import pytest

from regard.data.datasets.debian import descriptions, sentences
from regard.errors import DataError

RECORD = """Package: {name}
Description-md5: {key}
Description-{language}: {summary}
 {first}
 .
 {second}
  * a list
 .
 {third}

"""


def write(path, language, *records):
    text = "".join(RECORD.format(language=language, **record) for record in records)
    path.write_text(text, "utf-8")
    return path


def record(key, summary, first, second, third):
    return {"name": "x", "key": key, "summary": summary, "first": first, "second": second, "third": third}


def test_sentences_are_matched_by_description_and_paragraph(tmp_path):
    fr = write(tmp_path / "fr", "fr",
               record("1", "un jeu de cartes", "Il est gratuit. Il est\n très rapide.", "Une phrase de trop.", "Non"),
               record("2", "autre chose de bien", "Rien à voir ici.", "Encore une phrase.", "Oui"))  # fmt: skip
    en = write(tmp_path / "en", "en",
               record("3", "never seen at all", "Nobody knows it.", "x", "x"),
               record("1", "a card game", "It is free. It is\n very fast.", "One sentence. And another one.", "No"),
               )  # fmt: skip
    assert list(descriptions(fr, en)) == [
        ("un jeu de cartes", "a card game"),
        ("Il est gratuit.", "It is free."),
        ("Il est très rapide.", "It is very fast."),
    ]


def test_a_pair_comes_once_and_unlike_lengths_are_left_out(tmp_path):
    one = record("1", "un jeu de cartes", "Il est gratuit.", "Ceci est beaucoup plus long que son pendant.", "x")
    other = record("1", "a card game", "It is free.", "This is short.", "x")
    fr = write(tmp_path / "fr", "fr", one, {**one, "key": "2"})
    en = write(tmp_path / "en", "en", other, {**other, "key": "2"})
    assert list(descriptions(fr, en)) == [("un jeu de cartes", "a card game"), ("Il est gratuit.", "It is free.")]


def test_a_file_without_descriptions_is_refused(tmp_path):
    good = write(tmp_path / "good", "fr", record("1", "un jeu de cartes", "Il est gratuit.", "x", "x"))
    (tmp_path / "other").write_text("something else\n")
    for pair in ((good, tmp_path / "other"), (tmp_path / "other", good)):
        with pytest.raises(DataError, match="other: no package descriptions"):
            list(descriptions(*pair))


def test_where_sentences_end():
    assert sentences("C'est la v. 2.0 du jeu. Élan ! « Oui. » Et e.g. non") == [
        "C'est la v. 2.0 du jeu.", "Élan !", "« Oui. »", "Et e.g. non",
    ]  # fmt: skip
    assert sentences("") == []
