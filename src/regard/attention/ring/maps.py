"""The map of an attention across processes: each process answers for its own queries."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from regard.arguments import check_arguments
from regard.attention.biases import BiasLike
from regard.attention.maps.map import AttentionMap, Tokens
from regard.attention.maps.sources import ComputedWeights
from regard.attention.masks import MaskLike
from regard.attention.normalizers import NormalizerLike
from regard.attention.ring.shards import Group, Layout, Ring
from regard.attention.scores import ScoreLike
from regard.attention.spec import make_spec
from regard.errors import RegardError
from regard.shapes import batch_shape, check, share_heads


class RingMap(AttentionMap):
    """Weights α `[*batch, t, S]` of this process's t queries on all processes' S keys: a map like any other.

    Rows, tiles, entropies, the largest weights and whatever else belongs to a query are this process's, and no other
    process need ask for them. `received` and `distance` are sums over all queries: all processes ask together.

    Attributes:
        rows: this process's queries among the T of the whole.
        queries: T.
    """

    ring: Ring
    rows: slice
    queries: int

    def received(self) -> Tensor:
        """Σ_i α_ij `[*batch, S]` over the queries of all processes, which all ask for it together."""
        return self.ring.add_up(super().received())

    def distance(self) -> Tensor:
        """As `AttentionMap.distance`, `[*batch, T + S - 1]`, over all queries; all processes ask for it together."""
        # the map's own profile takes this process's last query for the one that stands at the last key
        return self.ring.add_up(pad(super().distance(), (self.queries - self.rows.stop, self.rows.start)))

    def _known(self, found: AttentionMap, same_heads: bool) -> AttentionMap:
        if found.shape[-2] != self.shape[-2]:
            raise RegardError(
                f"a map across processes keeps the {self.shape[-2]} queries of its process; got {found.shape[-2]}"
            )
        found.__class__ = RingMap
        assert isinstance(found, RingMap)
        found.ring, found.rows, found.queries = self.ring, self.rows, self.queries
        return super()._known(found, same_heads)


@check_arguments
def ring_map(
    query: Float[Tensor, "..."],
    key: Float[Tensor, "..."],
    *,
    score: ScoreLike = "scaled_dot",
    normalizer: NormalizerLike = "softmax",
    mask: MaskLike | None = None,
    bias: BiasLike | None = None,
    query_tokens: Tokens = None,
    key_tokens: Tokens = None,
    group: Group = None,
) -> RingMap:
    """The map of the attention that `ring_attend` computes for the same arguments, of this process's queries.

    All processes of the group call it together; it gathers the keys, O(S) memory, and never a T × S table. A process's
    queries follow each other: balanced shards are joined and cut again first.

    Args:
        query: this process's `[*batch, t, d_k]`.
        key: this process's `[*batch, s, d_k]`.
        score, normalizer, mask, bias: as in `ring_attend`.
        query_tokens: names of this process's rows.
        key_tokens: names of all columns.
        group: of torch.distributed; None is all processes.

    Raises:
        ShapeError, ChoiceError, RegardError: as `ring_attend`.
    """
    ring = Ring.of(group)
    spec, refusal = None, None
    try:
        spec = make_spec(score, normalizer, mask, bias)
        check(query, key)
    except RegardError as error:
        refusal = error
    layout = Layout.of(ring, {"query": query, "key": key}, refusal)
    assert spec is not None  # or it has refused
    (whole,) = ring.gather([key], layout.columns)
    (rows,), queries = layout.rows[ring.rank], layout.totals["query"]
    shape = (*batch_shape(query, share_heads(query, whole)), queries, whole.shape[-2])
    source = ComputedWeights.of(query, whole, spec.part((rows.start, 0), shape))
    found = RingMap(source.shape, source, query_tokens=query_tokens, key_tokens=key_tokens)
    found.ring, found.rows, found.queries = ring, rows, queries
    return found
