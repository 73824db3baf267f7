"""State: what a decoder remembers, selected and thinned out without copying what belongs to the sentence."""

import dataclasses

import pytest
import torch

from regard.nn.state import State

N, K = 3, 5


def state(record: bool = True) -> State:
    """Every number says where it comes from: 10 · sentence + hypothesis."""
    own = torch.arange(N)[:, None] * 10 + torch.arange(K)
    asked = {"cross": own[:, :, None, None, None].expand(N, K, 2, 1, 7)} if record else None
    return State({"memory": torch.arange(N)[:, None, None].expand(N, 1, 11)}, {"s": own[..., None]}, asked)


@pytest.mark.parametrize("record", [False, True])
def test_select_goes_on_from_the_parents(record: bool) -> None:
    parents = torch.tensor([[4, 4], [0, 3], [2, 1]])
    chosen = state(record).select(parents)
    want = [[4, 4], [10, 13], [22, 21]]
    assert chosen.hypothesis["s"][..., 0].tolist() == want
    assert chosen.sentence["memory"].shape == (N, 1, 11)
    if record:
        assert chosen.asked["cross"].shape == (N, 2, 2, 1, 7)
        assert chosen.asked["cross"][:, :, 1, 0, 6].tolist() == want
    else:
        assert chosen.asked is None


def test_select_does_not_copy_the_memory() -> None:
    before = state()
    after = before.select(torch.zeros(N, 7, dtype=torch.long))
    assert after.sentence["memory"] is before.sentence["memory"]


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("sentences", [[2, 0], [1], []])
def test_keep_thins_out_every_part(record: bool, sentences: list[int]) -> None:
    kept = state(record).keep(torch.tensor(sentences, dtype=torch.long))
    assert kept.sentence["memory"][:, 0, 0].tolist() == sentences
    assert kept.hypothesis["s"][..., 0].tolist() == [[10 * n + k for k in range(K)] for n in sentences]
    assert (kept.asked is None) == (not record)
    if record:
        assert kept.asked["cross"].shape == (len(sentences), K, 2, 1, 7)


def test_advance_counts_and_remembers_queries() -> None:
    start = State({}, {"s": torch.zeros(N, K, 1)}, {})
    queries = [torch.full((N, K, 2, 1, 7), float(t)) for t in range(3)]
    now = start
    for query in queries:
        now = now.advance({"s": now.hypothesis["s"] + 1}, {"cross": query})
    assert now.step == 3
    assert now.hypothesis["s"].unique().tolist() == [3]
    torch.testing.assert_close(now.asked["cross"], torch.cat(queries, -2))
    assert (start.step, start.asked) == (0, {})  # a state is a value


def test_advance_without_record_keeps_no_queries() -> None:
    now = State({}, {"s": torch.zeros(N, K, 1)}).advance({"s": torch.ones(N, K, 1)}, {"x": torch.ones(N, K, 1, 1, 1)})
    assert now.asked is None


def test_the_step_survives_selection() -> None:
    now = state().advance({"s": torch.zeros(N, K, 1)}, {})
    assert now.select(torch.zeros(N, 1, dtype=torch.long)).keep(torch.tensor([1])).step == 1


def test_a_state_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        state().step = 5
