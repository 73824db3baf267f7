"""observe on models from transformers: every layer of every architecture, against eager's own tensors."""

import inspect
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regard
from observation_models import ARCHITECTURES, BASE, GROUPED, PAIR, B, S, inputs, make

transformers = pytest.importorskip("transformers")

COMPILES = [  # transformers compiles flex attention: half a minute, a compiler, and warnings of torch's own
    pytest.mark.slow, pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++"),
]  # fmt: skip
BACKENDS = ("eager", "sdpa", pytest.param("flex_attention", marks=COMPILES), "regard")


def attention_modules(model: nn.Module) -> set[str]:
    """The modules that ask transformers for an attention function."""
    return {
        path
        for path, module in model.named_modules()
        if "Attention" in type(module).__name__
        and "get_interface" in inspect.unwrap(type(module).forward).__code__.co_names
    }


def eager_attentions(output: Any) -> list[Tensor]:
    names = ("encoder_attentions", "attentions", "decoder_attentions", "cross_attentions")
    return [one for name in names for one in (getattr(output, name, None) or ())]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_is_seen_and_is_what_eager_says(name: str) -> None:
    model, given = make(name), inputs(name)
    with torch.no_grad():
        before = model(**given)[0]
        with regard.observe(model) as seen:
            after = model(**given)[0]
        eager = eager_attentions(model(**given, output_attentions=True))
    assert torch.equal(before, after)
    assert set(seen) == attention_modules(model)
    found = [one.full() for maps in seen.values() for one in maps]
    assert len(found) == len(eager) > 0
    for want in eager:  # in whatever order transformers lists them
        distances = [float((one - want).abs().max()) for one in found if one.shape == want.shape]
        assert min(distances) < 1e-6
        found = [one for one in found if one.shape != want.shape or float((one - want).abs().max()) >= 1e-6]
    assert not found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["Bert", "Gemma3Text", "Llama", "Mistral", "Qwen3", "T5"])
def test_other_backends_are_seen_too(name: str, backend: str) -> None:
    import regard.interop.transformers

    given = inputs(name)
    model = make(name)
    with torch.no_grad():
        with regard.observe(model) as eager:
            model(**given)
        if backend == "flex_attention" and name not in ("Bert", "Gemma3Text"):
            pytest.skip("two are enough: each is compiled anew")
        model.set_attn_implementation(backend)
        before = model(**given)[0]
        with regard.observe(model) as seen:
            assert torch.equal(model(**given)[0], before)
    assert list(seen) == list(eager)
    for site, maps in eager.items():
        want, got = maps[0].full(), seen[site][0].full()
        real = want.shape[-2] - (3 if "ncoder" not in site and want.shape[-2] == S else 0)
        # rows of padding look nowhere (or anywhere); the last ones are real
        torch.testing.assert_close(got[..., -real:, :], want[..., -real:, :], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["Llama", "GptOss", "Gemma2"])
def test_training_is_not_disturbed(name: str) -> None:
    model = make(name).train()
    given = inputs(name)
    gradients = []
    for look in (False, True):
        model.zero_grad()
        torch.manual_seed(2)
        if look:
            with regard.observe(model) as seen:
                model(**given)[0].sum().backward()
        else:
            model(**given)[0].sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(len(maps) == 1 for maps in seen.values())


@pytest.mark.parametrize("settings", [{"num_beams": 3, "num_return_sequences": 2}, {"do_sample": False}])
@pytest.mark.parametrize("kind", ["decoder", "pair"])
def test_generate_gives_a_map_per_step_and_along_joins_them(kind: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    if kind == "decoder":
        config = transformers.LlamaConfig(**GROUPED, eos_token_id=None)
        model = transformers.LlamaForCausalLM(config).eval()
    else:
        config = transformers.BartConfig(
            **PAIR, max_position_embeddings=64, eos_token_id=None, forced_eos_token_id=None
        )
        model = transformers.BartForConditionalGeneration(config).eval()
    ids = torch.randint(3, 100, (B, S))
    plain = model.generate(ids, max_new_tokens=6, return_dict_in_generate=True, **settings)
    with regard.observe(model) as seen:
        out = model.generate(ids, max_new_tokens=6, return_dict_in_generate=True, **settings)
    assert torch.equal(plain.sequences, out.sequences)
    joined = seen.along(getattr(out, "beam_indices", None))
    decoder = {site for site in seen if "encoder." not in site}
    assert set(joined) == decoder
    assert all(len(seen[site]) == 6 for site in decoder)
    repeat = settings.get("num_return_sequences", 1)
    with torch.no_grad(), regard.observe(model) as forced:
        if kind == "decoder":
            model(out.sequences)
        else:
            model(ids.repeat_interleave(repeat, 0), decoder_input_ids=out.sequences)
    for site, one in joined.items():
        got, want = one.full(), forced[site][0].full()
        rows, columns = got.shape[-2:]
        torch.testing.assert_close(got, want[..., :rows, :columns], atol=1e-6, rtol=1e-4)


def test_a_static_cache_is_copied() -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED, eos_token_id=None)).eval()
    ids = torch.randint(3, 100, (1, S))
    found = []
    for cache in (None, "static"):
        with regard.observe(model) as seen:
            model.generate(ids, max_new_tokens=4, cache_implementation=cache, disable_compile=True)
        found.append(seen.along()["model.layers.1.self_attn"].full())
    width = found[0].shape[-1]
    torch.testing.assert_close(found[1][..., :width], found[0], atol=1e-6, rtol=1e-4)


def test_a_model_that_computes_by_hand_is_refused() -> None:
    config = transformers.DebertaV2Config(**BASE)
    model = transformers.DebertaV2Model(config).eval()
    message = (
        r"^4 modules that .* by hand ran, 'encoder\.layer\.0\.attention' \(DebertaV2Attention\) among them, and cannot"
    )
    with pytest.raises(regard.RegardError, match=message), torch.no_grad(), regard.observe(model):
        model(**inputs("Bert"))


def test_the_interface_is_its_own_again_after_the_block() -> None:
    from transformers import AttentionInterface

    before = AttentionInterface.get_interface
    model = make("Bert")
    with regard.observe(model), regard.observe(model):
        assert AttentionInterface.get_interface is not before
    assert AttentionInterface.get_interface is before


def test_steps_that_do_not_follow_each_other_are_not_joined() -> None:
    torch.manual_seed(0)
    ids = torch.randint(3, 100, (1, S))
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED, eos_token_id=None)).eval()
    with regard.observe(plain) as twice:
        plain.generate(ids, max_new_tokens=4)
        plain.generate(ids, max_new_tokens=4)
    with regard.observe(plain) as uncached:
        plain.generate(ids, max_new_tokens=4, use_cache=False)
    for one in (twice, uncached):
        with pytest.raises(
            regard.RegardError, match=r"the steps at 'model\.layers\.0\.self_attn' do not follow each other"
        ):
            one.along()


@pytest.mark.parametrize(
    ("prompt", "cache", "chunk"),
    [(2, None, None), (S, None, None), (2, "static", None), (S, "static", None), (S, None, 2), (S, None, S - 1)],
)
def test_a_sliding_layers_keys_stand_at_their_positions(prompt: int, cache: str | None, chunk: int | None) -> None:
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(**ARCHITECTURES["Gemma3Text"], eos_token_id=None)
    model = transformers.Gemma3ForCausalLM(config).eval()
    ids = torch.randint(3, 100, (1, prompt))
    with regard.observe(model) as seen:
        out = model.generate(
            ids, max_new_tokens=7, num_beams=1 if chunk else 2, cache_implementation=cache, disable_compile=True,
            return_dict_in_generate=True, prefill_chunk_size=chunk,
        )  # fmt: skip
    with torch.no_grad(), regard.observe(model) as forced:
        model(out.sequences)
    joined = seen.along() if chunk else seen.along(out.beam_indices)
    assert list(joined) == list(forced)
    for site, one in joined.items():
        rows, columns = one.shape[-2:]
        assert rows == prompt + 6
        want = torch.nn.functional.pad(forced[site][0].full(), (0, max(0, columns - prompt - 7)))
        torch.testing.assert_close(one.full(), want[..., :rows, :columns], atol=1e-6, rtol=1e-4)


def test_beams_after_a_prompt_in_chunks_are_refused() -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED, eos_token_id=None)).eval()
    with regard.observe(model) as seen:
        out = model.generate(
            torch.randint(3, 100, (1, S)), max_new_tokens=3, num_beams=2, prefill_chunk_size=4,
            return_dict_in_generate=True,
        )  # fmt: skip
    with pytest.raises(regard.RegardError, match="generate without prefill_chunk_size"):
        seen.along(out.beam_indices)


def tiny_t5() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, vocab_size=99, decoder_start_token_id=0,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("ends_at_once", [False, True])
def test_one_step_is_a_generation_too(ends_at_once: bool) -> None:
    model, ids = tiny_t5(), torch.randint(3, 99, (2, 6))

    def only_the_end(_: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -torch.inf).index_fill(-1, torch.tensor([1]), 0.0)

    more = {"logits_processor": [only_the_end], "max_new_tokens": 5} if ends_at_once else {"max_new_tokens": 1}
    with regard.observe(model) as seen:
        out = model.generate(ids, num_beams=3, return_dict_in_generate=True, **more)
    joined = seen.along(out.beam_indices)
    own, cross = "decoder.block.0.layer.0.SelfAttention", "decoder.block.0.layer.1.EncDecAttention"
    assert list(joined) == [own, cross]
    assert [one.shape[-1] for one in joined.values()] == [joined[own].shape[-2], 6]
    with pytest.raises(regard.RegardError, match=r"beam_indices name beam 6, and step 0 at '.*' has 6: give the"):
        seen.along(torch.tensor([[6]]))
    with regard.observe(model) as twice:
        for _ in range(2):
            model.generate(ids, max_new_tokens=1)
    with pytest.raises(regard.RegardError, match="do not follow each other"):
        twice.along()


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_vision_tower_takes_no_part_in_a_generation(images: int, steps: int) -> None:
    torch.manual_seed(0)
    text = {
        "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
        "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0, "max_position_embeddings": 64,
    }  # fmt: skip
    vision = {
        "depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 2,
        "spatial_merge_size": 1, "temporal_patch_size": 1, "in_channels": 3,
    }  # fmt: skip
    special = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **special)
    model = transformers.Qwen2VLForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    ids = torch.tensor([[9, *[7, 5, 5, 5, 5, 8] * images, 11]])
    with regard.observe(model) as seen:
        model.generate(
            ids, pixel_values=torch.randn(4 * images, 12), image_grid_thw=torch.tensor([[1, 2, 2]] * images),
            mm_token_type_ids=(ids == 5).int(), max_new_tokens=steps,
        )  # fmt: skip
    assert len(seen["model.visual.blocks.0.attn"]) == images
    joined = seen.along()
    assert list(joined) == ["model.language_model.layers.0.self_attn"]
    rows = ids.shape[1] + steps - 1
    assert next(iter(joined.values())).shape == (1, 4, rows, rows)


def test_a_model_that_a_wrapper_lets_generate() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_t5()

        def forward(self, ids: Tensor, steps: int) -> Tensor:
            return self.inner.generate(ids, max_new_tokens=steps, min_new_tokens=steps)

    model, ids = Wrapper(), torch.randint(3, 99, (2, 6))
    with regard.observe(model) as outside:
        model(ids, 3)
    with regard.observe(model.inner) as inside:
        model(ids, 3)
    want = inside.along()
    for site, one in outside.along().items():
        assert torch.equal(one.full(), want[site.removeprefix("inner.")].full())
    assert len(want) == len(outside.along()) == 2


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_is_refused_as_everywhere() -> None:
    model, ids = make("Bert"), torch.randint(3, 100, (3, 2, 5))
    sentence = r"^attention inside torch\.func\.vmap cannot be seen: give the tensors a batch axis instead$"
    with pytest.raises(regard.RegardError, match=sentence), torch.no_grad(), regard.observe(model):
        torch.func.vmap(lambda one: model(inputs_embeds=one)[0])(torch.randn(3, 2, 5, 32))
    with torch.no_grad(), regard.observe(make("Bert")) as seen:
        model(input_ids=ids[0])
    assert not seen


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++")
def test_flex_attention_compiles_inside_the_block_and_is_not_compiled_anew(monkeypatch) -> None:
    import torch._functorch.config
    import torch._inductor.config
    from torch._dynamo.callback import callback_handler

    monkeypatch.setattr(torch._inductor.config, "fx_graph_cache", False)  # as where nothing has been compiled yet
    monkeypatch.setattr(torch._functorch.config, "enable_autograd_cache", False)
    torch._dynamo.reset()
    compiled: list[Any] = []
    callback_handler.register_start_callback(compiled.append)
    model, given = make("Llama", "flex_attention"), inputs("Llama", padded=False)
    try:
        with torch.no_grad():
            with regard.observe(model) as seen:
                observed = model(**given)[0]
            assert [len(maps) for maps in seen.values()] == [1, 1]
            assert len(compiled) == 2  # the mask and the attention
            assert torch.equal(model(**given)[0], observed)
            assert len(compiled) == 3  # the mask: it was made while the mode was active
    finally:
        callback_handler.remove_start_callback(compiled.append)
    assert torch._C._len_torch_function_stack() == 0
