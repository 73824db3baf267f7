"""intervene: the model computes with other weights, and only inside the block."""

import contextvars

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regard
from regard.analysis.dependence import dependence
from regard.analysis.measures import importance
from regard.observation.intervene import ablate, force, permute, uniform
from regard.pipelines.load import load

B, T, D = 2, 7, 8


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (2, D // 2)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, 16, dropout=0.0, batch_first=True)
    return {
        "torch function": nn.Sequential(Plain()),
        "torch module": nn.TransformerEncoder(layer, 1).eval(),
        "ours": regard.nn.MultiheadAttention(D, 2, batch_first=True),
    }


def run(model: nn.Module) -> Tensor:
    x = draw(B, T, D)
    if isinstance(model, nn.MultiheadAttention):
        return model(x, x, x)[0]
    return model(x)


def test_a_block_may_be_entered_again() -> None:
    model = models()["torch function"]
    changing = regard.intervene(model, "0", uniform)
    with changing:
        changed = run(model)
    before = run(model)
    with changing:
        assert torch.equal(run(model), changed)
    assert not torch.equal(before, changed)


@pytest.mark.parametrize("kind", ["torch function", "torch module", "ours"])
@pytest.mark.parametrize("grad", [False, True])
def test_the_same_weights_give_the_same_output_and_others_another(kind: str, grad: bool) -> None:
    model = models()[kind]
    with torch.set_grad_enabled(grad):
        before = run(model).detach()
        with regard.intervene(model, "*", lambda weights: weights):
            torch.testing.assert_close(run(model).detach(), before)
        with regard.intervene(model, "*", uniform):
            assert float((run(model).detach() - before).abs().max()) > 1e-3
        assert torch.equal(run(model), before)


def test_by_hand() -> None:
    model, x = nn.Sequential(Plain()), draw(B, T, D)
    heads = x.unflatten(-1, (2, D // 2)).transpose(1, 2)
    given = []

    def change(weights: Tensor) -> Tensor:
        given.append(weights)
        return weights.square()

    with regard.intervene(model, "0", change):
        got = model(x)
    scores = (heads @ heads.mT / (D // 2) ** 0.5).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(given[0], scores.softmax(-1))
    torch.testing.assert_close(got, scores.softmax(-1).square() @ heads)


def test_gradients_flow_through_the_change() -> None:
    x, scale = draw(B, T, D), torch.tensor(1.0, requires_grad=True)
    model = nn.Sequential(Plain())
    with regard.intervene(model, "0", lambda weights: weights * scale):
        model(x).sum().backward()
    torch.testing.assert_close(scale.grad, model(x).sum())


def test_in_a_search(tiny_run) -> None:
    model = load(tiny_run)
    before = model("le chat noir")
    site = before.alignment.site
    with regard.intervene(model, site, lambda weights: weights):
        assert model("le chat noir").log_prob == pytest.approx(before.log_prob, abs=1e-4)
    with regard.intervene(model, site, ablate()):
        assert model("le chat noir").log_prob != pytest.approx(before.log_prob, abs=1e-4)
    assert model("le chat noir").log_prob == before.log_prob


def test_observing_an_intervention_gives_the_weights_before_the_change() -> None:
    model = nn.Sequential(Plain())
    with regard.observe(model) as plain:
        run(model)
    with regard.observe(model) as seen, regard.intervene(model, "0", uniform):
        run(model)
    with regard.intervene(model, "0", uniform), regard.observe(model) as inside:
        run(model)
    for one in (seen, inside):
        torch.testing.assert_close(one["0"][0].full(), plain["0"][0].full())


def test_a_change_must_keep_the_shape_and_the_site_must_exist() -> None:
    model = nn.Sequential(Plain())
    with (
        pytest.raises(regard.ShapeError, match=r"0: the change turned \[2, 2, 7, 7\] into \[2, 2, 7\]: keep the shape"),
        regard.intervene(model, "0", lambda weights: weights.sum(-1)),
    ):
        run(model)
    with pytest.raises(regard.ChoiceError, match="the model has no module '1': did you mean"):
        regard.intervene(model, "1", uniform)


def test_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=101
    )
    model = transformers.BertModel(config).eval()
    ids = torch.randint(3, 100, (B, T))
    before = model(ids)[0]
    with regard.intervene(model, "encoder.layer.1.attention.self", lambda weights: weights):
        torch.testing.assert_close(model(ids)[0], before, atol=1e-5, rtol=1e-5)
    with regard.intervene(model, "encoder.layer.1.attention.self", ablate(0, 2)):
        assert float((model(ids)[0] - before).detach().abs().max()) > 1e-3
    assert torch.equal(model(ids)[0], before)


def test_a_site_that_does_not_attend_is_named() -> None:
    model = models()["torch module"]
    message = (
        r"nothing was changed: 'layers\.0' ran no attention of its own; .* names a module that computes .* by hand"
    )
    with (
        pytest.raises(regard.RegardError, match=message),
        regard.intervene(model, "layers.0", uniform),
    ):
        run(model)


ROWS = torch.tensor([[[0.5, 0.5, 0.0], [0.2, 0.0, 0.8]], [[0.1, 0.6, 0.3], [0.0, 0.0, 0.0]]])  # [heads, T, S]


def test_ablate() -> None:
    assert not ablate()(ROWS).any()
    with pytest.raises(regard.ShapeError, match=r"ablate\(0, 9\): no head 9: this site has heads 0 to \d"):
        ablate(0, 9)(ROWS)
    one = ablate(1)(ROWS)
    assert torch.equal(one[0], ROWS[0])
    assert not one[1].any()


def test_uniform_keeps_each_rows_mass() -> None:
    got = uniform(ROWS)
    want = torch.tensor([[[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]], [[1 / 3] * 3, [0.0] * 3]])
    torch.testing.assert_close(got, want)


def test_permute_keeps_the_weights_and_where_nothing_was() -> None:
    torch.manual_seed(0)
    weights = torch.rand(5, 11, 13).masked_fill(torch.rand(5, 11, 13) < 0.4, 0)
    got = permute(weights)
    assert torch.equal(got.sort(-1).values, weights.sort(-1).values)
    assert torch.equal(got == 0, weights == 0)
    assert not torch.equal(got, weights)


def test_force() -> None:
    rows = torch.tensor([0.0, 1.0, 0.0])
    assert torch.equal(force(rows)(ROWS), rows.expand(2, 2, 3))
    with pytest.raises(regard.ShapeError, match=r"expected a tensor of weights that broadcasts .*; got 0 "):
        force(0)
    with pytest.raises(regard.ShapeError, match=r"rows of shape \[4\] cannot be broadcast to the weights, \[2, 2, 3\]"):
        force(torch.eye(4)[0])(ROWS)


def test_a_change_that_returns_nothing_is_named() -> None:
    model = models()["torch function"]
    with (
        pytest.raises(regard.ShapeError, match="0: the result of the change: expected a tensor; got None"),
        regard.intervene(model, "0", lambda weights: None),
    ):
        run(model)


def test_a_change_that_returns_a_tensor_without_data_is_refused() -> None:
    model = models()["torch function"]
    with (
        pytest.raises(regard.ShapeError, match="0: the result of the change is on meta"),
        regard.intervene(model, "0", lambda weights: weights.to("meta")),
    ):
        run(model)


def stack() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


def test_a_site_that_an_inner_block_changes_has_attended() -> None:
    model, site, states = stack(), "layers.1.self_attn", torch.randn(1, 5, 16)
    with regard.intervene(model, site, ablate(0)):
        want = model(states)
    with regard.intervene(model, site, uniform), regard.intervene(model, site, ablate(0)):
        found = model(states)
    torch.testing.assert_close(found, want)


def test_findings_of_a_model_that_is_changed_are_refused() -> None:
    model, states = stack(), torch.randn(1, 5, 16)
    translator = regard.load("fr-en-rnn")
    given = translator("le chat noir")
    other = stack()
    with regard.intervene(model, "layers.1.self_attn", uniform):
        with pytest.raises(regard.RegardError, match="a finding of parts does not know of changes that intervene"):
            regard.patch(model, {"src": states}, {"src": states}, lambda output: output[0, -1, 0])
        assert regard.patch(other, {"src": states}, {"src": states}, lambda output: output[0, -1, 0]).clean
        model(states)
    with regard.intervene(translator, "decoder.cross", uniform):
        with pytest.raises(regard.RegardError, match=r"^contributions does not know of changes"):
            regard.contributions(given, 1)
        translator("le chat")


def test_blocks_may_end_in_any_order_and_in_another_context() -> None:
    model, states = stack(), torch.randn(1, 5, 16)
    metric = lambda output: output[0, -1, 0]  # noqa: E731
    first, second = (regard.intervene(model, "layers.1.self_attn", uniform) for _ in range(2))
    first.__enter__()
    second.__enter__()
    model(states)
    first.__exit__(None, None, None)
    with pytest.raises(regard.RegardError, match="does not know of changes"):
        regard.patch(model, {"src": states}, {"src": states}, metric)
    second.__exit__(None, None, None)
    assert regard.patch(model, {"src": states}, {"src": states}, metric).clean
    third = regard.intervene(model, "layers.1.self_attn", uniform)
    contextvars.copy_context().run(third.__enter__)
    third.__exit__(None, None, None)


def test_importance_and_dependence_of_a_model_that_is_changed_are_refused() -> None:
    model, site, states = stack(), "layers.1.self_attn", torch.randn(1, 5, 16)
    loss = lambda: model(states).sum()  # noqa: E731
    with regard.intervene(model, site, uniform):
        with pytest.raises(regard.RegardError, match=r"^importance does not know"):
            importance(model, lambda: float(loss()), {site: 4})
        with pytest.raises(regard.RegardError, match=r"^dependence does not know"):
            dependence(model, site, loss)
        loss()
