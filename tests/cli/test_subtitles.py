"""Subtitles: times, numbers and settings stay; texts change, on as many lines."""

from pathlib import Path

import pytest

import regard
from regard.cli.subtitles import Subtitles, read_subtitles
from regard.errors import DataError

SRT = """\ufeff1\r
00:00:01,000 --> 00:00:02,500\r
le chat noir\r
\r
2\r
00:00:03,000 --> 00:00:05,000 X1:10\r
Le chien <i>rouge</i>\r
mange.\r
\r
3\r
00:01:03,000 --> 00:01:05,000\r
\r
"""
VTT = """WEBVTT - talk

STYLE
::cue { color: red }

intro
00:01.000 --> 00:02.500 align:start position:10%
le chat noir

NOTE le chien

00:00:03.000 --> 00:00:05.000
la maison"""


@pytest.mark.parametrize(("name", "text"), [("talk.srt", SRT), ("talk.vtt", VTT)])
def test_only_texts_change(talk, tmp_path: Path, name: str, text: str) -> None:
    path, output = tmp_path / name, tmp_path / f"out-{name}"
    path.write_bytes(text.encode())
    code, out, err = talk("translate", "--from", path, "--output", output)
    assert (code, out) == (0, ""), err
    before = [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]
    after = output.read_text("utf-8").split("\n")
    subtitles = read_subtitles(path)
    inside = {n for first, last in subtitles.cues for n in range(first, last)}
    changed = {n for n, (one, other) in enumerate(zip(before, after, strict=False)) if one != other}
    assert changed == inside
    made = regard.load("fr-en")(subtitles.texts, protect=True)
    assert read_subtitles(output).texts == [one.text for one in made]
    if name == "talk.srt":
        assert output.read_text("utf-8").count("<i>") == output.read_text("utf-8").count("</i>") == 1


@pytest.mark.parametrize(
    "times",
    ["00:00:03,000\t-->\t00:00:04,000", "00:00:03,000-->00:00:04,000", "00:00:03 --> 00:00:04",
     "00:00:03:000 --> 00:00:04:000", "00: 00: 03,000 -> 00: 00: 04,000", "-00:00:03,000 --> 00:00:04,000"],
)  # fmt: skip
def test_a_cue_with_badly_written_times_is_no_less_translated(tmp_path: Path, times: str) -> None:
    path = tmp_path / "x.srt"
    text = f"1\n00:00:01,000 --> 00:00:02,000\nA\n\n2\n{times}\nB\n\n3\n00:00:05,000 --> 00:00:06,000\nC\n"
    path.write_text(text, "utf-8")
    found = read_subtitles(path)
    assert found.texts == ["A", "B", "C"]
    assert found.with_texts(["A", "B", "C"]) == text


def test_texts_behind_blank_lines_belong_to_their_cue(tmp_path: Path) -> None:
    path = tmp_path / "x.srt"
    path.write_text("1\n00:01,0 --> 00:02,0\n\nA\n\n1984\n\n2\n\n00:03,0 --> 00:04,0\nB\n\nC\n", "utf-8")
    found = read_subtitles(path)
    assert found.texts == ["A", "1984", "B", "C"]
    path.write_text("WEBVTT\n\n00:01.0 --> 00:02.0\nA\n\nNOTE B\n\n00:03.0 --> 00:04.0\n1984\n\nSTYLE\n", "utf-8")
    assert read_subtitles(path).texts == ["A", "1984"]


def test_speakers_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "x.srt"
    path.write_text("1\n00:01,0 --> 00:02,0\n- Tu viens\ndemain ?\n–Non.\n\n2\n00:03,0 --> 00:04,0\n-\n", "utf-8")
    found = read_subtitles(path)
    assert found.texts == ["Tu viens demain ?", "Non.", "-"]
    made = found.with_texts(["Are you coming tomorrow?", "No.", "-"]).split("\n")
    assert made[2:6] == ["- Are you coming", "tomorrow?", "–No.", ""]


DIALOGUE = """1
00:00:01,000 --> 00:00:02,500
- Le chat dort,
il est noir. - Quoi ?
<i>–Le chien mange.</i>

2
00:00:03,000 --> 00:00:05,000
Il fait
-5 degrés.
"""


def test_a_dialogue_keeps_its_speakers(tmp_path: Path) -> None:
    path = tmp_path / "talk.srt"
    path.write_text(DIALOGUE, "utf-8")
    subtitles = read_subtitles(path)
    assert subtitles.texts == ["Le chat dort, il est noir. - Quoi ?", "<i>Le chien mange.</i>", "Il fait -5 degrés."]
    made = subtitles.with_texts(["The cat sleeps. What?", "<i>The dog eats.</i>", "It is -5."]).split("\n")
    assert made[2:5] == ["- The cat", "sleeps. What?", "<i>–The dog eats.</i>"]
    assert made[8:10] == ["It is", "-5."]


@pytest.mark.parametrize(
    ("lines", "text", "wanted"),
    [
        (2, "I need you immediately.", ["I need you", "immediately."]),
        (3, "a bb ccc", ["a", "bb", "ccc"]),
        (3, "yes no", ["yes", "no"]),
        (2, "", [""]),
    ],
)
def test_a_text_fills_the_lines_of_its_cue(lines: int, text: str, wanted: list[str]) -> None:
    assert Subtitles(["x"] * lines, [(0, lines)]).with_texts([text]).split("\n") == wanted


@pytest.mark.parametrize(("end", "wanted"), [("\n", "\n"), ("\r\n", "\r\n"), ("\r", "\n")])
def test_lines_end_as_they_did(tmp_path: Path, end: str, wanted: str) -> None:
    lines = [
        "1",
        "00:00:01,000 --> 00:00:02,500",
        "le chat",
        "noir",
        "",
        "2",
        "00:00:03,000 --> 00:00:04,000",
        "oui",
        "",
    ]
    path = tmp_path / "talk.srt"
    path.write_bytes(end.join(lines).encode())
    subtitles = read_subtitles(path)
    assert subtitles.texts == ["le chat noir", "oui"]
    assert subtitles.with_texts(subtitles.texts) == wanted.join(lines)


def test_standard_output_has_a_name(talk, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "talk.srt"
    path.write_bytes(SRT.encode())
    code, out, err = talk("translate", "--from", path, "--output", "-")
    assert (code, out.split("\n")[1].removesuffix("\r"), err) == (0, "00:00:01,000 --> 00:00:02,500", "")
    assert [one.name for one in tmp_path.iterdir()] == ["talk.srt"]


def test_what_is_no_subtitles_is_refused(talk, tmp_path: Path) -> None:
    path = tmp_path / "x.srt"
    path.write_text("bonjour\n")
    with pytest.raises(DataError, match="no subtitles: expected lines of times"):
        read_subtitles(path)
    code, _, err = talk("translate", "--from", path)
    assert (code, "no subtitles" in err) == (1, True)
    code, _, err = talk("translate", "--from", path, "--json")
    assert (code, "subtitles are translated with --from FILE --output FILE" in err) == (2, True)


def test_unsure_words_are_marked(talk) -> None:
    code, out, _ = talk("translate", "le chat noir", "--unsure", 0.0)
    assert (code, out) == (0, "the black cat\n")
    code, out, _ = talk("translate", "le chat noir", "--unsure", 1.0)
    assert (code, out) == (0, "the(?) black(?) cat(?)\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--glossary", "no.tsv"), "--glossary no.tsv: no such file"),
        (
            ("--glossary", "bad.tsv"),
            "--glossary bad.tsv: line 2: expected a term, a tab and its translation; got 'chien'",
        ),
        (("--glossary", "two.tsv"), "--glossary two.tsv: line 2: 'chat' is there twice, with two translations"),
        (("--force", "cat", "--sample"), "force and glossary need a search: leave out sample"),
        (("--mbr", "4"), "mbr = 4 chooses among sampled outputs: set sample=True (--sample), or leave out mbr"),
    ],
)
def test_wishes_that_cannot_be(talk, tmp_path: Path, monkeypatch, arguments, sentence: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.tsv").write_text("chat\tcat\nchien\n")
    Path("two.tsv").write_text("chat\tcat\nchat\tkitten\n")
    code, out, err = talk("translate", "le chat noir", *arguments)
    assert (code, out) == (2, "")
    assert sentence in err


def test_wishes_on_the_command_line(talk, tmp_path: Path) -> None:
    terms = tmp_path / "terms.tsv"
    terms.write_text("chat\tkitten\n\n", "utf-8")
    assert talk("translate", "le chat noir", "--glossary", terms)[1] == "the black kitten\n"
    code, out, _ = talk("translate", "le chat noir {x}", "--protect", "--forbid", "cat")
    assert code == 0
    assert "{x}" in out
    assert "cat" not in out.split()
    assert talk("translate", "le chat noir", "--sample", "--mbr", 3, "--seed", 1)[0] == 0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('<font face="Arial Black">Yes,</font> I come.', ['<font face="Arial Black">Yes,</font>', "I come."]),
        ("<v Jean Paul Dupont>Yes, I come.", ["<v Jean Paul Dupont>Yes,", "I come."]),
        ("3 < 4 and 5 > 4", ["3 < 4 and", "5 > 4"]),
    ],
)  # fmt: skip
def test_a_tag_stays_on_one_line(text: str, wanted: list[str]) -> None:
    assert Subtitles(["x"] * 2, [(0, 2)]).with_texts([text]).split("\n") == wanted


def test_a_dash_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "talk.srt"
    path.write_text("1\n00:01,0 --> 00:02,0\n{\\an8}- Oui.\n- <i>Si.</i> Non.\n", "utf-8")
    found = read_subtitles(path)
    assert found.texts == ["{\\an8}Oui.", "<i>Si.</i> Non."]
    assert found.with_texts(found.texts) == path.read_text("utf-8")
