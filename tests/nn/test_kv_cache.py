"""Keys that grow: equal to joining, in place where nobody looks, never under the eyes of an earlier state."""

import pytest
import torch

from regard.nn.kv_cache import append


@pytest.mark.parametrize("start", [0, 3, 40])
def test_appending_is_joining(start: int) -> None:
    torch.manual_seed(0)
    grown = torch.randn(2, 3, start, 5)
    parts = [grown]
    for _ in range(50):
        parts.append(torch.randn(2, 3, 1, 5))
        grown = append(grown, parts[-1])
        assert torch.equal(grown, torch.cat(parts, -2))


def test_most_steps_copy_nothing() -> None:
    grown, positions = torch.zeros(1, 1, 5), set()
    for _ in range(100):
        grown = append(grown, torch.zeros(1, 1, 5))
        positions.add(grown.data_ptr())
    assert len(positions) <= 3


def test_going_on_twice_from_one_past_changes_neither() -> None:
    past = append(torch.zeros(1, 2, 3), torch.ones(1, 1, 3))
    first, second = append(past, torch.full((1, 1, 3), 2.0)), append(past, torch.full((1, 1, 3), 3.0))
    assert first[0, -1].tolist() == [2.0] * 3
    assert second[0, -1].tolist() == [3.0] * 3
    chosen = append(first[torch.tensor([0])], torch.full((1, 1, 3), 4.0))
    assert first.shape[-2] == 4
    assert chosen.shape[-2] == 5


def test_gradients_pass() -> None:
    past, new = (torch.randn(1, n, 3, requires_grad=True) for n in (2, 1))
    append(past, new).square().sum().backward()
    assert torch.allclose(past.grad, 2 * past)
    assert torch.allclose(new.grad, 2 * new)
