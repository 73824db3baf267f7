"""Faithfulness: curves by hand, right and wrong explanations told apart, every explanation of every kind of model."""

import json
from contextlib import ExitStack
from itertools import permutations

import pytest
import torch
from matplotlib.colors import to_hex

import regard
from random_outputs import SOURCE, completer, recurrent, translator
from regard.analysis.erasure import Erasure
from regard.analysis.explanations import explanations
from regard.analysis.faithfulness import Curves
from regard.analysis.reasons import reasons
from regard.figures.style import THEMES

WORTH = torch.tensor([0.02, 0.4, 0.05, 0.3, 0.0, 0.13], dtype=torch.float64)  # what each part adds to a probability


def additive(kept):
    """A probability that is a sum over the parts: what each is worth is known."""
    return 0.1 + kept.double() @ WORTH


def deaf(kept):
    """A probability that rests on the last part alone."""
    return 0.2 + 0.7 * kept[:, -1].double()


def test_findings_within_inference_mode():
    want = regard.load("fr-en-fast")("le chat")
    with torch.inference_mode():
        model = regard.load("fr-en-fast")
        result = model("le chat")
        assert str(regard.faithfulness(result, 0, draws=20)) == str(regard.faithfulness(want, 0, draws=20))
        reasons(result, draws=20)
        assert result.tested == want.tested
        assert result.look() is not None
    assert not any(one.is_inference() for one in model.model.parameters())


def test_curves_by_hand():
    found = regard.faithfulness(additive, explanations={"worth": WORTH})
    curves = found.curves["worth"]
    torch.testing.assert_close(torch.tensor(curves.shares), torch.arange(7) / 6)
    assert curves.deletion == pytest.approx([1.0, 0.6, 0.3, 0.17, 0.12, 0.1, 0.1])
    assert curves.insertion == pytest.approx([0.1, 0.5, 0.8, 0.93, 0.98, 1.0, 1.0])
    assert curves.gain == pytest.approx(
        (0.0 - 0.9) / 12 + (0.5 - 0.6 + 0.8 - 0.3 + 0.93 - 0.17 + 0.98 - 0.12 + 1 - 0.1) / 6 + 0.9 / 12
    )
    assert curves.comprehensiveness == pytest.approx(1 - 2.39 / 7)
    assert curves.sufficiency == pytest.approx(1 - 5.31 / 7)
    assert found.probability == 1.0
    assert found.parts == list("012345")


def test_a_right_explanation_is_believed_and_a_planted_wrong_one_is_not():
    found = regard.faithfulness(additive, explanations={"planted": -WORTH, "right": WORTH, "constant": 0 * WORTH})
    assert found.believed("right")
    assert found.best == "right"
    assert found.verdict("right").startswith("right may be believed for 'the prediction'")
    assert not found.believed("planted")
    assert found.curves["planted"].gain == pytest.approx(-found.curves["right"].gain)
    assert found.sentence.startswith("planted did worse than most random orders for 'the prediction' (gain -")
    assert found.sentence.endswith("; best: right, 0.49; of 3 explanations 2 do no better than chance.")
    assert str(found) == found.sentence
    assert found.agreement[0].tolist() == pytest.approx([1.0, -1.0, 0.0])


def test_attention_that_the_prediction_does_not_depend_on_is_not_believed():
    weights = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.06, 0.04])
    found = regard.faithfulness(deaf, explanations={"attention": weights, "needed": torch.eye(6)[5]})
    assert not found.believed("attention")
    assert found.believed("needed") is (found.p("needed") <= 0.05)
    assert found.curves["needed"].gain > 0.5 > 0 > found.curves["attention"].gain


def test_the_gains_of_all_orders_have_mean_0_and_those_drawn_come_with_their_reverse():
    worth = WORTH[:4]

    def curved(kept):
        return (kept.double() @ worth).square()

    found = regard.faithfulness(curved, explanations={"worth": worth})
    assert found.exhaustive
    assert len(found.random) == 24
    assert sum(found.random) == pytest.approx(0, abs=1e-9)
    by_hand = [
        regard.faithfulness(curved, explanations={"one": -torch.tensor(order, dtype=torch.float64)}).curves["one"].gain
        for order in permutations(range(4))
    ]
    assert sorted(found.random) == pytest.approx(sorted(by_hand))
    drawn = regard.faithfulness(additive, explanations={"worth": WORTH}, draws=20).random
    assert len(drawn) == 20
    assert drawn[::2] == pytest.approx([-one for one in drawn[1::2]])
    assert drawn == regard.faithfulness(additive, explanations={"worth": WORTH}, draws=20).random
    assert drawn != regard.faithfulness(additive, explanations={"worth": WORTH}, draws=20, seed=1).random


def test_three_parts_are_too_few_to_tell():
    found = regard.faithfulness(lambda kept: kept.double() @ WORTH[:3], explanations={"worth": WORTH[:3]})
    assert not found.decidable
    assert not found.believed("worth")
    assert "stays open: 3 parts of the input are too few to tell" in found.sentence


def test_long_inputs_are_cut_at_sixteen_points():
    worth = torch.rand(45, generator=torch.Generator().manual_seed(0)).double()
    rows = []

    def counted(kept):
        rows.append(len(kept))
        return kept.double() @ worth / worth.sum()

    found = regard.faithfulness(counted, explanations={"worth": worth})
    shares = found.curves["worth"].shares
    assert len(shares) == 18  # an odd number of parts has no middle: there are two points beside it
    assert shares == pytest.approx([1 - share for share in reversed(shares)])
    assert found.believed("worth")
    assert rows[0] <= 51 * 2 * 18


ALL = {"attention", "contributions", "gradient × input", "integrated gradients", "leave one out"}
OF_TRANSFORMERS = ALL | {"norms", "rollout", "gradient rollout", "flow", "alti"}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("make", "names"),
    [(translator, OF_TRANSFORMERS | {"alignment"}), (recurrent, ALL | {"alignment"}), (completer, OF_TRANSFORMERS)],
    ids=["transformer", "recurrent", "decoder"],
)
def test_every_explanation_of_every_kind_of_model(make, names, tmp_path):
    made = make()(SOURCE, **({"length": 4, "seed": 1} if make is completer else {"beam": 1}))
    found = regard.faithfulness(made, 1)
    assert set(found.curves) == set(found.explanations) == names
    assert " ".join(found.parts).startswith(SOURCE if make is not completer else "le chat noir dor")
    given = made.forward_pass()
    with torch.no_grad():
        logs = given.logits()[0, -len(made.ids) :].log_softmax(-1)
    assert found.probability == pytest.approx(float(logs[1, made.ids[1]].exp()), abs=1e-6)
    assert found.token == made.tokens[1]
    written = json.loads(json.dumps(found.as_json()))
    assert written["sentence"] == found.sentence
    assert set(written["explanations"]) == names
    for theme in THEMES:
        figure = found.plot(tmp_path / f"{theme}.svg", theme=theme)
        assert "integrated gradients" in (tmp_path / f"{theme}.svg").read_text()
        assert to_hex(figure.get_facecolor()) == THEMES[theme].paper
        filled = [to_hex(bar.get_facecolor()) != THEMES[theme].paper for bar in figure.axes[2].patches[1:]]
        assert filled == [found.believed(name) for name in found.curves]


def test_a_sub_word_s_numbers_are_summed_to_its_word_s():
    made = translator()(SOURCE, beam=1)
    row = torch.arange(1.0, 1 + len(made.source_ids))
    found = regard.faithfulness(made, 0, explanations={"places": row})
    words = Erasure.of(made.forward_pass()).words
    assert found.explanations["places"].tolist() == [float(row[places].sum()) for _, places in words]
    assert next(iter(found.curves)) == "places"


@pytest.mark.parametrize("make", [translator, recurrent], ids=["transformer", "recurrent"])
def test_a_word_taken_out_is_a_source_without_it(make):
    made = make()(SOURCE, beam=1)
    given = made.forward_pass()
    erasure = Erasure.of(given)
    kept = torch.tensor([[True, True, True, True], [True, False, True, False]])
    shorter = [i for n, i in enumerate(made.source_ids) if all(n not in erasure.words[w][1] for w in (1, 3))]
    with torch.no_grad():
        logits = given.module(torch.tensor([shorter]), given.arguments["target"])[0].double().log_softmax(-1)
    expected = [float(logits[t, token]) for t, token in enumerate(made.ids)]
    assert erasure(kept)[1].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_word_taken_out_of_a_text_is_a_text_without_it():
    made = completer()("le chat noir dort", length=5, seed=1)
    found = regard.faithfulness(made, [2, 3])
    given = made.forward_pass()
    ids = given.arguments["tokens"][0].tolist()[: len(made.source_ids) + 3]
    owners = Erasure.of(given, before=len(made.source_ids) + 2).words
    out = set(owners[0][1])
    with torch.no_grad():
        logits = given.module(torch.tensor([[i for n, i in enumerate(ids) if n not in out]]))[0, -2:].log_softmax(-1)
    expected = float(logits[0, made.ids[2]] + logits[1, made.ids[3]])
    without = found.explanations["leave one out"][0]
    assert float(torch.tensor(found.probability).log() - without) == pytest.approx(expected, abs=1e-4)


def test_gradient_times_input_is_that_of_finite_differences():
    made = translator(torch.float64)(SOURCE, beam=1)
    given = made.forward_pass()
    rows = explanations(made, [1])
    table = given.module.embedding
    own = torch.nn.functional.embedding(given.arguments["source"], table.weight) * table.scale

    def scaled(place, share):
        def hook(_, args, output):
            if not torch.equal(args[0], given.arguments["source"]):
                return None
            changed = output.clone()
            changed[0, place] = own[0, place] * share
            return changed

        handle = table.register_forward_hook(hook)
        with torch.no_grad():
            value = given.logits()[0, 1].log_softmax(-1)[made.ids[1]]
        handle.remove()
        return float(value)

    for place in (0, len(made.source_ids) - 1):
        slope = (scaled(place, 1 + 1e-5) - scaled(place, 1 - 1e-5)) / 2e-5
        assert float(rows["gradient × input"][place]) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize(("make", "text"), [(translator, SOURCE), (translator, "le chat"), (completer, SOURCE)])
def test_rollouts_are_products_by_hand(make, text):
    """Also where source and output have one length: nothing stays where it is in cross-attention."""
    made = make(torch.float64)(text, **({"length": 3, "seed": 1} if make is completer else {"beam": 1}))
    given, probes, weights = made.forward_pass(), {}, {}
    sites = [site for site in made.attention if make is completer or site.endswith("cross")]
    below = [] if make is completer else [f"encoder.layers.{n}.self" for n in range(2)]

    def probed(site):
        def change(own):
            weights[site], probes[site] = own.detach()[0], torch.zeros_like(own, requires_grad=True)
            return own + probes[site]

        return change

    with ExitStack() as stack:
        for site in (*below, *sites):
            stack.enter_context(regard.intervene(given.module, site, probed(site)))
        logits = given.logits()[0, -len(made.ids) :]
    assert text != "le chat" or weights[sites[0]].shape[-2] == weights[sites[0]].shape[-1]
    slopes = torch.autograd.grad(logits.log_softmax(-1)[1, made.ids[1]], list(probes.values()))
    positive = {site: (slope[0] * weights[site]).clamp(min=0) for site, slope in zip(probes, slopes, strict=True)}
    eye = torch.eye(weights[(below or sites)[0]].shape[-1], dtype=torch.float64)
    plain, weighed = eye, eye
    for site in below or sites:
        plain = (weights[site].mean(0) + eye) / 2 @ plain
        weighed = weighed + positive[site].mean(0) @ weighed
    if below:
        plain = torch.stack([weights[site].mean(0) for site in sites]).mean(0) @ plain
        weighed = torch.cat([positive[site] for site in sites]).mean(0) @ weighed
    place, found = given.logits().shape[1] - len(made.ids) + 1, explanations(made, [1])
    size = len(found["rollout"])
    torch.testing.assert_close(found["rollout"], plain[place, :size].detach())
    torch.testing.assert_close(found["gradient rollout"], weighed[place, :size])


def test_integrated_gradients_of_a_model_without_bends_sum_to_the_difference():
    made = recurrent(torch.float64)(SOURCE, beam=1)
    given = made.forward_pass()
    total = float(explanations(made, [0])["integrated gradients"].sum())
    table, ids = given.module.decoder.embedding, given.arguments["source"]

    handle = table.register_forward_hook(lambda _, args, out: out * 0 if torch.equal(args[0], ids) else None)
    with torch.no_grad():
        empty = given.logits()[0, 0].log_softmax(-1)[made.ids[0]]
    handle.remove()
    with torch.no_grad():
        whole = given.logits()[0, 0].log_softmax(-1)[made.ids[0]]
    assert total == pytest.approx(float(whole - empty), rel=0.02)  # 16 midpoints of the integral


def test_refusals():
    made = translator()(SOURCE, beam=1)
    count = len(made.ids)
    for step in (count, -count - 1):
        with pytest.raises(regard.ConfigError, match=f"is none of the output's {count} tokens"):
            regard.faithfulness(made, step)
    with pytest.raises(regard.ConfigError, match=r"that follow each other; got \[0, 2\]"):
        regard.faithfulness(made, [0, 2])
    with pytest.raises(regard.ConfigError, match="draws must be at least 20"):
        regard.faithfulness(made, 0, draws=19)
    with pytest.raises(regard.ShapeError, match=r"explanation 'short' has shape \[2\]: expected"):
        regard.faithfulness(made, 0, explanations={"short": torch.ones(2)})
    with pytest.raises(regard.ConfigError, match="'broken' has numbers that are not finite"):
        regard.faithfulness(additive, explanations={"broken": WORTH * float("nan")})
    with pytest.raises(regard.ConfigError, match="needs explanations"):
        regard.faithfulness(additive)
    with pytest.raises(regard.ShapeError, match=r"gave torch.float64 \[1\] on cpu for"):
        regard.faithfulness(lambda kept: kept[:1, 0].double(), explanations={"worth": WORTH})
    with pytest.raises(regard.ChoiceError, match="unknown explanation 'worht': expected one of 'worth'"):
        regard.faithfulness(additive, explanations={"worth": WORTH}).p("worht")
    with pytest.raises(regard.ConfigError, match="no words to take out before this token"):
        regard.faithfulness(completer()("le", length=2, seed=1), 0)


def test_curves_are_a_plain_value():
    assert Curves([0.0, 1.0], [1.0, 0.0], [0.0, 1.0]).gain == 0.0


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (lambda kept: torch.where(kept.sum(1) == 4, float("nan"), kept.double().mean(1)), "not finite"),
        (lambda kept: kept.double().mean(1).tolist(), "expected a tensor of a probability each"),
        (lambda kept: kept.mean(1, dtype=torch.complex64), "expected a tensor of a probability each"),
    ],
)
def test_probabilities_are_finite_numbers(given, sentence):
    with pytest.raises(regard.RegardError, match=sentence):
        regard.faithfulness(given, explanations={"a": torch.rand(9)})


def test_explanations_may_be_any_numbers():
    weights = torch.rand(6, dtype=torch.float64)

    def probability(kept: torch.Tensor) -> torch.Tensor:
        return kept.double() @ weights / weights.sum()

    found = [
        regard.faithfulness(probability, explanations={"a": some}).curves["a"].gain
        for some in (weights, weights.numpy()[::-1][::-1], weights.numpy().astype(">f8"), weights.tolist())
    ]
    assert found[0] == found[1] == found[2] == found[3] > 0
    for wrong, sentence in (
        ({"a": ["x"]}, "must be numbers"),
        ({"a": WORTH.to("meta")}, "must be numbers"),
        ({"a": WORTH.to_sparse()}, "expected a dense tensor"),
        ({"a": []}, "each part"),
    ):
        with pytest.raises(regard.RegardError, match=sentence):
            regard.faithfulness(probability, explanations=wrong)


def test_an_explanation_that_ties_with_all_orders_is_not_worse_than_them():
    found = regard.faithfulness(lambda kept: kept.double().sum(1) * 0, explanations={"a": torch.arange(5.0).flip(0)})
    assert "a did no better than a random order" in found.sentence
