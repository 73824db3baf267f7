"""Message catalogs as parallel sentences."""

import gzip
import os
import struct
from pathlib import Path

import pytest
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

from regard.cli.data import messages as command
from regard.data.datasets.messages import messages
from regard.errors import ConfigError, DataError

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
        (
            "a.mo",
            struct.pack("<7I", 0x950412DE, 0, 2**32 - 1, 28, 28, 0, 28),
            "tables of 4,294,967,295 messages go beyond",
        ),
        ("a.po", b'msgid "x"\nmsgstr "y\nmsgid', "a.po:2: a damaged message catalog: expected a keyword"),
        (
            "a.po",
            b'msgid "x"\nmsgstr "y"\n\nmsgid "z"\n',
            "a.po:4: a damaged message catalog: a message without msgstr",
        ),
        (
            "a.po",
            b'msgid "x"\nmsgid_plural "y"\nmsgstr[x] "z"\n',
            "a.po:3: a damaged message catalog: expected a keyword",
        ),
        ("a.po", b'msgid "x"\nmsgstr "y"\nmsgstr "z"\n', "a.po:3: a damaged message catalog: a second msgstr"),
        ("a.po", b'"x"\n', "a.po:1: a damaged message catalog: expected a keyword"),
        ("a.po", HEAD.encode() + b'msgid "x"\nmsgstr "\xff\xfe"\n', "a.po:6: a damaged message catalog: not UTF-8"),
        ("a.po", gzip.compress(b"\n" * 2**26 + b"\n"), "a.po: expected at most 67,108,864 bytes, unpacked"),
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


def compiled(pairs: list[tuple[bytes, bytes]], header: bytes = b"") -> bytes:
    """A .mo file."""
    pairs = [(b"", header), *pairs]
    tables, texts = [b"", b""], b""
    for pair in pairs:
        for side in (0, 1):
            tables[side] += struct.pack("<2I", len(pair[side]), 28 + 16 * len(pairs) + len(texts))
            texts += pair[side] + b"\0"
    ends = 28, 28 + 8 * len(pairs)
    return struct.pack("<7I", 0x950412DE, 0, len(pairs), *ends, 0, 0) + b"".join(tables) + texts


GOOD = ("This is a good one.", "Ceci en est une bonne.")


@pytest.mark.parametrize(
    "forms",
    [
        "nplurals=999999999; plural=0;",
        "nplurals=2; plural=" + "!" * 990 + "n;",
        "nplurals=2; plural=__import__('os').abort();",
        "nplurals=-1",
        "",
    ],
)
def test_an_expression_for_plurals_is_not_read(forms, tmp_path):
    header = f"Content-Type: text/plain; charset=UTF-8\nPlural-Forms: {forms}\n"
    (tmp_path / "a.mo").write_bytes(compiled([(GOOD[0].encode(), GOOD[1].encode())], header.encode()))
    quoted = "".join(f'"{line}\\n"\n' for line in header.splitlines())
    message = f'msgid "{GOOD[0]}"\nmsgid_plural "Many."\nmsgstr[0] "{GOOD[1]}"\nmsgstr[1] "Une autre."\n'
    (tmp_path / "b.po").write_text(f'msgid ""\nmsgstr ""\n{quoted}\n{message}', "utf-8")
    for name in ("a.mo", "b.po"):
        assert list(messages([tmp_path / name])) == [GOOD]


@pytest.mark.parametrize("charset", ["punycode", "idna", "base64", "unicode_escape", "x" * 5000, "../../x"])
def test_a_decoder_that_is_no_character_set_is_refused(charset, tmp_path):
    header = f"Content-Type: text/plain; charset={charset}\n".encode()
    (tmp_path / "a.mo").write_bytes(compiled([(b"a", b"b")], header))
    (tmp_path / "a.po").write_bytes(b'msgid ""\nmsgstr "%s"\n' % header.replace(b"\n", b"\\n"))
    for name in ("a.mo", "a.po"):
        with pytest.raises(DataError, match="unknown character set") as refused:
            list(messages([tmp_path / name]))
        assert len(str(refused.value)) < 300


def test_messages_that_overlap_are_refused_before_they_fill_the_memory(tmp_path):
    text = b"A" * 10_000
    entries = struct.pack("<2I", len(text), 28 + 8 * 1000) * 1000
    (tmp_path / "a.mo").write_bytes(struct.pack("<7I", 0x950412DE, 0, 1000, 28, 28, 0, 0) + entries + text)
    with pytest.raises(DataError, match="messages overlap"):
        list(messages([tmp_path / "a.mo"]))


def test_a_fuzzy_message_ends_where_the_next_begins_and_an_obsolete_one_is_left_out(tmp_path):
    text = f"""
#, fuzzy
msgid "This was only guessed here."
msgstr "Ceci est deviné ici."
msgid "{GOOD[0]}"
msgstr ""
"{GOOD[1]}"
#, fuzzy
#~ msgid "This one is gone now."
#~ msgstr "Celle-ci est partie."
msgctxt "a \\"quoted\\" context"
msgid "He said \\"yes\\" to us."
msgstr "Il nous a dit \\"oui\\"."
"""
    (tmp_path / "a.po").write_text(text, "utf-8-sig")
    assert list(messages([tmp_path / "a.po"])) == [GOOD, ('He said "yes" to us.', 'Il nous a dit "oui".')]


def test_the_character_set_is_that_of_the_header(tmp_path):
    text = (
        f'msgid ""\nmsgstr "Content-Type: text/plain; charset=ISO-8859-1\\n"\n\nmsgid "{PAIRS[0][0]}"\nmsgstr "Où ?"\n'
    )
    text = text.replace("Où ?", PAIRS[0][1])
    (tmp_path / "a.po").write_text(text, "iso-8859-1")
    assert list(messages([tmp_path / "a.po"])) == [PAIRS[0]]


def test_a_folder_may_be_deep_and_have_links_that_lead_back(tmp_path, monkeypatch):
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "itself.po").symlink_to("itself.po")
    os.mkfifo(tmp_path / "pipe.po")
    monkeypatch.chdir(tmp_path)
    depth = 1200
    for _ in range(depth):
        os.mkdir("d")
        os.chdir("d")
    Path("a.po").write_text(f'msgid "{GOOD[0]}"\nmsgstr "{GOOD[1]}"\n', "utf-8")
    try:
        assert list(messages([tmp_path])) == [GOOD]
    finally:  # here, from below: what clears up after the tests goes down a folder a call
        os.unlink("a.po")
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("d")


def test_the_output_replaces_no_catalogue_of_a_folder(text):
    with pytest.raises(ConfigError, match="this is one of the inputs"):
        command([text.parent], text)
    assert text.read_text("utf-8") == CATALOGUE
