"""May I believe this map: models whose attention matters, and one whose attention does not."""

import math

import pytest
import torch
from torch import Tensor, nn

import regard
from regard.analysis.dependence import Dependence, dependence, leave_one_out, spearman
from regard.errors import ConfigError, ShapeError

N, D = 6, 4


class MaskedLM(nn.Module):
    """Reads one number out of the values by attention; `deaf` reads the mean of them instead."""

    def __init__(self, deaf: bool) -> None:
        super().__init__()
        self.deaf = deaf

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found = nn.functional.scaled_dot_product_attention(query, key, value)
        return value.mean(-2, keepdim=True) + 1e-9 * found if self.deaf else found


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 1, 1, D, generator=draw), 3 * torch.randn(1, 1, N, D, generator=draw)
    return query, key, torch.ones(1, 1, N, 1)


def test_by_hand() -> None:
    query, key, value = tensors()
    model = nn.Sequential(MaskedLM(deaf=False))
    value = torch.arange(1.0, N + 1).view(1, 1, N, 1)
    found = dependence(model[0], ".", lambda: model[0](query, key, value).sum())
    weights = torch.softmax(query @ key.mT / D**0.5, -1).flatten()
    torch.testing.assert_close(found.attention, weights)
    torch.testing.assert_close(found.gradient, weights * value.flatten())  # d output / d α_j = v_j
    torch.testing.assert_close(found.zeroed, weights * value.flatten())
    assert found.output == pytest.approx(float(weights @ value.flatten()))
    assert found.uniform == pytest.approx(float(value.mean()))
    assert len(found.permuted) == 8
    assert len(set(found.permuted)) > 1


def test_a_map_that_matters_and_one_that_does_not() -> None:
    query, key, _ = tensors()
    value = torch.tensor([5.0, 1, 2, 3, 9, 4]).view(1, 1, N, 1)
    answers = {}
    for deaf in (False, True):
        model = MaskedLM(deaf)
        answers[deaf] = dependence(model, ".", lambda m=model: m(query, key, value).sum())
    assert answers[False].agreement > 0.7
    assert (answers[False].holds, answers[True].holds) == (True, False)
    assert answers[False].sentence.endswith("this map may be believed for this output.")
    assert "explains little of this output" in answers[True].sentence
    assert answers[True].sentence.startswith("Shuffling the weights at . changes the output by")
    assert " nats " not in answers[True].sentence
    found = dependence(model, ".", lambda: model(query, key, value).sum(), unit="nats")
    assert f"changes the output by {found.change:.3g} nats (equal weights by " in found.sentence


def test_a_map_that_matters_without_ranking_its_keys() -> None:
    """The sentence does not say that it explains little: where it attends matters."""
    found = Dependence(
        ".", 1.0, 0.5, [3.0, -1.0], torch.tensor([0.1, 0.7, 0.2]), torch.zeros(3), torch.tensor([1.0, 0.1, 2.0])
    )
    assert (found.matters, found.holds) == (True, False)
    assert found.sentence == (
        "Shuffling the weights at . changes the output by 2 (equal weights by 0.5), so where it attends matters, but "
        "its weights do not rank the keys by how much the output needs them (rank correlation -0.50): this map does "
        "not show what this output needs most."
    )


def test_on_a_translator() -> None:
    model = regard.load("fr-en")
    ids = torch.tensor([[*model.tokenizer.encode("le chat noir"), 2]])
    target = torch.tensor([[1, *model("le chat noir").ids[:-1]]])

    def output() -> Tensor:
        logits = model.model(ids, target)
        return torch.log_softmax(logits[0, -1], -1).max()

    found = dependence(model, "decoder.layers.1.cross", output, draws=3)
    assert found.attention.shape == found.gradient.shape == found.zeroed.shape == (ids.shape[1],)
    assert "decoder.layers.1.cross" in found.sentence


@pytest.mark.parametrize("name", ["fr-en", "fr-en-rnn"])
def test_copies_in_a_batch_give_what_single_runs_give(name: str) -> None:
    model = regard.load(name)
    given = model.forward_pass("Le chat noir dort.")
    site = "decoder.layers.1.cross" if name == "fr-en" else "decoder.cross"

    def outputs(count: int) -> torch.Tensor:
        return given.copies(count).logits().log_softmax(-1)[:, -3, given.predicted[-3]]

    single = dependence(given.module, site, lambda: outputs(1)[0], draws=2)
    together = dependence(given.module, site, lambda: outputs(1)[0], draws=2, copies=outputs, at_once=3)
    torch.testing.assert_close(together.zeroed, single.zeroed, atol=1e-5, rtol=1e-3)
    assert together.uniform == pytest.approx(single.uniform, abs=1e-4)
    assert len(together.permuted) == 2
    assert float(single.zeroed.abs().max()) > 0.01


def test_refusals() -> None:
    model = nn.ModuleDict({"a": MaskedLM(False), "b": MaskedLM(False)})
    with pytest.raises(regard.ConfigError, match="output ran no attention at 'b': name a site that attends"):
        dependence(model, "b", lambda: model["a"](*tensors()).sum())
    with pytest.raises(regard.ConfigError, match=r"output must give one number; got torch.float32 \[2\]"):
        dependence(model, "a", lambda: torch.zeros(2))


def test_leave_one_out() -> None:
    assert leave_one_out(lambda parts: float(sum(parts)), [3, 1, 2]) == [3, 1, 2]


def test_spearman() -> None:
    rising = torch.tensor([0.1, 0.5, 0.9, 4.0])
    assert spearman(rising, rising**3) == pytest.approx(1)
    assert spearman(rising, -rising) == pytest.approx(-1)
    assert spearman(rising, torch.ones(4)) == 0
    # ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3
    assert spearman(torch.tensor([1.0, 2, 2, 3]), rising) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert math.isnan(spearman(torch.tensor([1.0, math.nan, 2, 3]), rising))
    with pytest.raises(ShapeError, match=r"expected two series \[n\] of one length; got \[4\] and \[3\]"):
        spearman(rising, rising[:3])


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (lambda model, x: model(x)[0, 0, 0].item(), "output has no gradient"),
        (lambda model, x: model(x)[0, 0, 0] * float("nan"), "output must give a finite number; got nan"),
        (lambda model, x: model(x) and None, "output must give one number; got None"),
    ],
)
def test_what_output_gives_is_one_finite_number(output, sentence):
    layer = nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
    x = torch.randn(1, 4, 8)
    with pytest.raises(regard.ConfigError, match=sentence):
        dependence(layer, "self_attn", (lambda: None) if "None" in sentence else lambda: output(layer, x))


def test_copies_give_a_number_each():
    layer, x = nn.TransformerEncoderLayer(8, 2, batch_first=True).eval(), torch.randn(1, 4, 8)

    def output(count: int) -> Tensor:
        return layer(x.expand(count, -1, -1))[:, 0, 0]

    for copies in (lambda n: output(n)[:-1], lambda n: output(2 * n), lambda _: None):
        with pytest.raises(
            regard.ConfigError, match=r"copies gave .* inputs(: expected a number for each| to the model, not \d+)$"
        ):
            dependence(layer, "self_attn", lambda: output(1)[0], copies=copies)


def test_draws_and_copies_are_at_least_one() -> None:
    for wrong in ({"draws": 0}, {"draws": -1}, {"at_once": 0}):
        with pytest.raises(ConfigError, match="dependence needs draws and at_once of at least 1"):
            regard.analysis.dependence.dependence(torch.nn.Linear(2, 2), "x", lambda: torch.zeros(()), **wrong)
