"""Linear attention: scores that are products of positive features, and weights that are shares of a row's scores.

    α_ij = φ(q_i)·φ(k_j) / Σ_j' φ(q_i)·φ(k_j')

`attend(q, k, v, score=RandomFeatures(…), normalizer=Share())` is the Performer: maps, observation and every kernel take
it as any other attention, and the linear kernel computes it in O(T + S).
"""

from math import inf, sqrt

import torch
from torch import Tensor
from torch.nn.functional import elu

from regard.arguments import check_arguments, check_least
from regard.attention.scores import KeyTile, Positive, ProjectedKey, ProjectedQuery, QueryTile
from regard.errors import ShapeError


class RandomFeatures(Positive):
    """e_ij = φ(q_i)·φ(k_j), an unbiased estimate of exp(q_i·k_j · scale), up to a factor of the row (FAVOR+).

    φ(x) = exp(w x' - ‖x'‖²/2) / √m with x' = x √scale, and m rows w drawn from a normal distribution, orthogonal to
    each other in blocks of `width`. With `Share` it approximates the softmax of scaled dot products; the error falls
    as 1/√m and grows with the lengths of queries and keys, whose features underflow when ‖x'‖² is far above 100.

    Args:
        width: of a query and of a key.
        features: m.
        scale: of the products; None is 1/√width.
        seed: of the drawing, which leaves torch's generator alone.

    Raises:
        ShapeError: no features.

    Source: Choromanski et al. 2021, lemma 1 and section 3.1.
    """

    weight: Tensor

    @check_arguments
    def __init__(self, width: int, features: int = 256, scale: float | None = None, seed: int = 0) -> None:
        super().__init__()
        check_least("RandomFeatures", 1, width=width, features=features)
        if scale is not None and not 0 < scale < inf:
            raise ShapeError(f"RandomFeatures: scale must be above 0, and finite; got {scale}")
        self.scale = 1 / sqrt(width) if scale is None else scale
        self.register_buffer("weight", _orthogonal(width, features, seed))

    @check_arguments
    def redraw(self, seed: int) -> None:
        """Draw the features anew; what `observe` has kept stays as it was."""
        m, width = self.weight.shape
        self.weight.copy_(_orthogonal(width, m, seed))

    def _exponents(self, vectors: Tensor) -> Tensor:
        if vectors.shape[-1] != self.weight.shape[1]:
            raise ShapeError(
                f"RandomFeatures has width {self.weight.shape[1]} and was given vectors of width {vectors.shape[-1]}"
            )
        x = vectors * sqrt(self.scale)
        return x @ self.weight.to(x.dtype).T - x.square().sum(-1, keepdim=True) / 2

    def project_query(self, query: QueryTile) -> ProjectedQuery:
        exponents = self._exponents(query)
        # a factor of the whole row, which its sum takes away again
        largest = exponents.amax(-1, keepdim=True)
        return (exponents - largest.masked_fill(largest == -torch.inf, 0)).exp() / sqrt(self.weight.shape[0])

    def project_key(self, key: KeyTile) -> ProjectedKey:
        return self._exponents(key).exp() / sqrt(self.weight.shape[0])


class EluFeatures(Positive):
    """e_ij = φ(q_i)·φ(k_j) with φ(x) = elu(x) + 1: cheap, and no approximation of softmax.

    Source: Katharopoulos et al. 2020, equation 7.
    """

    def project_query(self, query: QueryTile) -> ProjectedQuery:
        return elu(query) + 1

    def project_key(self, key: KeyTile) -> ProjectedKey:
        return elu(key) + 1


def _orthogonal(width: int, features: int, seed: int) -> Tensor:
    """Rows `[features, width]`, each normally distributed, orthogonal to the others of its block of `width`."""
    draw = torch.Generator().manual_seed(seed % 2**63)
    blocks = []
    for start in range(0, features, width):
        turned, triangle = torch.linalg.qr(torch.randn(width, width, generator=draw, dtype=torch.float64))
        turned = turned * triangle.diagonal().sign()  # or some directions would be more probable than others
        lengths = torch.randn(width, width, generator=draw, dtype=torch.float64).norm(dim=-1, keepdim=True)
        blocks.append((turned * lengths)[: features - start])
    return torch.cat(blocks).float()
