"""Score functions: how well each key answers each query.

Every score is two projections and a comparison,

    e_ij = compare(project_query(q_i), project_key(k_j)),

so a decoder that asks the same memory many times projects its keys once (`Score.projected`), and a
score whose comparison is a product (`Product`) is served by every dot kernel (`Product.as_dot`).
"""

from collections.abc import Callable
from math import inf, sqrt
from typing import Any, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.arguments import check_arguments, check_least
from regard.attention.plain import has_own_call, is_plain_linear
from regard.attention.tracing import are_hidden
from regard.errors import ChoiceError, ShapeError, shown, unknown
from regard.shapes import batch_shape, check_widths, described, fits, is_dense

QueryTile = Float[Tensor, "*q_batch T d_q"]
KeyTile = Float[Tensor, "*k_batch S d_k"]
ProjectedQuery = Float[Tensor, "*q_batch T h_q"]
ProjectedKey = Float[Tensor, "*k_batch S h_k"]
ScoreTile = Float[Tensor, "*batch T S"]


class Score(nn.Module):
    """e_ij = compare(project_query(q_i), project_key(k_j)); the base of all scores.

    Attributes:
        follows: a recurrent decoder's query is [state; weights of its last look], for a score that goes on from there;
            it is given all keys at once.
        numbers_keys: of a score that follows: a projected key carries its place, so that any tile of projected keys is
            compared alone.
    """

    follows: bool = False
    numbers_keys: bool = False

    def project_query(self, query: QueryTile) -> ProjectedQuery:
        """The query's side, computed alone."""
        return query

    def project_key(self, key: KeyTile) -> ProjectedKey:
        """The key's side, computed alone: once per memory."""
        return key

    def compare(self, query: ProjectedQuery, key: ProjectedKey) -> ScoreTile:
        """Scores `[*batch, T, S]` of projected queries and keys."""
        raise NotImplementedError

    def forward(self, query: QueryTile, key: KeyTile) -> ScoreTile:
        """Scores `[*batch, T, S]` of queries `[*batch, T, d_q]` and keys `[*batch, S, d_k]`."""
        return self.compare(self.project_query(query), self.project_key(key))

    def projected(self) -> "Score":
        """The same score for keys that already went through `project_key`."""
        return Projected(self)

    def compared(self) -> "Score":
        """The same score for queries and keys that have both been projected."""
        return Compared(self)


class Product(Score):
    """A score that is a dot product in disguise: e_ij = project_query(q_i) · project_key(k_j).

    Attributes:
        softcap: c of a soft cap c · tanh(e_ij / c) on the product, which then is a dot product no more.
    """

    softcap: float | Tensor | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # of the next class, where a score has several bases
        self.softcap = None

    def compare(self, query: ProjectedQuery, key: ProjectedKey) -> ScoreTile:
        check_widths(query, key)
        product = query @ key.transpose(-2, -1)
        return product if self.softcap is None else self.softcap * torch.tanh(product / self.softcap)

    def as_dot(self, query: QueryTile, key: KeyTile) -> tuple[ProjectedQuery, ProjectedKey]:
        """Queries and keys whose plain dot product is this score."""
        return self.project_query(query), self.project_key(key)

    def projected(self) -> "Score":
        return ProjectedProduct(self) if is_product(self) else super().projected()

    def compared(self) -> Score:
        if not is_product(self):
            return super().compared()
        score = Product()
        score.softcap = self.softcap
        return score


def is_product(score: Any) -> TypeGuard[Product]:
    """Whether a score is a product of projected queries and keys, and no subclass compares them in a way of its own."""
    plain = isinstance(score, Product) and type(score).compare is Product.compare
    return plain and type(score).forward is Score.forward


class Positive(Product):
    """A product score that is never negative: the base of those that linear attention takes."""


class Projected(Score):
    """A score whose keys have been projected already (`Score.projected`)."""

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score
        self.follows = score.follows and not score.numbers_keys

    def project_query(self, query: QueryTile) -> ProjectedQuery:
        return self.score.project_query(query)

    def compare(self, query: ProjectedQuery, key: ProjectedKey) -> ScoreTile:
        return self.score.compare(query, key)


class ProjectedProduct(Product):
    """A product score whose keys have been projected already (`Score.projected`)."""

    def __init__(self, score: Product) -> None:
        super().__init__()
        self.score = score
        self.softcap = score.softcap

    def project_query(self, query: QueryTile) -> ProjectedQuery:
        return self.score.project_query(query)


class Compared(Score):
    """A score's comparison alone: queries and keys have both been projected already."""

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score
        self.follows = score.follows and not score.numbers_keys

    def compare(self, query: ProjectedQuery, key: ProjectedKey) -> ScoreTile:
        return self.score.compare(query, key)


class Dot(Product):
    """e_ij = q_i · k_j (Luong et al. 2015, section 3.1, "dot")."""


class ScaledDot(Product):
    """e_ij = q_i · k_j · scale, with scale = 1/√d_k by default (Vaswani et al. 2017, equation 1).

    Args:
        scale: the factor; None is 1/√d_k, with d_k the width of one head.
        softcap: c > 0 keeps scores within ±c: c · tanh(e_ij / c) (Gemma Team 2024, section 2).

    Raises:
        ShapeError: a softcap that is not positive.
    """

    @check_arguments
    def __init__(self, scale: float | Tensor | None = None, softcap: float | Tensor | None = None) -> None:
        super().__init__()
        one = not isinstance(softcap, Tensor) or softcap.numel() == 1
        if softcap is not None and not (one and 0 < softcap < inf):
            raise ShapeError(f"softcap must be a positive number; got {shown(softcap)}")
        self.scale = scale
        self.softcap = softcap

    def factor(self, width: int) -> float | Tensor:
        """The factor for queries of this width."""
        return 1 / sqrt(max(1, width)) if self.scale is None else self.scale  # width 0: all scores are 0

    def project_query(self, query: QueryTile) -> ProjectedQuery:
        return query * _per_head(self.factor(query.shape[-1]), query, "ScaledDot: scale")


class Cosine(Product):
    """e_ij = scale · q_i·k_j / (‖q_i‖ ‖k_j‖)^power.

    A zero vector scores 0 against everything, with a finite gradient.

    Args:
        power: 1 is the cosine, 0.5 the lecture form q·k/√(‖q‖‖k‖), 0 the plain dot product.
        scale: a factor on the result (an inverse temperature).
    """

    @check_arguments
    def __init__(self, power: float | Tensor = 1.0, scale: float | Tensor = 1.0) -> None:
        super().__init__()
        self.power = power
        self.scale = scale

    def _shrink(self, vectors: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b n d"]:
        # measured in their largest component, whose square is 1, neither 0 nor infinite; the result does not depend on
        # it, and has no gradient by it
        unit = vectors.detach().abs().amax(-1, keepdim=True) if vectors.shape[-1] else vectors.sum(-1, keepdim=True)
        unit = unit.masked_fill(unit == 0, 1)
        power = _per_head(self.power, vectors, "Cosine: power")
        scaled = vectors / unit
        square = scaled.square().sum(-1, keepdim=True)
        zero = square == 0  # 0/0 has no answer and no gradient: divide by one instead
        return scaled * unit.pow(1 - power) * square.masked_fill(zero, 1).pow(-power / 2)

    def project_query(self, query: QueryTile) -> ProjectedQuery:
        return self._shrink(query) * _per_head(self.scale, query, "Cosine: scale")

    def project_key(self, key: KeyTile) -> ProjectedKey:
        return self._shrink(key)


class Distance(Score):
    """e_ij = -‖q_i - k_j‖² / (2 width²): with softmax, Nadaraya–Watson regression with a Gaussian kernel.

    Source: Nadaraya 1964; Watson 1964. The unit of `width` is the unit of the vectors.

    Args:
        width: a positive number; or an `nn.Parameter`, which is learned.

    Raises:
        ShapeError: a width that is not above 0, or infinite.
    """

    @check_arguments
    def __init__(self, width: float | nn.Parameter = 1.0) -> None:
        super().__init__()
        one = not isinstance(width, Tensor) or width.numel() == 1
        if not one or (not isinstance(width, Tensor) and not 0 < width < inf):
            raise ShapeError(f"Distance needs a finite width above 0; got {shown(width)}")
        self.width = width

    def compare(self, query: ProjectedQuery, key: ProjectedKey) -> ScoreTile:
        check_widths(query, key)
        lengths = query.square().sum(-1)[..., :, None], key.square().sum(-1)[..., None, :]
        if self._are_short(*lengths):
            return (query @ key.transpose(-2, -1) - lengths[0] / 2 - lengths[1] / 2) / self.width**2
        difference = query[..., :, None, :] - key[..., None, :, :]
        return difference.square().sum(-1) / (-2 * self.width**2)

    def _are_short(self, *squares: Tensor) -> bool:
        """Whether |q|² + |k|² - 2 q·k loses no more than a few thousandths of a thousandth, measured in widths."""
        if are_hidden(*squares) or not all(part.numel() for part in squares):
            return False
        width = self.width.detach() if isinstance(self.width, Tensor) else self.width
        most = 2**-18 / torch.finfo(squares[0].dtype).eps * float(width) ** 2
        return all(float(part.detach().amax()) <= most for part in squares)


class QueryAdaptive(Product):
    """e_ij = Σ_a g_a(q_i) q_i W_a k_j / √d_k with g = softmax(G q_i): keys that change with what the query asks.

    Every aspect a looks at the keys in its own way, and the query says which aspects count; one dot product of
    Σ_a g_a W_aᵀ q_i with k_j.

    Args:
        query_dim: width of a query.
        key_dim: d_k, width of a key.
        aspects: how many ways there are to look at a key.

    Raises:
        ShapeError: no aspects.
    """

    @check_arguments
    def __init__(self, query_dim: int, key_dim: int, aspects: int) -> None:
        super().__init__()
        check_least("QueryAdaptive", 1, query_dim=query_dim, key_dim=key_dim, aspects=aspects)
        self.gate = nn.Linear(query_dim, aspects, bias=False)
        self.aspects = nn.Parameter(torch.empty(aspects, query_dim, key_dim).normal_(std=query_dim**-0.5))

    def project_query(self, query: QueryTile) -> ProjectedQuery:
        share = torch.softmax(_linear(self.gate, query, "query"), -1)
        turned = torch.einsum("...q,aqk->...ak", query, self.aspects.to(query))
        return (share[..., None] * turned).sum(-2) / sqrt(self.aspects.shape[-1])

    def project_key(self, key: KeyTile) -> ProjectedKey:
        _check_width(key, self.aspects.shape[-1], "key")
        return key


class General(Product):
    """e_ij = q_i W k_j (Luong et al. 2015, section 3.1, "general"; bilinear).

    Args:
        query_dim: width of a query.
        key_dim: width of a key.
    """

    @check_arguments
    def __init__(self, query_dim: int, key_dim: int) -> None:
        super().__init__()
        _check_sizes(self, query_dim, key_dim)
        self.key = nn.Linear(key_dim, query_dim, bias=False)

    def project_query(self, query: QueryTile) -> ProjectedQuery:
        _check_width(query, getattr(self.key, "out_features", query.shape[-1]), "query")
        return query

    def project_key(self, key: KeyTile) -> ProjectedKey:
        return _linear(self.key, key, "key")


class Additive(Score):
    """e_ij = v · tanh(W_q q_i + W_k k_j) (Bahdanau et al. 2015, section 3.1 and appendix A.1.2).

    One set of parameters, shared by the heads.

    Args:
        query_dim: width of a query.
        key_dim: width of a key.
        hidden_dim: width of the sum inside the tanh.
    """

    @check_arguments
    def __init__(self, query_dim: int, key_dim: int, hidden_dim: int) -> None:
        super().__init__()
        _check_sizes(self, query_dim, key_dim)
        check_least(type(self).__name__, 1, hidden_dim=hidden_dim)
        self.query = nn.Linear(query_dim, hidden_dim, bias=False)
        self.key = nn.Linear(key_dim, hidden_dim, bias=False)
        self.v = nn.Parameter(torch.empty(hidden_dim).uniform_(-(hidden_dim**-0.5), hidden_dim**-0.5))

    def project_query(self, query: QueryTile) -> ProjectedQuery:
        return _linear(self.query, query, "query")

    def project_key(self, key: KeyTile) -> ProjectedKey:
        return _linear(self.key, key, "key")

    def compare(self, query: ProjectedQuery, key: ProjectedKey) -> ScoreTile:
        return torch.tanh(query[..., :, None, :] + key[..., None, :, :]) @ self.v.to(query)


class Concat(Score):
    """e_ij = v · tanh(W [q_i; k_j]) (Luong et al. 2015, section 3.1, "concat").

    `Additive` with its weight written as one.

    Args:
        query_dim: width of a query.
        key_dim: width of a key.
        hidden_dim: width inside the tanh.
    """

    @check_arguments
    def __init__(self, query_dim: int, key_dim: int, hidden_dim: int) -> None:
        super().__init__()
        _check_sizes(self, query_dim, key_dim)
        check_least(type(self).__name__, 1, hidden_dim=hidden_dim)
        self.query_dim = query_dim
        self.weight = nn.Parameter(nn.Linear(query_dim + key_dim, hidden_dim, bias=False).weight.detach())
        self.v = nn.Parameter(torch.empty(hidden_dim).uniform_(-(hidden_dim**-0.5), hidden_dim**-0.5))

    def project_query(self, query: QueryTile) -> ProjectedQuery:
        _check_width(query, self.query_dim, "query")
        return query @ self.weight[:, : self.query_dim].to(query).T

    def project_key(self, key: KeyTile) -> ProjectedKey:
        _check_width(key, self.weight.shape[1] - self.query_dim, "key")
        return key @ self.weight[:, self.query_dim :].to(key).T

    def compare(self, query: ProjectedQuery, key: ProjectedKey) -> ScoreTile:
        return torch.tanh(query[..., :, None, :] + key[..., None, :, :]) @ self.v.to(query)


class LocationAware(Score):
    """e_ij = v · tanh(W_q q_i + W_k k_j + U f_ij), f_i = F * a_i (Chorowski et al. 2015, equations 8 and 9).

    It knows where the query before looked: a query is [q_i; a_i], with the S weights of the one before it behind, which
    are convolved along the keys. A projected key carries its place, so that any tile of the keys is compared alone.

    Args:
        query_dim: width of a query without the weights behind it.
        key_dim: width of a key.
        hidden_dim: width of the sum inside the tanh.
        filters: of F.
        reach: how many keys to a side a filter sees.
    """

    follows = numbers_keys = True

    @check_arguments
    def __init__(self, query_dim: int, key_dim: int, hidden_dim: int, filters: int = 10, reach: int = 20) -> None:
        super().__init__()
        _check_sizes(self, query_dim, key_dim)
        check_least(type(self).__name__, 1, hidden_dim=hidden_dim)
        self.content = Additive(query_dim, key_dim, hidden_dim)
        self.query_dim, self.hidden_dim = query_dim, hidden_dim
        self.filters = nn.Conv1d(1, filters, 2 * reach + 1, padding=reach, bias=False)
        self.location = nn.Linear(filters, hidden_dim, bias=False)

    def project_query(self, query: QueryTile) -> ProjectedQuery:
        content, looked = query.split([self.query_dim, query.shape[-1] - self.query_dim], -1)
        return torch.cat([self.content.project_query(content), looked], -1)

    def project_key(self, key: KeyTile) -> ProjectedKey:
        place = torch.arange(key.shape[-2], device=key.device, dtype=torch.float32)
        return torch.cat([self.content.project_key(key), place.expand(key.shape[:-1])[..., None]], -1)

    def compare(self, query: ProjectedQuery, key: ProjectedKey) -> ScoreTile:
        asked, looked = query.split([self.hidden_dim, query.shape[-1] - self.hidden_dim], -1)
        answered, place = key[..., : self.hidden_dim].to(query.dtype), key[..., None, :, -1:].long()
        flat = looked.reshape(-1, 1, looked.shape[-1])
        found = nn.functional.conv1d(flat, self.filters.weight.to(flat), padding=self.filters.padding)
        found = found.transpose(-2, -1).unflatten(0, looked.shape[:-1])  # [*q_batch, T, S, filters]
        _, index = torch.broadcast_tensors(found[..., :1, :], place)
        around = _linear(self.location, found.expand(*index.shape[:-2], -1, -1).gather(-2, index), "location")
        inside = asked[..., :, None, :] + answered[..., None, :, :] + around
        return torch.tanh(inside) @ self.content.v.to(query)


class Function(Score):
    """Any callable (query_tile, key_tile) -> score_tile, as a score."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.follows = bool(getattr(function, "follows", False))  # of a compiled score too

    def projected(self) -> Score:
        return self

    def compared(self) -> Score:
        return self

    def compare(self, query: ProjectedQuery, key: ProjectedKey) -> ScoreTile:
        owner = type(self.function).__name__ if isinstance(self.function, Score) else "the score function"
        return as_scores(self.function(query, key), query, key, owner)


def as_scores(scores: Any, query: Tensor, key: Tensor, owner: str) -> Tensor:
    """What a score gave for queries `[*batch, T, d]` and keys `[*batch, S, d]`, with all batch axes, in their dtype.

    Raises:
        ShapeError: it is not floating-point numbers `[*batch, T, S]` on the query's device.
    """
    shape = (*batch_shape(query, key), query.shape[-2], key.shape[-2])
    numbers = is_dense(scores) and scores.is_floating_point() and scores.device == query.device
    # the scores may have more heads than the queries
    if not (numbers and scores.shape[-2:] == shape[-2:] and fits(scores.shape, shape, grows=True)):
        got = list(scores.shape) if numbers else described(scores)
        raise ShapeError(
            f"{owner} gave {got} for queries {list(query.shape)} and keys {list(key.shape)}: it must "
            f"give floating-point numbers {list(shape)} on {query.device}, and likewise for any tile of both"
        )
    own = (1,) * (len(shape) - scores.ndim) + tuple(scores.shape)
    whole: Tensor = scores.to(query.dtype).expand([n if m == 1 else m for m, n in zip(own, shape, strict=True)])
    return whole


ScoreLike = str | Score | Callable[[Tensor, Tensor], Tensor]

NAMED: dict[str, Callable[[], Score]] = {"dot": Dot, "scaled_dot": ScaledDot, "cosine": Cosine}


SHARED = {name: make() for name, make in NAMED.items()}  # none of them has parameters


def as_score(score: ScoreLike) -> Score:
    """The score that a name, a `Score` or a callable stands for.

    Raises:
        ChoiceError: an unknown name, with the nearest spelling; a class in place of an object.
    """
    if isinstance(score, Score):
        # a `forward` of its own, or hooks, may not give the comparison of projections: only a call says what it is
        return score if type(score).forward is Score.forward and not has_own_call(score) else Function(score)
    if isinstance(score, str):
        if score not in NAMED:
            raise unknown("score", score, [*NAMED, "or a score object such as regard.Additive(...)"])
        return SHARED[score]
    if isinstance(score, type):
        raise ChoiceError(f"score: {score.__name__} is a class: make an object, {score.__name__}(…)")
    if callable(score):
        return Function(score)
    raise unknown("score", score, NAMED)


def _check_sizes(score: Score, query_dim: int, key_dim: int) -> None:
    check_least(type(score).__name__, 0, query_dim=query_dim, key_dim=key_dim)


def _per_head(number: float | Tensor, vectors: Tensor, name: str) -> float | Tensor:
    """A number, or one for each head, as it is multiplied with vectors `[*batch, n, d]`.

    Raises:
        ShapeError: its shape does not broadcast to that of the vectors.
    """
    if isinstance(number, Tensor) and number.ndim and not fits(number.shape, vectors.shape, grows=True):
        raise ShapeError(
            f"{name} has shape {list(number.shape)}, and the vectors have {list(vectors.shape)}: expected one "
            "number, or one for each head, [heads, 1, 1]"
        )
    return number


def _check_width(vectors: Tensor, width: int, name: str) -> None:
    """Refuse queries or keys of another width than the score was made for."""
    if vectors.shape[-1] != width:
        raise ShapeError(
            f"{name} has width {vectors.shape[-1]} on axis -1 and the score's {name}_dim is {width}: make the score "
            "for the width of one head"
        )


def _linear(layer: nn.Linear, vectors: Tensor, name: str) -> Tensor:
    """`layer` in the vectors' own precision: kernels widen half precision to float32 before they score.

    Raises:
        ShapeError: vectors of another width; `name` is what they are.
    """
    if not is_plain_linear(layer):
        known = next((one for one in layer.parameters() if one.is_floating_point()), vectors)
        whole: Tensor = layer(vectors.to(known.dtype))
        return whole.to(vectors.dtype)
    _check_width(vectors, layer.in_features, name)
    return nn.functional.linear(vectors, layer.weight.to(vectors))
