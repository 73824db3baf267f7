"""The blockwise kernel: the reference's equation on blocks of whole rows, forward and backward, in bounded memory.

It takes every score, normalizer, mask, bias and dropout. Queries and keys are projected once; every block is compared,
normalized and summed, forgotten, and computed again when its gradient is wanted, so that memory is O(T + S) and one
block. What the mask leaves empty is skipped.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from regard.attention.kernels.dropout import kept
from regard.attention.kernels.kernel import Kernel, Seed, TileUpstream, derivatives, independent, is_differentiated
from regard.attention.kernels.reference import reference
from regard.attention.pieces import BLOCK, Piece, pieces
from regard.attention.scores import as_scores
from regard.attention.spec import Spec
from regard.attention.tracing import goes_forward
from regard.device import random_states, restore_random_states
from regard.shapes import batch_shape, output_batch, score_dtype

PART = 2**20  # pairs that are computed at a time, if they are more than one block
ROWS = 128  # fewer rows at a time than this are slow: rather fewer entries of the batch
Compare = Callable[[Tensor, Tensor], Tensor]


def blockwise(
    query: Tensor, key: Tensor, value: Tensor, spec: Spec, seed: Seed = 0,
    compare: Compare | None = None, poisoned: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same attention as the reference kernel, block by block.

    Args:
        compare: scores of projected queries and keys, instead of the score's own.
        poisoned: a NaN or infinity stands where some query may not look: every query goes beside its own keys only.

    Returns:
        output `[*batch, T, d_v]` in value's dtype, and one number per row `[*batch, T]`.
    """
    shape = (*batch_shape(query, key), query.shape[-2], key.shape[-2])
    batch = output_batch(shape, value)
    if batch != shape[:-2] or not prod(shape):  # one map for several values, or nothing to do
        return reference(query, key, value, spec, seed)
    wide = score_dtype(query, key, value)
    q, k = spec.score.project_query(query.to(wide)), spec.score.project_key(key.to(wide))
    q, k, v = (t.expand(*batch, *t.shape[-2:]) for t in (q, k, value.to(wide)))
    work = BlockwiseProblem(spec, compare or spec.score.compare, shape, seed, poisoned)
    learned = work.learned(q, k) if torch.is_grad_enabled() else []
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, *learned))
    # what is forgotten has no forward derivative; the pieces have one
    if wanted and not work.is_small and not goes_forward(q, k, v, also=lambda: [work.corner(q, k)]):
        output, rows = _Recomputed.apply(work, q, k, v, *learned)  # type: ignore[no-untyped-call]
    else:
        output, rows = work.forward(q, k, v)
    return output.to(value.dtype), rows


@dataclass(frozen=True, eq=False)
class BlockwiseProblem:
    """The attention of projected queries and keys, in pieces."""

    spec: Spec
    compare: Compare
    shape: tuple[int, ...]
    seed: Seed
    poisoned: bool = False

    @property
    def is_small(self) -> bool:
        """Whether it is a single block: nothing would be saved by computing it again."""
        return prod(self.shape) <= BLOCK and not self.poisoned

    def pieces(self, device: torch.device) -> Iterator[Piece]:
        """Blocks of whole rows."""
        # what a mask leaves empty is a question about values, and an accelerator would have to wait for the answer
        batch, skip = self.shape[:-2], self.spec.normalizer.skips and device.type == "cpu"
        skip = skip and not self.spec.score.follows  # which numbers its keys: it is called with all of them
        fits = (n for n in range(len(batch)) if prod(batch[n:]) * self.shape[-1] * ROWS <= PART)
        outer = next(fits, len(batch))
        pairs = 1 if self.poisoned else max(1, PART // prod(batch[outer:]))
        return pieces(self.spec.mask, self.shape, device, outer=outer, pairs=pairs, skip=skip)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Output and row numbers of inputs with all batch axes."""
        if self.is_small:
            return self.whole(q, k, v)
        output = v.new_zeros(*self.shape[:-1], v.shape[-1])
        rows = self.dead_numbers(v)
        for piece in self.pieces(q.device):
            found, numbers = self.part(piece, piece.of_queries(q), piece.of_keys(k), piece.of_keys(v))
            piece.of_queries(output).copy_(found)
            piece.of_rows(rows).copy_(numbers)
        return output, rows

    def dead_numbers(self, like: Tensor) -> Tensor:
        """The row numbers `[*batch, T]` of rows that attend to no key."""
        with torch.no_grad():
            nothing = like.new_zeros(*self.shape[:-2], 1, self._few())
            numbers: Tensor = self.spec.normalizer(nothing, nothing.bool())[1]
        return numbers.expand(self.shape[:-1]).clone()

    def whole(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Output and row numbers as one piece."""
        t, s = self.shape[-2:]
        allowed = None if self.spec.mask is None else self.spec.mask.full(self.shape, q.device)
        return self.part(Piece((), slice(0, t), slice(0, s), allowed), q, k, v)

    def part(self, piece: Piece, q: Tensor, k: Tensor, v: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output and row numbers of one piece.

        Args:
            known: the numbers of longer rows, of which the piece has some keys; the sum of the piece's weights is then
                returned instead.
        """
        shape = self.shape[len(piece.index) :]
        rows, columns = piece.positions(q.device)
        own = self.spec.select(piece.index, self.shape) if piece.index else self.spec
        whole = (*shape[:-2], len(rows), len(columns))
        if self.poisoned and piece.allowed is not None:  # as in the reference kernel: forbidden keys become 0 first
            seen = piece.allowed.expand(whole).transpose(-2, -1)
            q, k, v = torch.where(seen.any(-2, keepdim=True), q, 0), torch.where(seen, k, 0), torch.where(seen, v, 0)
        scores = as_scores(self.compare(q, k), q, k, type(own.score).__name__)
        if own.bias is not None:
            scores = scores + own.bias.tile(rows, columns, shape).to(scores.dtype)
        allowed = scores.new_ones((), dtype=torch.bool) if piece.allowed is None else piece.allowed
        allowed = allowed.expand_as(scores)
        weights, numbers = own.normalize(scores, allowed) if known is None else _of_known(own, scores, allowed, known)
        if self.spec.dropout:
            numbered = torch.arange(prod(self.shape[:-2]), device=q.device).reshape(self.shape[:-2])[piece.index]
            rows, columns = rows + self.spec.first[0], columns + self.spec.first[1]
            weights = weights * kept(numbered, rows, columns, self.seed, self.spec.dropout) / (1 - self.spec.dropout)
        return weights @ v, numbers

    def _few(self) -> int:
        """How many keys a row has at least: all, for what needs whole rows, which may take the largest eight."""
        whole = self.spec.score.follows or self.spec.normalizer.of_part() is None
        return self.shape[-1] if whole else 1

    def corner(self, q: Tensor, k: Tensor) -> Tensor:
        """What the first query gets of the first keys, which depends on all that the whole output depends on."""
        t, s = self.shape[-2:]
        corner = Piece((), slice(0, min(1, t)), slice(0, min(self._few(), s)), None)
        with _redrawn(None, q.device):  # the look draws nothing
            q, k = q[..., :1, :].detach(), k[..., : self._few(), :].detach()
            return self.part(corner, q, k, k)[0]

    def learned(self, q: Tensor, k: Tensor) -> list[Tensor]:
        """What a gradient flows into besides queries, keys and values: parameters, biases, what callables capture."""
        return independent(_reached(self.corner(q, k), [t for t in self.spec.tensors() if t.requires_grad]))


def _of_known(spec: Spec, scores: Tensor, allowed: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of some keys of rows whose numbers `[*batch, T]` are known, and their sums."""
    # a dead row's scores are all -inf: any finite number gives weights of 0, and gradients that are not NaN
    numbers = numbers.masked_fill(numbers == -torch.inf, 0)[..., None]
    weights = spec.normalizer.reweight(scores.masked_fill(~allowed, -torch.inf), numbers)
    assert weights is not None  # as every normalizer with `of_part`
    weights = weights.masked_fill(~allowed, 0)
    return weights, weights.sum(-1)


def gradients(
    up: TileUpstream, query: Tensor, key: Tensor, value: Tensor, spec: Spec, seed: Seed, learned: Sequence[Tensor],
    compare: Compare | None = None, poisoned: bool = False,
) -> list[Tensor]:  # fmt: skip
    """The gradients of a tile: of all queries, and some of the keys and values that these attend to.

    With α the weights of the whole rows, g the output's gradient and o the output, ds_ij = α_ij (g_i · v_j - g_i · o_i)
    where keys compete: the derivative of Σ_ij α_ij (g_i · v_j - g_i · o_i) for row numbers that stay the same.

    Args:
        up: what is known of the whole rows.
        query, key, value: of all batch axes; queries and keys are projected.
        learned: what else a gradient is wanted of.
    """
    shape = (*query.shape[:-1], key.shape[-2])
    work = BlockwiseProblem(spec, compare or spec.score.compare, shape, seed, poisoned)
    inputs = (query, key, value)
    totals = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (*inputs, *learned)]
    through = (up.g * up.output).sum(-1) if spec.normalizer.competes else torch.zeros_like(up.rows)
    g = torch.cat([up.g, -through[..., None]], -1)
    for piece in work.pieces(query.device):
        _add_gradients(totals, work, piece, inputs, learned, piece.of_queries(g), piece.of_rows(up.rows))
    return totals


@contextmanager
def _redrawn(states: dict[str, Tensor] | None, device: torch.device) -> Iterator[None]:
    """Generators that continue from these states inside the block, and after it as if nothing had been drawn."""
    before = random_states(device)
    if states is not None:
        restore_random_states(states, device)
    try:
        yield
    finally:
        restore_random_states(before, device)


class _Recomputed(torch.autograd.Function):
    """Pieces that are forgotten and computed again for the first derivative; the second is the plain formula's."""

    @staticmethod
    def forward(ctx, work, q, k, v, *learned):  # type: ignore[no-untyped-def]
        ctx.chance = random_states(q.device)  # what is drawn is drawn again
        output, rows = work.forward(q, k, v)
        ctx.save_for_backward(q, k, v, *learned)
        ctx.work = work
        ctx.mark_non_differentiable(rows)
        return output, rows

    @staticmethod
    def backward(ctx, upstream, _):  # type: ignore[no-untyped-def]
        q, k, v, *learned = ctx.saved_tensors
        if is_differentiated(upstream):
            plain = replace(ctx.work, compare=ctx.work.spec.score.compare)  # the reference's formula
            with _redrawn(ctx.chance, q.device):
                return None, *derivatives(lambda *inputs: plain.forward(*inputs)[0], (q, k, v), learned, upstream)
        totals = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (q, k, v, *learned)]
        with _redrawn(ctx.chance, q.device):
            for piece in ctx.work.pieces(q.device):
                _add_gradients(totals, ctx.work, piece, (q, k, v), learned, piece.of_queries(upstream))
        return None, *totals


def _add_gradients(
    totals: Sequence[Tensor],
    work: BlockwiseProblem,
    piece: Piece,
    inputs: Sequence[Tensor],
    learned: Sequence[Tensor],
    g: Tensor,
    known: Tensor | None = None,
) -> None:
    """Add one piece's share of the gradients of queries, keys, values and what is learned.

    Args:
        g: the output's gradient; where row numbers are `known`, that of the sum of the weights behind it.
    """
    q, k, v = inputs
    with torch.enable_grad():
        parts = [t.detach().requires_grad_() for t in (piece.of_queries(q), piece.of_keys(k), piece.of_keys(v))]
        output, sums = work.part(piece, parts[0], parts[1], parts[2], known)
        output = output if known is None else torch.cat([output, sums[..., None]], -1)
    # what was computed before this attention, as a bias may be, is walked through once for every piece
    found = torch.autograd.grad(output, [*parts, *learned], g, retain_graph=bool(learned), allow_unused=True)
    if found[0] is not None:
        piece.of_queries(totals[0]).add_(found[0])
    for total, part in zip(totals[1:3], found[1:3], strict=True):
        if part is not None:
            piece.add_to_keys(total, part)
    for total, part in zip(totals[3:], found[3:], strict=True):
        if part is not None:
            total += part


def _reached(output: Tensor, known: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that a gradient of `output` flows into: those that are known, and the leaves of what is not."""
    found = {id(t): t for t in known}
    stops = {t.grad_fn for t in known if t.grad_fn is not None}
    nodes, seen = [output.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen or node in stops:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.setdefault(id(node.variable), node.variable)
        nodes += [after for after, _ in node.next_functions]
    return list(found.values())


def _worth(_query: Tensor, _key: Tensor, _value: Tensor, _spec: Spec, shape: tuple[int, ...]) -> str | None:
    pairs = prod(shape)
    return None if pairs > BLOCK else f"all {pairs:,} scores fit one block"


KERNEL = Kernel(
    "blockwise",
    blockwise,
    "it takes every score, normalizer, mask and bias in the memory of one block",
    worth=_worth,
    gradients=gradients,
    goes_forward=True,
)
