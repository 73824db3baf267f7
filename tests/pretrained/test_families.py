"""Weights of others in our models: transformers' own model is the witness, on random weights and odd settings."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import regard
from regard.decoding.search import SearchConfig, search
from regard.pretrained.folder import load_pretrained, save_pretrained

V, B, S, T = 97, 3, 11, 7
PAIR = {
    "vocab_size": V, "decoder_vocab_size": V, "pad_token_id": V - 1, "decoder_start_token_id": V - 1, "eos_token_id": 0,
    "forced_eos_token_id": None, "bos_token_id": None, "max_position_embeddings": 64,
}  # fmt: skip
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {  # name: (class, model class, settings)
    "bert": ("Bert", "ForMaskedLM", {
        "vocab_size": V, "hidden_size": 30, "num_hidden_layers": 3, "num_attention_heads": 5, "intermediate_size": 44,
        "max_position_embeddings": 23,
    }),
    "bert without head": ("Bert", "Model", {
        "vocab_size": V, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 7,
        "hidden_act": "relu", "type_vocab_size": 3, "layer_norm_eps": 1e-3,
    }),
    "bert untied": ("Bert", "ForMaskedLM", {
        "vocab_size": V, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 13,
        "hidden_act": "gelu_new", "tie_word_embeddings": False,
    }),
    "roberta": ("Roberta", "ForMaskedLM", {
        "vocab_size": V, "hidden_size": 30, "num_hidden_layers": 3, "num_attention_heads": 5, "intermediate_size": 44,
        "max_position_embeddings": 40, "type_vocab_size": 1,
    }),
    "roberta without head": ("Roberta", "Model", {
        "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20,
        "pad_token_id": 3, "max_position_embeddings": 31,
    }),
    "gpt2": ("GPT2", "LMHeadModel", {
        "vocab_size": V, "n_embd": 30, "n_layer": 3, "n_head": 5, "n_positions": 40,
    }),
    "gpt2 untied": ("GPT2", "LMHeadModel", {
        "vocab_size": V, "n_embd": 12, "n_layer": 1, "n_head": 3, "n_inner": 19, "n_positions": 33,
        "activation_function": "relu", "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3,
    }),
    "llama": ("Llama", "ForCausalLM", {
        "vocab_size": V, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
        "intermediate_size": 44, "max_position_embeddings": 64, "head_dim": 10,
    }),
    "llama with biases": ("Llama", "ForCausalLM", {
        "vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20,
        "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    }),
    "mistral": ("Mistral", "ForCausalLM", {
        "vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1,
        "intermediate_size": 20, "sliding_window": 4, "head_dim": 8,
    }),
    "mistral without window": ("Mistral", "ForCausalLM", {
        "vocab_size": V, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "intermediate_size": 20, "sliding_window": None, "head_dim": 6,
    }),
    "qwen2": ("Qwen2", "ForCausalLM", {
        "vocab_size": V, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 20, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1,
    }),
    "qwen2 tied": ("Qwen2", "ForCausalLM", {
        "vocab_size": V, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 3,
        "intermediate_size": 20, "tie_word_embeddings": True,
    }),
    "qwen3": ("Qwen3", "ForCausalLM", {
        "vocab_size": V, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 21, "head_dim": 8,
    }),
    "qwen3 with biases": ("Qwen3", "ForCausalLM", {
        "vocab_size": V, "hidden_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 11, "head_dim": 4, "attention_bias": True, "tie_word_embeddings": True,
    }),
    "marian": ("Marian", "MTModel", PAIR | {
        "d_model": 30, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 5,
        "decoder_attention_heads": 5, "encoder_ffn_dim": 44, "decoder_ffn_dim": 44, "activation_function": "swish",
        "scale_embedding": True,
    }),
    "marian small": ("Marian", "MTModel", PAIR | {
        "d_model": 12, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 7, "decoder_ffn_dim": 7, "activation_function": "relu",
    }),
    "t5": ("T5", "ForConditionalGeneration", {
        "vocab_size": V, "d_model": 30, "d_kv": 7, "d_ff": 44, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
        "decoder_start_token_id": 0,
    }),
    "t5 1.1": ("T5", "ForConditionalGeneration", {
        "vocab_size": V, "d_model": 24, "d_kv": 8, "d_ff": 21, "num_layers": 2, "num_heads": 3,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 9, "decoder_start_token_id": 0,
    }),
}  # fmt: skip
on_every_case = pytest.mark.parametrize("case", CASES)


def theirs(case: str) -> Any:
    """transformers' model with random weights, biases and norms among them."""
    name, kind, settings = CASES[case]
    config = getattr(transformers, f"{name}Config")(**settings)
    config._attn_implementation = "eager"
    torch.manual_seed(sum(map(ord, case)))
    model = getattr(transformers, f"{name}{kind}")(config).eval()
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if "embed_positions" not in key:  # Marian's are sines
                tensor.add_(torch.randn_like(tensor), alpha=0.15)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    return model


@pytest.fixture
def folder(case: str, tmp_path: Path) -> Path:
    theirs(case).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def is_pair(case: str) -> bool:
    return case.split()[0] in ("marian", "t5")


def is_encoder(case: str) -> bool:
    return "bert" in case


def ids(n: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(4, V - 1, (n, length), generator=torch.Generator().manual_seed(seed))


def given(case: str) -> tuple[Tensor, Tensor]:
    """Token ids `[B, S]` and which of them are real, padding on the right or, for decoders, on the left."""
    allowed = torch.arange(S) < torch.tensor([S, S - 4, 1])[:, None]
    tokens = ids(B, S)
    if not is_pair(case) and not is_encoder(case):
        allowed = allowed.flip(1)
    pad = getattr(theirs(case).config, "pad_token_id", None) or 0
    return torch.where(allowed, tokens, pad), allowed


def close(ours: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-5 * max(1.0, float(want.abs().max())))


@torch.no_grad()
@on_every_case
def test_every_layer_and_the_logits_are_theirs(case: str, folder: Path) -> None:
    their, found = theirs(case), load_pretrained(folder)
    tokens, allowed = given(case)
    if is_pair(case):
        target = torch.cat([torch.full((B, 1), their.config.decoder_start_token_id), ids(B, T - 1, 2)], 1)
        want = their(
            input_ids=tokens, attention_mask=allowed.long(), decoder_input_ids=target, output_hidden_states=True
        )
        states, back = [], []
        memory = found.model.encode(tokens, allowed, collect=states)
        found.model.hidden(memory, target, collect=back)
        for one, other in zip(
            [*states, *back], [*want.encoder_hidden_states, *want.decoder_hidden_states], strict=True
        ):
            real = allowed if one.shape[1] == S else torch.ones(B, T, dtype=torch.bool)
            close(one[real], other[real])
        close(found.model(tokens, target, allowed), want.logits)
        return
    positions = {} if is_encoder(case) else {"position_ids": (allowed.long().cumsum(1) - 1).clamp(min=0)}
    want = their(input_ids=tokens, attention_mask=allowed.long(), output_hidden_states=True, **positions)
    states = []
    if is_encoder(case):
        memory = found.model.encode(tokens, allowed, collect=states)
        if memory.summary is not None:
            close(memory.summary, want.pooler_output)
    else:
        found.model.hidden(tokens, allowed, collect=states)
    assert len(states) == len(want.hidden_states)
    for one, other in zip(states, want.hidden_states, strict=True):
        close(one[allowed], other[allowed])
    if hasattr(want, "logits"):
        close(found.model(tokens, allowed)[allowed], want.logits[allowed])


@pytest.mark.sampled(3)
@torch.no_grad()
@on_every_case
@pytest.mark.parametrize("beam", [1, 3])
def test_generations_are_theirs_token_for_token(case: str, beam: int, folder: Path) -> None:
    if is_encoder(case):
        pytest.skip("an encoder generates nothing")
    their, found = theirs(case), load_pretrained(folder)
    tokens, allowed = given(case)
    eos = their.config.eos_token_id or 0
    settings = {
        "num_beams": beam, "do_sample": False, "max_new_tokens": 9, "length_penalty": 0.0, "early_stopping": True,
        "eos_token_id": eos, "pad_token_id": V - 1,
    }  # fmt: skip
    config = SearchConfig(beam, 0.0)
    if is_pair(case):
        start = their.config.decoder_start_token_id
        want = their.generate(tokens, attention_mask=allowed.long(), **settings)[:, 1:]
        state = found.model.start(found.model.encode(tokens, allowed))
        hypotheses = search(found.model.step, state, [9] * B, config, start, eos)
    else:
        want = their.generate(tokens, attention_mask=allowed.long(), **settings)[:, S:]
        state = found.model.read(tokens[:, :-1], allowed[:, :-1])
        hypotheses = search(found.model.step, state, [9] * B, config, tokens[:, -1], eos)
    for row, (best,) in zip(want.tolist(), hypotheses, strict=True):
        assert best.tokens == row[: len(best.tokens)]
        assert set(row[len(best.tokens) :]) <= {V - 1}


@pytest.mark.sampled(3)
@torch.no_grad()
@on_every_case
def test_observe_sees_what_their_eager_attention_says(case: str, folder: Path) -> None:
    their, found = theirs(case), load_pretrained(folder)
    tokens = ids(B, S)
    with regard.observe(found.model) as seen:
        if is_pair(case):
            target = ids(B, T, 2)
            found.model(tokens, target)
            want = their(input_ids=tokens, decoder_input_ids=target, output_attentions=True)
            maps = [*want.encoder_attentions, *want.decoder_attentions, *want.cross_attentions]
        else:
            (found.model.encode if is_encoder(case) else found.model)(tokens)
            maps = list(their(input_ids=tokens, output_attentions=True).attentions)
    assert len(seen) == len(maps)
    for one in maps:
        assert min(float((s.full() - one).abs().max()) for (s,) in seen.values() if s.shape == one.shape) < 1e-5


@torch.no_grad()
@on_every_case
def test_exported_back_transformers_loads_the_same(case: str, folder: Path, tmp_path: Path) -> None:
    name, kind, _ = CASES[case]
    found = load_pretrained(folder)
    family = save_pretrained(tmp_path / "ours", found.model, found.config, found.ids)
    assert family == found.family or {family, found.family} == {"mistral", "llama"}
    written, first = load_file(tmp_path / "ours" / "model.safetensors"), load_file(folder / "model.safetensors")
    assert {n for n in first if "position_ids" not in n} == set(written)
    theirs_again = getattr(transformers, f"{name}{kind}") if family == found.family else transformers.LlamaForCausalLM
    model, report = theirs_again.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokens = ids(B, S)
    more = {"decoder_input_ids": ids(B, T, 2)} if is_pair(case) else {}
    close(model.eval()(input_ids=tokens, **more)[0], theirs(case)(input_ids=tokens, **more)[0])


@pytest.mark.parametrize("case", ["bert", "gpt2", "llama", "marian", "t5"])
def test_every_setting_is_read_or_refused(case: str, folder: Path) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"quantum": 3}))
    with pytest.raises(regard.RegardError, match=r"config.json: unknown settings quantum = 3: regard does not know"):
        load_pretrained(folder)
    path.write_text(json.dumps(values | {"model_type": case[:-1]}))
    with pytest.raises(regard.RegardError, match=f"model_type '{case[:-1]}' cannot be read; known are '?{case}"):
        load_pretrained(folder)


WRONG = [
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key' cannot be read"),
    ("bert", {"hidden_act": "swiglu"}, "hidden_act = 'swiglu' cannot be read: known are 'gelu'"),
    ("bert", {"hidden_size": 31}, "heads must divide the width"),
    ("bert", {"num_hidden_layers": 4}, "no weight encoder.layer.3"),
    ("bert", {"num_hidden_layers": 2}, "weights that a model with this config.json does not have: encoder.layer.2"),
    ("bert", {"intermediate_size": 45}, r"encoder.layer.0.intermediate.dense.weight has shape \[44, 30\].* \[45, 30\]"),
    ("bert", {"tie_word_embeddings": False}, "no weight cls.predictions.decoder.weight"),
    ("bert untied", {"tie_word_embeddings": True}, "cls.predictions.decoder.bias differs from what config.json"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True cannot be read"),
    ("gpt2", {"n_embd": None}, "no n_embd: it is needed"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
        "rope_parameters = .* only rope_type 'default'",
    ),
    ("llama", {"num_key_value_heads": 4}, "key_heads the heads"),
    ("llama", {"tie_word_embeddings": True}, "lm_head.weight differs from"),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types = .* expected 3 of"),
    ("marian", {"normalize_before": True}, "normalize_before = True cannot be read"),
    ("marian", {"decoder_ffn_dim": 9}, "decoder_ffn_dim = 9 cannot be read: the encoder has 44"),
    ("t5", {"is_gated_act": True}, "is_gated_act = True cannot be read"),
    ("t5", {"feed_forward_proj": "gated-sine"}, "feed_forward_proj = 'gated-sine' cannot be read: known are 'relu'"),
]


@pytest.mark.parametrize(("case", "change", "message"), WRONG, ids=lambda x: str(x)[:40])
def test_contradictions_load_nothing(case: str, change: dict[str, Any], message: str, folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(regard.RegardError, match=message):
        load_pretrained(folder)


@torch.no_grad()
def test_sharded_files_are_read(tmp_path: Path) -> None:
    their = theirs("llama")
    their.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    tokens = ids(B, S)
    close(load_pretrained(tmp_path).model(tokens), their(tokens).logits)
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(regard.RegardError, match=r"model-.*safetensors: no such file"):
        load_pretrained(tmp_path)


def test_pickle_is_not_opened(tmp_path: Path) -> None:
    theirs("gpt2").config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(regard.RegardError, match=r"no such file \(pytorch_model.bin is pickle, which can run anything"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(("kind", "values", "wanted"), [
    ("qwen2", {"use_sliding_window": True, "sliding_window": 3}, None),  # all layers lie below the 28 of the default
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, 4096),
    ("mistral", {}, 4096), ("mistral", {"sliding_window": None}, None), ("llama", {}, None),
    # settings of Qwen2 that these two do not read
    ("mistral", {"sliding_window": 3, "max_window_layers": 1}, 3),
    ("mistral", {"sliding_window": 3, "use_sliding_window": False}, 3),
    ("llama", {"sliding_window": 3, "use_sliding_window": True}, None),
])  # fmt: skip
def test_windows_that_a_config_does_not_name_are_those_of_transformers(
    kind: str, values: dict[str, Any], wanted
) -> None:
    from regard.pretrained.family import Keys
    from regard.pretrained.llama import _windows

    theirs = transformers.AutoConfig.for_model(kind, num_hidden_layers=2, **values)
    found = _windows(Keys({"model_type": kind, **values}, "here"), 2)
    assert found.get("window") == wanted
    if kind == "mistral":
        assert theirs.sliding_window == wanted
    if wanted:
        assert found["window_layers"] is None  # all of them


def test_a_llama_has_no_window() -> None:
    from regard.pretrained.family import Keys
    from regard.pretrained.llama import _windows

    values = {"model_type": "llama", "sliding_window": 3, "layer_types": ["sliding_attention"] * 2}
    assert _windows(Keys(values, "here"), 2) == {}


def test_layers_of_a_mistral_are_alike() -> None:
    from regard.pretrained.family import Keys
    from regard.pretrained.llama import _windows

    values = {"model_type": "mistral", "sliding_window": 3, "layer_types": ["full_attention", "sliding_attention"]}
    with pytest.raises(regard.BundleError, match="in a mistral every layer has the sliding window, or none"):
        _windows(Keys(values, "here"), 2)
