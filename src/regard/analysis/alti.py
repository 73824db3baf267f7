"""ALTI: contributions of input positions through all layers, from value vectors and residuals, not weights alone.

A layer's attention makes y_i = Σ_j T_i(x_j) + b of its inputs, T_i(x_j) = Σ_h α_ij W_O W_V x_j, for j = i the residual
x_i too; through a following norm with its σ frozen. x_j contributes by how much closer y_i is to T_i(x_j) than to 0.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from regard.analysis.residual import FrozenNorm, Stream, Write, head_outputs, head_weights, record
from regard.attention.maps.map import AttentionMap
from regard.errors import ChoiceError

Matrix = Float[Tensor, "T S"]
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
        target: an output position: its row `[S]` alone.

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
    streams, _ = record(last.run())
    rows = Mixing(streams, last.site.split(".")[0])(slice(-size, None) if target is None else target - size)
    return rows if target is None else rows[0]


class Mixing:
    """ALTI's rows of a stack, whose layers' contributions are computed once.

    Args:
        streams: of one forward pass.
        stack: "encoder" or "decoder".

    Raises:
        ChoiceError: there is no such stack: a model that is no Transformer.
    """

    def __init__(self, streams: dict[str, Stream], stack: str) -> None:
        if stack not in streams:
            raise ChoiceError(UNKNOWN)
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


def _layers(stream: Stream) -> list[tuple[str, Matrix, Tensor]]:
    """(site, contributions `[T, S]`, the residual's share `[T]`) of every attention of a stack, the lowest first.

    In self-attention the residual's share is part of the diagonal already.
    """
    state = torch.stack(list(stream.start.values())).sum(0)
    found = []
    for number, step in enumerate(stream.steps):
        if isinstance(step, FrozenNorm):
            state = _through(step, state, slice(None)) + (0 if step.bias is None else step.bias)
            continue
        if step.attention is not None:
            after = stream.steps[number + 1 : number + 2]
            norm = after[0] if after and after[0].name == f"{step.name}.norm" else None
            assert not isinstance(norm, Write)
            found.append((step.name, *_shares(step, state, norm)))
        state = state + step.added
    return found


def _shares(write: Write, state: Tensor, norm: FrozenNorm | None) -> tuple[Matrix, Tensor]:
    """The contributions of one attention, and those of the residual."""
    assert write.attention is not None
    rows, residual = [], []
    moved = None
    for place in range(len(state)):
        weights, values = head_outputs(write, place)
        if moved is None:
            moved = values @ head_weights(write.attention, len(weights)).to(values.dtype)
        terms = torch.einsum("hs,hsd->sd", weights, moved).to(state.dtype)
        crossing = write.name.endswith("cross")
        own = state[place][None]
        terms = (
            torch.cat([terms, own]) if crossing else terms.index_add(0, torch.tensor([place], device=own.device), own)
        )
        whole = (state[place] + write.added[place])[None]
        if norm is not None:
            terms, whole = _through(norm, terms, place), _through(norm, whole, place)
            whole = whole if norm.bias is None else whole + norm.bias
        nearer = (whole.abs().sum(-1) - (whole - terms).abs().sum(-1)).clamp_min(0)
        shares = nearer / nearer.sum().clamp_min(torch.finfo(nearer.dtype).tiny)
        rows.append(shares[:-1] if crossing else shares)
        residual.append(shares[-1] if crossing else shares[place])
    return torch.stack(rows), torch.stack(residual)


def _through(norm: FrozenNorm, vectors: Tensor, place: int | slice) -> Tensor:
    """Terms behind a norm, without its bias."""
    moved = vectors - vectors.mean(-1, keepdim=True) if norm.centred else vectors
    return moved * norm.gain[place]
