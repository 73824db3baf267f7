"""ALTI: contributions of input positions through all layers, from value vectors and residuals, not weights alone.

A layer's attention makes y_i = Σ_j T_i(x_j) + b of its inputs, T_i(x_j) = Σ_h α_ij W_O W_V x_j, for j = i the residual
x_i too; through a following norm with its σ frozen. x_j contributes by how much closer y_i is to T_i(x_j) than to 0.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from regard.analysis.residual import FrozenNorm, Stream, Write, head_outputs, head_weights, record
from regard.attention.maps.map import AttentionMap
from regard.errors import ChoiceError
from regard.observation.intervene import refuse_intervened

Matrix = Float[Tensor, "T S"]
Vector = Float[Tensor, "S"]
UNKNOWN = (
    "'alti' needs the residual states and the value and output weights of every layer: maps of a result of what "
    "regard.load returns know them (a Transformer's generation.attention); AttentionMap.norms gives one layer's "
    "‖α_ij v_j W_O‖, and flow follows such maps too"
)


def alti(maps: Sequence[AttentionMap], target: int | None = None) -> Tensor:
    """How much each input position reaches each output position, `[T, S]`, by ALTI (`flow`).

        c_ij = max(0, ‖y_i‖₁ - ‖y_i - T_i(x_j)‖₁), each row divided by its sum; the layers' product

    Of an encoder–decoder (ALTI+), a cross-attention's row divides what it gives between the source and the residual,
    the prefix of the target: the result has the source's part alone, so its rows sum to the source's share.

    Args:
        maps: of one result; the stack in which the last of them stands is followed.
        target: an output position: its row `[S]` alone, in O(T + S) memory: no layer's matrix is kept.

    Raises:
        ChoiceError: maps that do not know their model, or of a model that is no Transformer.

    Source: Ferrando et al. 2022, "Measuring the mixing of contextual information in the Transformer", equations 6 to 9;
    Ferrando et al. 2022, "Towards opening the black box of neural machine translation", section 3 (ALTI+).
    """
    origins = [one.origin for one in maps]
    last = origins[-1]
    if last is None or any(one is None or one.run != last.run for one in origins):
        raise ChoiceError(UNKNOWN)
    size = maps[-1].shape[-2]
    refuse_intervened(last.run().module, "alti")
    streams, _ = record(last.run())
    stack = last.site.split(".")[0]
    return Mixing(streams, stack)(slice(-size, None)) if target is None else _row(streams, stack, target - size)


class Mixing:
    """ALTI's rows of a stack, whose layers' contributions are computed once.

    Args:
        streams: of one forward pass.
        stack: "encoder" or "decoder".

    Raises:
        ChoiceError: there is no such stack: a model that is no Transformer.
    """

    def __init__(self, streams: dict[str, Stream], stack: str) -> None:
        _check(streams, stack)
        with torch.no_grad():
            self.own = _layers(streams[stack])
            crossing = any(site.endswith("cross") for site, _, _ in self.own)
            self.below = _layers(streams["encoder"]) if crossing else []

    def __call__(self, chosen: slice | int) -> Matrix:
        """The rows of some positions."""
        every = torch.eye(len(self.own[0][1])).to(self.own[0][1])
        rows = every[chosen] if isinstance(chosen, slice) else every[chosen][None]
        source = None
        for site, matrix, kept in reversed(self.own):
            if site.endswith("cross"):
                given_on = rows @ matrix
                source = given_on if source is None else source + given_on
                rows = rows * kept
            else:
                rows = rows @ matrix
        rows = rows if source is None else source
        for _, matrix, _ in reversed(self.below):
            rows = rows @ matrix
        return rows


def _check(streams: dict[str, Stream], stack: str) -> None:
    if stack not in streams:
        raise ChoiceError(UNKNOWN)


def _row(streams: dict[str, Stream], stack: str, place: int) -> Vector:
    """One row of `Mixing`, pulled down through the rows of each layer, of which one at a time is computed."""
    _check(streams, stack)
    with torch.no_grad():
        own = list(_attentions(streams[stack]))
        row = own[0].state.new_zeros(len(own[0].state))
        row[place] = 1
        source: Tensor | None = None
        for one in reversed(own):
            reached, kept = one.pull(row)
            if one.crossing:
                row, source = row * kept, reached if source is None else source + reached
            else:
                row = reached
        if source is not None:
            row = source
            for one in reversed(list(_attentions(streams["encoder"]))):
                row, _ = one.pull(row)
    return row


def _layers(stream: Stream) -> list[tuple[str, Matrix, Tensor]]:
    """(site, contributions `[T, S]`, the residual's share `[T]`) of every attention of a stack, the lowest first.

    In self-attention the residual's share is part of the diagonal already.
    """
    return [(one.write.name, *one.matrix()) for one in _attentions(stream)]


@dataclass(frozen=True, eq=False)
class _Attention:
    """One attention of a stack.

    Attributes:
        write: what it wrote.
        state: the stream before it `[T, d]`.
        norm: that follows it, of a post-norm block.
    """

    write: Write
    state: Float[Tensor, "T d"]
    norm: FrozenNorm | None

    @property
    def crossing(self) -> bool:
        return self.write.name.endswith("cross")

    def rows(self, positions: Iterable[int]) -> Iterator[tuple[Vector, Tensor]]:
        """The contributions `[S]` to some positions, and the residual's share of each."""
        attention, moved = self.write.attention, None
        assert attention is not None
        for place in positions:
            weights, values = head_outputs(self.write, place)
            if moved is None:
                moved = values @ head_weights(attention, len(weights)).to(values.dtype)
            terms = torch.einsum("hs,hsd->sd", weights, moved).to(self.state.dtype)
            own = self.state[place]
            if self.crossing:
                terms = torch.cat([terms, own[None]])
            else:
                terms[place] += own
            whole = (own + self.write.added[place])[None]
            if self.norm is not None:
                terms, whole = _through(self.norm, terms, place), _through(self.norm, whole, place)
                whole = whole if self.norm.bias is None else whole + self.norm.bias
            nearer = (whole.abs().sum(-1) - (whole - terms).abs().sum(-1)).clamp_min(0)
            shares = nearer / nearer.sum().clamp_min(torch.finfo(nearer.dtype).tiny)
            yield (shares[:-1], shares[-1]) if self.crossing else (shares, shares[place])

    def matrix(self) -> tuple[Matrix, Tensor]:
        """The contributions to every position, and the residual's shares."""
        rows, residual = zip(*self.rows(range(len(self.state))), strict=True)
        return torch.stack(rows), torch.stack(residual)

    def pull(self, row: Tensor) -> tuple[Vector, Tensor]:
        """A row `[T]` times the contributions `[S]`, and the residual's shares where the row is not 0."""
        positions = row.nonzero()[:, 0].tolist()
        reached, kept = None, torch.zeros_like(row)
        for place, (shares, residual) in zip(positions, self.rows(positions), strict=True):
            kept[place] = residual
            given = row[place] * shares
            reached = given if reached is None else reached.add_(given)
        call = self.write.call
        assert call is not None
        return (row.new_zeros(call.key.shape[-2]) if reached is None else reached), kept


def _attentions(stream: Stream) -> Iterator[_Attention]:
    """Every attention of a stack, the lowest first."""
    state = torch.stack(list(stream.start.values())).sum(0)
    for number, step in enumerate(stream.steps):
        if isinstance(step, FrozenNorm):
            state = _through(step, state, slice(None)) + (0 if step.bias is None else step.bias)
            continue
        if step.attention is not None:
            after = stream.steps[number + 1 : number + 2]
            norm = after[0] if after and after[0].name == f"{step.name}.norm" else None
            assert not isinstance(norm, Write)
            yield _Attention(step, state, norm)
        state = state + step.added


def _through(norm: FrozenNorm, vectors: Tensor, place: int | slice) -> Tensor:
    """Terms behind a norm, without its bias."""
    moved = vectors - vectors.mean(-1, keepdim=True) if norm.centred else vectors
    return moved * norm.gain[place]
