"""flow: what reaches the input through all layers of attention, not through one.

A layer's map weighs states that are mixtures themselves. Every way of following them down is a product of the layers'
matrices, or a maximum flow through the graph that the layers form. For one target a product is a vector times one map
after the other (`AttentionMap.pull`): O(N) memory at any length.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.analysis.alti import alti
from regard.analysis.base import as_inputs, check_map
from regard.arguments import check_arguments
from regard.attention.maps.map import AttentionMap
from regard.attention.maps.sources import WeightSource
from regard.attention.tracing import without_autocast
from regard.errors import ChoiceError, ShapeError, nearest

HOWS = ("rollout", "gradient", "flow", "alti")
LONGEST = 64  # tokens of a maximum flow


@dataclass(frozen=True, eq=False)
class HeadGradient:
    """What turns a map into its gradient, of one layer: ∂y/∂α_ij = g_i · v_j, by vectors.

    Attributes:
        output: g = ∂y/∂o `[heads, T, d_v]`, y's gradient by the heads' outputs o_i = Σ_j α_ij v_j.
        value: v `[heads, S, d_v]`; grouped heads are repeated.
    """

    output: Tensor
    value: Tensor


@check_arguments
def flow(
    maps: Mapping[str, AttentionMap] | Sequence[AttentionMap],
    how: str = "rollout",
    *,
    target: int | None = None,
    residual: float | Sequence[float] = 0.5,
    gradients: Sequence[HeadGradient] | None = None,
) -> Tensor:
    """How much each input position reaches each output position through all layers `[T, S]`.

    "rollout": Π_l Ã_l, Ã = ½A + ½I with A the heads' mean, rows divided by their sum (Abnar and Zuidema 2020, section
    3.1). "gradient": Ā = mean over heads of (∇A ⊙ A)⁺ and R ← R + Ā R from R = I (Chefer, Gur and Wolf 2021, "Generic
    attention-model explainability", equations 5 and 6). "flow": the maximum flow from output i to input j through the
    graph whose layers are the tokens and whose capacities are Ã (Abnar and Zuidema 2020, section 3.2). "alti": the
    product of what the vectors that move contribute, residuals included (`regard.analysis.alti`; Ferrando et al. 2022).

    A map of cross-attention may stand in the chain: after an encoder's maps, before those of the decoder layers above
    it. Its queries are another sequence, so nothing stays where it is: its residual is 0, by itself where T ≠ S or its
    site is known; elsewhere give one for each map (for "gradient", whose residual is I, only whether it is 0 counts).

    Args:
        maps: `[heads, T, S]` or `[T, S]` of each layer, the lowest first; each one's keys are the queries of the one
            before. A mapping {site: map} is taken in its order.
        how: "rollout", "gradient", "flow" or "alti"; the last takes maps of a result, which know their model, and
            follows the whole stack of the last of them: a `generation.attention`.
        target: an output position (negative: from the end): its row `[S]` alone, in O(T + S) memory for the products.
        residual: the share of a state that stays where it is; one for all layers, or one for each.
        gradients: of each layer, for "gradient".

    Returns:
        `[T, S]`, or `[S]` of a target, in the maps' dtype.

    Raises:
        ConfigError: what is no map, such as an observation's list of maps.
        ShapeError: no map at all, sizes that do not follow each other, several cross-attentions, a target outside, a
            residual that is no share, more than 64 tokens for "flow".
        ChoiceError: an unknown `how`; "alti" of maps that do not know their model; "gradient" without gradients, or
            these for something else.
    """
    if how not in HOWS:
        expected = ", ".join(map(repr, nearest(how, list(HOWS))))
        raise ChoiceError(f"unknown how {how!r}: expected one of {expected}")
    if (how == "gradient") != (gradients is not None):
        raise ChoiceError("gradients, one for each layer, and how='gradient' belong together")
    for share in residual if isinstance(residual, Sequence) else [residual]:
        if not 0 <= share <= 1:
            raise ShapeError(f"residual is the share of a state that stays, from 0 to 1; got {share}")
    given = list(maps.values()) if isinstance(maps, Mapping) else as_inputs(maps)
    for one in given:
        check_map(one)
    with without_autocast(given[0].source.like.device.type if given else "cpu"):
        return _flow(given, how, target, residual, gradients)


def _flow(
    given: list[AttentionMap], how: str, target: int | None, residual: float | Sequence[float],
    gradients: Sequence[HeadGradient] | None,
) -> Tensor:  # fmt: skip
    """`flow` of maps that have been checked, outside of autocast."""
    chain = given if how == "alti" and given else _chain(given)
    if target is not None:
        rows = chain[-1].shape[-2]
        if not -rows <= target < rows:
            raise ShapeError(f"target {target} stands outside the {rows} queries of the last map")
        target %= rows
    if how == "alti":
        return alti(chain, target)
    layers = list(_mixed(chain, residual) if gradients is None else _weighted(chain, gradients, residual))
    if how == "flow":
        return _maximum_flow(layers, target)
    if target is not None:
        row = layers[-1].like.new_zeros(layers[-1].rows)
        row[target] = 1
        for layer in reversed(layers):
            row = layer.pull(row)
        return row
    joint = layers[0].matrix()
    for layer in layers[1:]:
        joint = layer.matrix() @ joint
    return joint


@dataclass(frozen=True, eq=False)
class _Layer:
    """D⁻¹(attended · A + kept · I), A the heads' mean, D the sums of the rows where they are `divided` by them.

    Attributes:
        map: `[heads, T, S]`.
        attended, kept: the shares.
        divided: whether the rows are divided by their sum.
    """

    map: AttentionMap
    attended: float
    kept: float
    divided: bool

    @property
    def like(self) -> Tensor:
        return self.map.source.like

    @property
    def rows(self) -> int:
        return self.map.shape[-2]

    def pull(self, row: Tensor) -> Tensor:
        """A row `[T]` times the layer's matrix `[S]`; the heads are pulled one by one and averaged after it."""
        if self.divided:
            total = self.attended * self._mean(self.map.push(row.new_ones(self.map.shape[-1]))) + self.kept
            row = row / total.masked_fill(total == 0, 1)
        reached = self.attended * self._mean(self.map.pull(row))
        return reached + self.kept * row if self.kept else reached

    def _mean(self, vectors: Tensor) -> Tensor:
        return vectors.mean(0) if vectors.ndim == 2 else vectors

    def matrix(self) -> Tensor:
        """The layer's matrix `[T, S]`."""
        mixed = self.attended * (self.map.mean_heads() if len(self.map.shape) == 3 else self.map).full()
        if self.kept:
            mixed = mixed + self.kept * torch.eye(self.rows, dtype=mixed.dtype, device=mixed.device)
        if not self.divided:
            return mixed
        total = mixed.sum(-1, keepdim=True)
        return mixed / total.masked_fill(total == 0, 1)


def _chain(maps: list[AttentionMap]) -> list[AttentionMap]:
    """The maps, their sizes checked."""
    if not maps:
        raise ShapeError("flow needs at least one map")
    across = [number for number, one in enumerate(maps) if _crosses(one)]
    if across and (len(across) > 1 or any("decoder" in one.site.split(".") for one in maps[: across[0]])):
        raise ShapeError(
            f"{maps[across[-1]].site} does not follow {maps[across[-1] - 1].site}: give an encoder's maps, one "
            "cross-attention and the decoder's maps above it; how='alti' takes all maps of a result"
        )
    for number, one in enumerate(maps):
        before = maps[number - 1].shape[-2] if number else one.shape[-1]
        if len(one.shape) not in (2, 3) or one.shape[-1] != before:
            hint = "select(0) takes the first input of a batch"
            if all(each.shape == one.shape for each in maps) and len(one.shape) in (2, 3):
                hint = "a completion's maps have the rows of its own tokens: observe the model over the whole text"
            raise ShapeError(
                f"flow needs maps [heads, T, S], each with as many keys as the one before has queries ({before}); map "
                f"{number} has shape {list(one.shape)} ({hint})"
            )
    return maps


def _crosses(map: AttentionMap) -> bool:
    """Whether it is known that the queries are another sequence than the keys."""
    return map.site.rpartition(".")[2] == "cross"


def _residuals(chain: list[AttentionMap], residual: float | Sequence[float]) -> list[float]:
    shares = list(residual) if isinstance(residual, Sequence) else [residual] * len(chain)
    if len(shares) != len(chain):
        raise ShapeError(f"residual needs one number, or one for each of the {len(chain)} maps; got {len(shares)}")
    return shares


def _mixed(chain: list[AttentionMap], residual: float | Sequence[float]) -> Iterator[_Layer]:
    for number, (one, share) in enumerate(zip(chain, _residuals(chain, residual), strict=True)):
        square = one.shape[-2] == one.shape[-1] and not _crosses(one)
        if not square and isinstance(residual, Sequence) and share:
            raise ShapeError(
                f"residual {share} of map {number}, whose {one.shape[-2]} queries are not its keys: say 0.0"
            )
        yield _Layer(one, 1 - share if square else 1.0, share if square else 0.0, divided=True)


def _weighted(
    chain: list[AttentionMap], gradients: Sequence[HeadGradient], residual: float | Sequence[float]
) -> Iterator[_Layer]:
    if len(gradients) != len(chain):
        raise ShapeError(f"gradients are needed for each of the {len(chain)} maps; got {len(gradients)}")
    stays = [share != 0 for share in _residuals(chain, residual)]
    for number, (one, slope) in enumerate(zip(chain, gradients, strict=True)):
        *heads, t, s = one.shape
        width = slope.value.shape[-1]
        if slope.output.shape != (*heads, t, width) or slope.value.shape != (*heads, s, width):
            raise ShapeError(
                f"map {number} is {list(one.shape)}: its gradient needs output {[*heads, t]} and value {[*heads, s]} "
                f"by d_v; got {list(slope.output.shape)} and {list(slope.value.shape)}"
            )
        like = one.source.like
        source = _Relevant(one.source, slope.output.to(like), slope.value.to(like))
        yield _Layer(
            AttentionMap(one.shape, source), 1.0, float(t == s and stays[number] and not _crosses(one)), divided=False
        )


class _Relevant(WeightSource):
    """(∇A ⊙ A)⁺ of a map whose gradient is g_i · v_j."""

    def __init__(self, source: WeightSource, output: Tensor, value: Tensor) -> None:
        self.source, self.like, self.row = source, source.like, source.row
        self.output, self.value = output, value

    def weigh(self, rows: Tensor | None) -> Tensor:
        output = self.output if rows is None else self.output[..., rows, :]
        return (self.source.weigh(rows) * (output @ self.value.mT)).clamp_min(0)

    def select(self, index: tuple[int | slice, ...]) -> WeightSource:
        return _Relevant(self.source.select(index), self.output[index], self.value[index])


def _maximum_flow(layers: list[_Layer], target: int | None) -> Tensor:
    """Maximum flows from output to input positions, by networkx; every edge points down one layer."""
    from networkx import DiGraph, maximum_flow_value  # torch's own dependency, slow to import
    from networkx.algorithms.flow import build_residual_network, shortest_augmenting_path

    size = max(max(one.map.shape[-2:]) for one in layers)
    if size > LONGEST:
        raise ShapeError(f"a maximum flow of {size} tokens takes too long: at most {LONGEST}; rollout has no limit")
    graph = DiGraph()
    for number, layer in enumerate(layers):
        graph.add_nodes_from((number, j) for j in range(layer.map.shape[-1]))
        for i, row in enumerate(layer.matrix().detach().tolist()):
            graph.add_node((number + 1, i))
            graph.add_edges_from(((number + 1, i), (number, j), {"capacity": w}) for j, w in enumerate(row) if w > 0)
    keys = range(layers[0].map.shape[-1])
    queries = range(layers[-1].rows) if target is None else [target]
    known = {"flow_func": shortest_augmenting_path, "residual": build_residual_network(graph, "capacity")}
    found = [[maximum_flow_value(graph, (len(layers), i), (0, j), **known) for j in keys] for i in queries]
    table = torch.tensor(found, dtype=layers[0].like.dtype, device=layers[0].like.device)
    return table if target is None else table[0]
