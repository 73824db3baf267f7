"""The quality lost without a head is that of a model whose head writes nothing, or always the same."""

from pathlib import Path

import pytest
import torch

import regard
from regard.analysis.quality import chrf, lost_quality
from regard.errors import ChoiceError, ConfigError

SOURCES = ["le chat noir dort sur la table", "mon frère lit un livre", "il pleut"]
REFERENCES = ["the black cat sleeps on the table", "my brother is reading a book", "it is raining"]


def scores(model) -> list[float]:
    return [chrf(one.text, wanted) for one, wanted in zip(model(SOURCES, beam=2), REFERENCES, strict=True)]


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_equals_a_head_whose_weights_write_a_constant(kind: str) -> None:
    model, site, head = regard.load("fr-en"), "decoder.layers.1.cross", 1
    found = lost_quality(model, SOURCES, REFERENCES, kind, sites=[site], beam=2)
    whole = scores(model)
    assert found.whole == pytest.approx(sum(whole) / 3)
    output = model.model.get_submodule(site).output
    width = output.in_features // 4
    rows = slice(head * width, (head + 1) * width)
    kept: list[torch.Tensor] = []
    runs = [model.forward_pass(text) for text in SOURCES]
    with torch.no_grad(), regard.intervene(model, site, lambda o: kept.append(o[:, head]) or o, "output"):
        for run in runs:
            run()
    mean = torch.cat([one.flatten(0, 1) for one in kept]).mean(0)
    with torch.no_grad():
        if kind == "mean":
            output.bias += output.weight[:, rows] @ mean
        output.weight[:, rows] = 0
    without = scores(model)
    changes = [after - before for after, before in zip(without, whole, strict=True)]
    assert any(changes)
    assert float(found.table[0, head]) == pytest.approx(sum(changes) / 3)
    assert float(found.intervals[0, head, 0]) == pytest.approx(min(changes))  # of three inputs all may be the worst


def test_of_a_recurrent_translator_nothing_is_left_without_attention(tmp_path: Path) -> None:
    found = lost_quality(regard.load("fr-en-rnn"), SOURCES, REFERENCES, beam=1)
    assert found.table.shape == (1, 1)
    assert float(found.table) < -25
    assert float(found.intervals[0, 0, 0]) <= float(found.table) <= float(found.intervals[0, 0, 1])
    found.plot(tmp_path / "lost.svg")
    assert "decoder.cross" in (tmp_path / "lost.svg").read_text()


def test_a_measure_of_one_s_own() -> None:
    model = regard.load("fr-en-rnn")
    found = lost_quality(model, SOURCES, REFERENCES, measure=lambda output, wanted: len(output) - len(wanted))
    differences = [len(one.text) - len(wanted) for one, wanted in zip(model(SOURCES), REFERENCES, strict=True)]
    assert found.whole == pytest.approx(sum(differences) / 3)


def test_of_a_completion_whose_first_token_has_nothing_before_it() -> None:
    model = regard.load("shakespeare")
    settings = {"sites": ["*5.self"], "length": 6, "temperature": 0}
    found = lost_quality(model, ["R", "J"], ["", ""], measure=lambda output, _: float(len(output)), **settings)
    assert found.table.shape == (1, 4)
    assert found.whole == 6


def test_every_search_draws_with_the_same_random_numbers() -> None:
    model, states = regard.load("shakespeare"), []

    def measure(output: str, _: str) -> float:
        states.append(torch.get_rng_state())  # after a search of six tokens each
        return float(len(output))

    lost_quality(model, ["R", "J"], ["", ""], sites=["*5.self"], length=6, measure=measure)
    assert len(states) == 2 * 5
    assert all(torch.equal(one, states[0]) for one in states)


def test_what_is_refused() -> None:
    model = regard.load("fr-en-rnn")
    with pytest.raises(ConfigError, match="3 inputs and 1 references: lost_quality needs two inputs or more"):
        lost_quality(model, SOURCES, REFERENCES[:1])
    with pytest.raises(ChoiceError, match="unknown ablation 'resample': expected one of"):
        lost_quality(model, SOURCES, REFERENCES, "resample")
    with pytest.raises(ChoiceError, match=r"decoder\.crosss"):
        lost_quality(model, SOURCES, REFERENCES, sites=["decoder.crosss"])
