"""Processes that stay alive and compute attention across themselves, for test_ring.

A test names a function of ring_cases and its arguments; every process calls it, and answers with None or what is wrong.
The processes are forked from one that has imported all, so that starting several takes as long as starting one.
"""

import os
import traceback
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

TIMEOUT = 60  # seconds: a ring that hangs is a test that fails


class Processes:
    """`count` gloo processes."""

    def __init__(self, count: int, folder: Path) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(["ring_cases"])
        here = str(Path(__file__).parent)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))  # the server's
        self.count, self.pipes, self.processes = count, [], []
        for rank in range(count):
            ours, theirs = context.Pipe()
            arguments = rank, count, str(folder / f"store-{count}"), theirs
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, name: str, *arguments: object) -> None:
        """Call a function in all processes; an AssertionError says what each found wrong."""
        assert self.pipes, "an earlier call has not been answered: the processes are gone"
        for pipe in self.pipes:
            pipe.send((name, arguments))
        faults = []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(TIMEOUT):
                self.stop()
                raise AssertionError(
                    f"process {rank} of {self.count} has not answered in {TIMEOUT} s: {name}{arguments}"
                )
            fault = pipe.recv()
            if fault is not None:
                faults.append(f"process {rank}: {fault}")
        assert not faults, f"{name}{arguments}\n" + "\n".join(faults)

    def stop(self) -> None:
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            process.kill()
            process.join()
            process.close()
            pipe.close()
        self.processes, self.pipes = [], []


def serve(rank: int, count: int, store: str, pipe: Connection) -> None:
    """What a process does until it is killed."""
    import ring_cases

    ring_cases.join(rank, count, store, TIMEOUT)
    while True:
        name, arguments = pipe.recv()
        try:
            pipe.send(getattr(ring_cases, name)(*arguments))
        except Exception:
            pipe.send(traceback.format_exc())
