"""Parallel text: every way to write it is read, everything crooked is refused by file and line."""

import gzip
import json
import random
import re
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.config import validate
from regard.data import parallel
from regard.data.files import expand, read_lines, split_lines
from regard.data.pairs import Pairs
from regard.data.parallel import DataConfig, read_pairs, read_parts, split, stream_pairs
from regard.errors import ConfigError, DataError

PAIRS = [("le chat", "the cat"), ("là\u202f?", "there?"), ("a\u2028b\x85c\x0bd", "一 二")]


def write(path, text):
    raw = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return str(path)


def config(train="unused.tsv", **settings):
    return DataConfig(train=train, **settings)


@pytest.fixture(params=["", ".gz"], ids=["plain", "gz"])
def gz(request):
    return request.param


def test_tsv(tmp_path, gz):
    where = write(tmp_path / f"x.tsv{gz}", "".join(f"{s}\t{t}\tmore\n" for s, t in PAIRS))
    assert list(read_pairs(where, config())) == PAIRS
    assert list(read_pairs(where, config(source=1, target=0))) == [(t, s) for s, t in PAIRS]
    assert list(read_pairs(where, config(source=2, target=1))) == [("more", t) for _, t in PAIRS]


def test_jsonl(tmp_path, gz):
    lines = [json.dumps({"source": s, "target": t, "fr": t, "en": s}, ensure_ascii=False) for s, t in PAIRS]
    where = write(tmp_path / f"x.jsonl{gz}", "\n".join(lines))
    assert list(read_pairs(where, config())) == PAIRS
    assert list(read_pairs(where, config(source="fr", target="en"))) == [(t, s) for s, t in PAIRS]


def test_two_files(tmp_path, gz):
    where = tuple(write(tmp_path / f"x.{n}{gz}", "".join(pair[n] + "\n" for pair in PAIRS)) for n in (0, 1))
    pairs = read_pairs(where, config())
    assert list(pairs) == PAIRS
    assert len(pairs) == 3


@pytest.mark.parametrize(
    ("raw", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\n\n", ["a", ""]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\rb\n", ["a\rb"]),
        ("\ufeffa\n\ufeffb\n".encode(), ["a", "\ufeffb"]),
        ("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\n".encode(), ["a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"]),
    ],
)
def test_lines_end_at_newline_only(tmp_path, gz, raw, lines):
    write(tmp_path / f"x{gz}", raw)
    assert read_lines(tmp_path / f"x{gz}") == lines


@settings(deadline=None)
@given(lines=st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))))
def test_split_lines_undoes_join(lines):
    raw = "".join(line + "\n" for line in lines).encode()
    assert [line.decode() for line in split_lines(raw)] == [line.removesuffix("\r") for line in lines]


def test_different_lengths_are_refused(tmp_path):
    where = write(tmp_path / "x.fr", "a\nb\nc\n"), write(tmp_path / "x.en", "a\nb\n")
    with pytest.raises(DataError, match=r"x\.fr has 3 lines and .*x\.en has 2: line 3 has no partner"):
        read_pairs(where, config())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.tsv", "a\tb\nonly one\n", r"x\.tsv:2: expected at least 2 columns divided by tabs; got 1"),
        ("x.tsv.gz", "a\tb\nc\td\n\ne\tf\n", r"x\.tsv\.gz:3: the source is empty"),
        ("x.jsonl", '{"source": "a", "target": "b"}\n{"source"', r"x\.jsonl:2: not a JSON object"),
        ("x.jsonl", '["a", "b"]\n', r"x\.jsonl:1: expected a JSON object with strings under 'source' and 'target'"),
        ("x.jsonl.gz", '{"source": "a"}\n', r"x\.jsonl\.gz:1: expected a JSON object with strings"),
        ("x.jsonl", '{"source": "a", "target": 5}\n', r"x\.jsonl:1: expected a JSON object with strings"),
        ("x.jsonl", '{"source": "a\\ud800", "target": "b"}\n', r"x\.jsonl:1: "),
    ],
)
def test_a_bad_line_is_named(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        read_pairs(write(tmp_path / name, text), config())


@pytest.mark.parametrize("name", ["x.jsonl", "x.tsv"])
def test_columns_that_do_not_exist(tmp_path, name):
    text = "a\tb\n" if name.endswith("tsv") else '{"source": "a", "target": "b"}\n'
    changed = {"source": 2} if name.endswith("tsv") else {"source": "fr"}
    expected = r"x\.tsv:1: expected at least 3 columns" if name.endswith("tsv") else r"x\.jsonl:1: .* under 'fr'"
    with pytest.raises(DataError, match=expected):
        read_pairs(write(tmp_path / name, text), config(**changed))


def test_columns_of_a_tsv_file_are_numbers(tmp_path):
    with pytest.raises(DataError, match=r"x\.tsv:1: a TSV file has columns by number; got source = 'fr', target = 1"):
        read_pairs(write(tmp_path / "x.tsv", "a\tb\n"), config(source="fr"))


@pytest.mark.parametrize(("line", "side"), [("\tb", "source"), ("a\t \u202f", "target"), ("\t", "source")])
def test_an_empty_side(tmp_path, line, side):
    where = write(tmp_path / "x.tsv", f"a\tb\n{line}\nc\td\n")
    with pytest.raises(DataError, match=rf'x\.tsv:2: the {side} is empty: remove the pair, or set on_empty = "skip"'):
        read_pairs(where, config())
    assert list(read_pairs(where, config(on_empty="skip"))) == [("a", "b"), ("c", "d")]


def test_an_empty_side_of_two_files_is_named_by_the_first(tmp_path):
    where = write(tmp_path / "x.fr", "a\n\n"), write(tmp_path / "x.en", "a\nb\n")
    with pytest.raises(DataError, match=r"x\.fr:2: the source is empty"):
        read_pairs(where, config())


@pytest.mark.parametrize("name", ["none.tsv", "none.jsonl.gz", "none"])
def test_a_missing_file(tmp_path, name):
    with pytest.raises(DataError, match=rf"{name}: no such file"):
        read_pairs(str(tmp_path / name), config())


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DataError, match="expected a regular file; got a folder"):
        read_lines(tmp_path)


def test_not_utf8_is_named_by_line_and_byte(tmp_path, gz):
    write(tmp_path / f"x{gz}", "là\nlà".encode() + b" \xe9t\xe9\nc\n")
    with pytest.raises(DataError, match=rf"x{gz}:2: not UTF-8 \(byte 0xe9 at position 4\): convert .* iconv"):
        read_lines(tmp_path / f"x{gz}")


def test_a_damaged_gzip_file_is_refused_wherever_it_is_damaged(tmp_path):
    whole = gzip.compress(" ".join(map(str, range(300))).encode(), mtime=0)
    path = tmp_path / "x.gz"
    for length in range(1, len(whole), 13):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"x\.gz: cannot be read"):
            read_lines(path)
    for place in range(10, len(whole) - 4, 7):  # after the header, which has bytes that mean nothing
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"x\.gz: cannot be read"):
            read_lines(path)
    path.write_bytes(b"not gzip at all")
    with pytest.raises(DataError, match=r"x\.gz: cannot be read"):
        read_lines(path)


@pytest.mark.parametrize("spelling", ["$REGARD_TEST_FOLDER/x.tsv", "${REGARD_TEST_FOLDER}/x.tsv"])
def test_environment_variables(tmp_path, monkeypatch, spelling):
    monkeypatch.delenv("REGARD_TEST_FOLDER", raising=False)
    with pytest.raises(DataError, match=r"x\.tsv: the environment variable REGARD_TEST_FOLDER is not set: set it"):
        read_pairs(spelling, config())
    monkeypatch.delenv("REGARD_DATA", raising=False)
    with pytest.raises(DataError, match=r"REGARD_DATA is not set: .*regard data --help lists"):
        read_pairs("$REGARD_DATA/x.tsv", config())
    monkeypatch.setenv("REGARD_TEST_FOLDER", str(tmp_path))
    write(tmp_path / "x.tsv", "a\tb")
    assert list(read_pairs(spelling, config())) == [("a", "b")]


def test_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand("~/x") == tmp_path / "x"


def test_pairs_of_unequal_sides_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        list(Pairs(["a", "b"], ["c"]))


# the split


def made(count=400, seed=0):
    dice = random.Random(seed)
    return [(f"s{dice.randrange(count // 2)}", f"t{dice.randrange(count // 2)}") for _ in range(count)]


SHARES = {"dev_share": 0.2, "test_share": 0.1}


@pytest.mark.parametrize("by", ["source", "target"])
def test_no_sentence_on_both_sides(by):
    parts = split(Pairs.of(made()), config(split_by=by, **SHARES))
    sides = [set(getattr(part, by)) for part in parts]
    assert all(sides)
    assert not (sides[0] & sides[1])
    assert not (sides[0] & sides[2])
    assert not (sides[1] & sides[2])
    assert sorted(pair for part in parts for pair in part) == sorted(made())


@pytest.mark.parametrize("by", ["source", "target"])
def test_a_place_depends_on_the_sentence_alone(by):
    chosen = config(split_by=by, **SHARES)

    def positions(pairs):
        return {pair: n for n, part in enumerate(split(Pairs.of(pairs), chosen)) for pair in part}

    alone = {pair: positions([pair])[pair] for pair in made()}
    assert positions(made()) == alone
    assert positions(made()[::-3]) == {pair: alone[pair] for pair in made()[::-3]}


def test_pairs_keep_their_order():
    pairs = made()
    train, dev, test = split(Pairs.of(pairs), config(**SHARES))
    for part in (train, dev, test):
        members = set(part)
        assert list(part) == [pair for pair in pairs if pair in members]


@pytest.mark.parametrize(("dev", "test"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.4), (0.25, 0.5)])
def test_shares(dev, test):
    pairs = Pairs.of((f"sentence {n}", "x") for n in range(4000))
    parts = split(pairs, config(dev_share=dev, test_share=test))
    for part, share in zip(parts, (1 - dev - test, dev, test), strict=True):
        spread = (share * (1 - share) / 4000) ** 0.5
        assert abs(len(part) / 4000 - share) <= 5 * spread


# mixtures


def mixture(tmp_path, **second):
    (tmp_path / "a.tsv").write_text("".join(f"a{n}\tA{n}\n" for n in range(40)), "utf-8")
    (tmp_path / "b.tsv").write_text("".join(f"B{n}\tb{n}\n" for n in range(40)), "utf-8")
    corpora = [
        {"path": str(tmp_path / "a.tsv")},
        {"path": str(tmp_path / "b.tsv"), "source": 1, "target": 0, **second},
    ]
    return DataConfig(train=corpora, dev_share=0.2, test_share=0.2)


def test_a_mixture_shows_each_corpus_as_often_as_its_weight_says(tmp_path):
    train, dev, test = read_parts(mixture(tmp_path, weight=2.5))
    alone = [read_parts(mixture(tmp_path, weight=w)) for w in (1.0, 2.0)]
    counts = Counter(train.source)
    assert {counts[name] for name in counts if name.startswith("a")} == {1}
    second = [counts[name] for name in counts if name.startswith("b")]
    assert set(second) == {2, 3}
    assert sum(second) == round(2.5 * len(second))
    assert dev == alone[0][1]  # development and test pairs come once, whatever the weight
    assert test == alone[1][2]
    assert all(name.endswith(".tsv:" + str(int(s[1:]) + 1)) for name, s in zip(train.where, train.source, strict=True))


def test_a_corpus_that_is_not_held_out_gives_training_pairs_alone_and_none_of_the_held_out_sentences(tmp_path):
    whole = read_parts(mixture(tmp_path))
    train, dev, test = read_parts(mixture(tmp_path, held_out=False))
    assert train == whole[0]
    assert {name[0] for name in (*dev.source, *test.source)} == {"a"}


def test_a_fraction_of_a_corpus_is_spread_over_it(tmp_path):
    train, _, _ = read_parts(mixture(tmp_path, weight=0.25))
    places = [int(name[1:]) for name in train.source if name.startswith("b")]
    assert len(places) == pytest.approx(0.25 * 40 * 0.6, abs=2)
    assert min(places) < 15 < 25 < max(places)


@pytest.mark.parametrize("corpora", [[{"path": "a.tsv", "wieght": 2}], [{"path": "a.tsv", "weight": 0}], []])
def test_a_wrong_mixture_is_refused(corpora):
    with pytest.raises(ConfigError, match="train"):
        validate(DataConfig, {"train": corpora}, "config")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": ["a.tsv"]}, "train: expected a string, a list of 2 strings or a list of tables; got ['a.tsv']"),
        ({"train": [{"path": "a", "weight": -1}]}, "train.0.weight: input should be greater than 0; got -1"),
        ({"train": [{"path": ["a"]}]}, "train.0.path: expected a string or a list of 2 strings; got ['a']"),
        (
            {"train": [{"path": "a"}, {"pth": "a", "path": "b"}]},
            "unknown setting train.1.pth: did you mean path? (known: path, held_out, source, target, weight)",
        ),
        ({"train": "a", "dev_sets": {"a b": ["c"]}}, "dev_sets.a b: expected a string or a list of 2 strings; got"),
        ({"train": "a", "source": 1.5}, "source: expected a whole number or a string; got 1.5"),
    ],
)
def test_a_setting_of_several_types_is_refused_in_one_sentence(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(DataConfig, given, "config")
    assert message in str(refused.value)
    assert "tuple" not in str(refused.value)


# streams, patterns, tables


def test_a_pattern_stands_for_its_files_in_order(tmp_path):
    for n in (2, 10, 1):
        (tmp_path / f"part-{n:02d}.tsv").write_text(f"a{n}\tb{n}\n\n", "utf-8")
    pairs = read_pairs(str(tmp_path / "part-*.tsv"), config())
    assert pairs.source == ["a1", "a2", "a10"]
    assert pairs.where[2].endswith("part-10.tsv:1")
    with pytest.raises(DataError, match=r"none-\*\.tsv: no file matches"):
        read_pairs(str(tmp_path / "none-*.tsv"), config())


def test_patterns_of_two_sides_come_in_pairs(tmp_path):
    for name in ("1.fr", "2.fr", "1.en", "2.en"):
        (tmp_path / name).write_text(f"{name}\n", "utf-8")
    assert list(read_pairs((str(tmp_path / "*.fr"), str(tmp_path / "*.en")), config())) == [
        ("1.fr", "1.en"), ("2.fr", "2.en"),
    ]  # fmt: skip
    (tmp_path / "2.en").unlink()
    with pytest.raises(DataError, match=r"matches 2 files and .* matches 1: parallel files come in pairs"):
        read_pairs((str(tmp_path / "*.fr"), str(tmp_path / "*.en")), config())


@pytest.mark.parametrize("kind", ["parquet", "arrow file", "arrow stream", "translation"])
def test_tables(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"fr": ["le chat", "là"], "en": ["the cat", "there"], "n": [1, 2]})
    path = tmp_path / ("x.parquet" if kind == "parquet" else "x.arrow")
    if kind == "parquet":
        from pyarrow import parquet

        parquet.write_table(table, path)
    else:
        if kind == "translation":
            table = pa.table({"translation": table.select(["fr", "en"]).to_pylist()})
        make = pa.ipc.new_file if kind == "arrow file" else pa.ipc.new_stream
        with make(str(path), table.schema) as writer:
            writer.write_table(table)
    pairs = read_pairs(str(path), config(source="fr", target="en"))
    assert list(pairs) == [("le chat", "the cat"), ("là", "there")]
    assert pairs.where[1].endswith(":2")
    if kind != "translation":
        with pytest.raises(DataError, match=r"no column 'source': it has 'fr', 'en', 'n'; set data\.source"):
            read_pairs(str(path), config())


def test_a_damaged_table_and_a_cell_without_text(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"source": ["a", None], "target": ["b", "c"]}), path)
    with pytest.raises(DataError, match=r"x\.parquet:2: expected a text in column 'source'"):
        read_pairs(str(path), config())
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match=r"x\.parquet: cannot be read"):
        read_pairs(str(path), config())
    with pytest.raises(DataError, match=r"y\.parquet: no such file"):
        read_pairs(str(tmp_path / "y.parquet"), config())


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("not UTF-8", "cannot be read: Invalid UTF8 sequence"), ("numbers", "x:1: expected a text in column 'source'"),
        ("two columns", "several columns 'source': it has 'source', 'source', 'target'"),
        ("no translation", "no column 'source': it has 'translation'"),
        ("other keys", "no column 'target': it has 'source', 'b'"),
        ("empty translation", "x:1: expected a text in column 'source'"),
        ("far times", ""), ("unknown zone", ""), ("others not UTF-8", ""),
    ],
)  # fmt: skip
def test_tables_of_any_kind_are_read_or_refused_in_one_sentence(tmp_path, name, sentence, ending):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    wrong = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(bytes([0, 0, 0, 0, 2, 0, 0, 0])), pa.py_buffer(b"\xff\xfe")]
    )
    sides = {"source": ["a"], "target": ["b"]}
    table = {
        "not UTF-8": lambda: pa.table({**sides, "source": wrong}),
        "numbers": lambda: pa.table({**sides, "source": pa.array([2**62], pa.duration("s"))}),
        "two columns": lambda: pa.table([pa.array(["a"])] * 3, names=["source", "source", "target"]),
        "no translation": lambda: pa.table({"translation": ["a"]}),
        "other keys": lambda: pa.table({"translation": [{"source": "a", "b": "b"}]}),
        "empty translation": lambda: pa.table({"translation": [None, sides | {"source": "a", "target": "b"}]}),
        "far times": lambda: pa.table({**sides, "n": pa.array([2**62], pa.timestamp("ms"))}),
        "unknown zone": lambda: pa.table({**sides, "n": pa.array([1], pa.timestamp("ms", "Nowhere/City"))}),
        "others not UTF-8": lambda: pa.table({**sides, "n": wrong}),
    }[name]()
    path = tmp_path / f"x.{ending}"
    if ending == "parquet":
        parquet.write_table(table, path)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    if not sentence:
        assert list(read_pairs(str(path), config())) == [("a", "b")]
        return
    with pytest.raises(DataError, match=re.escape(sentence).replace("x:1", rf"x\.{ending}:1")) as caught:
        read_pairs(str(path), config())
    assert str(caught.value).isprintable()


def test_texts_that_point_out_of_a_file_are_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "x.arrow"
    table = pa.table({"source": ["le chat"], "target": ["the cat"]})
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    offsets = (0).to_bytes(4, "little") + len("le chat").to_bytes(4, "little")
    assert offsets in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(offsets, (0).to_bytes(4, "little") + (2**31 - 1).to_bytes(4, "little")))
    with pytest.raises(DataError, match=r"x\.arrow: cannot be read: "):  # it ended the process
        read_pairs(str(path), config())


def test_a_stream_comes_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "CHUNK", 3)
    path = tmp_path / "x.tsv"
    path.write_text("".join(f"a{n}\tb{n}\n" for n in range(8)), "utf-8")
    assert [len(chunk) for chunk in stream_pairs(str(path), config())] == [3, 3, 2]
    assert read_pairs(str(path), config()).source == [f"a{n}" for n in range(8)]


@pytest.mark.parametrize("columns", [(1, 0), ("fr", "en")])
def test_csv(tmp_path, gz, columns):
    header = "" if columns == (1, 0) else "en,fr,by\n"
    body = '"Hello, you.",Salut.,me\nNo!,"Il dit « ""non"" »\nà deux lignes",x\n\n\n'
    where = write(tmp_path / f"x.csv{gz}", header + body)
    found = read_pairs(where, config(source=columns[0], target=columns[1]))
    assert list(found) == [("Salut.", "Hello, you."), ('Il dit « "non" » à deux lignes', "No!")]
    first = 1 + bool(header)
    assert found.where == [f"{where}:{first}", f"{where}:{first + 2}"]


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("en,fr\na,b\n", ("en", "de"), r"x\.csv:1: no column 'de' among 'en', 'fr': set data\.source and data\.target"),
        ("a,b\na\n", (0, 1), r"x\.csv:2: expected at least 2 columns divided by commas; got 1"),
        ('a,b\n"a"b,c\n', (0, 1), r"x\.csv:2: not CSV: "),
        ('a,b\n"a,c\n', (0, 1), r"x\.csv:2: not CSV: unexpected end of data"),
        ("a,b\n\nc,d\n", (0, 1), r"x\.csv:2: the source is empty"),
        ("", ("en", "fr"), r"x\.csv:1: no column 'en' among "),
    ],
)
def test_csv_refusals(tmp_path, text, columns, message):
    where = write(tmp_path / "x.csv", text)
    with pytest.raises(DataError, match=message):
        read_pairs(where, config(source=columns[0], target=columns[1]))


def test_columns_of_csv_files_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("en,fr,fr\na,b,c\n")
    with pytest.raises(DataError, match="expected at least 5 columns"):
        read_pairs(str(path), DataConfig(train=str(path), source=-5, target=0))
    with pytest.raises(DataError, match="several columns 'fr'"):
        read_pairs(str(path), DataConfig(train=str(path), source="en", target="fr"))


def test_rows_that_would_be_lost_are_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "p.csv", tmp_path / "p.fr"
    path.write_text("fr,en\nOui 8, je viens.,Yes 8 I come.\n")
    with pytest.raises(DataError, match=r"p\.csv:2: expected 2 columns; got 3"):
        read_pairs(str(path), DataConfig(train=str(path), source="fr", target="en"))
    path = tmp_path / "p.tsv"
    for text in ("a\tb\rc\td\n", "a\tb\rc\td"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"p\.tsv:1: a carriage return within a line"):
            read_pairs(str(path), DataConfig(train=str(path)))
    other.write_text("x\ny\n")
    path.write_text("x\ny\rz\n")
    with pytest.raises(DataError, match=r"p\.tsv:2: a carriage return within a line"):
        read_pairs((str(path), str(other)), DataConfig(train=(str(path), str(other))))


@pytest.mark.parametrize("name", ["p.tsv.gz", "p.csv.gz"])
def test_blank_lines_take_no_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    between = "," if "csv" in name else "\t"
    path.write_bytes(gzip.compress((f"a{between}b\n" + "\n" * 300_000).encode()))
    config = DataConfig(train=str(path), on_empty="skip")
    tracemalloc.start()
    assert list(read_pairs(str(path), config)) == [("a", "b")]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**22
    path.write_bytes(gzip.compress(f"a{between}b\n\n  \nc{between}d\n".encode()))
    assert list(read_pairs(str(path), config)) == [("a", "b"), ("c", "d")]
    with pytest.raises(DataError, match=rf"{name}:2: "):
        read_pairs(str(path), DataConfig(train=str(path)))
