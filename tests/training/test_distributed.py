"""What the processes of a run share: rows of batches, items to evaluate, and the news of one that is missing."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from regard.data.batching import Batches
from regard.errors import ConfigError
from regard.training.distributed import Alive, Processes, is_lost, local_device, processes, restarted, together

BATCH = Batches([([5 + n], [6 + n, 7]) for n in range(7)], 99, 1, 2, 0).collate(range(7))


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("pieces", [1, 2, 9])
def test_every_row_is_computed_once_and_all_processes_have_as_many_pieces(count: int, pieces: int) -> None:
    parts = [Processes(rank, count).pieces(BATCH, pieces) for rank in range(count)]
    assert len({len(own) for own in parts}) == 1
    assert len(parts[0]) == min(pieces, -(-7 // count))
    rows = Counter(int(row[0]) for own in parts for piece, weight in own if weight for row in piece.source)
    assert rows == Counter(range(5, 12))
    for own in parts:
        for piece, weight in own:
            assert len(piece.target) >= 1
            assert weight in (0.0, 1.0)
            assert len({len(t) for t in (piece.source, piece.target, piece.previous, piece.target_allowed)}) == 1


def test_alone_there_is_nothing_to_agree_on() -> None:
    alone = processes()
    assert (alone.rank, alone.count, alone.first) == (0, 1, True)
    assert alone.pieces(BATCH, 1)[0][0] is BATCH
    assert alone.share_out([3, 1, 2], lambda part: [2 * n for n in part]) == [6, 2, 4]
    assert alone.any_of(False, True) == [False, True]
    assert alone.from_first("x") == "x"
    assert alone.of_each(4) == [4]
    assert alone.total(torch.tensor([2.0])).item() == 2.0
    alone.wait()


def test_the_missing_process_is_the_one_that_is_silent_for_longest(tmp_path: Path) -> None:
    for rank, (step, age) in enumerate([(9, 0), (4, 50), (8, 3)]):
        Alive(tmp_path, Processes(rank, 3)).noted = 0.0
        path = tmp_path / ".processes" / str(rank)
        path.write_text(str(step), "utf-8")
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    assert Alive.missing_of(tmp_path, Processes(0, 3)) == (1, 4)
    assert Alive.missing_of(tmp_path, Processes(1, 3)) == (2, 8)
    assert Alive.missing_of(tmp_path / "none", Processes(0, 2)) == (0, 0)


def test_one_process_leaves_no_notes(tmp_path: Path) -> None:
    Alive(tmp_path, Processes()).note(3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("error", "lost"), [
    (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
    (RuntimeError("Timed out waiting 60000ms for recv operation to complete"), True),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    (ValueError("Connection closed"), False),
])  # fmt: skip
def test_errors_of_a_lost_process(error: Exception, lost: bool) -> None:
    assert is_lost(error) is lost


def test_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not restarted()
    assert local_device(torch.device("cuda")) == torch.device("cuda")
    for name, value in {"TORCHELASTIC_RESTART_COUNT": "1", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert restarted()
    found = [str(local_device(torch.device(word))) for word in ("cuda", "cpu", "cuda:0")]
    assert found == ["cuda:1", "cpu", "cuda:0"]


def test_others_that_are_not_there_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(
            ConfigError, match=r"number 0 of 2 \(RANK, WORLD_SIZE\) and did not reach the others: .*MASTER_AD"
        ),
        together(torch.device("cpu"), 1.0),
    ):
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with together(torch.device("cpu"), 1.0) as group:
        assert group.count == 1
