"""The reference kernel against the paper's equation, written out; its dropout hash against Python integers."""

from math import exp, inf, log, nan

import pytest
import torch

from regard.attention.kernels.dropout import kept
from regard.attention.kernels.nonfinite import is_poisoned
from regard.attention.kernels.reference import reference
from regard.attention.masks import causal, prefix
from regard.attention.spec import make_spec

T, S, D_K, D_V = 3, 5, 7, 2


def tensors(*batch: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(*batch, *shape, dtype=dtype, generator=draw) for shape in ((T, D_K), (S, D_K), (S, D_V))]


def test_equals_the_equation_and_its_row_number_is_the_log_sum_exp() -> None:
    query, key, value = tensors()
    output, numbers = reference(query, key, value, make_spec("dot", "softmax", causal(0), None), 0)
    for i in range(T):
        scores = [sum(a * b for a, b in zip(query[i].tolist(), key[j].tolist(), strict=True)) for j in range(i + 1)]
        total = sum(map(exp, scores))
        for d in range(D_V):
            want = sum(exp(e) / total * float(value[j, d]) for j, e in enumerate(scores))
            assert float(output[i, d]) == pytest.approx(want)
        assert float(numbers[i]) == pytest.approx(log(total))


def test_a_dead_row_has_log_sum_exp_minus_infinity() -> None:
    numbers = reference(*tensors(), make_spec("dot", "softmax", causal(-1), None), 0)[1]
    assert numbers.isfinite().tolist() == [False, True, True]
    assert float(numbers[0]) == -inf


@pytest.mark.parametrize("poisoned", [False, True])
def test_row_numbers_have_a_row_per_query(poisoned: bool) -> None:
    query, key, value = tensors(2, 3)
    want = reference(query, key, value, make_spec("dot", "softmax", prefix(4), None), 0)
    if poisoned:
        key[..., 4, :] = nan
    got = reference(query, key, value, make_spec("dot", "softmax", prefix(4), None), 0)
    torch.testing.assert_close(got, want)
    assert got[1].shape == (2, 3, T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_rows_are_single_or_double_and_the_output_is_the_values(dtype: torch.dtype) -> None:
    output, numbers = reference(*tensors(dtype=dtype), make_spec("dot", "softmax", None, None), 0)
    assert output.dtype == dtype
    assert numbers.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize(("bad", "poisoned"), [(0.0, False), (3e38, False), (nan, True), (inf, True), (-inf, True)])
def test_is_poisoned(bad: float, poisoned: bool) -> None:
    tensor = torch.zeros(2, 3)
    tensor[1, 2] = bad
    assert is_poisoned(torch.ones(5), tensor, torch.empty(0, 7)) == poisoned


def mix(x: int) -> int:
    """lowbias32 (Wellons), in Python's own integers."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def test_kept_is_a_counter_hash() -> None:
    seed, dropout = 2**31 - 19, 0.37
    got = kept(torch.arange(6).reshape(2, 3), torch.arange(T), torch.arange(S), seed, dropout)
    assert got.shape == (2, 3, T, S)
    for b in range(6):
        for i in range(T):
            for j in range(S):
                start = mix(seed ^ mix((b + 0x9E3779B9) % 2**32))
                drawn = mix(mix(start ^ i) ^ j)
                assert bool(got.reshape(6, T, S)[b, i, j]) == (drawn >= int(dropout * 2**32))


def test_kept_of_some_rows_is_those_rows_of_the_whole() -> None:
    batch, columns = torch.arange(3), torch.arange(S)
    whole = kept(batch, torch.arange(11), columns, 5, 0.5)
    rows, some = torch.tensor([7, 2, 3]), torch.tensor([4, 1])
    assert torch.equal(kept(batch[1:], rows, some, 5, 0.5), whole[1:, rows][..., some])


def test_dropout_follows_the_seed_it_is_given() -> None:
    query, key, _ = tensors(2)
    value = torch.eye(S, dtype=torch.float64).expand(2, S, S)
    spec = make_spec("dot", "uniform", None, None, 0.5)
    output = reference(query, key, value, spec, 17)[0]
    want = kept(torch.arange(2), torch.arange(T), torch.arange(S), 17, 0.5) / S / 0.5
    torch.testing.assert_close(output, want.double())
