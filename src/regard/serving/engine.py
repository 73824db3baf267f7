"""Dynamic batching: texts of concurrent requests with equal settings are computed together, in one thread.

The thread takes what waits as soon as it is free, so a batch is as large as the load makes it, and a single request
waits for nothing. Different settings take turns. A batch of which no result is wanted any more, because its clients
have gone or their time is over, ends at the next step of its search.
"""

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil
from time import perf_counter
from typing import Any

from regard.decoding.generate import while_wanted
from regard.serving.metrics import BatchMetrics
from regard.web.limits import Limits
from regard.web.refusals import Refusal

# inputs → a result for each, or an error in its place
Compute = Callable[[list[Any]], Sequence[Any]]
RATE = 1000.0  # characters a second, before any was measured

logger = logging.getLogger("regard.serving")


@dataclass(eq=False)
class Job:
    """One input that waits.

    Attributes:
        key: of what is asked; jobs of one key are computed together.
        compute: from inputs to results; the same for all jobs of a key.
        given: the input.
        size: characters.
        future: of the result; canceled where it is not wanted any more.
    """

    key: Hashable
    compute: Compute
    given: Any
    size: int
    future: "asyncio.Future[Any]"
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)


class Batcher:
    """A bounded queue of inputs, and the thread that computes them in batches.

    Args:
        limits: of the queue and the batches.
        metrics: of both.
    """

    def __init__(self, limits: Limits, metrics: BatchMetrics) -> None:
        self.limits, self.metrics = limits, metrics
        self.rate = RATE
        self._waiting: OrderedDict[Hashable, dict[Job, None]] = OrderedDict()
        self._size = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        metrics.texts.set_function(lambda: sum(map(len, list(self._waiting.values()))))
        metrics.characters.set_function(lambda: self._size)

    def submit(
        self, key: Hashable, compute: Compute, inputs: Sequence[Any], sizes: Sequence[int]
    ) -> "list[asyncio.Future[Any]]":
        """Futures of the results, all of these inputs or none; cancel those that are not wanted any more.

        An empty queue takes any request. A result is an exception where `compute` gave or raised one.

        Args:
            key: equal for inputs that may be computed together.
            compute: gives the results.
            inputs: what it takes.
            sizes: their characters.

        Raises:
            Refusal: the queue is full.
        """
        loop = asyncio.get_running_loop()
        sizes = [max(self.limits.least, size) for size in sizes]
        with self._changed:
            if self._size and self._size + sum(sizes) > self.limits.waiting:
                raise self._full()
            self._begin()
            some = [
                Job(key, compute, given, size, loop.create_future()) for given, size in zip(inputs, sizes, strict=True)
            ]
            self._waiting.setdefault(key, {}).update(dict.fromkeys(some))
            self._size += sum(sizes)
            self._changed.notify()
        for job in some:
            job.future.add_done_callback(lambda _, job=job: self._drop(job))  # type: ignore[misc]
        return [job.future for job in some]

    def close(self) -> None:
        """Compute what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _full(self) -> Refusal:
        seconds = min(60, max(1, ceil(self._size / self.rate)))
        sentence = f"too much is waiting: {self._size:,} characters; try again in {seconds} s"
        return Refusal(429, sentence, headers={"Retry-After": str(seconds)})

    def _begin(self) -> None:
        if self._closed:
            raise Refusal(503, "the server is stopping")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
            self._thread.start()

    def _drop(self, job: Job) -> None:
        """Take a job that is not wanted any more out of the queue."""
        with self._changed:
            jobs = self._waiting.get(job.key, {})
            if job in jobs:
                del jobs[job]
                self._size -= job.size
                if not jobs:
                    del self._waiting[job.key]

    def _next(self) -> list[Job]:
        """The next batch, of the key that has waited longest for its turn; none once the queue is closed and empty."""
        with self._changed:
            batch: list[Job] = []
            while not batch:
                while not self._waiting:
                    if self._closed:
                        return []
                    self._changed.wait()
                key, jobs = self._waiting.popitem(last=False)
                size = 0
                for job in list(jobs):
                    if not job.future.done():  # else it is canceled, and its loop has not called `_drop` yet
                        full = len(batch) == self.limits.batch or size + job.size > self.limits.batch_characters
                        if batch and full:
                            break
                        batch.append(job)
                        size += job.size
                    del jobs[job]
                    self._size -= job.size
                if jobs:
                    self._waiting[key] = jobs
            return batch

    def _work(self) -> None:
        while batch := self._next():
            start = perf_counter()
            results = self._results(batch)
            seconds = max(1e-6, perf_counter() - start)
            self.rate += 0.1 * (sum(job.size for job in batch) / seconds - self.rate)
            self.metrics.batches.observe(len(batch))
            for job, result in zip(batch, results, strict=True):
                with suppress(RuntimeError):  # its loop has ended
                    job.loop.call_soon_threadsafe(_settle, job.future, result)

    def _results(self, batch: list[Job]) -> list[Any]:
        """The results; where a batch fails, each input alone, so that only the one at fault does."""

        def wanted() -> bool:
            return not all(job.future.done() for job in batch)

        try:
            with while_wanted(wanted):
                return list(batch[0].compute([job.given for job in batch]))
        except Exception as error:
            if len(batch) == 1 or not wanted():
                return [error] * len(batch)
        return [result for job in batch for result in self._results([job])]


def _settle(future: "asyncio.Future[Any]", result: Any) -> None:
    if not future.done():
        future.set_result(result)
