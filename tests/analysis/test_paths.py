"""Path patching: equal to interventions one by one, and nothing where there is no path."""

import inspect
from contextlib import ExitStack

import pytest
import torch
from matplotlib.text import Text

import regard
from random_outputs import completer, recurrent, translator
from regard.analysis.paths import path_patches

RECEIVER = "decoder.layers.1.self"


def arguments(*ids):
    return {"tokens": torch.tensor([ids])}


def margin(logits):
    return logits[0, -1, 5] - logits[0, -1, 6]


@pytest.fixture(scope="module")
def module():
    return completer(torch.float64, heads=4, key_heads=2).model


CLEAN, CORRUPTED = arguments(7, 8, 9, 10), arguments(7, 12, 9, 11)


def outputs_of(model, inputs, sites):
    """{site: its heads' outputs}, by interventions that change nothing."""
    found = {}
    with torch.no_grad(), ExitStack() as stack:
        for site in sites:
            stack.enter_context(
                regard.intervene(model, site, lambda o, site=site: found.setdefault(site, o.clone()), "output")
            )
        model(**inputs)
    return found


def one_by_one(model, inputs, sites, sender, receiver, what):
    """The metric of one path, by nested interventions."""
    clean, corrupted = (outputs_of(model, one, sites) for one in inputs)
    told = []

    def frozen(site):
        def change(output):
            new = corrupted[site].clone()
            if site == sender[0]:
                new[:, sender[1]] = clean[site][:, sender[1]]
            return new.reshape(output.shape)

        return change

    def heard(part):
        told.append(part.clone())
        return part

    def put(part):
        new = part.clone()
        new[:, receiver[1]] = told[0][:, receiver[1]]
        return new

    with torch.no_grad():
        with ExitStack() as stack:
            for site in sites:
                if site != receiver[0]:
                    stack.enter_context(regard.intervene(model, site, frozen(site), "output"))
            stack.enter_context(regard.intervene(model, receiver[0], heard, what))
            model(**inputs[1])
        with regard.intervene(model, receiver[0], put, what):
            return float(margin(model(**inputs[1])))


@pytest.mark.parametrize(
    ("what", "receiver"),
    [("key", 1), pytest.param("query", 3, marks=pytest.mark.slow), pytest.param("value", 0, marks=pytest.mark.slow)],
)
def test_each_path_is_that_of_interventions_one_by_one(module, what, receiver):
    sites = ["decoder.layers.0.self", RECEIVER]
    found = path_patches(module, CLEAN, CORRUPTED, margin, (RECEIVER, receiver), what)
    assert found.sites == sites[:1]
    assert found.receiver == (RECEIVER, receiver)
    expected = [
        one_by_one(module, (CLEAN, CORRUPTED), sites, (sites[0], head), (RECEIVER, receiver), what) for head in range(4)
    ]
    assert found.table[0].tolist() == pytest.approx(expected, abs=1e-9)
    assert float((found.table - found.corrupted).abs().min()) > 1e-6
    assert found.forwards == 7
    drawn = " ".join(" ".join(text.get_text() for text in found.plot().findobj(Text)).split())
    assert f"Clean path from each head to {RECEIVER}, head {receiver}, in the corrupted run" in drawn
    in_parts = path_patches(module, CLEAN, CORRUPTED, margin, (RECEIVER, receiver), what, batch=3)
    torch.testing.assert_close(in_parts.table, found.table)
    torch.testing.assert_close(in_parts.approximate, found.approximate)


def test_attentions_between_sender_and_receiver_are_held():
    model = translator(torch.float64).model
    target = torch.tensor([[1, 7, 8]])
    inputs = tuple({"source": torch.tensor([ids]), "target": target} for ids in ([7, 8, 9, 2], [7, 12, 9, 2]))
    receiver = ("decoder.layers.1.cross", 0)
    found = path_patches(model, *inputs, margin, receiver, "value", sites=["encoder.layers.0.self"])
    sites = [f"encoder.layers.{n}.self" for n in (0, 1)]
    sites += [f"decoder.layers.{n}.{kind}" for n in (0, 1) for kind in ("self", "cross")]
    expected = one_by_one(model, inputs, sites, ("encoder.layers.0.self", 2), receiver, "value")
    assert float(found.table[0, 2]) == pytest.approx(expected, abs=1e-9)
    free = one_by_one(model, inputs, [sites[0], receiver[0]], (sites[0], 2), receiver, "value")
    assert abs(free - expected) > 1e-4


def test_the_approximation_is_exact_for_small_changes(module):
    """Of a value the receiver's output is linear, and the rest of the model nearly so where little changes."""
    table = module.embedding.weight.data
    own = table[12].clone()
    table[12] = table[8] + 1e-5 * own
    try:
        near = {"tokens": torch.tensor([[7, 12, 9, 10]])}
        for what in ("query", "key", "value"):
            found = path_patches(module, CLEAN, near, margin, (RECEIVER, 1), what)
            assert found.error < 1e-3
        assert path_patches(module, CLEAN, CORRUPTED, margin, (RECEIVER, 1), "key").error > 1e-3
    finally:
        table[12] = own


def test_equal_inputs_have_no_effect_and_texts_are_taken():
    model = translator()
    found = path_patches(model, "le chat", "le chat", margin, ("decoder.layers.1.cross", 0))
    torch.testing.assert_close(found.table, torch.full_like(found.table, found.corrupted), atol=1e-5, rtol=1e-5)
    assert found.sites[0] == "encoder.layers.0.self"
    assert found.sites[-1] == "decoder.layers.1.self"
    assert found.error < 1e-2 or float((found.table - found.corrupted).abs().max()) < 1e-5
    some = path_patches(model, "le chat", "le chat", margin, ("decoder.layers.1.cross", 0), sites=["*cross"])
    assert some.sites == ["decoder.layers.0.cross"]


def test_refusals(module):
    with pytest.raises(regard.ChoiceError, match="expected one of 'query'"):
        path_patches(module, CLEAN, CORRUPTED, margin, (RECEIVER, 0), "quary")
    with pytest.raises(regard.ConfigError, match="has 2 heads for its key: there is no head 3"):
        path_patches(module, CLEAN, CORRUPTED, margin, (RECEIVER, 3), "key")
    with pytest.raises(regard.ConfigError, match="the metric gave NaN for an input as it is"):
        path_patches(module, CLEAN, CORRUPTED, lambda logits: margin(logits) * float("nan"), (RECEIVER, 0))
    with pytest.raises(regard.ConfigError, match="expected the receiver's site and head; got 3 values"):
        inspect.unwrap(path_patches)(module, CLEAN, CORRUPTED, margin, (RECEIVER, 0, 1))
    with pytest.raises(regard.ConfigError, match="no attention runs before"):
        path_patches(module, CLEAN, CORRUPTED, margin, ("decoder.layers.0.self", 0))
    with pytest.raises(regard.ConfigError, match="runs more than once"):
        path_patches(module, CLEAN, CORRUPTED, margin, ("decoder.*", 0))
    with pytest.raises(regard.ConfigError, match="the metric has no gradient"):
        path_patches(module, CLEAN, CORRUPTED, lambda logits: margin(logits).detach(), (RECEIVER, 0))
    with pytest.raises(regard.ConfigError, match="runs more than once"):
        path_patches(recurrent(), "le chat", "le chat", margin, ("decoder.cross", 0))
