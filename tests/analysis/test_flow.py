"""Flow through layers: against dense matrices in float64, and one target against the whole."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import regard
from regard.attention.maps.map import AttentionMap

H, N, S, D, LAYERS = 3, 7, 5, 11, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stack(n: int = N, layers: int = LAYERS, first: int = 0) -> list[AttentionMap]:
    vectors = [[draw(H, n, D, seed=first + 2 * layer + side) for side in (0, 1)] for layer in range(layers)]
    return [regard.attention_map(q, k, mask=regard.causal()) for q, k in vectors]


def rollout(tables: list[Tensor], residual: float = 0.5) -> Tensor:
    joint = torch.eye(tables[0].shape[-1], dtype=torch.float64)
    for table in tables:
        mixed = (1 - residual) * table.mean(0) + residual * torch.eye(len(joint), dtype=torch.float64)
        joint = mixed / mixed.sum(-1, keepdim=True) @ joint
    return joint


@pytest.mark.parametrize("residual", [0.5, 0.0, 0.3])
def test_rollout_is_the_product_of_the_matrices(residual: float) -> None:
    maps = stack()
    want = rollout([one.full() for one in maps], residual)
    torch.testing.assert_close(regard.flow(maps, residual=residual), want)
    torch.testing.assert_close(regard.flow({str(n): one for n, one in enumerate(maps)}, residual=residual), want)
    torch.testing.assert_close(regard.flow(maps, residual=[residual] * LAYERS), want)
    joint = AttentionMap.rollout(maps, residual).full()
    torch.testing.assert_close(regard.flow(maps, residual=residual), joint)


@pytest.mark.parametrize("target", [0, 3, N - 1, -1])
def test_a_target_is_its_row(target: int) -> None:
    for maps in (
        stack(),
        [AttentionMap.from_weights(one.full()) for one in stack()],
        [one.select(1) for one in stack()],
    ):
        torch.testing.assert_close(regard.flow(maps, target=target), regard.flow(maps)[target])


def test_a_target_needs_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("full", "mean_heads"):
        monkeypatch.setattr(AttentionMap, name, lambda *_: pytest.fail("a matrix was made"))
    assert regard.flow(stack(), target=2).shape == (N,)


def test_rows_that_sum_to_less_are_divided() -> None:
    tables = [draw(H, N, N, seed=n).square() for n in range(3)]
    tables[1][:, 4] = 0  # a dead row: its state is its own
    maps = [AttentionMap.from_weights(table) for table in tables]
    torch.testing.assert_close(regard.flow(maps), rollout(tables))
    torch.testing.assert_close(regard.flow(maps, target=4), rollout(tables)[4])
    torch.testing.assert_close(regard.flow(maps).sum(-1), torch.ones(N, dtype=torch.float64))


def test_across_an_encoder_a_cross_attention_and_a_decoder() -> None:
    encoder, decoder = stack(S, 2), stack(N, 2, first=20)
    cross = regard.attention_map(draw(H, N, D, seed=8), draw(H, S, D, seed=9))
    chain = [*encoder, cross, *decoder]
    want = rollout([one.full() for one in decoder]) @ cross.full().mean(0) @ rollout([one.full() for one in encoder])
    torch.testing.assert_close(regard.flow(chain), want)
    torch.testing.assert_close(regard.flow(chain, residual=[0.5, 0.5, 0.0, 0.5, 0.5], target=2), want[2])
    with pytest.raises(regard.ShapeError, match="of map 2, whose 7 queries"):
        regard.flow(chain, residual=[0.5] * 5)


class Layers(nn.Module):
    """Attention added to the states, layer upon layer; what its heads gave is kept for a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        self.outputs, self.values = [], []
        for layer in range(LAYERS):
            query, key, value = (x @ draw(H, D, 4, seed=50 + 3 * layer + part) for part in range(3))
            output = scaled_dot_product_attention(query, key, value)
            output.retain_grad()
            self.outputs.append(output)
            self.values.append(value)
            x = x + (output @ draw(H, 4, D, seed=90 + layer)).sum(0)
        return x


def test_of_a_known_cross_attention_nothing_stays_where_it_is() -> None:
    """Its site tells, where source and target have one length; several of them are no chain."""
    model = regard.load("fr-en")
    with torch.no_grad(), regard.observe(model) as seen:
        made = model("mon frère lit un livre")
    across = made.attention["decoder.layers.1.cross"]
    assert across.shape[-2] == across.shape[-1]
    inside = [one[0] for site, one in seen.items() if site.startswith("encoder")]
    found = regard.flow([*inside, across])
    torch.testing.assert_close(found, across.mean_heads().full() @ regard.flow(inside))
    torch.testing.assert_close(regard.flow([*inside, across], target=2), found[2])
    torch.testing.assert_close(found, regard.flow([*inside, across], residual=[0.5] * len(inside) + [0.0]))
    flat = [regard.HeadGradient(torch.zeros(4, 6, 8), torch.zeros(4, 6, 8))] * (len(inside) + 1)
    assert not regard.flow([*inside, across], "gradient", gradients=flat).any()
    with pytest.raises(
        regard.ShapeError, match=r"cross does not follow decoder\.layers\.2\.self: give an encoder's maps, one"
    ):
        regard.flow(made.attention)
    with pytest.raises(regard.ShapeError, match=r"layers\.1\.cross does not follow decoder\.layers\.0\.self"):
        regard.flow([made.attention["decoder.layers.0.self"], across])
    with pytest.raises(
        regard.ShapeError, match="have the rows of its own tokens: observe the model over the whole text"
    ):
        regard.flow(regard.load("shakespeare")("ROMEO:", length=5).attention)


def test_gradient_weighted_rollout() -> None:
    """By vectors, against weights that are leaves of autograd."""
    model, x = Layers(), draw(N, D, seed=99).requires_grad_()
    with regard.observe(model) as seen:
        y = model(x)
    y[2, 3].backward()
    maps = seen["."]
    given = [regard.HeadGradient(o.grad, v.detach()) for o, v in zip(model.outputs, model.values, strict=True)]
    got = regard.flow(maps, "gradient", gradients=given)
    want, state, tables = torch.eye(N, dtype=torch.float64), x.detach(), []
    for layer in range(LAYERS):
        query, key, value = (state @ draw(H, D, 4, seed=50 + 3 * layer + part) for part in range(3))
        tables.append((query @ key.mT / 2).softmax(-1).requires_grad_())
        tables[-1].retain_grad()
        state = state + (tables[-1] @ value @ draw(H, 4, D, seed=90 + layer)).sum(0)
    state[2, 3].backward()
    for table in tables:
        want = want + (table.grad * table.detach()).clamp(min=0).mean(0) @ want
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(regard.flow(maps, "gradient", gradients=given, target=2), want[2])
    with pytest.raises(regard.ShapeError, match="each of the 4 maps; got 3"):
        regard.flow(maps, "gradient", gradients=given[1:])
    with pytest.raises(regard.ShapeError, match="its gradient needs output"):
        regard.flow(maps, "gradient", gradients=[regard.HeadGradient(x, x)] * 4)


def test_maximum_flow_by_hand() -> None:
    """Two ways down of ¼ each, the second as wide as its narrowest edge."""
    low = torch.tensor([[1.0, 0.0], [0.75, 0.25]], dtype=torch.float64)
    high = torch.tensor([[1.0, 0.0], [0.25, 0.75]], dtype=torch.float64)
    maps = [AttentionMap.from_weights(one[None]) for one in (low, high)]
    want = torch.tensor([[1.0, 0.0], [0.25 + 0.75, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(regard.flow(maps, "flow", residual=0.0), want)
    torch.testing.assert_close(regard.flow(maps, "flow", residual=0.0, target=1), want[1])


def test_maximum_flow_against_a_linear_program() -> None:
    from scipy.optimize import linprog

    maps = stack(4, 3)
    tables = [0.5 * one.full().mean(0) + 0.5 * torch.eye(4, dtype=torch.float64) for one in maps]
    tables = [table / table.sum(-1, keepdim=True) for table in tables]
    edges = [(layer, i, j) for layer in range(3) for i in range(4) for j in range(4)]
    bounds = [(0, float(tables[layer][i, j])) for layer, i, j in edges]
    for source, sink in ((3, 0), (3, 2), (1, 1)):
        keeps = [
            [float((e[0], e[2]) == (layer, n)) - float((e[0], e[1]) == (layer - 1, n)) for e in edges]
            for layer in (1, 2) for n in range(4)
        ]  # fmt: skip
        others = [
            [float(e[0] == 2 and e[1] != source) for e in edges],
            [float(e[0] == 0 and e[2] != sink) for e in edges],
        ]
        gain = [-float(e[0] == 0) for e in edges]
        best = linprog(gain, A_eq=keeps + others, b_eq=[0.0] * 10, bounds=bounds)
        assert float(regard.flow(maps, "flow")[source, sink]) == pytest.approx(-best.fun, abs=1e-9)


def test_what_is_refused() -> None:
    with pytest.raises(regard.ShapeError, match="at least one map"):
        regard.flow([])
    with pytest.raises(regard.ShapeError, match="map 1 has shape"):
        regard.flow([stack()[0], AttentionMap.from_weights(torch.zeros(1, 5, 5))])
    with pytest.raises(regard.ShapeError, match=r"select\(0\)"):
        regard.flow([AttentionMap.from_weights(torch.zeros(2, 1, 5, 5))])
    with pytest.raises(regard.ShapeError, match="target 7 stands outside the 7 queries"):
        regard.flow(stack(), target=7)
    with pytest.raises(regard.ShapeError, match="one for each of the 4 maps; got 2"):
        regard.flow(stack(), residual=[0.5, 0.5])
    with pytest.raises(regard.ShapeError, match="maximum flow of 65 tokens takes too long: at most 64"):
        regard.flow([AttentionMap.from_weights(torch.eye(65)[None])], "flow", target=0)
    with pytest.raises(regard.ChoiceError, match="'rollout'"):
        regard.flow(stack(), "rolout")
    with pytest.raises(regard.ChoiceError, match="'alti' needs the residual states"):
        regard.flow(stack(), "alti")
    with pytest.raises(regard.ChoiceError, match="belong together"):
        regard.flow(stack(), "gradient")


PEAK = """
import resource, torch, regard
torch.set_num_threads(1)
layers, heads, n, d = 2, 2, 32768, 64
def maps(n):
    return [regard.attention_map(*torch.randn(2, heads, n, d), mask=regard.causal()) for _ in range(layers)]
regard.flow(maps(600), target=-1)
long = maps(n)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
row = regard.flow(long, target=-1)
assert abs(float(row.sum()) - 1) < 1e-3
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_memory_of_a_target_at_32768_tokens() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 200, f"{done.stdout.strip()} MiB"
