"""Path patching: equal to interventions one by one, and nothing where there is no path."""

from contextlib import ExitStack

import pytest
import torch

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


def outputs_of(model, inputs):
    """{site: its heads' outputs}, by interventions that change nothing."""
    found = {}
    with torch.no_grad(), ExitStack() as stack:
        for site in ("decoder.layers.0.self", RECEIVER):
            stack.enter_context(
                regard.intervene(model, site, lambda o, site=site: found.setdefault(site, o.clone()), "output")
            )
        model(**inputs)
    return found


def one_by_one(model, head, receiver, what):
    """The metric of one path, by nested interventions."""
    clean, corrupted = outputs_of(model, CLEAN), outputs_of(model, CORRUPTED)
    told = []

    def sent(output):
        new = corrupted["decoder.layers.0.self"].clone()
        new[:, head] = clean["decoder.layers.0.self"][:, head]
        return new.reshape(output.shape)

    def heard(part):
        told.append(part.clone())
        return part

    with torch.no_grad():
        with (
            regard.intervene(model, "decoder.layers.0.self", sent, "output"),
            regard.intervene(model, RECEIVER, heard, what),
        ):
            model(**CORRUPTED)

        def put(part):
            new = part.clone()
            new[:, receiver] = told[0][:, receiver]
            return new

        with regard.intervene(model, RECEIVER, put, what):
            return float(margin(model(**CORRUPTED)))


@pytest.mark.parametrize(("what", "receiver"), [("query", 3), ("key", 1), ("value", 0)])
def test_each_path_is_that_of_interventions_one_by_one(module, what, receiver):
    found = path_patches(module, CLEAN, CORRUPTED, margin, (RECEIVER, receiver), what)
    assert found.sites == ["decoder.layers.0.self"]
    assert found.receiver == (RECEIVER, receiver)
    expected = [one_by_one(module, head, receiver, what) for head in range(4)]
    assert found.table[0].tolist() == pytest.approx(expected, abs=1e-9)
    assert float((found.table - found.corrupted).abs().min()) > 1e-6
    assert found.forwards == 7
    in_parts = path_patches(module, CLEAN, CORRUPTED, margin, (RECEIVER, receiver), what, batch=3)
    torch.testing.assert_close(in_parts.table, found.table)
    torch.testing.assert_close(in_parts.approximate, found.approximate)


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
    with pytest.raises(regard.ConfigError, match="no attention runs before"):
        path_patches(module, CLEAN, CORRUPTED, margin, ("decoder.layers.0.self", 0))
    with pytest.raises(regard.ConfigError, match="runs more than once"):
        path_patches(module, CLEAN, CORRUPTED, margin, ("decoder.*", 0))
    with pytest.raises(regard.ConfigError, match="the metric has no gradient"):
        path_patches(module, CLEAN, CORRUPTED, lambda logits: margin(logits).detach(), (RECEIVER, 0))
    with pytest.raises(regard.ConfigError, match="runs more than once"):
        path_patches(recurrent(), "le chat", "le chat", margin, ("decoder.cross", 0))
