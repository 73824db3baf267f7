"""Watching: every attention is told of, and nothing is changed by it."""

import threading

import pytest
import torch

import regard
from regard.attention.spec import make_spec
from regard.attention.watch import (
    Call,
    announce,
    changing,
    computing,
    has_search_listeners,
    is_attended,
    is_computing,
    is_watching,
    notify,
    on_search_result,
    owned,
    unwatched,
    watching,
)


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
    assert notify(query, key, query, make_spec("dot", "softmax", None, None)) is None


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


def test_a_changer_gives_the_output_or_leaves_it() -> None:
    query, key, value = tensors()
    asked: list[Call] = []

    def halve_short_ones(call: Call) -> torch.Tensor | None:
        asked.append(call)
        return call.value[:, :2] / 2 if call.query.shape[-2] == 2 else None

    want = regard.attend(query, key, value)
    with changing(halve_short_ones):
        assert torch.equal(regard.attend(query, key, value), want)
        assert torch.equal(regard.attend(query[:, :2], key, value), value[:, :2] / 2)
    assert [call.query.shape[-2] for call in asked] == [5, 2]
    assert asked[0].value is value


def test_the_innermost_changer_that_cares_is_the_one_that_answers() -> None:
    query, key, value = tensors()
    order: list[str] = []

    def says(name: str, answer: float | None):
        def changer(call: Call) -> torch.Tensor | None:
            order.append(name)
            return None if answer is None else torch.full((5, 3), answer)

        return changer

    with changing(says("outer", 2.0)), changing(says("middle", 3.0)), changing(says("inner", None)):
        assert torch.equal(regard.attend(query, key, value), torch.full((5, 3), 3.0))
    assert order == ["inner", "middle"]


def test_watchers_are_told_of_what_is_changed_too() -> None:
    told: list[str] = []

    def change(call: Call) -> torch.Tensor:
        told.append("changer")
        return call.value

    with changing(change), watching(lambda call: told.append("watcher")):
        regard.attend(*tensors())
    assert told == ["watcher", "changer"]


def test_an_attention_belongs_to_its_innermost_owner() -> None:
    outer, inner = torch.nn.Identity(), torch.nn.Identity()
    told: list[Call] = []
    with watching(told.append):
        regard.attend(*tensors())
        with owned(outer):
            regard.attend(*tensors())
            with owned(inner):
                regard.attend(*tensors())
            regard.attend(*tensors())
        regard.attend(*tensors())
    assert [call.owner for call in told] == [None, outer, inner, outer, None]


def test_nobody_is_told_of_what_is_unwatched_but_changers_are_asked() -> None:
    told: list[Call] = []
    asked: list[Call] = []
    with watching(told.append), changing(asked.append):
        with unwatched():
            regard.attend(*tensors())
            with watching(lambda call: told.append("inner")):
                regard.attend(*tensors())
        regard.attend(*tensors())
    assert len(asked) == 3
    assert told == ["inner", asked[2]]


def test_listeners_are_told_of_announced_maps() -> None:
    model, maps = torch.nn.Identity(), {"decoder": object()}
    heard: list = []
    announce(model, maps)
    with on_search_result(lambda *what: heard.append(("outer", *what))):
        announce(model, maps)
        with on_search_result(lambda *what: heard.append(("inner", *what))):
            announce(model, {})
    announce(model, maps)
    assert heard == [("outer", model, maps), ("outer", model, {}), ("inner", model, {})]


def test_announcements_are_not_attentions_nor_attentions_announcements() -> None:
    told: list = []
    heard: list = []
    with watching(told.append), on_search_result(lambda *what: heard.append(what)), unwatched():
        announce(torch.nn.Identity(), {})
        regard.attend(*tensors())
    assert (len(told), len(heard)) == (0, 1)


def test_who_is_there() -> None:
    def nobody(*what: object) -> None:
        """Hear and say nothing."""

    assert (is_attended(), has_search_listeners(), is_watching(nobody), is_computing()) == (False,) * 4
    with watching(nobody):
        assert (is_attended(), has_search_listeners(), is_watching(nobody)) == (True, False, True)
        with unwatched():
            assert (is_attended(), is_watching(nobody)) == (False, False)
    with changing(nobody):
        assert (is_attended(), has_search_listeners(), is_watching(nobody)) == (True, False, False)
    with on_search_result(nobody):
        assert (is_attended(), has_search_listeners()) == (False, True)
    with computing():
        assert (is_attended(), is_computing()) == (False, True)
    assert (is_attended(), has_search_listeners(), is_watching(nobody), is_computing()) == (False,) * 4


@pytest.mark.parametrize("attended", [False, True])
@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_a_kernel_knows_that_what_it_computes_was_told_of(attended: bool, kernel: str) -> None:
    seen: list[bool] = []

    def score(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        seen.append(is_computing())
        return query @ key.mT

    with watching(lambda call: seen.append(is_computing())) if attended else unwatched():
        regard.attend(*tensors(), score=score, kernel=kernel)
    assert seen == ([False, True] if attended else [False])


@pytest.mark.parametrize("enter", [changing, on_search_result, owned, watching])
def test_another_thread_is_left_alone(enter) -> None:
    told: list = []
    query, key, _ = tensors()

    def run() -> None:
        with watching(lambda call: told.append(call.owner)):
            regard.attend(query, key, key)
        announce(torch.nn.Identity(), {})

    with enter(torch.nn.Identity() if enter is owned else lambda *what: told.append("other")):
        other = threading.Thread(target=run)
        other.start()
        other.join()
    assert told == [None]
