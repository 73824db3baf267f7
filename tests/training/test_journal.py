"""The journal: what was written is read; a crash costs one line at most."""

import pytest

from regard.training.journal import Journal

ENTRIES = [{"step": 1, "loss": 2.5}, {"step": 2, "note": "là\u2028»"}, {"step": 3, "of": [1, 2]}]


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    for entry in ENTRIES:
        journal.write(entry)
    return journal


def test_reads_what_was_written(journal):
    assert journal.entries() == ENTRIES
    assert Journal(journal.path).entries() == ENTRIES


def test_one_line_an_entry(journal):
    assert journal.path.read_bytes().count(b"\n") == len(ENTRIES)


def test_no_file_is_no_entries(tmp_path):
    assert Journal(tmp_path / "none.jsonl").entries() == []


def test_a_cut_last_line_is_left_out_wherever_it_is_cut(tmp_path):
    whole = '{"step": 1}\n{"step": 2, "note": "là"}\n'.encode()
    path = tmp_path / "journal.jsonl"
    for length in range(12, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert Journal(path).entries() == [{"step": 1}]


def test_a_line_that_is_no_object_is_left_out(journal):
    with journal.path.open("a") as file:
        file.write('7\n[1]\n"x"\n' + "[" * 100_000 + "\n")
    assert journal.entries() == ENTRIES
    journal.rewind(9)


def test_rewind_forgets_what_came_later(journal):
    journal.rewind(2)
    assert journal.entries() == ENTRIES[:2]
    journal.write({"step": 3, "again": True})
    assert journal.entries() == [*ENTRIES[:2], {"step": 3, "again": True}]


def test_rewind_heals_a_cut_line(journal):
    with journal.path.open("a") as file:
        file.write('{"step": 4, "lo')
    journal.rewind(3)
    journal.write({"step": 4})
    assert journal.entries() == [*ENTRIES, {"step": 4}]


def test_rewind_keeps_entries_without_a_step(journal):
    journal.write({"event": "start"})
    journal.rewind(0)
    assert journal.entries() == [{"event": "start"}]


def test_rewind_without_a_file_leaves_an_empty_one(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.rewind(5)
    assert journal.entries() == []
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl"]
