"""Watching: every attention is told of, and nothing is changed by it."""

import threading

import pytest
import torch

import regard
from regard.attention.spec import make_spec
from regard.attention.watch import Call, tell, watching


def tensors() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(2, n, 3, generator=draw) for n in (5, 7, 7)]


@pytest.mark.parametrize("kernel", ["auto", "reference", "fused"])
def test_a_watcher_is_told_of_every_attention_in_order(kernel: str) -> None:
    query, key, value = tensors()
    calls: list[Call] = []
    with watching(calls.append):
        regard.attend(query, key, value, kernel=kernel)
        regard.attend(query[:, :2], key, value, mask=regard.prefix(3), kernel=kernel)
    regard.attend(query, key, value)
    assert [call.query.shape[-2] for call in calls] == [5, 2]
    assert calls[0].query is query
    assert calls[0].key is key
    assert calls[0].spec.mask is None
    full = regard.AttentionMap.from_spec(calls[1].query, calls[1].key, calls[1].spec).full()
    torch.testing.assert_close(full @ value, regard.attend(query[:, :2], key, value, mask=regard.prefix(3)))


@pytest.mark.parametrize("more", [{}, {"mask": regard.prefix(3)}, {"dropout": 0.3}, {"score": regard.Distance()}])
def test_watching_changes_no_bit(more: dict) -> None:
    inputs = tensors()
    answers = []
    for watcher in (None, lambda call: regard.AttentionMap.from_spec(call.query, call.key, call.spec).full()):
        torch.manual_seed(3)
        if watcher is None:
            answers.append(regard.attend(*inputs, **more))
        else:
            with watching(watcher):
                answers.append(regard.attend(*inputs, **more))
    assert torch.equal(*answers)


def attend_and_stop(watcher) -> None:
    with watching(watcher):
        regard.attend(*tensors())
        raise RuntimeError("stop")


def test_watchers_nest_and_leave_when_something_fails() -> None:
    told: list[str] = []
    with watching(lambda call: told.append("outer")):
        with pytest.raises(RuntimeError, match="stop"):
            attend_and_stop(lambda call: told.append("inner"))
        regard.attend(*tensors())
    regard.attend(*tensors())
    assert told == ["outer", "inner", "outer"]


def test_another_thread_is_not_watched() -> None:
    told: list[Call] = []
    with watching(told.append):
        other = threading.Thread(target=lambda: regard.attend(*tensors()))
        other.start()
        other.join()
    assert told == []


def test_telling_nobody_does_nothing() -> None:
    query, key, _ = tensors()
    assert tell(query, key, query, make_spec("dot", "softmax", None, None)) is None


def test_maps_are_not_attentions() -> None:
    told: list[Call] = []
    with watching(told.append):
        regard.attention_map(*tensors()[:2]).full()
    assert told == []


def test_what_is_refused_is_not_told() -> None:
    told: list[Call] = []
    query, key, value = tensors()
    with watching(told.append), pytest.raises(regard.ShapeError, match="key has 7 positions"):
        regard.attend(query, key, value[:, :5])
    assert told == []
