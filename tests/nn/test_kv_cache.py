"""A cache equals joined tensors, copies little on a straight path, and never changes once it has been made."""

import copy
import pickle
from threading import Thread

import pytest
import torch
from torch import Tensor

from regard.nn.kv_cache import KVCache


def rows(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * seed + n)
    return torch.randn(2, 3, n, 5, generator=generator), torch.randn(2, 3, n, 7, generator=generator)


def empty() -> KVCache:
    return KVCache(*rows(0))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("start", [0, 3, 40])
def test_appending_is_joining(start: int, grad: bool) -> None:
    cache, parts = KVCache(*rows(start)), [rows(start)]
    with torch.set_grad_enabled(grad):
        for n in range(50):
            parts.append(rows(1 + n % 3, seed=n))
            cache = cache.append(*parts[-1])
            keys, values = zip(*parts, strict=True)
            assert torch.equal(cache.key, torch.cat(keys, -2))
            assert torch.equal(cache.value, torch.cat(values, -2))
            assert len(cache) == cache.key.shape[-2]


@torch.no_grad()
def test_most_steps_copy_nothing() -> None:
    cache, positions = empty(), set()
    for _ in range(100):
        cache = cache.append(*rows(1))
        positions.add(cache.key.data_ptr())
    assert len(positions) <= 3


@torch.no_grad()
def test_a_window_of_fixed_length_copies_little_and_holds_little() -> None:
    cache, buffers, parts = empty(), set(), []
    for n in range(400):
        parts.append(rows(1, seed=n))
        cache = cache.append(*parts[-1])
        cache = cache.drop(max(0, len(cache) - 20))
        buffers.add(cache.key.untyped_storage().data_ptr())
        assert torch.equal(cache.value, torch.cat([value for _, value in parts[-20:]], -2))
    assert cache.key.untyped_storage().nbytes() <= 4 * 2 * 3 * 5 * 64
    assert len(buffers) <= 25


@torch.no_grad()
def test_no_append_changes_another_cache() -> None:
    """Every cache of a random tree of appends, drops and selections still shows what it showed when it was made."""
    dice = torch.Generator().manual_seed(5)
    made: list[tuple[KVCache, Tensor, Tensor]] = [(empty(), *rows(0))]
    for n in range(300):
        cache, key, value = made[int(torch.randint(len(made), (), generator=dice))]
        match n % 5:
            case 4:
                cache, key, value = (
                    cache.drop(len(cache) // 3),
                    key[..., len(cache) // 3 :, :],
                    value[..., len(cache) // 3 :, :],
                )
            case 3:
                flip = lambda t: t.flip(0)  # noqa: E731
                cache, key, value = cache.map(flip), flip(key), flip(value)
            case _:
                new = rows(1 + n % 2, seed=n)
                cache = cache.append(*new)
                key, value = torch.cat([key, new[0]], -2), torch.cat([value, new[1]], -2)
        made.append((cache, key, value))
    for cache, key, value in made:
        assert torch.equal(cache.key, key)
        assert torch.equal(cache.value, value)


@torch.no_grad()
def test_continuing_twice_changes_neither() -> None:
    past = empty().append(*rows(1))
    first, second = past.append(*rows(1, seed=2)), past.append(*rows(1, seed=3))
    assert torch.equal(first.key[..., -1:, :], rows(1, seed=2)[0])
    assert torch.equal(second.key[..., -1:, :], rows(1, seed=3)[0])
    assert len(past) == 1


@torch.no_grad()
def test_threads_may_continue_one_cache() -> None:
    past, found = empty().append(*rows(2)), {}

    def go(seed: int) -> None:
        with torch.no_grad():  # gradients are a setting of each thread
            cache = past
            for n in range(30):
                cache = cache.append(*rows(1, seed=seed * 100 + n))
            found[seed] = cache

    threads = [Thread(target=go, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, cache in found.items():
        want = torch.cat([rows(2)[0], *(rows(1, seed=seed * 100 + n)[0] for n in range(30))], -2)
        assert torch.equal(cache.key, want)


def test_gradients_pass_through_every_step() -> None:
    parts = [tuple(t.requires_grad_() for t in rows(n, seed=9)) for n in (2, 1, 1)]
    cache = KVCache(*parts[0])
    total = 0.0
    for part in parts[1:]:
        cache = cache.append(*part)
        total = total + cache.key.square().sum() + cache.value.sum()
    total.backward()
    for times, (key, value) in zip((2, 2, 1), parts, strict=True):
        torch.testing.assert_close(key.grad, 2 * times * key)
        torch.testing.assert_close(value.grad, times * torch.ones_like(value))


def test_what_backward_needs_is_not_overwritten() -> None:
    """Keys without gradients in a product that has one: the next append must leave them to backward."""
    query = torch.randn(2, 3, 1, 5, requires_grad=True)
    cache = empty().append(*rows(2))
    product = (query @ cache.key.transpose(-1, -2)).sum()
    cache.append(*rows(1))
    product.backward()
    torch.testing.assert_close(query.grad, cache.key.sum(-2, keepdim=True))


def test_a_cache_of_inference_mode_goes_on_outside() -> None:
    with torch.inference_mode():
        cache = empty().append(*rows(1))
    with torch.no_grad():
        longer = cache.append(*rows(2))
    assert torch.equal(longer.key, torch.cat([rows(1)[0], rows(2)[0]], -2))


@torch.no_grad()
def test_the_new_dtype_is_the_caches() -> None:
    cache = empty().append(*rows(2)).append(*(t.bfloat16() for t in rows(1)))
    assert (cache.key.dtype, cache.value.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(cache.key, torch.cat([rows(2)[0], rows(1)[0]], -2).bfloat16())


@torch.no_grad()
@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_stand_alone(duplicate) -> None:
    cache = empty().append(*rows(2))
    again = duplicate(cache)
    cache.append(*rows(1, seed=1))
    again.append(*rows(1, seed=2))
    assert torch.equal(again.key, rows(2)[0])
    assert again.key.untyped_storage().nbytes() == again.key.numel() * 4
