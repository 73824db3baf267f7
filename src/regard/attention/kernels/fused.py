"""The fused kernel: torch's scaled_dot_product_attention, for softmax over anything that is a dot product.

Masks and biases reach torch in pieces of rows, so that no T × S table is ever made; `windowed` uses the same pieces
and leaves out the keys that a mask forbids to all queries of a piece.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from regard.attention.biases import Added, ByDistance
from regard.attention.kernels.blockwise import blockwise
from regard.attention.kernels.kernel import (
    Kernel,
    Seed,
    TileUpstream,
    derivatives,
    independent,
    is_differentiated,
    number_bytes,
)
from regard.attention.masks import Causal
from regard.attention.normalizers import Softmax
from regard.attention.pieces import BLOCK, Piece, pieces
from regard.attention.scores import Product, ScaledDot, is_product
from regard.attention.spec import Spec
from regard.attention.tracing import goes_forward, is_traced, is_transformed
from regard.shapes import batch_shape, check_widths, output_batch, score_dtype

SHORT = 256  # keys
LANES = 16  # of a vector of torch's kernel: fewer keys are not compared with NaN
NARROW = 32  # width of a head


def refusal(query: Tensor, key: Tensor, value: Tensor, spec: Spec) -> str | None:  # noqa: ARG001
    """Why this kernel cannot do the work; None if it can."""
    if not is_product(spec.score):
        return f"the score {type(spec.score).__name__} is not a dot product"
    if spec.score.softcap is not None:
        return "the score is soft-capped, which torch's kernel cannot do"
    if type(spec.normalizer) is not Softmax:
        return f"the normalizer {type(spec.normalizer).__name__} is not softmax"
    if spec.dropout:
        return "dropout on the weights: torch would drop others than regard does"
    if is_transformed():
        return "inside a torch.func transform, which may ask for derivatives that torch's kernel does not have"
    if not query.numel() or not key.numel():
        return "there is nothing to look at: an axis of size 0"
    if spec.bias is not None and spec.bias.is_learned() and not (_gives_sums(query) or is_traced(query)):
        return f"the bias is learned, and on {query.device.type} torch's kernel keeps its log-sum-exps to itself"
    return None


def fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: Spec,
    seed: Seed = 0,  # noqa: ARG001
    cut: "Cut | None" = None,
) -> tuple[Tensor, Tensor]:
    """The same attention as the reference kernel, by torch's fused kernel.

    Args:
        cut: how the rows are cut into pieces; by default as many rows at a time as fit a block.

    Returns:
        output `[*batch, T, d_v]` in value's dtype, and each row's log-sum-exp `[*batch, T]`.
    """
    assert isinstance(spec.score, Product)  # refusal() has seen to it
    shape = (*batch_shape(query, key), query.shape[-2], key.shape[-2])
    factor = spec.score.factor(query.shape[-1]) if isinstance(spec.score, ScaledDot) else None
    if factor is not None and not isinstance(factor, Tensor):
        scale, (q, k) = factor, (query, key)  # torch scales inside, where half precision does not round the query
    else:
        wide = score_dtype(query, key)
        scale, (q, k) = 1.0, spec.score.as_dot(query.to(wide), key.to(wide))
    check_widths(q, k)
    # torch's kernel has no forward derivative, and what a score or a bias holds is not known before
    if goes_forward(q, k, value, also=lambda: spec.corner(shape, query.device)):
        return blockwise(query, key, value, spec)
    batch = output_batch(shape, value)
    dtype = _fastest_dtype(q, k, value)
    # torch's kernel wants one width; zeros at the end change no product, and come off the output again
    width = max(k.shape[-1], value.shape[-1])
    q, k, v = (_prepared(t, dtype, width, batch) for t in (q, k, value))
    work = FusedProblem(spec, shape, scale, cut or _by_rows)
    learned = [] if spec.bias is None else [t for t in spec.bias.tensors() if t.requires_grad]
    if is_traced(q, k, v):
        output, rows = work.in_one_call(q, k, v)
    elif torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, *learned)):
        once, given = independent(learned), {id(one) for one in learned}
        if spec.bias is not None and {id(one) for one in once} != given:  # one is made of another: they become a table
            once = [spec.bias.full(shape, q.device)]
            work = FusedProblem(replace(spec, bias=Added(once[0])), shape, scale, cut or _by_rows)
        output, rows = _Differentiable.apply(work, q, k, v, *once)  # type: ignore[no-untyped-call]
    else:
        output, rows = work.forward(q, k, v)
    return (output if width == value.shape[-1] else output[..., : value.shape[-1]]).to(value.dtype), rows


def gradients(
    up: TileUpstream, query: Tensor, key: Tensor, value: Tensor, spec: Spec, seed: Seed,  # noqa: ARG001
    learned: Sequence[Tensor], cut: "Cut | None" = None,
) -> list[Tensor]:  # fmt: skip
    """The gradients of a tile, by torch's kernel: its backward takes the output and log-sum-exps of the whole rows.

    Args:
        up: what is known of the whole rows.
        query, key, value: of all batch axes; the score of the first two is their plain dot product.
        learned: what is learned in the bias.
    """
    shape = (*query.shape[:-1], key.shape[-2])
    width = max(key.shape[-1], value.shape[-1])
    output, q, k, v = (_prepared(t, query.dtype, width, shape[:-2]) for t in (up.output, query, key, value))
    g = _prepared(up.g, query.dtype, width, shape[:-2], strided=True)  # of which the kernel reads the strides
    work = FusedProblem(spec, shape, 1.0, cut or _by_rows)
    found = work.backward(g, q, k, v, output, up.rows, learned)
    sizes = (t.shape[-1] for t in (query, key, value))
    return [*(part[..., :size] for part, size in zip(found[:3], sizes, strict=True)), *found[3:]]


Cut = Callable[[Spec, tuple[int, ...], torch.device, bool], Iterator[Piece]]


def _by_rows(spec: Spec, shape: tuple[int, ...], device: torch.device, backward: bool) -> Iterator[Piece]:
    # what fits a block by any count is not counted
    pairs = BLOCK if prod(shape) <= BLOCK else most_pairs(spec, shape, device, backward)
    return pieces(spec.mask, shape, device, pairs=pairs, skip=False)


def most_pairs(spec: Spec, shape: tuple[int, ...], device: torch.device, backward: bool) -> int:
    """Pairs of a piece whose tables fit a block; what depends on the distance alone needs none.

    Args:
        backward: for a learned bias, weights and slopes of the piece will be made.
    """
    if backward and spec.bias is not None and spec.bias.is_learned():
        return max(1, BLOCK // prod(shape[:-2]))
    by_distance = isinstance(spec.bias, ByDistance | None) and (spec.mask is None or spec.mask.is_by_distance())
    return prod(shape) if by_distance else max(1, BLOCK // spread(spec, shape, device))


def is_whole(spec: Spec, shape: tuple[int, ...]) -> bool:
    """Whether torch's kernel needs no table: there is no bias, and no mask but the triangle it calls `is_causal`."""
    triangle = isinstance(spec.mask, Causal) and spec.mask.is_triangle(shape)
    return spec.bias is None and (spec.mask is None or triangle)


def spread(spec: Spec, shape: tuple[int, ...], device: torch.device) -> int:
    """How many different tables of scores mask and bias have over the batch."""
    place = torch.zeros(1, dtype=torch.long, device=device)
    parts = [part.tile(place, place, shape) for part in (spec.mask, spec.bias) if part is not None]
    return max([1, *(prod(part.shape[:-2]) for part in parts)])


@dataclass(frozen=True, eq=False)
class FusedProblem:
    """What torch's kernel has to do: softmax(scale · q kᵀ + bias, mask) · v, in pieces."""

    spec: Spec
    shape: tuple[int, ...]
    scale: float
    cut: Cut

    @property
    def is_whole(self) -> bool:
        """Whether one call does it all: no table of numbers goes with it."""
        return is_whole(self.spec, self.shape)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Output `[*batch, T, d]` and log-sum-exps `[*batch, T]` of equally wide vectors with all batch axes."""
        if self.is_whole:
            return _flash(q, k, v, None, self.spec.mask is not None, self.scale)
        output, rows = None, None
        for piece in self.cut(self.spec, self.shape, q.device, False):
            mask, numbers = self.added(piece, q)
            turned = numbers is not None
            asked = _turned(piece.of_queries(q), turned)
            found, sums = _flash(asked, piece.of_keys(k), piece.of_keys(v), mask, False, self.scale)
            found, sums = _turned(found, turned), _turned(sums[..., None], turned)[..., 0]
            if found.shape == q.shape:
                return found, sums
            if output is None or rows is None:
                output, rows = torch.zeros_like(q), sums.new_full(q.shape[:-1], -torch.inf)
            piece.of_queries(output).copy_(found)
            piece.of_rows(rows).copy_(sums)
        if output is None or rows is None:  # every row is dead
            wide = torch.promote_types(q.dtype, torch.float32)
            return torch.zeros_like(q), q.new_full(q.shape[:-1], -torch.inf, dtype=wide)
        return output, rows

    def in_one_call(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Output `[*batch, T, d]`, by one call that a graph can hold; torch's kernel keeps the row numbers: NaN."""
        if self.is_whole:
            return _opaque(q, k, v, None, self.spec.mask is not None, self.scale)
        table = q.new_zeros(())
        if self.spec.bias is not None:
            table = self.spec.bias.full(self.shape, q.device).to(q.dtype)
        if self.spec.mask is not None:
            table = torch.where(self.spec.mask.full(self.shape, q.device), table, -torch.inf)
        return _opaque(q, k, v, table, False, self.scale)

    def backward(
        self, g: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, rows: Tensor, learned: Sequence[Tensor]
    ) -> list[Tensor]:
        """The gradients of q, k, v and of what is learned in the bias."""
        if self.is_whole:
            return _flash_backward(g, q, k, v, output, rows, None, self.spec.mask is not None, self.scale)
        found = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (q, k, v, *learned)]
        scratch = Scratch()
        for piece in self.cut(self.spec, self.shape, q.device, True):
            keys, values = piece.of_keys(k), piece.of_keys(v)
            up, query, out, sums = (piece.of_queries(t) for t in (g, q, output, rows[..., None]))
            if learned:
                parts = self.with_bias(piece, up, query, keys, values, out, sums, found[3:], learned, scratch)
            else:
                mask, numbers = self.added(piece, q)
                turned = numbers is not None
                up, query, out, sums = (_turned(t, turned) for t in (up, query, out, sums))
                parts = _flash_backward(up, query, keys, values, out, sums[..., 0], mask, False, self.scale)
                parts[0] = _turned(parts[0], turned)
            piece.of_queries(found[0]).copy_(parts[0])
            piece.add_to_keys(found[1], parts[1])
            piece.add_to_keys(found[2], parts[2])
        return found

    def with_bias(
        self, piece: Piece, g: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, rows: Tensor,
        totals: Sequence[Tensor], learned: Sequence[Tensor], scratch: "Scratch",
    ) -> list[Tensor]:  # fmt: skip
        """The gradients of one piece's q, k and v; those of the bias, which torch's kernel cannot give, are added up.

        With p the weights, o the output and s the scores: ds = p (g vᵀ - g o), dq = ds k, dk = dsᵀ q, dv = pᵀ g, and
        the gradient of the bias is ds itself. Source: Dao et al. 2022, algorithm 4.
        """
        wide = torch.promote_types(q.dtype, torch.float32)
        up, q, k, v, output, rows = (t.to(wide) for t in (g, q, k, v, output, rows))
        with torch.enable_grad():
            table, numbers = self.added(piece, q)
        turned = numbers is not None
        assert table is not None  # there is a bias
        up, q, output, rows = (_turned(t, turned) for t in (up, q, output, rows))
        one = torch.ones_like(k[..., :1])
        # what is taken from every score of a row goes into the product as one more pair of components
        lse = rows.masked_fill(rows == -torch.inf, 0)
        weights = scratch.product(0, torch.cat([q * self.scale, -lse], -1), torch.cat([k, one], -1))
        weights.add_(table.detach()).exp_()
        own = (up * output).sum(-1, keepdim=True)
        slope = scratch.product(1, torch.cat([up, -own], -1), torch.cat([v, one], -1)).mul_(weights)
        for total, part in zip(totals, _of_table(table, numbers, slope, learned, scratch), strict=True):
            total += part
        return [
            _turned(slope @ k * self.scale, turned),
            slope.transpose(-2, -1) @ q * self.scale,
            weights.transpose(-2, -1) @ up,
        ]

    def added(self, piece: Piece, q: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What is added to the piece's scores: the bias, and -inf at forbidden pairs.

        Returns:
            the table, broadcastable to `[*inner, r, c]`; and, where it depends on the distance alone, the r + c - 1
            numbers that it is a view of. Its rows are then in the opposite order.
        """
        wide = torch.promote_types(q.dtype, torch.float32)
        bias, mask, allowed = self.spec.bias, self.spec.mask, piece.allowed
        if bias is None and allowed is None:
            return None, None
        shape = self.shape[len(piece.index) :]
        own = bias.select(piece.index, self.shape) if bias is not None and piece.index else bias
        if isinstance(piece.columns, slice) and isinstance(own, ByDistance | None) and (
            allowed is None or (mask is not None and mask.is_by_distance())
        ):  # fmt: skip
            first, last = piece.columns.start - piece.rows.stop + 1, piece.columns.stop - piece.rows.start
            distances = torch.arange(first, last, device=q.device)
            numbers = (
                q.new_zeros(len(distances), dtype=wide) if own is None else own.by_distance(distances, shape).to(wide)
            )
            if allowed is not None:
                assert mask is not None  # or everything would be allowed
                near = mask.tile(distances.new_zeros(1), distances, shape)[0]
                numbers = numbers.masked_fill(~near, -torch.inf)
            numbers = numbers.contiguous()
            count = piece.columns.stop - piece.columns.start, piece.rows.stop - piece.rows.start
            return numbers.unfold(-1, count[0], 1), numbers
        if own is None:
            assert allowed is not None
            return torch.zeros(allowed.shape, dtype=wide, device=q.device).masked_fill_(~allowed, -torch.inf), None
        tile = own.tile(*piece.positions(q.device), shape).to(wide)
        return (tile if allowed is None else tile.masked_fill(~allowed, -torch.inf)), None


def _turned(tensor: Tensor, turned: bool) -> Tensor:
    """Rows in the opposite order, if so."""
    return tensor.flip(-2) if turned else tensor


class Scratch:
    """Memory that is used again from piece to piece: fresh memory takes as long as the work that is done in it."""

    def __init__(self) -> None:
        self.buffers: dict[int, Tensor] = {}
        self.skewed: dict[torch.Size, Tensor] = {}

    def product(self, which: int, left: Tensor, right: Tensor) -> Tensor:
        """left · rightᵀ, valid until the next product of the same number."""
        shape = (*left.shape[:-1], right.shape[-2])
        held = self.buffers.get(which)
        if held is None or held.numel() < prod(shape):
            held = self.buffers[which] = left.new_empty(prod(shape))
        return torch.matmul(left, right.transpose(-2, -1), out=held[: prod(shape)].view(shape))

    def along_diagonals(self, table: Tensor) -> Tensor:
        """Sums `[..., t + s - 1]` of a table `[..., t, s]` whose row i begins i numbers later."""
        t, s = table.shape[-2:]
        if table.shape not in self.skewed:
            self.skewed[table.shape] = table.new_zeros(*table.shape[:-2], t, s + t - 1)
        rows = self.skewed[table.shape]
        rows.as_strided(table.shape, (*rows.stride()[:-2], s + t, 1)).copy_(table)  # the rest stays 0
        return rows.sum(-2)


def _of_table(
    table: Tensor, numbers: Tensor | None, slope: Tensor, learned: Sequence[Tensor], scratch: Scratch
) -> Sequence[Tensor]:
    """The gradients of what is learned in a table, or in the numbers that it is a view of."""
    at, by = table, slope.sum_to_size(table.shape)
    if numbers is not None:
        at, by = numbers, scratch.along_diagonals(by)
    found = torch.autograd.grad(at, learned, by, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if part is None else part for part, t in zip(found, learned, strict=True)]


class _Differentiable(torch.autograd.Function):
    """Torch's kernel with its own first derivative, and the plain formula's second: torch's kernel has none."""

    @staticmethod
    def forward(ctx, work, q, k, v, *learned):  # type: ignore[no-untyped-def]
        output, rows = work.forward(q, k, v)
        ctx.save_for_backward(q, k, v, output, rows, *learned)
        ctx.work = work
        ctx.mark_non_differentiable(rows)
        return output, rows

    @staticmethod
    def backward(ctx, upstream, _):  # type: ignore[no-untyped-def]
        q, k, v, output, rows, *learned = ctx.saved_tensors
        if is_differentiated(upstream):
            gradients = derivatives(partial(_plain, work=ctx.work), (q, k, v), learned, upstream)
        else:
            gradients = ctx.work.backward(upstream, q, k, v, output, rows, learned)
        return None, *gradients


def _plain(q: Tensor, k: Tensor, v: Tensor, work: FusedProblem) -> Tensor:
    """The formula that torch's kernel computes, in operations that can be differentiated twice."""
    positions = torch.arange(work.shape[-2], device=q.device)
    scores = q @ k.transpose(-2, -1) * work.scale
    if work.spec.bias is not None:
        columns = torch.arange(work.shape[-1], device=q.device)
        scores = scores + work.spec.bias.tile(positions, columns, work.shape).to(scores.dtype)
    weights: Tensor = Softmax()(scores, work.spec.allowed(positions, work.shape, q.device).expand_as(scores))[0]
    return weights @ v


def _flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, triangle: bool, scale: float) -> tuple[Tensor, Tensor]:
    """One call of torch's kernel: output and log-sum-exps."""
    if not _gives_sums(q):
        return _opaque(q, k, v, mask, triangle, scale)
    batch = q.shape[:-2]
    if len(batch) != 2:
        q, k, v = (_four_axes(t) for t in (q, k, v))
    mask = None if mask is None else _four_axes_of(mask, batch)
    output, rows = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, triangle, attn_mask=mask, scale=scale
    )
    if mask is not None and bool((rows == 0).any()):  # torch's number of a dead row
        rows = rows.masked_fill((mask == -torch.inf).all(-1), -torch.inf)
    if k.shape[-2] < LANES and bool((rows == 0).any()):
        output, rows = _with_nan(output, rows, scale * q @ k.transpose(-2, -1), mask, triangle)
    if len(batch) == 2:
        return output, rows
    return output.reshape(*batch, *output.shape[-2:]), rows.reshape(*batch, output.shape[-2])


def _with_nan(
    output: Tensor, rows: Tensor, scores: Tensor, mask: Tensor | None, triangle: bool
) -> tuple[Tensor, Tensor]:
    """NaN in the rows of which every allowed score is NaN: with few keys, torch's kernel takes them for dead."""
    allowed = torch.ones_like(scores, dtype=torch.bool) if mask is None else (mask != -torch.inf).expand_as(scores)
    allowed = allowed.tril() if triangle else allowed
    lost = (scores.isnan() | ~allowed).all(-1) & allowed.any(-1)
    return output.masked_fill(lost[..., None], torch.nan), rows.masked_fill(lost, torch.nan)


def _opaque(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, triangle: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The same by the call that has a kernel on every device and a place in every graph, and keeps its sums: NaN."""
    batch = q.shape[:-2]
    q, k, v = (_four_axes(t) for t in (q, k, v))
    dead = None
    if mask is not None:
        mask = _four_axes_of(mask, batch).to(q.dtype)
        mask = mask.expand(*mask.shape[:-2], q.shape[-2], k.shape[-2])
        dead = (mask == -torch.inf).all(-1, keepdim=True)
        mask = mask.masked_fill(dead, 0)  # a softmax of nothing but -inf is NaN, and so is its gradient
    output = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=triangle, scale=scale)
    if dead is not None:
        output = output.masked_fill(dead, 0)
    output = output.reshape(*batch, *output.shape[-2:])
    return output, output.new_full(output.shape[:-1], torch.nan, dtype=torch.float32)


def _flash_backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, rows: Tensor, mask: Tensor | None, triangle: bool,
    scale: float,
) -> list[Tensor]:  # fmt: skip
    if _gives_sums(q):
        mask = None if mask is None else _four_axes_of(mask, q.shape[:-2])
        g, q4, k4, v4, output = (_four_axes(t) for t in (g, q, k, v, output))
        rows = rows.masked_fill(rows == -torch.inf, 0)
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            g, q4, k4, v4, output, rows.reshape(*q4.shape[:-1]), 0.0, triangle, attn_mask=mask, scale=scale
        )
    else:
        with torch.enable_grad():
            again = [t.detach().requires_grad_() for t in (q, k, v)]
            once = _opaque(again[0], again[1], again[2], mask, triangle, scale)[0]
        found = [*torch.autograd.grad(once, again, g)]
    return [part.reshape(t.shape) for part, t in zip(found, (q, k, v), strict=True)]


def _gives_sums(tensor: Tensor) -> bool:
    """Whether torch's kernel gives the log-sum-exps too; on other devices than the CPU the backward computes anew."""
    return tensor.device.type == "cpu"


def _fastest_dtype(query: Tensor, key: Tensor, value: Tensor) -> torch.dtype:
    """float32 where a CPU is faster in it than in half precision.

    A short attention's backward is, and narrow heads are on a processor that has no matrix unit for bfloat16.
    """
    if value.dtype not in (torch.bfloat16, torch.float16) or value.device.type != "cpu":
        return value.dtype
    trains = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    wide = key.shape[-2] <= SHORT if trains else key.shape[-1] <= NARROW and not _has_matrix_unit()
    return torch.float32 if wide else value.dtype


@cache
def _has_matrix_unit() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())


def _prepared(tensor: Tensor, dtype: torch.dtype, width: int, batch: tuple[int, ...], strided: bool = False) -> Tensor:
    """The tensor in this type and width, with all batch axes; itself where it has them.

    Torch's kernel takes the numbers of a vector for neighbors in memory, and compares no stride: unless `strided`, they
    become neighbors, before they are shared by a batch.
    """
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    if tensor.shape[-1] < width:
        tensor = pad(tensor, (0, width - tensor.shape[-1]))
    if not strided and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    return tensor if tensor.shape[:-2] == batch else tensor.expand(*batch, *tensor.shape[-2:])


def _four_axes(tensor: Tensor) -> Tensor:
    """`[*batch, n, d]` as `[B, H, n, d]`, which torch's kernel wants."""
    if tensor.ndim == 4:
        return tensor
    batch = tensor.shape[:-2]
    return tensor.reshape(-1, batch[-1] if batch else 1, *tensor.shape[-2:])


def _four_axes_of(mask: Tensor, batch: torch.Size) -> Tensor:
    """A mask that broadcasts to `[*batch, t, s]`, for tensors that `_four_axes` has turned."""
    mask = mask.reshape(*[1] * max(0, len(batch) + 2 - mask.ndim), *mask.shape)
    if len(batch) > 2:
        mask = mask.expand(*batch, *mask.shape[-2:])
        return mask.reshape(-1, batch[-1], *mask.shape[-2:])
    return mask.reshape(*[1] * (4 - mask.ndim), *mask.shape)


def extra_bytes(_query: Tensor, _key: Tensor, value: Tensor, spec: Spec, shape: tuple[int, ...]) -> int:
    """A part of the mask as bools and as a bias; nothing where torch's kernel handles the mask natively."""
    if is_whole(spec, shape):
        return 0
    return min(BLOCK, spread(spec, shape, value.device) * shape[-2] * shape[-1]) * (number_bytes(value) + 1)


def _witness(output: Tensor, spec: Spec, shape: tuple[int, ...]) -> Tensor:
    """In torch's triangle the last query attends to all keys that could spoil another; elsewhere, all rows."""
    return output[..., -1:, :] if is_whole(spec, shape) else output


KERNEL = Kernel(
    "fused", fused, "softmax over a dot product: torch's fused kernel is the fastest", refusal,
    extra_bytes=extra_bytes, witness=_witness, gradients=gradients, traces=True,
)  # fmt: skip
