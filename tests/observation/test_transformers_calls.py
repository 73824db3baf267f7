"""observe on models of transformers: every layer of every architecture, against eager's own tensors."""

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
    message = r"4 attention modules ran and cannot be seen, 'encoder\.layer\.0\.attention' \(DebertaV2Attention\)"
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
    window = transformers.MistralForCausalLM(transformers.MistralConfig(**GROUPED, sliding_window=3, eos_token_id=None))
    with regard.observe(window.eval()) as seen:
        window.generate(ids, max_new_tokens=4)
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED, eos_token_id=None)).eval()
    with regard.observe(plain) as twice:
        plain.generate(ids, max_new_tokens=4)
        plain.generate(ids, max_new_tokens=4)
    with regard.observe(plain) as uncached:
        plain.generate(ids, max_new_tokens=4, use_cache=False)
    for one in (seen, twice, uncached):
        with pytest.raises(
            regard.RegardError, match=r"the steps at 'model\.layers\.0\.self_attn' do not follow each other"
        ):
            one.along()
