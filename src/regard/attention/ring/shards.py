"""Processes in a ring, each with a shard of a sequence: which positions each one has, and how shards are passed on."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import P2POp, ProcessGroup, Work

from regard.arguments import check_arguments
from regard.errors import RegardError, ShapeError

Shape = tuple[int, ...]
Part = tuple[slice, ...]  # the positions that a process has, in the order in which it has them
Group = ProcessGroup | int | None  # an int is what torch gives to a process outside of the group
TWICE = "attention across processes has a first derivative alone: compute a second one in one process, by regard.attend"


@dataclass(frozen=True, eq=False)
class Passing:
    """Tensors on their way to the next process, and from the one before.

    Attributes:
        sent: kept until they have been received.
        arriving: not to be read before `wait`.
    """

    works: list[Work]
    sent: list[Tensor]
    arriving: list[Tensor]

    def wait(self) -> list[Tensor]:
        """The tensors of the process before, when they have arrived and this one's have been sent; once."""
        for work in self.works:
            work.wait()
        arrived = [*self.arriving]
        for held in (self.works, self.sent, self.arriving):
            held.clear()  # else what is in them would live as long as this does
        return arrived


@dataclass(frozen=True, eq=False)
class Ring:
    """The processes of a group, in a ring.

    Attributes:
        group: of torch.distributed; None is all processes.
        rank: this process's place in it.
        size: the number of processes.
    """

    group: ProcessGroup | None
    rank: int
    size: int

    @classmethod
    def of(cls, group: Group) -> "Ring":
        """The ring of a group's processes.

        Raises:
            RegardError: there is no process group, or this process is not in it.
        """
        if not distributed.is_initialized():
            raise RegardError(
                "there is no process group: call torch.distributed.init_process_group first, in processes that "
                "torchrun has started; one process alone computes by regard.attend"
            )
        if isinstance(group, int) or distributed.get_rank(group) < 0:
            raise RegardError("this process is not in the group: only the group's processes may call this")
        return cls(group, distributed.get_rank(group), distributed.get_world_size(group))

    def collect(self, mine: Any) -> list[Any]:
        """What each process gives, in the order of the processes."""
        found = [None] * self.size
        distributed.all_gather_object(found, mine, group=self.group)
        return found

    def pass_on(self, tensors: Sequence[Tensor], shapes: Sequence[Shape], tag: int = 0) -> Passing:
        """Send tensors to the next process, and receive those of the process before, without waiting.

        Args:
            shapes: of the tensors that arrive.
            tag: of the first; what is on its way at the same time has different tags.
        """
        if self.size == 1:
            return Passing([], [], [*tensors])
        sent = [t.contiguous() for t in tensors]
        arriving = [t.new_empty(shape) for t, shape in zip(tensors, shapes, strict=True)]
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        steps = [(distributed.isend, sent, after), (distributed.irecv, arriving, before)]
        operations = [
            P2POp(step, one, group=self.group, tag=tag + number, group_peer=peer)
            for step, these, peer in steps
            for number, one in enumerate(these)
            if one.numel()  # there is no message without contents
        ]
        return Passing(distributed.batch_isend_irecv(operations) if operations else [], sent, arriving)

    def visits(
        self, tensors: Sequence[Tensor], shapes: Sequence[Sequence[Shape]]
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Each process's tensors in turn, this one's own first, with the process that they belong to.

        The next ones are on their way while these are used, so at most two processes' tensors are held besides its own.

        Args:
            shapes: of each process's tensors.
        """
        held = list(tensors)
        for step in range(self.size):
            owner = (self.rank - step) % self.size
            coming = self.pass_on(held, shapes[owner - 1]) if step < self.size - 1 else None
            yield owner, held
            if coming is not None:
                held = coming.wait()

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors; every process gets the sum of all gradients."""
        total: Tensor = _Sum.apply(self, tensor)  # type: ignore[no-untyped-call]
        return total

    def gather(self, tensors: Sequence[Tensor], parts: Sequence[Part], axis: int = -2) -> list[Tensor]:
        """All processes' shards along an axis joined, of several tensors.

        A shard's gradient is the sum of all processes' gradients of it.

        Args:
            parts: which positions each process has.
        """
        found: tuple[Tensor, ...] = _Gather.apply(self, tuple(parts), axis, *tensors)  # type: ignore[no-untyped-call]
        return list(found)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ring, tensor):  # type: ignore[no-untyped-def]
        ctx.ring = ring
        return _summed(ring, tensor)

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        return None, _summed(ctx.ring, upstream)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ring, parts, axis, *tensors):  # type: ignore[no-untyped-def]
        ctx.ring, ctx.parts, ctx.axis = ring, parts, axis
        shapes = [[_resized(t.shape, axis, sum(lengths(part))) for t in tensors] for part in parts]
        shards = dict(ring.visits(tensors, shapes))
        runs = sorted((run.start, rank, n) for rank, part in enumerate(parts) for n, run in enumerate(part))
        return tuple(
            torch.cat([shards[rank][i].split(lengths(parts[rank]), axis)[n] for _, rank, n in runs], axis)
            for i in range(len(tensors))
        )

    @staticmethod
    def backward(ctx, *upstream):  # type: ignore[no-untyped-def]
        if torch.is_grad_enabled():
            raise RegardError(TWICE)
        mine = ctx.parts[ctx.ring.rank]
        return None, None, None, *(taken(_summed(ctx.ring, g), mine, ctx.axis) for g in upstream)


def _summed(ring: Ring, tensor: Tensor) -> Tensor:
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total, group=ring.group)
    return total


def lengths(part: Part) -> list[int]:
    """How many positions each run of a part has."""
    return [run.stop - run.start for run in part]


def within(part: Part) -> list[slice]:
    """Where each run of a part stands among the positions that the process has."""
    return _slices(lengths(part))


def taken(tensor: Tensor, part: Part, axis: int) -> Tensor:
    """A part of the positions along an axis; a view where they follow each other."""
    runs = [tensor.narrow(axis, run.start, run.stop - run.start) for run in part]
    return runs[0] if len(runs) == 1 else torch.cat(runs, axis)


def _resized(shape: Shape, axis: int, length: int) -> Shape:
    axis %= len(shape)
    return (*shape[:axis], length, *shape[axis + 1 :])


@dataclass(frozen=True, eq=False)
class Card:
    """What a process tells the others of its shards before anything is computed.

    Attributes:
        shapes, dtypes, wanted: of its tensors by name; `wanted` says whether a gradient is.
        refusal: why it cannot take part.
        seed: of dropout; the first process's counts.
        asked: what is to be computed, in words.
    """

    shapes: dict[str, Shape]
    dtypes: dict[str, torch.dtype]
    wanted: dict[str, bool]
    refusal: str | None
    seed: int
    asked: str

    @classmethod
    def of(cls, tensors: dict[str, Tensor], refusal: RegardError | None, seed: int = 0, asked: str = "") -> "Card":
        return cls(
            {name: tuple(t.shape) for name, t in tensors.items()},
            {name: t.dtype for name, t in tensors.items()},
            {name: t.requires_grad and torch.is_grad_enabled() for name, t in tensors.items()},
            None if refusal is None else str(refusal),
            seed,
            asked,
        )


@dataclass(frozen=True, eq=False)
class Layout:
    """Which positions of each tensor each process has.

    Attributes:
        parts: by the tensor's name, by process.
        totals: the number of positions by the tensor's name.
        seed: of dropout.
    """

    parts: dict[str, list[Part]]
    totals: dict[str, int]
    seed: int

    @property
    def rows(self) -> list[Part]:
        """Each process's queries."""
        return self.parts["query"]

    @property
    def columns(self) -> list[Part]:
        """Each process's keys."""
        return self.parts["key"]

    @classmethod
    def of(
        cls, ring: Ring, tensors: dict[str, Tensor], refusal: RegardError | None, seed: int = 0, axis: int = -2,
        balanced: bool = False, asked: str = "",
    ) -> "Layout":  # fmt: skip
        """What the processes have agreed on; if one refuses, all do, so that none waits for it.

        Args:
            tensors: this process's shards by name.
            refusal: why this process cannot take part.
            axis: along which they are shards.
            asked: what is to be computed, in words: the same on all processes.
            balanced: as in `shard`; otherwise the processes' positions follow each other.

        Raises:
            ShapeError: shards that differ elsewhere too, or are not as long as balanced ones are.
            RegardError: the refusal, on every process; processes that ask for different things.
        """
        cards = ring.collect(Card.of(tensors, refusal, seed, asked))
        if refusal is not None:
            raise refusal
        for number, card in enumerate(cards):
            if card.refusal is not None:
                raise RegardError(f"process {number} has refused its shard: {card.refusal}")
        for number, card in enumerate(cards):
            if card.asked != cards[0].asked:
                raise RegardError(
                    f"process {number} asks for {card.asked} and process 0 for {cards[0].asked}: "
                    "give all processes the same arguments"
                )
            _compare(number, card, cards[0], axis)
        parts: dict[str, list[Part]] = {}
        totals: dict[str, int] = {}
        for name in tensors:
            held = [card.shapes[name][axis] for card in cards]
            totals[name] = sum(held)
            parts[name] = _balanced(totals[name], ring.size) if balanced else [(run,) for run in _slices(held)]
            if held != [sum(lengths(part)) for part in parts[name]]:
                raise ShapeError(
                    f"the processes have {held} positions of {name}, and balanced shards of {totals[name]} have "
                    f"{[sum(lengths(part)) for part in parts[name]]}: cut them by shard(..., balanced=True)"
                )
        return cls(parts, totals, cards[0].seed)


def _compare(number: int, card: Card, first: Card, axis: int) -> None:
    """Refuse a process's shards that do not belong to the same sequences as those of process 0."""
    for name, shape in card.shapes.items():
        wanted = first.shapes[name]
        if len(shape) != len(wanted) or _resized(shape, axis, 0) != _resized(wanted, axis, 0):
            raise ShapeError(
                f"{name} has shape {list(shape)} on process {number} and {list(wanted)} on process 0: "
                f"shards may differ on axis {axis} alone"
            )
        if card.dtypes[name] != first.dtypes[name]:
            raise ShapeError(
                f"{name} is {card.dtypes[name]} on process {number} and {first.dtypes[name]} on process 0: "
                "convert one of them with .to()"
            )
        if card.wanted[name] != first.wanted[name]:
            having, lacking = (number, 0) if card.wanted[name] else (0, number)
            raise RegardError(
                f"{name} needs a gradient on process {having} and none on process {lacking}: the backward pass is "
                "computed by all processes together, so set requires_grad alike"
            )


def _slices(sizes: Iterable[int]) -> list[slice]:
    return [slice(a, b) for a, b in pairwise(accumulate(sizes, initial=0))]


def _even(length: int, count: int) -> list[slice]:
    """Runs that follow each other; the first are one longer where the length does not divide."""
    return _slices(length // count + (n < length % count) for n in range(count))


def _balanced(length: int, count: int) -> list[Part]:
    """Of 2 · count runs, one from the beginning and one from the end for each process."""
    runs = _even(length, 2 * count)
    return [(runs[rank], runs[2 * count - 1 - rank]) for rank in range(count)]


@check_arguments
def shard(tensor: Tensor, axis: int = -2, group: Group = None, balanced: bool = False) -> Tensor:
    """This process's part of a tensor that every process has whole, as even as the length allows.

    With n processes, the first `length % n` have one position more than the others; no length is refused, and a part
    may be empty.

    Args:
        tensor: `[..., length, ...]`, the same on every process.
        axis: the one to cut; -2 is that of positions in queries, keys and values.
        group: of torch.distributed; None is all processes.
        balanced: give process r the runs r and 2n-1-r of 2n: under a causal mask all processes then have as much to
            compute, where otherwise the last has most (Llama Team 2024, section 3.3.2).

    Returns:
        a view, or where it is balanced a copy.

    Raises:
        RegardError: there is no process group, or this process is not in it.
        ShapeError: the tensor has no such axis.
    """
    ring = Ring.of(group)
    _check_axis("shard", tensor, axis)
    length = tensor.shape[axis]
    parts = _balanced(length, ring.size) if balanced else [(run,) for run in _even(length, ring.size)]
    return taken(tensor, parts[ring.rank], axis)


@check_arguments
def unshard(tensor: Tensor, axis: int = -2, group: Group = None, balanced: bool = False) -> Tensor:
    """The whole of which every process has a part, in the order of the processes, on every process.

    The gradient of a part is the sum of all processes' gradients of it: the loss is the sum of their losses.

    Args:
        tensor: `[..., length of the part, ...]`; lengths may differ.
        axis: the one that was cut.
        group: of torch.distributed; None is all processes.
        balanced: whether it was cut so.

    Raises:
        RegardError: there is no process group, this process is not in it, or another one refuses.
        ShapeError: no such axis, or shapes that differ elsewhere.
    """
    ring = Ring.of(group)
    refusal: RegardError | None = None
    try:
        _check_axis("unshard", tensor, axis)
    except ShapeError as error:
        refusal = error
    layout = Layout.of(ring, {"tensor": tensor}, refusal, axis=axis, balanced=balanced)
    return ring.gather([tensor], layout.parts["tensor"], axis)[0]


def _check_axis(name: str, tensor: Tensor, axis: int) -> None:
    if not -tensor.ndim <= axis < tensor.ndim:
        raise ShapeError(f"{name} needs a tensor with axis {axis}; got shape {list(tensor.shape)}")


def sum_gradients(parameters: Iterable[Tensor], group: Group = None) -> None:
    """Replace every parameter's gradient by the sum of all processes' gradients: that of the sum of their losses.

    A process has only its queries' part of a gradient; a gradient that a process lacks counts as 0. Call it after
    `backward()` and before the optimizer's step, on every process with the same parameters in the same order.
    (`DistributedDataParallel` takes means: multiply the loss by the number of processes there.)

    Raises:
        RegardError: there is no process group, or this process is not in it.
    """
    ring = Ring.of(group)
    for parameter in parameters:
        if parameter.requires_grad:
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = None  # torch keeps the layout of the one before
            parameter.grad = _summed(ring, found.to_dense())
