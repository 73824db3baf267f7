"""Tensors on disk: what is written is read, by everybody, and never half."""

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from regard import storage
from regard.attention.maps.map import AttentionMap
from regard.errors import ConfigError, DataError
from regard.storage import (
    claim,
    exclusive,
    fingerprint,
    new_folder,
    parse_json,
    replace_folder,
    why_unwritable,
    write_tensors,
    write_text,
)
from regard.text.tokenizer import Tokenizer, TokenizerConfig


def read(path):
    with safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_what_is_written_is_read(tmp_path):
    tensor = torch.arange(6.0).reshape(2, 3).T  # not contiguous
    write_tensors(tmp_path / "x", {"a": tensor}, {"note": "ü"})
    found, metadata = read(tmp_path / "x")
    assert torch.equal(found["a"], tensor)
    assert metadata == {"note": "ü"}


def test_others_may_read_it(tmp_path):
    before = os.umask(0o022)
    try:
        write_tensors(tmp_path / "x", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644


def test_a_full_disk_leaves_the_previous_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    write_tensors(tmp_path / "x", {"a": torch.ones(2)})
    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_tensors(tmp_path / "x", {"a": torch.zeros(2)})
    assert torch.equal(read(tmp_path / "x")[0]["a"], torch.ones(2))
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_names_what_was_being_written(tmp_path, number):
    def full(file):
        raise OSError(number, os.strerror(number), file)

    with pytest.raises(OSError, match=r"'.*/there'$"), storage.replacing(tmp_path / "there"):
        full(None)
    with pytest.raises(OSError, match=r"'.*/model'$"), storage.new_folder(tmp_path / "model") as made:
        full(str(made / "weights"))
    with pytest.raises(OSError, match=r"'elsewhere'$"), storage.new_folder(tmp_path / "model"):
        full("elsewhere")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_in_folders_within_too(tmp_path):
    (tmp_path / "within").mkdir()
    (tmp_path / "within" / "mine").write_text("mine")
    for place in (tmp_path, tmp_path / "within"):
        storage.aside_of(place / "x").write_text("half")
        storage.aside_of(place / "last").mkdir()
    storage.remove_leftovers(tmp_path)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["within", "mine"]


def test_what_a_reader_still_holds_stays_as_it_was(tmp_path):
    write_tensors(tmp_path / "x", {"a": torch.ones(5000)})
    held = read(tmp_path / "x")[0]["a"]  # may be a view of the file itself
    write_tensors(tmp_path / "x", {"a": torch.zeros(3)})
    assert torch.equal(held, torch.ones(5000))


def test_a_folder_is_held_by_one(tmp_path):
    with exclusive(tmp_path):
        second = exclusive(tmp_path)
        with pytest.raises(ConfigError, match=f"process {os.getpid()} is writing to this folder"):
            second.__enter__()
    with exclusive(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_a_killed_process_left_is_taken_over(tmp_path):
    (tmp_path / ".lock").write_text("999999999\n")
    with exclusive(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_lock_that_its_holder_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    import fcntl

    taken, seen = fcntl.flock, []

    def late(file, how):  # the holder ends between opening and locking
        if not seen:
            (tmp_path / ".lock").unlink()
        seen.append(1)
        taken(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with exclusive(tmp_path):
        assert (tmp_path / ".lock").exists()
        with pytest.raises(ConfigError, match="is writing to this folder"):
            exclusive(tmp_path).__enter__()


def test_links_stay_and_devices_are_written_to(tmp_path):
    (tmp_path / "there").write_text("old")
    (tmp_path / "link").symlink_to("there")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_text() == "new"
    (tmp_path / "null").symlink_to("/dev/null")
    write_text(tmp_path / "null", "x")
    assert not (tmp_path / "null").is_file()


def test_a_link_in_a_folder_of_regard_is_replaced_and_its_target_stays(tmp_path):
    claim(tmp_path / "run", "a run")
    (tmp_path / "precious").write_text("old")
    (tmp_path / "run" / "maps").mkdir()
    for name in ("machine.json", "maps/one.svg"):
        (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
        write_text(tmp_path / "run" / name, "new")
        assert not (tmp_path / "run" / name).is_symlink()
        assert (tmp_path / "run" / name).read_text() == "new"
    assert (tmp_path / "precious").read_text() == "old"


def test_a_pipe_in_a_folder_of_regard_is_replaced_and_not_waited_for(tmp_path):
    claim(tmp_path / "run", "a run")
    (tmp_path / "run" / "maps").mkdir()
    for name in ("machine.json", "maps/one.json", "weights.safetensors"):
        os.mkfifo(tmp_path / "run" / name)
        write_text(tmp_path / "run" / name, "new")
        assert (tmp_path / "run" / name).read_text() == "new"
    os.mkfifo(tmp_path / "pipe")  # of one's own: it is written to
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "new")
    assert os.read(reader, 9) == b"new"
    os.close(reader)


@pytest.mark.parametrize("name", ["attention", "prepared", "distilled", "tensorboard"])
def test_a_file_in_the_place_of_a_folder_is_said_before_any_work(tmp_path, name):
    claim(tmp_path / "run", "a run")
    (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"{name}: a file, in the place of a folder that a run may write"):
        claim(tmp_path / "run", "a run")


@pytest.mark.parametrize(
    "name",
    [
        "weights.safetensors", "bundle.json", "attention/000014.json", "data.sha256", "diacritics.txt",
        "distilled/pairs.jsonl",
    ],
)  # fmt: skip
def test_a_folder_in_the_place_of_a_file_is_said_before_any_work(tmp_path, name):
    claim(tmp_path / "run", "a run")
    place = tmp_path / "run" / name
    place.mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"{place.name}: a folder, in the place of a file that a run may write"):
        claim(tmp_path / "run", "a run")
    with pytest.raises(IsADirectoryError, match=f"Is a directory: '.*{place.name}'"):  # and not a temporary name
        write_text(place, "x")


def test_a_new_folder_may_be_the_one_that_one_is_in_or_a_link(tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("there")
    monkeypatch.chdir(tmp_path / "here")
    for into in (Path(), tmp_path / "link"):
        with new_folder(into) as folder:
            (folder / "x").write_text("made")
    assert (tmp_path / "here" / "x").read_text() == "made" == (tmp_path / "there" / "x").read_text()
    assert (tmp_path / "link").is_symlink()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["here", "link", "there"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder")
def test_a_folder_that_may_not_be_entered_is_said(tmp_path):
    (tmp_path / "closed").mkdir(0o600)
    assert why_unwritable(tmp_path / "closed" / "x") == f"the folder {tmp_path / 'closed'} may not be entered"


def test_a_new_folder_is_whole_or_not_there(tmp_path):
    def fails():
        with new_folder(tmp_path / "new") as folder:
            (folder / "a").write_text("a")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fails()
    assert not list(tmp_path.iterdir())
    (tmp_path / "new").mkdir()
    with new_folder(tmp_path / "new") as folder:
        (folder / "a").write_text("a")
        assert not list((tmp_path / "new").iterdir())
    assert [one.name for one in tmp_path.iterdir()] == ["new"]
    with pytest.raises(ConfigError, match="is not empty"), new_folder(tmp_path / "new"):
        pass


def test_two_that_write_one_folder_do_not_mix(tmp_path):
    def both():
        with new_folder(tmp_path / "new") as late:
            (late / "late").touch()
            with new_folder(tmp_path / "new") as early:
                (early / "early").touch()

    with pytest.raises(ConfigError, match="is not empty"):
        both()
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["early"]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(storage, "_exchange", lambda *_: False)
    for text in ("old", "new"):
        (tmp_path / "aside").mkdir()
        (tmp_path / "aside" / text).touch()
        replace_folder(tmp_path / "aside", tmp_path / "there")
    assert [one.name for one in tmp_path.iterdir()] == ["there"]
    assert [one.name for one in (tmp_path / "there").iterdir()] == ["new"]


def test_only_folders_of_regard_are_claimed(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(
        ConfigError, match=r"not made by regard \('mine.txt' is there\): a run needs a folder of its own"
    ):
        claim(tmp_path, "a run")
    with pytest.raises(ConfigError, match=r"a file; a run needs a folder"):
        claim(tmp_path / "mine.txt", "a run")
    claim(tmp_path / "run", "a run")
    (tmp_path / "run" / "journal.jsonl").touch()
    claim(tmp_path / "run", "a run")
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "last.safetensors").touch()
    claim(tmp_path / "before", "a run", ["last.safetensors"])
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_json_that_is_nested_too_deeply_is_an_error_of_value():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)


def test_fingerprints_depend_on_the_values():
    @dataclass
    class Data:
        rows: list
        change: object = None

    same = [Data([[1, 2], [3]]), Data([[1, 2], [3]], print)]
    others = [Data([[1, 2, 3]]), Data([[1], [2, 3]]), Data([[1, 2], [4]]), Data([["1"], [3]]), Data([torch.ones(2)])]
    assert len({fingerprint(one) for one in same}) == 1
    assert len({fingerprint(one) for one in [same[0], *others]}) == 6


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("none/x.png", "the folder .*none does not exist"),
        ("file/x.png", "file is not a folder"),
        ("folder.png", "a folder; name a file in it"),
        ("a\0.png", r"a\\x00\.png: no file can have this name"),
        ("n" * 300 + ".png", "no file can have this name: File name too long"),
        ("\ud800.png", r"\\ud800\.png: no file can have this name"),
    ],
)
def test_every_writer_refuses_a_place_by_one_rule(tmp_path, name, why):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("mine")
    path, seen = tmp_path / name, AttentionMap.from_weights(torch.ones(1, 1))
    tokenizer = Tokenizer.learn(["le chat"], TokenizerConfig(kind="words", vocabulary=20))
    for write in (seen.save, seen.plot, tokenizer.save):
        with pytest.raises(DataError, match=why):
            write(path)
    assert (tmp_path / "file").read_text() == "mine"
    assert {one.name for one in tmp_path.iterdir()} == {"file", "folder.png"}


def test_a_disk_that_takes_no_more_is_one_sentence_for_a_map(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(DataError, match=r"x: could not be written: No space left on device"):
        AttentionMap.from_weights(torch.ones(1, 1)).save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a\0", "n" * 300, "\ud800"])
def test_a_name_that_no_folder_can_have_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="no file can have this name"):
        claim(tmp_path / name, "a run")
    with pytest.raises(ConfigError, match="no file can have this name"), new_folder(tmp_path / name):
        pass


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="x: this folder cannot be made: Not a directory"):
        claim(tmp_path / "file" / "x", "a run")
    with pytest.raises(ConfigError, match="file: this folder cannot be made"), new_folder(tmp_path / "file" / "x"):
        pass


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_what_is_no_lock_is_refused_and_not_written_to(tmp_path, kind):
    mine, lock = tmp_path / "mine.txt", tmp_path / "run" / ".lock"
    mine.write_text("mine")
    lock.parent.mkdir()
    {"link": lambda: lock.symlink_to(mine), "folder": lock.mkdir, "pipe": lambda: os.mkfifo(lock)}[kind]()
    with pytest.raises(ConfigError, match=r"\.lock: not a file that regard has made"), exclusive(lock.parent):
        pass
    assert mine.read_text() == "mine"


def test_a_private_file_stays_private(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("before")
    path.chmod(0o600)
    write_text(path, "after")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("after", 0o600)


def test_names_of_many_bytes_and_halves_of_characters(tmp_path):
    path = tmp_path / ("漢" * 82 + ".txt")  # of 250 bytes, where a name may have 255
    write_text(path, "caf\udce9")  # as Python reads a name that is not UTF-8
    assert path.read_text("utf-8") == "caf\ufffd"


def test_a_link_into_a_folder_that_is_not_there(tmp_path):
    link = tmp_path / "out.txt"
    link.symlink_to(tmp_path / "none" / "out.txt")
    assert storage.why_unwritable(link) == f"the folder {tmp_path / 'none'} does not exist"
