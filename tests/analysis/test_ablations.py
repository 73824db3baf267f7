"""Ablations by hand, planted heads, and the fewest heads that suffice."""

from pathlib import Path

import pytest
import torch
from matplotlib.text import Text
from torch import Tensor, nn
from torch.nn import functional as F

import regard
from regard.errors import ChoiceError, ConfigError
from regard.models.build import build
from regard.models.recurrent import RecurrentConfig

H, N = 3, 5


class Heads(nn.Module):
    """The mean of the states by every head, weighted by its own factor."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.factors = torch.tensor(factors, dtype=torch.float64).view(1, H, 1, 1)

    def forward(self, states: Tensor) -> Tensor:
        heads = states[:, None].expand(-1, H, -1, -1)
        flat = torch.zeros_like(heads)
        return F.scaled_dot_product_attention(flat, flat, heads * self.factors).sum(1)


class Model(nn.Module):
    """Two attentions that read the same states: the output is the sum of six heads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Heads([0.0, 3.0, 0.0]), Heads([0.1, 0.0, 1.0])

    def forward(self, states: Tensor) -> Tensor:
        return self.first(states) + self.second(states)


def inputs() -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [
        {"states": 1 + torch.rand(1, N + n % 2, 2, generator=draw, dtype=torch.float64)} for n in range(6)
    ]  # of two lengths


def metric(output: Tensor) -> Tensor:
    return output[0, -1, 0]


def means() -> Tensor:
    return torch.stack([one["states"][0, :, 0].mean() for one in inputs()])


def test_by_hand() -> None:
    found = regard.ablations(Model(), inputs(), metric)
    assert found.sites == ["first", "second"]
    assert found.whole == pytest.approx(float(4.1 * means().mean()))
    factors = torch.tensor([[0.0, 3.0, 0.0], [0.1, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(found.table["zero"], -factors * means().mean())
    counts = torch.tensor([one["states"].shape[1] for one in inputs()], dtype=torch.float64)
    middle = (means() * counts).sum() / counts.sum()  # over all positions of all inputs
    torch.testing.assert_close(found.table["mean"], factors * (middle - means().mean()))
    low, high = found.intervals["zero"][0, 1].tolist()
    assert low < float(found.table["zero"][0, 1]) < high
    assert low == pytest.approx(-3 * float(means().mean()), abs=0.5)


def test_resampling_takes_the_outputs_of_another_input() -> None:
    pair = inputs()[:2]  # each has one other: what is drawn is known
    found = regard.ablations(Model(), pair, metric, ["resample"])
    a, b = (float(one["states"][0, :, 0].mean()) for one in pair)
    assert float(found.table["resample"][0, 1]) == pytest.approx(0.0, abs=1e-12)  # one gains what the other loses
    again = regard.ablations(Model(), pair, metric, ["resample"])
    assert torch.equal(again.table["resample"], found.table["resample"])
    changes = found._changes([[]], "resample")  # nothing is replaced
    torch.testing.assert_close(changes, torch.zeros(2, 1, dtype=torch.float64))
    assert a != b


def test_batches_change_nothing() -> None:
    found = regard.ablations(Model(), inputs(), metric)
    alone = regard.ablations(Model(), inputs(), metric, batch=1)
    for kind in found.table:
        torch.testing.assert_close(found.table[kind], alone.table[kind])


def test_a_pair_of_heads() -> None:
    found = regard.ablations(Model(), inputs(), metric, ["zero"])
    change, (low, high) = found.together([("first", 1), ("second", 2)], "zero")
    assert change == pytest.approx(float(-4 * means().mean()))
    assert low < change < high


def test_pairs_by_hand(tmp_path: Path) -> None:
    """(Σ f)² s²: without a and b it is less by an interaction of 2 f_a f_b s²."""
    found = regard.ablations(Model(), inputs(), lambda output: output[0, -1, 0] ** 2, ["zero"])
    pairs = found.pairs(kind="zero")
    factors = torch.tensor([0.0, 3.0, 0.0, 0.1, 0.0, 1.0], dtype=torch.float64)
    squared = (means() ** 2).mean()
    assert pairs.heads == [(site, head) for site in ("first", "second") for head in range(H)]
    expected = 2 * factors[:, None] * factors * squared
    away = ~torch.eye(2 * H, dtype=torch.bool)
    torch.testing.assert_close(pairs.interaction[away], expected[away])
    assert pairs.interaction.diagonal().isnan().all()
    alone = (4.1 - factors) ** 2 * squared - 4.1**2 * squared
    torch.testing.assert_close(pairs.table.diagonal(), alone)
    assert pairs.table[1, 5] == pytest.approx(float((0.1**2 - 4.1**2) * squared))
    (first, second, shared, (low, high)), *others = pairs.strongest()
    assert (first, second) == (("first", 1), ("second", 2))
    assert low < shared < high
    assert len(others) == 2  # the other pairs of the three heads that do anything
    some = found.pairs([("second", 2), ("first", 1)], "zero")
    assert some.interaction[0, 1] == pairs.interaction[1, 5]
    figure = pairs.plot(tmp_path / "pairs.png")
    assert "second, head 2" in {text.get_text() for text in figure.findobj(Text)}
    assert (tmp_path / "pairs.png").stat().st_size > 5000


def test_pairs_refuse_what_they_cannot_take() -> None:
    found = regard.ablations(Model(), inputs(), metric, ["zero"])
    with pytest.raises(ConfigError, match=r"\('first', 3\) was not ablated"):
        found.pairs([("first", 3), ("first", 1)], "zero")
    with pytest.raises(ConfigError, match="two different heads"):
        found.pairs([("first", 1), ("first", 1)], "zero")
    with pytest.raises(ChoiceError, match="unknown ablation 'mean'"):
        found.pairs()


def test_the_smallest_sufficient_set() -> None:
    found = regard.ablations(Model(), inputs(), metric)
    enough = found.smallest(0.9, "zero")
    assert enough.heads == [("first", 1), ("second", 2)]
    assert enough.share == pytest.approx(4 / 4.1)
    assert enough.metric == pytest.approx(float(4 * means().mean()))
    assert enough.ablated == pytest.approx(0.0, abs=1e-9)
    assert found.smallest(0.7, "zero").heads == [("first", 1)]
    assert len(found.smallest(1.0, "zero").heads) == 3


def test_a_metric_for_each_input_on_a_translator(tmp_path: Path) -> None:
    model = regard.load("fr-en")
    texts = ["le chat noir", "le chien mange"]
    wanted = [torch.tensor(model.forward_pass(text).predicted) for text in texts]
    metrics = [lambda out, ids=ids: out[0].log_softmax(-1).gather(-1, ids[:, None]).mean() for ids in wanted]
    found = regard.ablations(model, texts, metrics, ["mean"], sites=["decoder.*.cross"])
    assert found.sites == [f"decoder.layers.{n}.cross" for n in range(3)]
    assert float(found.table["mean"].min()) < 0
    found.plot(tmp_path / "heads.png")
    assert (tmp_path / "heads.png").exists()


def test_what_is_refused() -> None:
    model = Model()
    with pytest.raises(ConfigError, match="1 inputs and 1 metrics"):
        regard.ablations(model, inputs()[:1], metric)
    with pytest.raises(ConfigError, match="6 inputs and 2 metrics"):
        regard.ablations(model, inputs(), [metric, metric])
    with pytest.raises(ChoiceError, match="unknown ablation 'means': expected one of 'mean'"):
        regard.ablations(model, inputs(), metric, ["means"])
    with pytest.raises(ChoiceError, match="unknown ablation 'mean'"):
        regard.ablations(model, inputs(), metric, ["zero"]).smallest(kind="mean")
    with pytest.raises(ConfigError, match="does not depend on attention"):
        regard.ablations(model, inputs(), lambda out: 1.0, ["zero"]).smallest(kind="zero")


def test_heads_that_were_not_ablated_and_metrics_that_are_no_numbers() -> None:
    found = regard.ablations(Model(), inputs(), metric, ["zero"])
    for wrong in (
        lambda: found.together([("frist", 1)], "zero"),
        lambda: found.pairs([("first", 9), ("first", 0)], "zero"),
    ):
        with pytest.raises(ConfigError, match=r"was not ablated: expected \(site, head\) of first, second"):
            wrong()
    for keep in (0.0, 2.0, float("nan")):
        with pytest.raises(ConfigError, match="keep must be a share above 0 and at most 1; got"):
            found.smallest(keep, "zero")
    with pytest.raises(ConfigError, match="the metric gave NaN for an input as it is"):
        regard.ablations(Model(), inputs(), lambda output: output[0, -1, 0] * float("nan"), ["zero"])


def test_a_metric_that_is_nan_without_a_head_changes_no_head_count() -> None:
    whole = float(metric(Model()(**inputs()[0])))

    def fragile(output: Tensor) -> Tensor:
        found = metric(output)
        return found if abs(float(found) - whole) < 10 and found <= whole + 1e-6 else found * torch.nan

    found = regard.ablations(Model(), [inputs()[0], inputs()[0]], fragile, ["zero"])
    assert [found.heads(site) for site in found.sites] == [H, H]
    assert len(found._ablated(None)) == 2 * H


def test_means_of_half_precision_do_not_overflow() -> None:
    states = torch.full((1, 1500, 4), 30.0, dtype=torch.float16)

    class Half(nn.Module):
        def forward(self, states: Tensor) -> Tensor:
            heads = states[:, None]
            return F.scaled_dot_product_attention(heads * 0, heads * 0, heads)[:, 0]

    found = regard.ablations(Half(), [{"states": states}] * 2, lambda output: output.float().mean(), ["mean"])
    assert found.table["mean"].tolist() == [[0.0]]


def test_ablations_refuse_what_they_cannot_compare() -> None:
    class Deep(Model):
        def forward(self, states: Tensor, deep: bool = False) -> Tensor:
            return self.first(states) + (self.second(states) if deep else 0)

    given = [{**inputs()[0], "deep": True}, inputs()[1]]
    with pytest.raises(ConfigError, match="resample: an input attends at second, and the one that stands in"):
        regard.ablations(Deep(), given, metric, ["resample"])
    with pytest.raises(ConfigError, match="kinds: expected one ablation or more"):
        regard.ablations(Model(), inputs(), metric, [])
    assert regard.ablations(Model(), inputs(), metric, ["resample"], seed=2**70).table


@pytest.mark.parametrize("kind", ["mean", "resample"])
def test_outputs_that_hold_a_number_for_each_key_are_of_one_length(kind: str) -> None:
    torch.manual_seed(0)
    model = build(11, RecurrentConfig(kind="recurrent", width=8, embedding=8, score="location")).eval()
    inputs = [{"source": torch.tensor([s]), "target": torch.tensor([[1, 4]])} for s in ([5, 6, 7], [5, 6, 7, 8])]
    with pytest.raises(
        regard.ConfigError, match=f"{kind}: decoder.cross gives outputs of .* take inputs of one length"
    ):
        regard.ablations(model, inputs, lambda output: output[0, -1, 0], kinds=(kind,))
    same = [inputs[0], {**inputs[0], "source": torch.tensor([[7, 8, 9]])}]
    assert kind in regard.ablations(model, same, lambda output: output[0, -1, 0], kinds=(kind,)).table
