"""Tiles of tanh sums for few queries, against the plain formula."""

import pytest
import torch

from regard.attention.kernels.additive import tanh_scores


@pytest.mark.parametrize("queries", [1, 2, 3])
@pytest.mark.parametrize("keys", [1, 7])
def test_few_queries_equal_the_plain_formula(queries: int, keys: int) -> None:
    """Up to two queries go by the logistic function, more by exponentials."""
    generator = torch.Generator().manual_seed(queries)
    shapes = ((3, queries, 5), (3, keys, 5), (5,))
    q, k, v = (torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)
    ours, plain = tanh_scores(q, k, v), torch.tanh(q[:, :, None] + k[:, None]) @ v
    torch.testing.assert_close(ours, plain)
    upstream = torch.randn(plain.shape, generator=generator, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(ours, (q, k, v), upstream), torch.autograd.grad(plain, (q, k, v), upstream), strict=True
    ):
        torch.testing.assert_close(a, b)
