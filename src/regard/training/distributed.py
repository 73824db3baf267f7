"""Several processes that train one model: their shares of the work, their agreements, and the missing one.

torchrun starts the processes and tells each its rank. All of them go through the same global batches; process r of P
takes rows r, r + P, … of each. A gradient is the sum over all rows divided by the tokens of the global batch, so the
loss curve does not depend on the number of processes.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from regard.data.batching import some_rows
from regard.errors import ConfigError, RegardError
from regard.storage import own_folder
from regard.untrusted import first_line

T = TypeVar("T")
BatchT = TypeVar("BatchT")

ALIVE = ".processes"  # files of the run's folder: one a process, with its last step
PREPARATION = 24 * 3600.0  # seconds that the first process may take to prepare the data


class ProcessLost(RegardError):
    """Another process of the run was killed, or does not answer."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: number of this process, from 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    def pieces(self, batch: BatchT, count: int) -> list[tuple[BatchT, float]]:
        """The rows of a global batch (any dataclass of tensors) that this process computes, in pieces with weights.

        All processes have as many pieces, because all take part in every exchange of weights and gradients. A weight is
        1; a piece for which no row is left is another row of weight 0.

        Args:
            batch: the global batch.
            count: pieces, at most one for each row of the process with the most rows.
        """
        size = len(batch.target)  # type: ignore[attr-defined]
        count = min(count, -(-size // self.count))
        if self.count * count == 1:
            return [(batch, 1.0)]
        mine = torch.tensor(range(self.rank, size, self.count), dtype=torch.long)
        parts = mine.tensor_split(count)
        other = torch.zeros(1, dtype=torch.long)
        return [(some_rows(batch, part), 1.0) if len(part) else (some_rows(batch, other), 0.0) for part in parts]

    def share_out(self, items: Sequence[Any], work: Callable[[list[Any]], Sequence[T]]) -> list[T]:
        """The results of all items, in order, each computed by one process.

        Args:
            items: the same ones on every process.
            work: from some items to as many results, which can be pickled.
        """
        if self.count == 1:
            return list(work(list(items)))
        own = self.all_or_none(lambda: list(work(list(items[self.rank :: self.count]))))
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, own)
        results: list[Any] = [None] * len(items)
        for rank, part in enumerate(found):
            results[rank :: self.count] = part
        return results

    def all_or_none(self, work: Callable[[], T]) -> T:
        """The result of some work before an exchange; an error of one process is raised in all of them, because the
        others would wait for it in the exchange.

        Raises:
            RegardError: that of the first process that has one.
        """
        if self.count == 1:
            return work()
        found: list[T] = []
        error = None
        try:
            found.append(work())
        except RegardError as failed:
            error = failed
        first = next(filter(None, self.of_each(error)), None)
        if first is not None:
            raise error or first
        return found[0]

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, the same bits on each."""
        if self.count > 1:
            dist.all_reduce(numbers)
        return numbers

    def from_first(self, value: T) -> T:
        """The first process's value, on every process."""
        box = [value]
        if self.count > 1:
            dist.broadcast_object_list(box, 0)
        return box[0]

    def of_each(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        found: list[Any] = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(found, value)
        return found

    def any_of(self, *wishes: bool) -> list[bool]:
        """Each wish, granted to all processes if any of them has it."""
        if self.count == 1:
            return list(wishes)
        return [bool(any(of)) for of in zip(*self.of_each(wishes), strict=True)]

    def wait(self, seconds: float = PREPARATION) -> None:
        """Go on when all processes are here."""
        if self.count > 1 and dist.get_backend() == "gloo":
            dist.monitored_barrier(timeout=timedelta(seconds=seconds))
        elif self.count > 1:
            dist.barrier()


def processes() -> Processes:
    """The processes of torch's default process group; one alone where there is no group."""
    if not (dist.is_available() and dist.is_initialized()):
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size())


def restarted() -> bool:
    """Whether torchrun has started this process again after another one failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def local_device(device: torch.device) -> torch.device:
    """The device of this process: of a GPU without a number, one for each process of a machine."""
    local = os.environ.get("LOCAL_RANK")
    if device.type not in ("cuda", "xpu") or device.index is not None or local is None or not started_by_torchrun():
        return device
    return torch.device(device.type, int(local))


@contextmanager
def together(device: torch.device, timeout: float) -> Iterator[Processes]:
    """The processes that torchrun started, joined; one alone where it did not start this one.

    Args:
        device: of the model; NCCL joins processes on CUDA devices, gloo all others.
        timeout: seconds after which a process that does not answer is given up.

    Raises:
        ConfigError: the others are not reached.
    """
    if not started_by_torchrun() or dist.is_initialized():
        yield processes()
        return
    if not dist.is_available():
        raise ConfigError("this build of torch has no torch.distributed: start one process, without torchrun")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        _join("nccl" if device.type == "cuda" else "gloo", timedelta(seconds=timeout))
    except (ValueError, RuntimeError, OSError, OverflowError) as error:
        told = f"this process is number {os.environ['RANK']} of {os.environ['WORLD_SIZE']} (RANK, WORLD_SIZE)"
        raise ConfigError(
            f"{told} and did not reach the others: {first_line(error)}: start all of them with torchrun, or one alone "
            "without these variables"
        ) from error
    try:
        yield processes()
    finally:
        dist.destroy_process_group()


def _join(backend: str, timeout: timedelta) -> None:
    """Join the process group of this start of the processes.

    torchrun on one machine keeps its store when it starts the processes again, and with it the addresses of those that
    are gone (torch 2.13 then waits for them without end); so each start has names of its own in the store.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        dist.init_process_group(backend, timeout=timeout)
        return
    store, rank, count = next(rendezvous("env://", timeout=timeout))
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    own = PrefixStore(f"start {start}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=count, timeout=timeout)


def started_by_torchrun() -> bool:
    """Whether the environment says that this process is one of several, as torchrun does."""
    count = os.environ.get("WORLD_SIZE", "1")
    return count.isdecimal() and int(count) > 1 and "RANK" in os.environ


class Alive:
    """Each process's last step and the time of it, in files of the run's folder: they tell which is missing.

    Args:
        folder: the run's.
        group: its processes.
    """

    def __init__(self, folder: Path, group: Processes) -> None:
        self.folder, self.group = folder / ALIVE, group
        self.noted = 0.0
        if group.count > 1:
            own_folder(self.folder)
            self.note(0)

    def note(self, step: int) -> None:
        """Note that this process is at a step, at most ten times a second."""
        now = time.monotonic()
        if self.group.count > 1 and now - self.noted > 0.1:
            self.noted = now
            (self.folder / str(self.group.rank)).write_text(str(step), "utf-8")

    @staticmethod
    def missing_of(folder: Path, group: Processes) -> tuple[int, int]:
        """The other process of a run that has been silent for the longest time, and its last step."""
        ages: list[tuple[float, int, int]] = []
        for rank in range(group.count):
            path = folder / ALIVE / str(rank)
            if rank != group.rank and path.exists():
                ages.append((path.stat().st_mtime, rank, int(path.read_text("utf-8") or 0)))
        _, rank, step = min(ages, default=(0.0, 0, 0))
        return rank, step


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process did not take part in an exchange."""
    text = str(error)
    words = ("gloo", "Connection closed", "Connection reset", "NCCL", "monitoredBarrier", "Timed out waiting")
    return isinstance(error, RuntimeError) and not isinstance(error, RegardError) and any(w in text for w in words)
