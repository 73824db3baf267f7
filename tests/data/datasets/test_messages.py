"""Message catalogues as parallel sentences."""

import struct
from pathlib import Path

import pytest
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

from regard.data.datasets.messages import messages
from regard.errors import DataError

HEAD = r"""msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\n"
"Plural-Forms: nplurals=2; plural=(n > 1);\n"
"""
CATALOGUE = (
    HEAD
    + r"""
"PO-Revision-Date: Mon Feb 18 22:35:34 2008\n"

msgid "Where is the old king?\nI saw him. He sleeps now.\nOne line too many here."
msgstr "Où est le vieux roi ?\nJe l'ai vu. Il dort maintenant.\nTrois phrases. De plus. Ici même."

#, fuzzy
msgid "This one is a guess."
msgstr "Celle-ci est une supposition."

msgctxt "speech"
msgid "Come back to the village."
msgstr "Reviens au  village."

msgid "You have %d gold coins."
msgstr "Vous avez %d pièces d'or."

msgid "Click on <b>the door</b> now."
msgstr "Cliquez sur <b>la porte</b> maintenant."

msgid "About 50% of them are lost."
msgstr "Environ 50 % sont perdus."

msgid "One wolf is coming."
msgid_plural "Many wolves are coming."
msgstr[0] "Un loup arrive ici."
msgstr[1] "Plusieurs loups arrivent ici."

msgid "Nobody translated this one."
msgstr ""

msgid "Quit"
msgstr "Quitter"
"""
)
PAIRS = [
    ("Where is the old king?", "Où est le vieux roi ?"),
    ("I saw him.", "Je l'ai vu."),
    ("He sleeps now.", "Il dort maintenant."),
    ("Come back to the village.", "Reviens au village."),
    ("About 50% of them are lost.", "Environ 50 % sont perdus."),
    ("One wolf is coming.", "Un loup arrive ici."),
]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "fr.po"
    path.write_text(CATALOGUE, "utf-8")
    return path


def test_sentences_of_a_catalogue_in_text(text):
    assert list(messages([text])) == PAIRS


def test_a_compiled_catalogue_has_the_same_sentences(text, tmp_path):
    compiled = tmp_path / "fr.mo"
    without_date = CATALOGUE.replace('"PO-Revision-Date: Mon Feb 18 22:35:34 2008\\n"\n', "")
    with compiled.open("wb") as file:
        write_mo(file, read_po(without_date.splitlines()))
    assert sorted(messages([compiled])) == sorted(PAIRS)


def test_a_folder_is_searched_and_a_pair_comes_once(text):
    (text.parent / "more").mkdir()
    (text.parent / "more" / "again.PO").write_text(CATALOGUE, "utf-8")
    (text.parent / "more" / "notes.txt").write_text("no catalogue")
    assert list(messages([text.parent])) == PAIRS


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"x", "expected a file .po, .mo, .gmo, or a folder of them"),
        ("a.mo", b"no catalogue at all", "a.mo: a damaged message catalog"),
        ("a.mo", struct.pack("<7I", 0x950412DE, 0, 9, 28, 2**31, 0, 28), "a.mo: a damaged message catalog"),
        ("a.po", b'msgid "x"\nmsgstr "y\nmsgid', "a.po: a damaged message catalog"),
        ("a.po", HEAD.encode() + b'msgid "x"\nmsgstr "\xff\xfe"\n', "a.po: a damaged message catalog"),
    ],
)
def test_what_is_no_catalogue_is_refused_with_its_name(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        list(messages([tmp_path / name]))


def test_a_folder_without_catalogues_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(DataError, match="no message catalog in this folder"):
        list(messages([tmp_path]))
    with pytest.raises(DataError, match=r"gone\.po"):
        list(messages([tmp_path / "gone.po"]))
