"""ring_attend: the operator over a sequence that several processes hold in shards.

Every process keeps its queries, and the keys and values travel round the ring of processes (Liu et al. 2023). A tile,
this process's queries beside a visiting shard of keys, is computed by regard's own kernels, which give the output and
one number per row; tiles are merged by these numbers. The backward pass goes round again: with the whole rows'
numbers, every tile's gradient is computed alone, and the gradients of keys and values travel with them, back home.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regard.arguments import check_arguments
from regard.attention.biases import BiasLike
from regard.attention.kernels import blockwise
from regard.attention.kernels.kernel import TileUpstream
from regard.attention.kernels.nonfinite import is_poisoned
from regard.attention.masks import Mask, MaskLike
from regard.attention.normalizers import NormalizerLike
from regard.attention.operator import KERNELS, autocast_off, choose, compute
from regard.attention.ring.shards import TWICE, Group, Layout, Ring, Shape, lengths, within
from regard.attention.scores import ScoreLike
from regard.attention.spec import Spec, make_spec
from regard.attention.tiles import TileGrid
from regard.attention.tracing import are_hidden
from regard.attention.watch import computing
from regard.errors import KernelError, RegardError, unknown
from regard.shapes import HEADS, batch_shape, check, output_batch, score_dtype, share_heads

Some = Float[Tensor, "..."]
EXCHANGES = ("auto", "ring", "gather")
OF_TILES = ("windowed", "fused", "additive")  # kernels with row numbers and gradients of their own, the fastest first


@check_arguments
def ring_attend(
    query: Some,
    key: Some,
    value: Some,
    *,
    score: ScoreLike = "scaled_dot",
    normalizer: NormalizerLike = "softmax",
    mask: MaskLike | None = None,
    bias: BiasLike | None = None,
    dropout: float = 0.0,
    exchange: str = "auto",
    balanced: bool = False,
    group: Group = None,
) -> Some:
    """`regard.attend` of a sequence of which every process has a shard; all processes of the group call it together.

    output_i = Σ_j α_ij v_j for this process's queries i and all processes' keys j. The processes' shards, in the order
    of their ranks, are the whole: T queries and S keys. Masks and biases are those of the whole, so their sizes and
    positions are global; only the tiles that a process needs are asked for.

    "ring" passes keys and values on from process to process and holds two shards of them at a time besides its own.
    Softmax, softmax1, `Sink`, sigmoid, uniform and `Share` merge. "gather" gives every process all keys and values: it
    does everything that `attend` does, in memory O(S). It is what "auto" takes for normalizers that need whole rows
    (sparsemax, entmax, `Hard`, callables), for scores that follow the last look, and for values with more batch axes
    than the scores.

    A gradient is that of the sum of all processes' losses. Gradients of query, key and value are complete; those of
    parameters (of projections, scores, biases, `Sink`) are this process's queries' part of them: add them up with
    `regard.distributed.sum_gradients`. All processes run the backward pass, also one whose shard is empty. There is
    no second derivative. With dropout, the first process draws the seed, and the same weights are dropped as in one
    process. `regard.observe` does not see this attention: `ring_map` gives its map.

    Args:
        query: this process's `[*batch, t, d_k]`; t may differ between processes, and may be 0.
        key: this process's `[*batch, s, d_k]`; batch axes equal or 1, grouped heads as in `attend`.
        value: this process's `[*batch, s, d_v]`.
        score, normalizer: as in `attend`; parameters are the same on all processes.
        mask, bias: as in `attend`, of the whole `[*batch, T, S]`, the same on all processes.
        dropout: probability of dropping a weight, after the normalizer.
        exchange: "auto", or the way that keys must go: "ring" or "gather".
        balanced: whether shards were cut so (`shard`): under a causal mask no process waits for the last one then.
        group: of torch.distributed; None is all processes.

    Returns:
        this process's rows of the output, `[*batch, t, d_v]` in value's dtype.

    Raises:
        ShapeError, ChoiceError: as `attend`; shards that do not belong together, with process and both shapes.
        KernelError: exchange="ring" cannot do this.
        RegardError: no process group; another process has refused its shard; a second derivative.

    Source: Liu et al. 2023, "Ring Attention with Blockwise Transformers", section 3; merging: Milakov and Gimelshein
    2018, section 3.
    """
    ring = Ring.of(group)
    tensors = {"query": query, "key": key, "value": value}
    spec, reason, refusal, asked = None, None, None, ""
    try:
        spec = make_spec(score, normalizer, mask, bias, dropout)
        check(query, key, value)
        reason = _needs_all_keys(query, key, value, spec, exchange)
        asked = _in_words(spec, "ring" if reason is None else "gather", balanced)
    except RegardError as error:
        refusal = error
    seed = int(torch.randint(2**31, (), device=query.device)) if dropout else 0
    layout = Layout.of(ring, tensors, refusal, seed, balanced=balanced, asked=asked)
    assert spec is not None  # or it has refused
    shape = (*batch_shape(query, _shared(query, key)), layout.totals["query"], layout.totals["key"])
    with computing(), autocast_off(query.device.type):
        if reason is None:
            return _round(ring, layout, spec, shape, tensors)
        key, value = ring.gather([key, value], layout.columns)
        key, value = share_heads(query, key), share_heads(query, value)
        found = []
        for run, here in zip(layout.rows[ring.rank], within(layout.rows[ring.rank]), strict=True):
            own, part = spec.part((run.start, 0), shape), query[..., here, :]
            found.append(compute(choose(part, key, value, own, "auto")[0], part, key, value, own, layout.seed)[0])
        return found[0] if len(found) == 1 else torch.cat(found, -2)


def _needs_all_keys(query: Tensor, key: Tensor, value: Tensor, spec: Spec, exchange: str) -> str | None:
    """Why keys and values are gathered; None if they travel round the ring."""
    if exchange not in EXCHANGES:
        raise unknown("exchange", exchange, EXCHANGES)
    reason = "it was asked for" if exchange == "gather" else _why_whole(query, key, value, spec)
    if exchange == "ring" and reason:
        raise KernelError(f"exchange 'ring' cannot do this: {reason}; exchange='auto' or 'gather' can")
    return reason


def _in_words(spec: Spec, exchange: str, balanced: bool) -> str:
    """What is asked for, as far as processes that differ in it would wait for each other."""
    parts = (spec.score, spec.normalizer, spec.mask, spec.bias)
    names = ", ".join("none" if part is None else type(part).__name__ for part in parts)
    return f"({names}, dropout {spec.dropout}) by {exchange}{', balanced' if balanced else ''}"


def _shared(query: Tensor, tensor: Tensor) -> Tensor:
    """A key or value without positions, with the heads of the query: what its batch axes will be costs no memory."""
    return share_heads(query, tensor[..., :0, :])


def _why_whole(query: Tensor, key: Tensor, value: Tensor, spec: Spec) -> str | None:
    scores = (*batch_shape(query, _shared(query, key)), query.shape[-2], key.shape[-2])
    if spec.normalizer.of_part() is None:
        return f"the normalizer {type(spec.normalizer).__name__} needs whole rows"
    if spec.score.follows:
        return f"the score {type(spec.score).__name__} needs the weights of the last look at all keys"
    if output_batch(scores, _shared(query, value)) != scores[:-2]:
        return "the values have more batch axes than the scores: one map is used for several values"
    return None


def _round(ring: Ring, layout: Layout, spec: Spec, shape: Shape, tensors: dict[str, Tensor]) -> Tensor:
    """The output by passing on: queries and keys are projected once, by the process that has them."""
    wide = score_dtype(*tensors.values())
    query, key, value = (t.to(wide) for t in tensors.values())
    query = spec.score.project_query(query).expand(*shape[:-2], -1, -1)
    key = spec.score.project_key(key)
    nothing = query.new_zeros(*shape[:-2], 1, 1)
    first = spec.normalizer(nothing, nothing.bool())[1]
    problem = RingProblem(ring, layout, _of_tiles(spec), spec, shape)
    learned = problem.learned(query, key)
    output: Tensor = _Ring.apply(problem, query, key, value, first, *learned)  # type: ignore[no-untyped-call]
    return output.to(tensors["value"].dtype)


def _of_tiles(spec: Spec) -> Spec:
    """The same for queries and keys that are projected, and for a part of the keys."""
    normalizer = spec.normalizer.of_part()
    assert normalizer is not None  # or keys would be gathered
    return replace(spec, score=spec.score.compared(), normalizer=normalizer)


@dataclass(frozen=True, eq=False)
class RingTile:
    """Some of this process's queries beside some of a visiting shard's keys.

    Attributes:
        rows, columns: their places within the two shards.
        spec: of the tile alone.
    """

    rows: slice
    columns: slice
    spec: Spec


@dataclass(frozen=True, eq=False)
class RingProblem:
    """This process's rows of the attention of projected queries and keys that are in shards.

    Attributes:
        of_tiles: the spec whose parts are computed.
        spec: the whole; its normalizer merges them.
        shape: `(*batch, T, S)` of the whole.
    """

    ring: Ring
    layout: Layout
    of_tiles: Spec
    spec: Spec
    shape: Shape

    def learned(self, query: Tensor, key: Tensor) -> list[Tensor]:
        """What a gradient flows into besides queries, keys, values and the normalizer.

        One pair is computed for it, the whole's first: a mask, a bias or a width that does not fit is refused before
        anything is sent.
        """
        if self.of_tiles.mask is not None:
            corner = torch.zeros(1, dtype=torch.long, device=query.device)
            self.of_tiles.mask.tile(corner, corner, self.shape)
        work = blockwise.BlockwiseProblem(self.of_tiles, self.of_tiles.score.compare, self.shape, 0)
        first = share_heads(query, key[..., :1, :])
        return work.learned(query, first.expand(*self.shape[:-2], -1, -1))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Output `[*batch, t, d_v]` and row numbers `[*batch, t]` of whole rows.

        Args:
            first: the row numbers of rows without keys, `[*batch, 1]`.
        """
        normalizer = self.spec.normalizer
        output = query.new_zeros(*query.shape[:-1], value.shape[-1])
        rows = first.expand(query.shape[:-1]).clone()
        for owner, shards in self.ring.visits((key, value), self.shapes(key, value)):
            for tile in self.tiles(owner, query.device):
                found, numbers = self.attend(tile, query, shards)
                so_far = rows[..., tile.rows]
                whole = normalizer.merge(so_far, numbers)
                part = output[..., tile.rows, :].mul_(normalizer.share(so_far, whole)[..., None])
                part.addcmul_(found, normalizer.share(numbers, whole)[..., None])
                so_far.copy_(whole)
                del found
            del shards  # they would live on while the next but one arrives
        return output, rows

    def attend(self, tile: RingTile, query: Tensor, shards: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Output and row numbers of one tile."""
        q, (k, v) = query[..., tile.rows, :], self.beside(query, tile, shards)
        found, numbers = compute(tile_kernel(q, k, v, tile.spec), q, k, v, tile.spec, self.layout.seed)
        return found, numbers.to(q.dtype)

    def backward(
        self, up: TileUpstream, query: Tensor, key: Tensor, value: Tensor, first: Tensor, learned: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Gradients of queries, keys, values, the numbers of rows without keys, and of what is learned.

        A shard's gradients leave a process when its tile's are added, and reach the next one while that computes its
        own tile; after as many steps as there are processes they are at home.
        """
        shapes = self.shapes(key, value)
        totals = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (query, *learned)]
        travelling = None
        for owner, shards in self.ring.visits((key, value), shapes):
            sums = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in shards]
            for tile in self.tiles(owner, query.device):
                places = [totals[0][..., tile.rows, :], *(t[..., tile.columns, :] for t in sums), *totals[1:]]
                torch._foreach_add_(places, self.of_tile(tile, up, query, shards, learned))
            if travelling is not None:
                torch._foreach_add_(sums, travelling.wait())
            travelling = self.ring.pass_on(sums, shapes[owner - 1], tag=len(sums))
            del shards, sums  # they would live on while others arrive
        assert travelling is not None
        of_first = self.of_first(up, first) if first.requires_grad else None
        return [totals[0], *travelling.wait(), of_first, *totals[1:]]

    def of_tile(
        self, tile: RingTile, up: TileUpstream, query: Tensor, shards: Sequence[Tensor], learned: Sequence[Tensor]
    ) -> list[Tensor]:
        """The gradients of one tile: of queries, the visiting keys and values, and what is learned."""
        (k, v), spec, seed = self.beside(query, tile, shards), tile.spec, self.layout.seed
        query, up = query[..., tile.rows, :], up.of(tile.rows)
        if spec.mask is not None and are_hidden(query):
            up, query, k, v = _isolated(up, query, k, v)
        if spec.mask is not None and not are_hidden(query) and is_poisoned(query, k, v):
            compare = spec.score.compare
            found = blockwise.gradients(up, query, k, v, spec, seed, learned, compare, poisoned=True)
        else:
            gradients = KERNELS[tile_kernel(query, k, v, spec)].gradients or blockwise.gradients
            found = gradients(up, query, k, v, spec, seed, learned)
        found[1:3] = (_as_given(part, shard.shape[:-2]) for part, shard in zip(found[1:3], shards, strict=True))
        return found

    def of_first(self, up: TileUpstream, first: Tensor) -> Tensor:
        """The gradient of the row numbers of rows without keys `[*batch, 1]`: a learned sink's logits reach it."""
        share = self.spec.normalizer.share(first.expand_as(up.rows), up.rows)
        return -((up.g * up.output).sum(-1) * share).sum(-1, keepdim=True)

    def shapes(self, key: Tensor, value: Tensor) -> list[list[Shape]]:
        """Of each process's keys and values."""
        sizes = [sum(lengths(part)) for part in self.layout.columns]
        return [[(*t.shape[:-2], n, t.shape[-1]) for t in (key, value)] for n in sizes]

    def tiles(self, owner: int, device: torch.device) -> Iterator[RingTile]:
        """This process's queries beside another's keys, without tiles in which no pair may attend."""
        own, other = self.layout.rows[self.ring.rank], self.layout.columns[owner]
        for (rows, here), (columns, there) in product(*(zip(p, within(p), strict=True) for p in (own, other))):
            spec = self.tile(rows, columns, device)
            if spec is not None:
                yield RingTile(here, there, spec)

    def tile(self, rows: slice, columns: slice, device: torch.device) -> Spec | None:
        """What joins some queries and some keys of the whole; None where no pair may attend."""
        t, s = lengths((rows, columns))
        if not t or not s:
            return None
        spec = self.of_tiles.part((rows.start, columns.start), self.shape)
        if spec.mask is None or device.type != "cpu":  # a question about values, which an accelerator makes wait
            return spec
        some, full = _covered(spec.mask, (*self.shape[:-2], t, s))
        return None if not some else replace(spec, mask=None) if full else spec

    def beside(self, query: Tensor, tile: RingTile, shards: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """A tile's keys and values with the batch axes of the queries; grouped heads are repeated."""
        parts = (share_heads(query, shard[..., tile.columns, :]) for shard in shards)
        k, v = (part.expand(*self.shape[:-2], *part.shape[-2:]) for part in parts)
        return k, v


def _covered(mask: Mask, shape: Shape) -> tuple[bool, bool]:
    """Whether some pair may attend, and whether all may."""
    edges = [torch.tensor([0, n]) for n in shape[-2:]]
    coverage = mask.coverage(TileGrid(edges[0], edges[1], shape))
    return bool(coverage.some.any()), bool(coverage.full.all())


def tile_kernel(query: Tensor, key: Tensor, value: Tensor, spec: Spec) -> str:
    """The kernel for a tile; on an accelerator torch's kernel keeps the row numbers that tiles are merged by."""
    shape = (*query.shape[:-1], key.shape[-2])
    for kernel in (KERNELS[name] for name in OF_TILES if query.device.type == "cpu"):
        if not (kernel.refusal(query, key, value, spec) or kernel.worth(query, key, value, spec, shape)):
            return kernel.name
    return "blockwise"


def _isolated(up: TileUpstream, *inputs: Tensor) -> tuple[Any, ...]:
    """A tile decided by shapes alone, as `nonfinite.isolated`: what is not finite becomes 0."""
    g = up.g.masked_fill(~up.output.isfinite().all(-1, keepdim=True), 0)
    clean = TileUpstream(g, up.output.nan_to_num(), up.rows.masked_fill(up.rows.isnan(), 0))
    return clean, *(t.masked_fill(~t.isfinite().all(-1, keepdim=True), 0) for t in inputs)


def _as_given(gradient: Tensor, batch: Shape) -> Tensor:
    """The gradient `[*repeated, n, d]` of a tensor that had the axes `batch`: the sum over the copies."""
    heads = batch[-1] if len(batch) > 1 else 1
    if heads > 1 and heads != gradient.shape[HEADS]:
        gradient = gradient.unflatten(HEADS, (heads, -1)).sum(HEADS)
    return gradient.sum_to_size(*batch, *gradient.shape[-2:])


class _Ring(torch.autograd.Function):
    """The ring forward, and backward with the saved rows; a second derivative would go round a third time."""

    @staticmethod
    def forward(ctx, problem, query, key, value, first, *learned):  # type: ignore[no-untyped-def]
        output, rows = problem.forward(query, key, value, first)
        ctx.problem = problem
        ctx.save_for_backward(query, key, value, first, output, rows, *learned)
        return output

    @staticmethod
    def backward(ctx, g: Tensor) -> Any:  # type: ignore[no-untyped-def]
        if torch.is_grad_enabled():
            raise RegardError(TWICE)
        query, key, value, first, output, rows, *learned = ctx.saved_tensors
        up = TileUpstream(g, output, rows)
        return None, *ctx.problem.backward(up, query, key, value, first, learned)
