"""Parts of a forward pass: the heads' outputs, queries, keys, values and weights of its attentions, its blocks' states.

They are kept from one run, and put into another: many cells in one batched forward, each row with another patch.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import isnan, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from regard.analysis.base import ForwardPass
from regard.analysis.deferred import Deferred, Stale
from regard.analysis.reuse import Reuse, deferring
from regard.attention.maps.map import AttentionMap
from regard.attention.watch import Call
from regard.errors import ChoiceError, ConfigError, RegardError, ShapeError, unknown
from regard.observation.hand_written import on_hand_written
from regard.observation.intervene import Change, answering, map_of, output_of, refuse_intervened
from regard.observation.observe import WAY_OUT, known_sites, matches, module_of, observe
from regard.observation.sites import Tracker
from regard.observation.torch_calls import refuse_mapped

Metric = Callable[[Any], Any]


def number_of(value: Any) -> float:
    """A metric's value as a number.

    Raises:
        ConfigError: it is no number and no tensor with one element.
    """
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ConfigError(
            f"the metric gave {got}: expected one number, such as the difference of two logits"
        ) from error


def check_metrics(values: Iterable[float]) -> None:
    """Refuse metrics that are NaN, with which no change could be told.

    Raises:
        ConfigError: one is.
    """
    if any(map(isnan, values)):
        raise ConfigError("the metric gave NaN for an input as it is: expected a number")


WHAT = ("head", "query", "key", "value", "weights", "state")
OF_KEYS = ("key", "value")  # parts whose positions are those of the keys
BUDGET = 256 * 2**20  # bytes that the outputs and the largest attention of one batched forward may take, about
FEW, MOST = 4, 64  # cells of one forward
SAMPLE = 2**16  # numbers of an output that are compared


@dataclass(frozen=True, order=True)
class Cell:
    """One part that can be patched: a head of a site, at one position or (None) at all of them."""

    site: str
    head: int
    position: int | None = None


@dataclass(frozen=True, eq=False)
class AttentionPart:
    """A part of one call of an attention."""

    call: Call
    what: str

    def tensor(self) -> Tensor | AttentionMap:
        """The part `[*batch, heads, n, d]`; of the weights their map, which is smaller."""
        if self.what == "weights":
            query, key = self.call.query.detach().clone(), self.call.key.detach().clone()
            return map_of(replace(self.call, query=query, key=key))
        return self.output() if self.what == "head" else getattr(self.call, self.what)

    def output(self) -> Tensor:
        """What the site gives on."""
        return output_of(self.call)

    def changed(self, change: Change) -> Tensor:
        """The same with the part changed."""
        return output_of(self.call, "output" if self.what == "head" else self.what, change)


@dataclass(frozen=True, eq=False)
class StatePart:
    """The state that one run of a block gives on, `[B, n, d]`."""

    state: Tensor

    def tensor(self) -> Tensor:
        """The state."""
        return self.state

    output = tensor

    def changed(self, change: Change) -> Tensor:
        """The same with the part changed."""
        return change(self.state)


Part = AttentionPart | StatePart
Visit = Callable[[str, int, Part], Tensor | None]


class Parts:
    """Finds the parts of one kind in a module's forward, wherever `observe` sees an attention.

    Args:
        model: an nn.Module, or what `load` returns.
        what: "head", "query", "key", "value", "weights" or "state".
        sites: paths or patterns, of attentions or of blocks; all by default.

    Raises:
        ChoiceError: an unknown kind or site, nearest spelling first.
    """

    def __init__(self, model: Any, what: str, sites: Sequence[str] | None = None) -> None:
        if what not in WHAT:
            raise unknown("part", what, WHAT)
        refuse_intervened(module_of(model), "a finding of parts")
        self.what = what
        self.tracker = Tracker(module_of(model), discreet=False)
        self.sites = None if sites is None else known_sites(sites, self.tracker.paths)
        self._blocks = _blocks(self.tracker)
        self.attending: set[nn.Module] = set()  # modules that were seen to attend
        self.by_hand: set[nn.Module] = set()  # modules that computed attention without a function that can be seen
        self._warned = False

    @contextmanager
    def visiting(self, visit: Visit, rows: int | None = None) -> Iterator[None]:
        """Call `visit(site, n, part)` for the n-th part at every site; the tensor it returns is what the site gives.

        Args:
            visit: None leaves the site as it is.
            rows: of the inputs; an attention over another number of them is refused.

        Raises:
            ShapeError: the first axis of an attention is not one of the inputs' rows.
        """
        seen: Counter[str] = Counter()
        attended: set[nn.Module] = set()

        def visited(module: nn.Module, part: Part) -> Tensor | None:
            if self.sites is not None and not any(matches(self.tracker.paths[module], one) for one in self.sites):
                return None
            site = self.tracker.names[module]
            seen[site] += 1
            return visit(site, seen[site] - 1, part)

        def attends(module: nn.Module, call: Call) -> Tensor | None:
            attended.add(self._blocks[module])
            self.attending.add(module)
            if rows is not None:
                _check_rows(self.tracker.names[module], call, rows)
            if self.what == "state":
                return None
            refuse_mapped()
            return visited(module, AttentionPart(call, self.what))

        def finished(module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
            state = output[0] if isinstance(output, tuple | list) and output else output
            if self.what != "state" or module not in attended or not isinstance(state, Tensor):
                return None
            new = visited(module, StatePart(state))
            if new is None or new is state:
                return None
            return new if state is output else type(output)([new, *output[1:]])

        self.tracker.finished = finished
        with answering(self.tracker, attends):
            yield

    @contextmanager
    def noting_by_hand(self) -> Iterator[None]:
        """Note the modules that compute attention by hand inside the block, which no patch reaches."""

        def found() -> None:
            module = self.tracker.module()
            if module is not None:
                self.by_hand.add(module)

        with on_hand_written(found):
            yield

    def warn_of_missed(self) -> None:
        """Warn, once, of chosen modules that computed attention by hand beside those that were seen."""
        missed = [
            module for module in self.by_hand
            if self.attending.isdisjoint(module.modules())
            and (self.sites is None or any(matches(self.tracker.paths[module], one) for one in self.sites))
        ]  # fmt: skip
        if not missed or self._warned:
            return
        self._warned = True
        first = min(missed, key=self.tracker.names.__getitem__)
        named = f"{self.tracker.names[first]!r} ({type(first).__name__})"
        subject = f"{named} and {len(missed) - 1} more compute" if len(missed) > 1 else f"{named} computes"
        warnings.warn(
            f"{subject} attention by hand and cannot be seen: the result is of the other sites; {WAY_OUT}", stacklevel=4
        )


def _blocks(tracker: Tracker) -> dict[nn.Module, nn.Module]:
    """The block that each module is in: the outermost item of a list of modules, or of a sequence; else itself."""
    paths = {path: module for module, own in tracker.paths.items() for path in own}

    def block(path: str) -> nn.Module:
        names = path.split(".")
        around = [".".join(names[:n]) or "." for n in range(len(names) + 1)]
        for kind in (nn.ModuleList, nn.Sequential):
            for outer, inner in pairwise(around):
                if isinstance(paths[outer], kind):
                    return paths[inner]
        return paths[path]

    return {module: block(own[0]) if own[0] != "." else module for module, own in tracker.paths.items()}


@dataclass(frozen=True, eq=False)
class Recording:
    """The parts of one run.

    Attributes:
        metric: of the module's output; NaN where none was asked for.
        kept: {site: the part of each call `[rows, heads, n, d]`}, sites in order of their first call; of weights, maps.
        what: which parts.
    """

    metric: float
    kept: dict[str, list[Tensor | AttentionMap]]
    what: str

    def part(self, site: str, n: int) -> Tensor:
        """The part of a site's n-th call `[rows, heads, n, d]`.

        Raises:
            ShapeError: the recorded run called the site less often.
        """
        if n >= len(self.kept.get(site, ())):
            raise ShapeError(f"{site} is called more often in one run than in the other: choose inputs of one length")
        found = self.kept[site][n]
        return found.full(force=True) if isinstance(found, AttentionMap) else found

    def heads(self, site: str) -> int:
        """Heads of the part; fewer for grouped keys and values."""
        return self.kept[site][0].shape[1]

    def positions(self, site: str) -> int:
        """Positions of the part; single queries of one site follow each other, as `observe` joins them."""
        sizes = [one.shape[-2] for one in self.kept[site]]
        return len(sizes) if self._joined(site) else max(sizes)

    def first(self, site: str, n: int) -> int:
        """The position of the first row of the n-th call."""
        return n if self._joined(site) else 0

    def _joined(self, site: str) -> bool:
        return self.what not in OF_KEYS and all(one.shape[-2] == 1 for one in self.kept[site])

    def cells(self, by_position: bool) -> list[Cell]:
        """Every cell, in the order of the sites."""
        return [
            Cell(site, head, position)
            for site in self.kept
            for head in range(self.heads(site))
            for position in (range(self.positions(site)) if by_position else (None,))
        ]


def record(run: ForwardPass, parts: Parts, metric: Metric = lambda _: float("nan")) -> Recording:
    """A run with its parts kept.

    Raises:
        ShapeError: the rows of an attention are not those of the inputs.
        RegardError: no attention was seen; a module that computes it by hand is named.
    """
    rows = rows_of(run.arguments)
    kept: dict[str, list[Tensor | AttentionMap]] = {}

    def keep(site: str, _: int, part: Part) -> None:
        found = part.tensor()
        if isinstance(found, AttentionMap):
            if len(found.shape) != 4 or found.shape[0] != rows:
                weights = by_head(found.full(force=True), rows)
                found = AttentionMap.from_weights(weights)
        else:
            found = by_head(found.detach(), rows).clone()
        kept.setdefault(site, []).append(found)

    def value(deferred: AbstractContextManager[None]) -> float:
        kept.clear()
        with parts.visiting(keep, rows), deferred:
            output = run()
        return number_of(metric(output))

    with torch.no_grad(), parts.noting_by_hand():
        found = deferring(parts.tracker.model, rows, value)
    if not kept:
        with torch.no_grad(), observe(parts.tracker.model):
            run()  # observe names a module that computes attention by hand, and what to do
        where = f" at {', '.join(map(repr, parts.sites))}" if parts.sites else ""
        raise RegardError(
            f"the model ran, and no {parts.what} was seen{where}: regard.observe(model) lists the sites that attend"
        )
    parts.warn_of_missed()
    return Recording(found, kept, parts.what)


def _check_rows(site: str, call: Call, rows: int) -> None:
    sizes = call.query.shape[0], call.key.shape[0]  # what all inputs share has one row
    if call.query.ndim < 3 or max(sizes) % rows or any(size != 1 and size % rows for size in sizes):
        raise ShapeError(
            f"{site} attends with queries {list(call.query.shape)} and the inputs have {rows} rows: give inputs whose "
            "first axis is the batch (batch_first=True)"
        )


def by_head(tensor: Tensor, rows: int) -> Tensor:
    """`[rows, heads, n, d]`: what stands between the rows and the positions are heads."""
    whole = tensor.expand(rows, *tensor.shape[1:]) if tensor.shape[0] == 1 else tensor
    return whole.reshape(rows, -1, *tensor.shape[-2:])


def rows_of(arguments: Mapping[str, Any]) -> int:
    """The number of inputs: the first axis of the first tensor.

    Raises:
        ShapeError: there is no tensor with an axis.
    """
    for one in arguments.values():
        if isinstance(one, Tensor) and one.ndim:
            return one.shape[0]
    raise ShapeError("the inputs have no tensor: give the arguments of the module's forward, batch axis first")


class Sweep:
    """Runs of a module with parts of a recording in them, many at a time; each row of a batch has its own cells.

    A batch enters the model as one input and becomes many at the first site that it patches, so that what comes before
    is computed once, where the model's shapes allow it; elsewhere the input is repeated. The first input of a batch
    stays unpatched: what others share with it is copied, and what the metric does not read is not computed (`Reuse`).
    The unpatched input and the first patch must give what they give by themselves; where they do not, the next simpler
    way is taken, and at last the module is refused. A cell that is equal in both runs is not run.

    Args:
        run: the pass that is patched.
        parts: where.
        kept: the recording that patches come from.
        metric: from the module's output to a number.
        batch: cells of one forward; as many as `BUDGET` allows by default.
    """

    def __init__(
        self, run: ForwardPass, parts: Parts, kept: Recording, metric: Metric, batch: int | None = None
    ) -> None:
        if batch is not None and batch < 1:
            raise ChoiceError(f"batch = {batch}: at least one cell is run at a time")
        self.run, self.parts, self.kept, self.metric = run, parts, kept, metric
        self.rows = rows_of(run.arguments)
        self.batch = batch
        self.forwards = 0
        self._equal: set[Cell] = set()  # in both runs, in some call of the site
        self._different: set[Cell] = set()
        self._reuse, self._linear = Reuse(parts.tracker.model, parts.attending), Reuse(parts.tracker.model)
        self._ways = [self._expanded, self._repeated, self._plain][self.rows > 1 :]
        self._tried = False

    def __call__(self, patches: Sequence[Sequence[Cell]]) -> list[float]:
        """The metric with each of these sets of cells patched.

        Raises:
            RegardError: the module mixes the rows of a batch.
        """
        if not patches:
            return []
        with torch.no_grad():
            values = [self.unpatched] * len(patches)
            others = [n for n, cells in enumerate(patches) if not (self._equal - self._different).issuperset(cells)]
            batch = _cells_of_a_forward(self.kept, self._unpatched.size) if self.batch is None else self.batch
            for start in range(0, len(others), batch):
                chosen = others[start : start + batch]
                for n, value in zip(chosen, self._values([patches[n] for n in chosen]), strict=True):
                    values[n] = value
        return values

    @property
    def unpatched(self) -> float:
        """The metric of the input as it is."""
        return self._unpatched.values[0]

    @cached_property
    def _unpatched(self) -> "_Answer":
        with torch.no_grad():
            return self._by_itself(())

    def _by_itself(self, cells: Sequence[Cell]) -> "_Answer":
        """One set of cells in a batch of its own; without any, which cells are equal in both runs is noted."""
        try:
            return self._forward([cells], self.run.arguments, self._linear)
        except Stale:
            return self._forward([cells], self.run.arguments, None)

    def _values(self, patches: Sequence[Sequence[Cell]]) -> list[float]:
        """The metrics of one batch, by the first way in which its inputs give what they give by themselves."""
        if len(patches) == 1:
            return self._by_itself(patches[0]).values
        wanted = [self._unpatched.samples[0]]
        while self._ways:
            if not self._tried and len(wanted) == 1:
                wanted.append(self._by_itself(patches[0]).samples[0])
            try:
                found = self._ways[0]([(), *patches])
            except (RuntimeError, ValueError, TypeError, IndexError):  # the model's shapes do not allow it
                if len(self._ways) == 1:
                    raise
            else:
                if all(_agree(one, other) for one, other in zip(wanted, found.samples, strict=False)):
                    self._tried = True
                    return found.values[1:]
            self._ways.pop(0)
            self._tried = False
        raise RegardError(
            f"{type(self.parts.tracker.model).__name__} gives an input another output in a batch than by itself, and "
            "several patches were to run in one: a module of it mixes the rows; set batch=1"
        )

    def _expanded(self, patches: Sequence[Sequence[Cell]]) -> "_Answer":
        return self._forward(patches, self.run.arguments, self._reuse)

    def _repeated(self, patches: Sequence[Sequence[Cell]]) -> "_Answer":
        return self._forward(patches, repeated(self.run.arguments, self.rows, len(patches)), self._reuse)

    def _plain(self, patches: Sequence[Sequence[Cell]]) -> "_Answer":
        return self._forward(patches, repeated(self.run.arguments, self.rows, len(patches)), None)

    def _forward(self, patches: Sequence[Sequence[Cell]], arguments: dict[str, Any], reuse: Reuse | None) -> "_Answer":
        at: dict[str, list[tuple[int, Cell]]] = {}
        for row, cells in enumerate(patches):
            for cell in cells:
                at.setdefault(cell.site, []).append((row, cell))

        def visit(site: str, n: int, part: Part) -> Tensor | None:
            if len(patches) == 1 and not at:
                self._compare(site, n, part)
            if site not in at:
                return None
            first, clean = self.kept.first(site, n), self.kept.part(site, n)
            here = [(row, cell) for row, cell in at[site] if _reaches(cell, first, clean.shape[-2])]
            if not here:
                return None
            return part.changed(lambda old: self._put(old, clean, first, here, len(patches)))

        self.forwards += 1
        whole = len(patches) * self.rows
        with self.parts.visiting(visit), nullcontext() if reuse is None else reuse.sharing(whole):
            output = replace(self.run, arguments=arguments)()
        if not any(one.shape[:1] == (whole,) for one in pytree.tree_leaves(output) if isinstance(one, Tensor)):
            raise ShapeError(f"{len(patches)} inputs went in, and the output has another number of rows")
        chosen = [slice(i * self.rows, (i + 1) * self.rows) for i in range(len(patches))]
        values = [number_of(self.metric(rows_from(output, whole, rows))) for rows in chosen]
        return _Answer(values, [_sample(output, whole, rows) for rows in chosen[:2]], _size(output))

    def _compare(self, site: str, n: int, part: Part) -> None:
        """Note the positions of the heads whose part is the recorded one; of weights, which are large, none."""
        if self.kept.what == "weights" or n >= len(self.kept.kept.get(site, ())):
            return
        clean, own = self.kept.part(site, n), by_head(part.tensor().detach(), self.rows)  # type: ignore[union-attr]
        if clean.shape == own.shape:
            same, first = (clean == own).all(-1).all(0), self.kept.first(site, n)
            for cells, chosen in ((self._equal, same), (self._different, ~same)):
                cells.update(Cell(site, head, position + first) for head, position in chosen.nonzero().tolist())

    def _put(self, old: Tensor, clean: Tensor, first: int, at: Sequence[tuple[int, Cell]], count: int) -> Tensor:
        whole: Tensor = old.reshape(-1, *clean.shape[1:])
        expanding = len(whole) == 1 != count * self.rows
        whole = whole.expand(count * self.rows, *clean.shape[1:]) if expanding else whole
        new: Tensor = whole.reshape(count, self.rows, *clean.shape[1:]).clone()
        for row, cell in at:
            where = slice(None) if cell.position is None else cell.position - first
            new[row, :, cell.head, where] = clean[:, cell.head, where].to(new.dtype)
        return new.reshape(old.shape[0] * count * self.rows if expanding else old.shape[0], *old.shape[1:])


def _reaches(cell: Cell, first: int, size: int) -> bool:
    return cell.position is None or first <= cell.position < first + size


@dataclass(frozen=True, eq=False)
class _Answer:
    """What a forward gave: metrics, numbers of the first two inputs' outputs, and the bytes of what was read whole."""

    values: list[float]
    samples: list[list[Tensor]]
    size: int


def _sample(output: Any, whole: int, rows: slice) -> list[Tensor]:
    """Numbers of these rows of an output: at the positions that were read, or spread over all of it."""
    found = []
    for one in pytree.tree_leaves(output):
        if not isinstance(one, Tensor) or one.shape[:1] != (whole,) or not one.is_floating_point():
            continue
        if isinstance(one, Deferred) and one.done is None:
            found += [one.found[key][rows].flatten() for key in sorted(one.found)]
        else:
            dense = (one.whole() if isinstance(one, Deferred) else one)[rows].flatten()
            found.append(dense[:: max(1, len(dense) // SAMPLE)].clone())
    return found


def _agree(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    """Whether numbers are the same but for the rounding that batches of another size bring."""
    if [one.shape for one in wanted] != [one.shape for one in found]:
        return False
    for one, other in zip(wanted, found, strict=True):
        if not one.numel():
            continue
        eps = torch.finfo(one.dtype).eps
        largest = float(one.abs().nan_to_num(posinf=0.0).amax())
        if not torch.allclose(other, one, rtol=0.0, atol=min(1024 * eps, eps**0.5) * largest, equal_nan=True):
            return False
    return True


def _size(output: Any) -> int:
    return sum(
        one.numel() * one.element_size()
        for one in pytree.tree_leaves(output)
        if isinstance(one, Tensor) and not (isinstance(one, Deferred) and one.done is None)
    )


def _cells_of_a_forward(kept: Recording, output: int) -> int:
    """As many as `BUDGET` allows; a few even of long inputs, if their outputs are no larger than their attentions."""
    largest = 8 * 4 * max(prod(part.shape) for found in kept.kept.values() for part in found)
    return max(FEW if output <= largest else 1, min(MOST, BUDGET // max(1, output + largest)))


def repeated(arguments: Mapping[str, Any], rows: int, times: int) -> dict[str, Any]:
    """The arguments with every tensor of one row for each input repeated."""
    return {
        name: one.repeat(times, *[1] * (one.ndim - 1))
        if isinstance(one, Tensor) and one.ndim and one.shape[0] == rows
        else one
        for name, one in arguments.items()
    }


def rows_from(output: Any, whole: int, chosen: slice) -> Any:
    """Some rows of every tensor of an output that has `whole` rows."""
    return pytree.tree_map_only(Tensor, lambda one: one[chosen] if one.shape[:1] == (whole,) else one, output)
