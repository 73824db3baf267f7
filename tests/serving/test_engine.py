"""Batches of concurrent requests: what is joined, what is not, and what a failure reaches."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from regard.decoding.generate import constrained
from regard.serving.engine import Batcher
from regard.serving.metrics import BatchMetrics
from regard.web.limits import Limits
from regard.web.refusals import Refusal

LIMITS = Limits(batch=3, batch_characters=20, waiting=30, least=1)


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    made = Batcher(LIMITS, BatchMetrics(CollectorRegistry()))
    yield made
    made.close()


class Recorder:
    """Computes upper case, and keeps the batches; the first waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, inputs: list[str]) -> list[Any]:
        self.batches.append(list(inputs))
        self.begun.set()
        assert self.go.wait(5)
        if "bad" in inputs:
            raise ValueError("bad")
        return [text.upper() for text in inputs]


def played(batcher: Batcher, then: Callable[[Recorder], Any]) -> Recorder:
    """While a first text is computed, let others be asked for, then let it go."""
    recorder = Recorder()

    async def run() -> None:
        first = batcher.submit("a", recorder, ["first"], [5])
        await asyncio.to_thread(recorder.begun.wait, 5)
        ends = then(recorder)
        recorder.go.set()
        await asyncio.wait([*first, *ends]) if ends else await asyncio.wait(first)

    asyncio.run(run())
    return recorder


def test_what_waits_with_an_equal_key_is_one_batch_and_keys_take_turns(batcher: Batcher) -> None:
    ends = []

    def then(recorder: Recorder) -> list[Any]:
        ends.extend(batcher.submit("a", recorder, ["1", "2"], [1, 1]))
        ends.extend(batcher.submit("b", recorder, ["x"], [1]))
        ends.extend(batcher.submit("a", recorder, ["3", "4"], [1, 1]))
        return ends

    recorder = played(batcher, then)
    assert recorder.batches == [["first"], ["1", "2", "3"], ["x"], ["4"]]
    assert [end.result() for end in ends] == ["1", "2", "X", "3", "4"]


def test_long_texts_make_small_batches(batcher: Batcher) -> None:
    recorder = played(batcher, lambda recorder: batcher.submit("a", recorder, ["1", "2", "3"], [15, 5, 1]))
    assert recorder.batches == [["first"], ["1", "2"], ["3"]]


def test_a_failure_reaches_only_the_input_at_fault(batcher: Batcher) -> None:
    ends = []
    recorder = played(
        batcher, lambda recorder: ends.extend(batcher.submit("a", recorder, ["1", "bad", "2"], [1] * 3)) or ends
    )
    assert recorder.batches[1:] == [["1", "bad", "2"], ["1"], ["bad"], ["2"]]
    assert [end.result() for end in (ends[0], ends[2])] == ["1", "2"]
    assert str(ends[1].result()) == "bad"


def test_a_full_queue_refuses_all_of_a_request_and_says_when_to_come_back(batcher: Batcher) -> None:
    def then(recorder: Recorder) -> list[Any]:
        some = batcher.submit("a", recorder, ["1"], [100])  # an empty queue takes any request
        with pytest.raises(Refusal) as refused:
            batcher.submit("b", recorder, ["2", "3"], [10, 10])
        assert refused.value.status == 429
        assert refused.value.headers is not None
        assert int(refused.value.headers["Retry-After"]) >= 1
        assert batcher._size == 100
        return some

    assert played(batcher, then).batches == [["first"], ["1"]]
    assert batcher._size == 0


def test_what_is_cancelled_while_it_waits_is_never_computed(batcher: Batcher) -> None:
    recorder = Recorder()

    async def run() -> None:
        first = batcher.submit("a", recorder, ["first"], [5])
        await asyncio.to_thread(recorder.begun.wait, 5)
        kept, dropped = batcher.submit("a", recorder, ["1", "2"], [1, 10])
        (other,) = batcher.submit("b", recorder, ["3"], [10])
        dropped.cancel()
        other.cancel()
        await asyncio.sleep(0)
        assert batcher._size == 1
        recorder.go.set()
        await asyncio.wait([*first, kept])

    asyncio.run(run())
    assert recorder.batches == [["first"], ["1"]]


class Maps:
    """What a search needs of a model beside its step."""

    def maps(self, state: Any) -> dict[str, Any]:
        return {}


def test_a_batch_ends_at_its_next_step_once_no_result_is_wanted(batcher: Batcher) -> None:
    steps: list[int] = []
    begun, unwanted = threading.Event(), threading.Event()

    class Endless(Maps):
        """A model whose outputs never end."""

        def step(self, token: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
            steps.append(1)
            if len(steps) == 3:
                begun.set()
                assert unwanted.wait(5)
            return torch.zeros(*token.shape, 5), state

    def search(inputs: list[str]) -> list[Any]:
        step, state = constrained(Endless(), None, [], len(inputs))
        while True:
            step(torch.zeros(len(inputs), 1), state)

    async def run() -> None:
        some = batcher.submit("a", search, ["1", "2"], [1, 1])
        await asyncio.to_thread(begun.wait, 5)
        for one in some:
            one.cancel()
        unwanted.set()
        await asyncio.to_thread(batcher.close)

    asyncio.run(run())
    assert len(steps) == 3


def test_a_batch_goes_on_while_one_result_is_wanted(batcher: Batcher) -> None:
    begun, go = threading.Event(), threading.Event()

    class Model(Maps):
        def step(self, token: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
            return token, state

    def search(inputs: list[str]) -> list[Any]:
        step, state = constrained(Model(), None, [], len(inputs))
        begun.set()
        assert go.wait(5)
        step(torch.zeros(len(inputs), 1), state)
        return inputs

    async def run() -> str:
        one, other = batcher.submit("a", search, ["1", "2"], [1, 1])
        await asyncio.to_thread(begun.wait, 5)
        one.cancel()
        go.set()
        found: str = await other
        return found

    assert asyncio.run(run()) == "2"


def test_closing_computes_what_waits_and_takes_nothing_more(batcher: Batcher) -> None:
    recorder = Recorder()
    recorder.go.set()

    async def run() -> None:
        some = batcher.submit("a", recorder, ["1"], [1])
        await asyncio.to_thread(batcher.close)
        await asyncio.wait(some)
        with pytest.raises(Refusal):
            batcher.submit("a", recorder, ["2"], [1])

    asyncio.run(run())
    assert recorder.batches == [["1"]]
