"""attn_implementation="regard": equal to eager, trains, and takes another score or normalizer."""

import subprocess
import sys
from typing import Any

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
from typing import Any
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


SMALL = {
    "vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "init_std": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("NllbMoe", {"num_experts": 2, "expert_capacity": 64, "encoder_sparse_step": 0, "decoder_sparse_step": 0}),
        ("PegasusX", {"num_global_tokens": 2, "block_size": 4}),
        ("BigBirdPegasus", {"attention_type": "original_full"}),
    ],
)
def test_models_that_transformers_runs_by_hand_or_not_with_torchs_function(kind: str, sizes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SMALL, **sizes, attn_implementation="eager")
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    tokens, real = torch.randint(3, 50, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    real[1, 6:] = 0
    inputs = {"attention_mask": real, "decoder_input_ids": tokens}
    with torch.no_grad():
        want = model(tokens, **inputs).logits
        model.set_attn_implementation("regard")
        torch.testing.assert_close(model(tokens, **inputs).logits, want, atol=1e-4, rtol=1e-4)
        without = {**inputs, "attention_mask": torch.ones_like(real)}  # no mask could be needed but the causal one
        later = {**without, "decoder_input_ids": torch.cat([tokens[:, :-1], tokens[:, -1:] % 40 + 5], 1)}
        torch.testing.assert_close(model(tokens, **later).logits[:, :-1], model(tokens, **without).logits[:, :-1])


def test_models_of_another_modules_attention_call_it_by_its_name() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.DPRConfig(**sizes, vocab_size=50, attn_implementation="eager")
    model, tokens = transformers.DPRQuestionEncoder(config).eval(), torch.randint(1, 50, (2, 7))
    want = model(tokens).pooler_output
    with regard.swap(model, normalizer="softmax") as done:
        torch.testing.assert_close(model(tokens).pooler_output, want)
        assert done.sites == ["question_encoder.bert_model.encoder.layer.0.attention.self"]


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
