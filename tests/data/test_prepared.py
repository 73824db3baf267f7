"""Corpora in memory-mapped files: rows, orders that are computed, and preparation that is interrupted."""

import json
import os
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.data import prepared
from regard.data.batching import Batches
from regard.data.order import permuted, pools
from regard.data.pairs import Pairs
from regard.data.prepared import Chunk, Thinned, key_of, prepared_in, write_prepared
from regard.data.ragged import LinkRows, Ragged, RaggedWriter, TokenPairs, lengths_of
from regard.errors import DataError

ROWS = [[1, 2, 3], [], [4], [5, 6], [], [70_000]]


def opened(tmp_path, rows=ROWS):
    writer = RaggedWriter(tmp_path / "x")
    writer.append(rows[:2])
    writer.append(rows[2:])
    writer.close()
    return Ragged.open(tmp_path / "x")


@pytest.mark.parametrize("where", ["memory", "file"])
def test_rows_come_back(tmp_path, where):
    rows = Ragged.of(ROWS) if where == "memory" else opened(tmp_path)
    assert [row.tolist() for row in rows] == ROWS
    assert rows[-1].tolist() == ROWS[-1]
    assert rows.lengths().tolist() == [3, 0, 1, 2, 0, 1]
    assert rows.lengths(slice(2, 4)).tolist() == [1, 2]
    assert rows.lengths(np.array([5, 0, 3])).tolist() == [1, 3, 2]
    with pytest.raises(IndexError, match="row 6 of 6"):
        rows[6]


def test_no_rows(tmp_path):
    for rows in (Ragged.of([]), opened(tmp_path, [])):
        assert len(rows) == 0
        assert rows.lengths().tolist() == []


def test_writing_goes_on_where_it_was(tmp_path):
    writer = RaggedWriter(tmp_path / "x")
    writer.append(ROWS[:3])
    rows, values = writer.rows, writer.values
    writer.append([[9, 9, 9]] * 4)  # written after the last note, and lost
    writer.close()
    writer = RaggedWriter(tmp_path / "x", rows, values)
    writer.append(ROWS[3:])
    writer.close()
    assert [row.tolist() for row in Ragged.open(tmp_path / "x")] == ROWS


def test_a_file_cut_short_is_named(tmp_path):
    opened(tmp_path)
    path = tmp_path / "x.values"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="x: cut short"):
        Ragged.open(tmp_path / "x")
    path.unlink()
    with pytest.raises(DataError, match=r"x: cannot be read .*remove its folder, and prepare the data again"):
        Ragged.open(tmp_path / "x")


@given(st.integers(1, 300), st.integers(0, 2**62))
def test_a_permutation_has_every_number_once(count, key):
    assert sorted(permuted(np.arange(count), count, key).tolist()) == list(range(count))


def test_a_permutation_is_computed_anywhere_and_differs_by_key():
    whole = permuted(np.arange(1000), 1000, 7)
    assert permuted(np.array([999, 3, 500]), 1000, 7).tolist() == whole[[999, 3, 500]].tolist()
    assert (permuted(np.arange(1000), 1000, 8) != whole).mean() > 0.9
    assert abs(np.corrcoef(whole, np.arange(1000))[0, 1]) < 0.15  # 0 ± 0.03


def test_pools_hold_every_example_once():
    found = list(pools(1003, 100, 5))
    assert [len(pool) for pool in found] == [100] * 10 + [3]
    assert sorted(np.concatenate(found).tolist()) == list(range(1003))
    assert [pool.tolist() for pool in pools(7, 7, 5)] == [list(range(7))]


def pairs(count=200):
    return [([4 + n % 7] * (1 + n % 5), [4 + n % 3] * (1 + n % 9)) for n in range(count)]


@pytest.mark.parametrize("start", [0, 5, 17, 40])
def test_an_epoch_of_several_pools(start):
    batches = Batches(pairs(), 40, 1, 2, 0, seed=3, pool=30)
    assert Counter(i for batch in batches.order(1) for i in batch) == Counter(range(200))
    assert batches.order(1) == batches.order(1) != batches.order(2)
    there = [batch.target.tolist() for batch in batches.epoch(1)]
    assert [batch.target.tolist() for batch in batches.epoch(1, start)] == there[start:]
    assert all(batch.target.numel() <= 40 for batch in batches.epoch(1))


def test_an_epoch_does_not_read_the_corpus_before_its_first_batch():
    class Counted(TokenPairs):
        read = 0

        def __getitem__(self, pair):
            Counted.read += 1
            return super().__getitem__(pair)

    corpus = Counted(Ragged.of([s for s, _ in pairs(5000)]), Ragged.of([t for _, t in pairs(5000)]))
    batch = next(Batches(corpus, 40, 1, 2, 0, pool=100).epoch(0))
    assert Counted.read <= 3 * len(batch.target)


def test_the_same_batches_from_files_as_from_lists(tmp_path):
    lists = pairs()
    links = [[(t, s) for t in range(len(b)) for s in range(len(a)) if (s + t) % 3 == 0] for a, b in lists]
    for name, rows in (("s", [s for s, _ in lists]), ("t", [t for _, t in lists]),
                       ("l", [[i for link in some for i in link] for some in links])):  # fmt: skip
        writer = RaggedWriter(tmp_path / name)
        writer.append(rows)
        writer.close()
    mapped = TokenPairs(Ragged.open(tmp_path / "s"), Ragged.open(tmp_path / "t"))
    assert list(mapped) == [(s, t) for s, t in lists]
    assert (lengths_of(mapped) == lengths_of(lists)).all()
    rows = LinkRows(Ragged.open(tmp_path / "l"))
    for ours, theirs in zip(Batches(mapped, 60, 1, 2, 0, links=rows).epoch(0),
                            Batches(lists, 60, 1, 2, 0, links=links).epoch(0), strict=True):  # fmt: skip
        assert ours.source.equal(theirs.source)
        assert ours.previous.equal(theirs.previous)
        assert ours.links.equal(theirs.links)


def chunks(start):
    for n in range(start, 4):
        yield Chunk([[n, n]] * 3, [[n]] * 3, [[(0, 1)], [], [(0, 0)]], [f"file:{n}"] if n == 2 else [])


SAMPLE, DEV = Pairs.of([("a", "b")] * 5, ["f:1"] * 5), Pairs.of([("c\u2028", 'd"')], ["f:9"])


def test_a_prepared_corpus_comes_back(tmp_path):
    made = write_prepared(tmp_path / "p", "key", SAMPLE, DEV, 12, chunks)
    there = prepared_in(tmp_path / "p")
    for found in (made, there):
        assert [s for s, _ in found.pairs] == [[n, n] for n in range(4) for _ in range(3)]
        assert found.links[0] == [(0, 1)]
        assert found.links[1] == []
        assert (found.sample, found.dev) == (SAMPLE, DEV)
        assert found.sample.where == SAMPLE.where
        assert (found.note.pairs, found.note.read, found.note.dropped, found.note.first_dropped) == (
            12,
            12,
            1,
            "file:2",
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p"]


@pytest.mark.parametrize("other", [False, True])
def test_preparation_that_was_interrupted_goes_on_unless_it_is_of_other_data(tmp_path, other):
    asked = []

    def stopped(start):
        yield from islice(chunks(start), 2)
        raise RuntimeError("killed")

    def noted(start):
        asked.append(start)
        yield from chunks(start)

    with pytest.raises(RuntimeError, match="killed"):
        write_prepared(tmp_path / "p", "key", SAMPLE, DEV, 12, stopped)
    assert prepared_in(tmp_path / "p") is None
    whole = write_prepared(tmp_path / "p", "other" if other else "key", SAMPLE, DEV, 12, noted)
    assert asked == [0 if other else 2]
    assert [s[0] for s, _ in whole.pairs] == [n for n in range(4) for _ in range(3)]
    assert whole.note.key == ("other" if other else "key")


def test_a_damaged_note_is_refused(tmp_path):
    write_prepared(tmp_path / "p", "key", SAMPLE, DEV, 12, chunks)
    (tmp_path / "p" / "prepared.json").write_text(json.dumps({"wrong": 1}), "utf-8")
    with pytest.raises(DataError, match=r"prepared\.json: damaged .*prepare the data again"):
        prepared_in(tmp_path / "p")


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("dev.jsonl", lambda raw: b"", r"dev\.jsonl: damaged \(changed since it was written\)"),
        ("sample.jsonl", lambda raw: raw[: raw.index(b"\n") + 1], r"sample\.jsonl: damaged \(changed since"),
        ("source.ends", lambda raw: raw[:-8], "source: cut short or changed"),
        ("target.ends", lambda raw: raw[8:16] + raw[:8] + raw[16:], "target: cut short or changed"),
        (
            "prepared.json",
            lambda raw: raw.replace(b'"pairs": 12', b'"pairs": 11'),
            r"source: 12 rows, and prepared\.json",
        ),
        ("source.values", lambda raw: raw[:5] + b"\x7f" + raw[6:], r"source\.values: changed since it was written"),
        ("links.values", lambda raw: raw + bytes(4), r"links(\.values)?: (cut short or )?changed"),
        ("dev.jsonl", None, r"dev\.jsonl: expected a regular file; got a pipe"),
        ("source.values", None, r"source\.values: expected a regular file; got a pipe"),
    ],
)
def test_half_a_prepared_corpus_is_refused(tmp_path, name, change, sentence):
    write_prepared(tmp_path / "p", "key", SAMPLE, DEV, 12, chunks)
    path = tmp_path / "p" / name
    raw = path.read_bytes()
    path.unlink()
    if change is None:
        os.mkfifo(path)  # without a writer: opening it never ends
    else:
        path.write_bytes(change(raw))
    with pytest.raises(DataError, match=sentence):
        prepared_in(tmp_path / "p")


def test_a_prepared_corpus_of_an_earlier_version_is_read(tmp_path):
    write_prepared(tmp_path / "p", "key", SAMPLE, DEV, 12, chunks)
    note = json.loads((tmp_path / "p" / "prepared.json").read_text("utf-8"))
    del note["texts"]
    (tmp_path / "p" / "prepared.json").write_text(json.dumps(note), "utf-8")
    assert prepared_in(tmp_path / "p").dev == DEV


def test_the_key_is_of_contents_and_settings(tmp_path):
    path = tmp_path / "x"
    path.write_text("a", "utf-8")
    key = key_of([path], [1])
    assert key_of([path], [1]) == key != key_of([path], [2])
    path.write_text("b", "utf-8")
    assert key_of([path], [1]) != key
    with pytest.raises(DataError, match=r"y: no such file"):
        key_of([tmp_path / "y"], [])
    with pytest.raises(DataError, match="expected a regular file"):  # which would never end
        key_of([Path("/dev/zero")], [])


@pytest.mark.parametrize("count", [3, 10, 47])
def test_a_thinned_stream_is_evenly_spaced(count):
    some = Thinned(5)
    for n in range(0, count, 2):
        some.add(Pairs.of([(str(i), str(i)) for i in range(n, min(n + 2, count))]))
    kept = [int(s) for s in some.taken().source]
    assert some.seen == count
    assert kept == list(range(0, count, kept[1] - kept[0]))
    assert count <= 10 or 5 <= len(kept) <= 11
    assert count > 10 or kept == list(range(count))


CUT = {"key": "k", "chunk": 1, "rows": 5, "values": [9, 9, 9], "note": {"key": "k"}}


@pytest.mark.parametrize("content", ["[]", '{"key": "k"}', json.dumps(CUT)])
def test_an_account_that_the_files_do_not_bear_out_is_begun_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    for side in prepared.SIDES:
        with RaggedWriter(tmp_path / side) as writer:
            writer.append([[1, 2], [3]])
    assert prepared._state(tmp_path, "k") is None


def test_links_of_a_half_made_corpus_lead_nowhere_and_one_to_a_larger_disk_stays(tmp_path: Path) -> None:
    def stopped(start):
        yield from islice(chunks(start), 2)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_prepared(tmp_path / "p", "key", SAMPLE, DEV, 12, stopped)
    precious = tmp_path / "precious"
    precious.write_text("kept" * 1000)
    half = tmp_path / "p.aside"
    (half / "source.values").unlink()
    (half / "source.values").symlink_to(precious)
    write_prepared(tmp_path / "p", "key", SAMPLE, DEV, 12, chunks)
    assert precious.read_text() == "kept" * 1000
    with pytest.raises(RuntimeError, match="killed"):
        write_prepared(tmp_path / "q", "key", SAMPLE, DEV, 12, stopped)
    (tmp_path / "q.aside" / "state.json").unlink()
    os.mkfifo(tmp_path / "q.aside" / "state.json")  # no one writes to it
    assert len(write_prepared(tmp_path / "q", "key", SAMPLE, DEV, 12, chunks).pairs) == 12
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "thesis.txt").write_text("kept")
    (tmp_path / "s").symlink_to("victim")
    for _ in range(2):
        with pytest.raises(DataError, match=r"victim: not made by regard \('thesis\.txt' is there\)"):
            write_prepared(tmp_path / "s", "key", SAMPLE, DEV, 12, chunks)
        write_prepared(tmp_path / "other", "key", SAMPLE, DEV, 12, chunks)
        shutil.copytree(tmp_path / "other", tmp_path / "victim", dirs_exist_ok=True)  # beside a corpus, too
    assert (tmp_path / "victim" / "thesis.txt").read_text() == "kept"
    (tmp_path / "victim" / "thesis.txt").rename(tmp_path / "victim" / "thesis.aside.tex")
    with pytest.raises(DataError, match=r"victim: not made by regard \('thesis\.aside\.tex' is there\)"):
        write_prepared(tmp_path / "s", "key", SAMPLE, DEV, 12, chunks)
    (tmp_path / "t.aside").mkdir()
    (tmp_path / "t.aside" / "thesis.txt").write_text("kept")
    with pytest.raises(DataError, match=r"t\.aside: not made by regard \('thesis\.txt' is there\)"):
        write_prepared(tmp_path / "t", "key", SAMPLE, DEV, 12, chunks)
    (tmp_path / "disk").mkdir()
    (tmp_path / "r").symlink_to("disk")
    for _ in range(2):
        assert len(write_prepared(tmp_path / "r", "key", SAMPLE, DEV, 12, chunks).pairs) == 12
        assert (tmp_path / "r").is_symlink()
    for name, file in (("file", "thesis.txt"), ("nothing", "gone")):
        (tmp_path / name).symlink_to(file)
        if name == "file":
            (tmp_path / file).write_text("kept")
        with pytest.raises(DataError, match=rf"{name}: a link to no folder, but to .*{file}: remove it"):
            write_prepared(tmp_path / name, "key", SAMPLE, DEV, 12, chunks)
    assert (tmp_path / "thesis.txt").read_text() == "kept"
    assert not (tmp_path / "gone").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "beside").symlink_to("mine")
    for write in (lambda path: path.write_text("kept"), lambda path: path.symlink_to("thesis.txt")):
        write(tmp_path / "mine.aside")
        with pytest.raises(DataError, match=r"mine\.aside: not made by regard"):
            write_prepared(tmp_path / "beside", "key", SAMPLE, DEV, 12, chunks)
        assert (tmp_path / "mine.aside").read_text() == "kept"
        (tmp_path / "mine.aside").unlink()
