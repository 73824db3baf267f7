"""Hard attention's estimator has the enumerated gradient as its mean; the baseline changes no mean but the variance."""

from itertools import product

import pytest
import torch
from torch import Tensor

from regard.attention.operator import attend
from regard.attention.watch import changing
from regard.training.reinforce import Draws, estimator, move_baseline

T, S, V = 2, 3, 4


class Looks(torch.nn.Module):
    """Two looks at three places, the second asked by what the first one found; each says one of four tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.query = torch.nn.Parameter(torch.randn(1, 1, 5, dtype=torch.float64))
        self.key = torch.nn.Parameter(torch.randn(1, S, 5, dtype=torch.float64))
        self.value = torch.nn.Parameter(torch.randn(1, S, 5, dtype=torch.float64))
        self.out = torch.nn.Parameter(torch.randn(5, V, dtype=torch.float64))

    def forward(self) -> Tensor:
        """Log-probabilities `[1, T, V]`."""
        first = attend(self.query, self.key, self.value)
        second = attend(self.query + first, self.key, self.value)
        return (torch.cat([first, second], 1) @ self.out).log_softmax(-1)


class Forced(Draws):
    """Draws that were decided before."""

    def __init__(self, wanted: tuple[int, ...]) -> None:
        super().__init__()
        self.wanted = wanted

    def __call__(self, call):  # type: ignore[no-untyped-def]
        drawn = torch.distributions.Categorical.sample
        index = torch.tensor([self.wanted[len(self.log_probs)]])
        torch.distributions.Categorical.sample = lambda *_: index  # type: ignore[method-assign]
        try:
            return super().__call__(call)
        finally:
            torch.distributions.Categorical.sample = drawn  # type: ignore[method-assign]


TARGET = torch.tensor([[2, 1]])
REAL = torch.ones(1, T, dtype=torch.bool)


def run(model: Looks, draws: Draws) -> tuple[Tensor, Tensor]:
    """(log p of each token `[1, T]`, log p of the draws)."""
    with changing(draws):
        log_p = model().gather(-1, TARGET[..., None])[..., 0]
    return log_p, torch.stack(draws.log_probs).sum()


def gradient(loss: Tensor, model: Looks) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_the_mean_of_the_estimator_is_the_enumerated_gradient() -> None:
    model = Looks()
    bound, means = torch.zeros((), dtype=torch.float64), {}
    for wanted in product(range(S), repeat=T):
        log_p, chosen = run(model, Forced(wanted))
        bound = bound + chosen.exp() * log_p.sum()
    exact = gradient(bound, model)
    for baseline in (0.0, -1.7):
        mean, second = torch.zeros_like(exact), torch.zeros_like(exact)
        for wanted in product(range(S), repeat=T):
            draws = Forced(wanted)
            log_p, chosen = run(model, draws)
            gained, entropy = estimator(draws, log_p, REAL, torch.tensor(baseline))
            assert entropy > 0
            one = gradient(log_p.sum() + gained, model)
            mean = mean + chosen.exp().detach() * one
            second = second + chosen.exp().detach() * one.square()
        assert torch.allclose(mean, exact, atol=1e-10), baseline
        means[baseline] = (second - mean.square()).sum()
    assert means[-1.7] < means[0.0]  # a baseline near the usual reward makes the estimate quieter


@pytest.mark.slow
def test_samples_approach_it() -> None:
    model = Looks()
    torch.manual_seed(0)
    bound = torch.zeros((), dtype=torch.float64)
    for wanted in product(range(S), repeat=T):
        log_p, chosen = run(model, Forced(wanted))
        bound = bound + chosen.exp() * log_p.sum()
    exact, mean = gradient(bound, model), 0.0
    for _ in range(1500):
        draws = Draws()
        log_p, _ = run(model, draws)
        gained, _ = estimator(draws, log_p, REAL, torch.tensor(-1.7))
        mean = mean + gradient(log_p.sum() + gained, model) / 1500
    assert (mean - exact).norm() < 0.2 * exact.norm()


def test_padding_is_rewarded_with_nothing() -> None:
    model, real = Looks(), torch.tensor([[True, False]])
    draws = Forced((0, 1))
    log_p, _ = run(model, draws)
    gained, entropy = estimator(draws, log_p, real, torch.tensor(-1.0))
    expected = (log_p[0, 0].detach() + 1.0) * draws.log_probs[0][0]
    assert torch.allclose(gained, expected)
    assert torch.allclose(entropy, draws.entropies[0][0])


def test_the_baseline_moves_a_tenth_of_the_way() -> None:
    baseline = torch.tensor(-3.0)
    move_baseline(baseline, torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[True, True, False]]))
    assert torch.allclose(baseline, torch.tensor(-3.0 * 0.9 - 1.5 * 0.1))
