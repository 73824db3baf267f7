"""attn_implementation="regard": equal to eager, trains, and takes another score or normalizer."""

import subprocess
import sys

import pytest
import torch
import transformers

import regard
from observation_models import ARCHITECTURES, PAIRS, inputs, make

pytest.importorskip("transformers")
import regard.interop.transformers


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equal_to_eager(name: str) -> None:
    given = inputs(name)
    with torch.no_grad():
        want = make(name)(**given)[0]
        got = make(name, "regard")(**given)[0]
    real = 0 if name in (*PAIRS, "ViT") else 3  # outputs at padding are not compared
    torch.testing.assert_close(got[:, real:], want[:, real:], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["Llama", "GptOss", "Gemma2", "T5"])
def test_it_trains(name: str) -> None:
    gradients = []
    for implementation in ("eager", "regard"):
        model = make(name, implementation)
        model(**inputs(name, padded=False))[0].square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for parameter, want in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], want, atol=1e-3, rtol=1e-3, msg=parameter)


def test_swap_chooses_for_a_model_of_transformers() -> None:
    model, given = make("Llama"), inputs("Llama", padded=False)
    with torch.no_grad():
        before = model(**given)[0]
        with regard.swap(model, normalizer="uniform", sites=["layers.1.*"]) as done:
            assert done.sites == ["layers.1.self_attn"]
            with regard.observe(model) as seen:
                model(**given)
        assert torch.equal(model(**given)[0], before)
    assert model.config._attn_implementation == "eager"
    rows = torch.tril(torch.ones(11, 11)) / torch.arange(1, 12)[:, None]
    torch.testing.assert_close(seen["layers.1.self_attn"][0].full(), rows.expand(2, 4, 11, 11))
    assert float((seen["layers.0.self_attn"][0].full()[0, 0] - rows).abs().max()) > 1e-3


def test_registering_waits_until_it_is_asked_for() -> None:
    check = """
import sys
import regard.interop.swap, regard.interop.registration, regard.observation.observe
assert "transformers" not in sys.modules
from transformers import AttentionInterface, AttentionMaskInterface
assert "regard" not in AttentionInterface()
regard.interop.registration.register()
regard.interop.registration.register()
assert AttentionInterface()["regard"] is regard.interop.registration.regard_attention
assert "regard" in AttentionMaskInterface()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", check], check=True)


def test_a_swapped_site_is_named_by_any_of_its_paths() -> None:
    shared = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    model = torch.nn.ModuleDict({"one": shared, "two": shared})
    with regard.swap(model, normalizer="uniform", sites=["two"]) as done:
        assert done.sites == ["one"]


def test_models_that_compute_attention_by_hand_are_refused_by_name() -> None:
    sizes = {"hidden_size": 32, "n_layer": 1, "n_head": 4, "vocab_size": 40}
    tokens = torch.randint(3, 39, (1, 5))
    config = transformers.BloomConfig(**sizes, attn_implementation="regard")
    model = transformers.BloomForCausalLM(config).eval()
    with pytest.raises(regard.RegardError, match=r"the models of BloomConfig compute attention by hand"):
        model(tokens)


def test_a_swap_that_would_change_nothing_is_refused() -> None:
    for kind, sizes in (
        ("Falcon", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}),
        ("Bloom", {"hidden_size": 32, "n_layer": 1, "n_head": 4}),
    ):
        config = getattr(transformers, f"{kind}Config")(vocab_size=40, attn_implementation="eager", **sizes)
        model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
        with pytest.raises(regard.ChoiceError, match="there is no attention to replace"):
            regard.swap(model, normalizer="softmax1")
        assert config._attn_implementation == "eager"
