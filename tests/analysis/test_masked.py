"""What no query may look at, and queries that may look nowhere: findings are as without the former, and finite."""

import pytest
import torch
from torch import Tensor, nn

import regard
from random_outputs import BLOCKS, translator
from regard.analysis.base import check_repeatable
from regard.attention.masks import allow
from regard.errors import ConfigError

TARGET = torch.tensor([[1, 7, 8]])
PARTS = ("head", "query", "key", "value", "weights", "state")


def margin(logits: Tensor) -> Tensor:
    return logits[0, -1, 5] - logits[0, -1, 6]


@pytest.fixture(scope="module")
def poisoned():
    """A translator whose padding has NaN for a vector, and two sources of a length: (module, plain, padded)."""
    model = translator(**BLOCKS["llama"])
    encode, pad = model.tokenizer.encode, model.tokenizer.pad
    sources = [torch.tensor([encode(text)[:3]]) for text in ("le chat noir dort", "la vache noir la")]
    model.model.embedding.weight.data[pad] = float("nan")
    allowed = torch.ones(1, 3, dtype=torch.bool)
    plain = [{"source": one, "source_allowed": allowed, "target": TARGET} for one in sources]
    padded = [
        {
            "source": torch.cat([one, torch.full((1, 1), pad)], 1),
            "source_allowed": torch.cat([allowed, torch.zeros(1, 1, dtype=torch.bool)], 1),
            "target": TARGET,
        }
        for one in sources
    ]
    return model.model, plain, padded


def test_the_lens_of_a_padded_source_is_that_of_the_source(poisoned):
    module, plain, padded = poisoned
    found = regard.logit_lens(module, padded[0]).logits
    torch.testing.assert_close(found, regard.logit_lens(module, plain[0]).logits, atol=1e-4, rtol=1e-4)


SOME = ["weights", "value", "state"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "what", [*SOME, *(pytest.param(one, marks=pytest.mark.slow) for one in PARTS if one not in SOME)]
)
def test_the_patches_of_a_padded_source_are_those_of_the_source(poisoned, what):
    module, plain, padded = poisoned
    sites = None if what == "state" else ["encoder.layers.1.self", "decoder.layers.1.cross"]
    found, expected = (regard.patch(module, *pair, margin, what, sites=sites) for pair in (padded, plain))
    table = found.table[..., : expected.table.shape[-1]] if what == "state" else found.table
    assert found.clean == pytest.approx(expected.clean, abs=1e-4)
    torch.testing.assert_close(table, expected.table, atol=1e-3, rtol=1e-3, equal_nan=what == "state")


def test_the_attributions_of_a_padded_source_are_those_of_the_source(poisoned):
    module, plain, padded = poisoned
    site = ["encoder.layers.1.self"]
    found, expected = (regard.attribute_patches(module, *pair, margin, sites=site) for pair in (padded, plain))
    torch.testing.assert_close(found.table, expected.table, atol=1e-3, rtol=1e-3)


class Attends(nn.Module):
    """One attention, some of whose keys no query may look at, and one of whose queries may look nowhere."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = allow(mask)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return regard.attend(query, key, value, mask=self.mask)


def hidden_and_dead() -> tuple[Attends, dict[str, Tensor], dict[str, Tensor]]:
    """Key 4 is hidden from all, and NaN; query 2 is dead."""
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[:, 4], mask[2] = False, False
    draw = torch.Generator().manual_seed(0)
    inputs = []
    for _ in range(2):
        one = {name: torch.randn(1, 2, n, 3, generator=draw) for name, n in (("query", 3), ("key", 5), ("value", 5))}
        one["key"][:, :, 4] = one["value"][:, :, 4] = float("nan")
        inputs.append(one)
    return Attends(mask), inputs[0], inputs[1]


@pytest.mark.parametrize("what", PARTS[:-1])
@pytest.mark.parametrize("find", [regard.patch, regard.attribute_patches])
def test_a_hidden_key_and_a_dead_query_give_nothing(what, find):
    model, clean, corrupted = hidden_and_dead()
    found = find(model, clean, corrupted, lambda output: output.sum(), what, by_position=True)
    assert bool(found.table.isfinite().all())
    moved = (found.table - found.corrupted)[0].abs()
    silent = moved[:, 4] if what in ("key", "value") else moved[:, 2]
    assert float(silent.max()) < 1e-6
    assert float(moved.sum(-1).min()) > 1e-3


def test_a_changed_map_hides_what_the_mask_hides():
    model, clean, _ = hidden_and_dead()
    own = model(**clean)
    with regard.intervene(model, ".", lambda weights: weights * 2):
        torch.testing.assert_close(model(**clean), 2 * own)
    with regard.intervene(model, ".", lambda weights: weights + 0.1):  # weight on the poisoned key: NaN, as asked for
        assert bool(model(**clean).isnan().all())


def test_roles_of_maps_with_dead_rows_are_found():
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[3] = False
    draw = torch.Generator().manual_seed(0)

    class Previous(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            shifted = torch.eye(6).roll(1, 0)[None, None] * 40
            return regard.attend(shifted, torch.eye(6)[None, None], torch.ones(1, 1, 6, 1), mask=allow(mask))

    inputs = [{"tokens": torch.randint(9, (1, 6), generator=draw)} for _ in range(12)]
    found = [one for one in regard.roles(Previous(), inputs) if one.role == "previous token"]
    assert len(found) == 1
    assert 0.5 < found[0].effect <= 1


@pytest.mark.parametrize(
    ("part", "what"),
    [
        (nn.Dropout(0.1), "dropout changes every run"), (nn.BatchNorm1d(3), "batch statistics change every run"),
        (nn.TransformerEncoderLayer(4, 2), "dropout changes every run"), (nn.GRU(3, 3, 2, dropout=0.1), "dropout"),
    ],
)  # fmt: skip
def test_a_model_that_drops_is_refused_in_training_mode(part, what):
    with pytest.raises(ConfigError, match=f"is in training mode, in which {what}.*call .eval"):
        check_repeatable(nn.Sequential(part))
    check_repeatable(nn.Sequential(part).eval())
    check_repeatable(nn.Softplus(threshold=20))


def test_findings_refuse_a_translator_in_training_mode_and_take_one_that_never_drops():
    model = translator(dropout=0.1)
    model.model.train()
    for find in (regard.logit_lens, lambda *given: regard.patch(*given, "la vache noir dort", margin)):
        with pytest.raises(ConfigError, match="Transformer is in training mode"):
            find(model, "le chat noir dort")
    model = translator(dropout=0.0)
    model.model.train()
    regard.logit_lens(model, "le chat")
