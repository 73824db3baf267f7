"""observe: every attention seen, no bit changed, nothing left behind."""

import asyncio
import copy
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode

import regard
from regard.attention.maps.sources import ComputedWeights, GivenWeights
from regard.attention.masks import Allow
from regard.errors import RegardError
from regard.models.build import build
from regard.models.recurrent import RecurrentConfig
from regard.models.transformer import TransformerConfig
from regard.observation.observe import Observation, UnseenSite, module_of
from regard.observation.sites import _entered as entered
from regard.pipelines.load import load

B, T, S, D = 2, 11, 13, 8
CONFIGS = {
    "recurrent": RecurrentConfig(kind="recurrent", width=8, embedding=6, score_width=5),
    "luong": RecurrentConfig(kind="recurrent", width=8, embedding=6, score="general", asks="new", feed="previous"),
    "transformer": TransformerConfig(
        kind="transformer", width=8, encoder_layers=1, decoder_layers=2, heads=2, key_heads=1, ffn_width=16
    ),
}


class Plain(nn.Module):
    """An attention that calls torch's function."""

    def __init__(self, **settings) -> None:
        super().__init__()
        self.project = nn.Linear(D, D)
        self.settings = settings

    def forward(self, x: Tensor) -> Tensor:
        heads = self.project(x).unflatten(-1, (2, D // 2)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads, **self.settings)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def tokens(n: int) -> Tensor:
    return torch.randint(4, 20, (B, n), generator=torch.Generator().manual_seed(n))


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("training", [False, True])
def test_regards_own_models_in_a_forward(kind: str, training: bool) -> None:
    torch.manual_seed(0)
    model = build(20, CONFIGS[kind]).train(training)
    allowed = torch.arange(S) < torch.tensor([[S], [S - 4]])
    answers = []
    for look in (False, True):
        torch.manual_seed(1)  # dropout
        if look:
            with regard.observe(model) as seen:
                answers.append(model(tokens(S), tokens(T), allowed))
        else:
            answers.append(model(tokens(S), tokens(T), allowed))
    assert torch.equal(*answers)
    answers[1].sum().backward()
    if kind == "transformer":
        own = ["encoder.layers.0.self"]
        decoder = [f"decoder.layers.{i}.{part}" for i in range(2) for part in ("self", "cross")]
        assert list(seen) == own + decoder
        assert [seen[site][0].shape for site in ("decoder.layers.0.self", "decoder.layers.1.cross")] == [
            (B, 2, T, T), (B, 2, T, S),
        ]  # fmt: skip
    else:
        assert list(seen) == ["decoder.cross"]
        assert seen["decoder.cross"][0].shape == (B, T, S)
    for maps in seen.values():
        assert len(maps) == 1
        weights = maps[0].full()
        assert not weights.requires_grad
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    cross = seen["decoder.cross" if kind != "transformer" else "decoder.layers.0.cross"][0].full()
    assert float(cross[1, ..., S - 4 :].abs().max()) == 0


@pytest.mark.parametrize("kind", CONFIGS)
def test_training_after_the_block_does_not_change_what_was_seen(kind: str) -> None:
    torch.manual_seed(0)
    model = build(20, CONFIGS[kind]).eval()
    with regard.observe(model) as seen:
        model(tokens(S), tokens(29))  # long enough for queries and keys to be kept, not weights
    before = {site: maps[0].full() for site, maps in seen.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    for site, weights in before.items():
        assert torch.equal(seen[site][0].full(), weights)


def test_a_search_gives_one_map_per_returned_hypothesis(tiny_run: Path) -> None:
    model = load(tiny_run)
    sources = ["Le chien blanc mange.", "", "le chat noir", "Le lapin vert court."]
    plain = model(sources, beam=3, n_best=2)
    with regard.observe(model) as seen:
        found = model(sources, beam=3, n_best=2, record=False)
    returned = [g for generation in found if generation.source for g in (generation, *generation.alternatives)]
    assert [(g.text, g.score) for g in found] == [(g.text, g.score) for g in plain]
    sites = [*model.model.encoder_sites(), *returned[0].attention]
    assert sorted(seen) == sorted(sites)
    for site in returned[0].attention:
        assert len(seen[site]) == len(returned) == 6
        for one, generation in zip(seen[site], returned, strict=True):
            assert one.shape[-2] == len(generation.tokens)
            assert torch.equal(one.full(), generation.attention[site].full())
    for site in model.model.encoder_sites():
        n = [len(g.source_tokens) for g in returned]
        assert [one.shape[-2:] for one in seen[site]] == [(k, k) for k in n]
        memory_of = model.model.encode  # the encoder's map of a sentence alone is its map in the batch
        with regard.observe(model) as alone:
            memory_of(torch.tensor([returned[0].source_ids]))
        torch.testing.assert_close(seen[site][0].full(), alone[site][0].full()[0])


def test_a_trace_is_not_recorded(tiny_run: Path) -> None:
    model = load(tiny_run)
    generation = model("le chat noir")
    with regard.observe(model) as seen:
        assert generation.trace.steps
    assert not seen


def test_torch_modules_are_named_by_their_path() -> None:
    model = nn.Sequential(Plain(), nn.Flatten(), nn.Linear(2 * T * D // 2, D))
    with regard.observe(model) as seen:
        model(draw(B, T, D))
    assert list(seen) == ["0"]
    with regard.observe(model[0]) as seen:
        model[0](draw(B, T, D))
    assert list(seen) == ["."]
    assert isinstance(seen, Observation)
    assert repr(seen) == "Observation\n  .: 1 map [2, 2, 11, 11]"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_an_encoder_of_torch_takes_its_own_path(grad, training, norm_first, padded) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=not norm_first).train(training)
    x = draw(B, T, D)
    mask = torch.arange(T) >= torch.tensor([[T], [T - 3]]) if padded else None
    with torch.set_grad_enabled(grad):
        before = model(x, src_key_padding_mask=mask)
        with regard.observe(model) as seen:
            after = model(x, src_key_padding_mask=mask)
    assert torch.equal(before, after)  # bit for bit: the same fast path, or none
    assert list(seen) == [f"layers.{i}.self_attn" for i in range(3)]
    lowest = model.layers[0]
    inside = lowest.norm1(x) if norm_first else x
    _, weights = lowest.self_attn(inside, inside, inside, key_padding_mask=mask, average_attn_weights=False)
    real = T - 3 if padded else T
    torch.testing.assert_close(seen["layers.0.self_attn"][0].full()[1, :, :real], weights[1, :, :real])


def test_a_whole_transformer_of_torch() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(D, 2, 1, 2, 16, batch_first=True).eval()
    x, y, mask = draw(B, S, D), draw(B, T, D), nn.Transformer.generate_square_subsequent_mask(T)
    before = model(x, y, tgt_mask=mask)
    with regard.observe(model, sites=["decoder.*"]) as seen:
        assert torch.equal(model(x, y, tgt_mask=mask), before)
    assert list(seen) == [f"decoder.layers.{i}.{part}" for i in range(2) for part in ("self_attn", "multihead_attn")]
    own = seen["decoder.layers.0.self_attn"][0].full()
    assert own.shape == (B, 2, T, T)
    assert float(own.triu(1).abs().max()) == 0


def test_a_block_may_be_entered_again_and_within_itself() -> None:
    model = nn.Sequential(Plain())
    watched = regard.observe(model)
    with watched as outer:
        model(draw(B, T, D))
        with watched as inner:
            model(draw(B, T, D))
    with watched as later:
        model(draw(B, T, D))
    assert [len(seen["0"]) for seen in (outer, inner, later)] == [2, 1, 1]


def test_a_block_in_several_tasks_at_once() -> None:
    model = nn.Sequential(Plain())
    watched = regard.observe(model)

    async def run(times: int, pause: float) -> int:
        with watched as seen:
            for _ in range(times):
                model(draw(B, T, D))
                await asyncio.sleep(pause)
        model(draw(B, T, D))
        return len(seen["0"])

    async def both() -> list[int]:
        return await asyncio.gather(run(2, 0.02), run(3, 0.001))  # the first entered is the last left

    assert asyncio.run(both()) == [2, 3]


def test_a_block_is_left_in_another_thread_and_never_before_it_is_entered() -> None:
    model = nn.Sequential(Plain())
    watched = regard.observe(model)
    with pytest.raises(regard.RegardError, match="was not entered"):
        watched.__exit__(None, None, None)
    seen = watched.__enter__()
    model(draw(B, T, D))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(watched.__exit__, None, None, None).result()
    model(draw(B, T, D))
    assert len(seen["0"]) == 1
    with watched as again:
        model(draw(B, T, D))
    assert len(again["0"]) == 1
    known = [one for one in entered.get() if one.owner is not None]
    assert not known  # nothing of it is left behind, in any context


def test_a_block_in_several_threads_at_once() -> None:
    model, both = nn.Sequential(Plain()), threading.Barrier(2)
    watched, counts = regard.observe(model), []

    def run(times: int) -> None:
        with watched as seen:
            both.wait()
            for _ in range(times):
                model(draw(B, T, D))
            both.wait()
            counts.append((times, len(seen["0"])))
            both.wait()

    threads = [threading.Thread(target=run, args=(times,)) for times in (1, 3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert sorted(counts) == [(1, 1), (3, 3)]


def test_several_forwards_and_a_layer_that_is_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Plain()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.layer(2 * x)

    model = Twice()
    with regard.observe(model) as seen:
        model(draw(B, T, D))
        model(draw(B, T + 1, D))
    assert [one.shape[-1] for one in seen["layer"]] == [T, T, T + 1, T + 1]


def test_nothing_is_left_behind() -> None:
    hooks = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("stop")

    model = nn.Sequential(Plain(), Fails())
    looking = regard.observe(model)
    seen = looking.__enter__()
    model[0](draw(B, T, D))
    with pytest.raises(RuntimeError, match="stop"):
        model(draw(B, S, D))
    assert not looking.__exit__(RuntimeError, RuntimeError("stop"), None)
    assert list(seen) == ["0"]  # the forward that failed is no forward
    assert len(seen["0"]) == 1
    assert not any(hooks)
    assert _get_current_function_mode() is None
    model[0](draw(B, T, D))
    assert len(seen["0"]) == 1


def test_a_forward_that_fails_does_not_harm_the_next() -> None:
    class Moody(Plain):
        angry = True

        def forward(self, x: Tensor) -> Tensor:
            found = super().forward(x)
            if self.angry:
                raise RuntimeError("stop")
            return found

    model = nn.Sequential(Moody())
    with regard.observe(model) as seen:
        with pytest.raises(RuntimeError, match="stop"):
            model(draw(B, T, D))
        model[0].angry = False
        model(draw(B, S, D))
    assert [one.shape[-1] for one in seen["0"]] == [S]


def test_another_thread_is_not_seen() -> None:
    model = Plain()
    with regard.observe(model) as seen:
        other = threading.Thread(target=lambda: model(draw(B, T, D)))
        other.start()
        other.join()
    assert not seen


def test_two_threads_each_see_their_own() -> None:
    model, found = Plain(), {}
    gate = threading.Barrier(2)

    def look(n: int) -> None:
        with regard.observe(model) as seen:
            gate.wait()
            model(draw(B, n, D))
            gate.wait()
        found[n] = [one.shape[-1] for one in seen["."]]

    threads = [threading.Thread(target=look, args=(n,)) for n in (T, S)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {T: [T], S: [S]}


def test_observations_nest() -> None:
    model = nn.Sequential(Plain(), nn.Identity())
    with regard.observe(model) as outer, regard.observe(model[0]) as inner:
        model(draw(B, T, D))
    assert (list(outer), list(inner)) == (["0"], ["."])
    assert len(outer["0"]) == len(inner["."]) == 1
    torch.testing.assert_close(outer["0"][0].full(), inner["."][0].full())


def test_other_models_keep_their_kernels_inside_the_block() -> None:
    torch.manual_seed(0)
    other = nn.MultiheadAttention(D, 2, batch_first=True).eval()
    x = draw(B, T, D)
    with torch.no_grad():
        before = other(x, x, x)[0]
        with regard.observe(Plain()) as seen:
            assert torch.equal(other(x, x, x)[0], before)
    assert not seen


def test_the_recomputation_of_a_checkpoint_is_no_second_forward() -> None:
    from torch.utils.checkpoint import checkpoint

    class Saver(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Plain()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=False)

    model = Saver()
    with regard.observe(model) as seen:
        model(draw(B, T, D).requires_grad_()).sum().backward()
    assert len(seen["inner"]) == 1


def test_what_is_changed_in_place_later_was_seen_as_it_was() -> None:
    class Cache(nn.Module):
        def forward(self, query: Tensor, key: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query, key, key)

    model, query, key = Cache(), draw(1, 1, 31, 3), draw(1, 1, 37, 3)
    want = torch.softmax(query @ key.mT / 3**0.5, -1)
    with regard.observe(model) as seen:
        model(query, key)
    query.zero_()
    key.zero_()
    assert isinstance(seen["."][0].source, ComputedWeights)
    torch.testing.assert_close(seen["."][0].full(), want)


def test_one_row_is_kept_as_weights() -> None:
    with regard.observe(model := Plain()) as seen:
        model(draw(B, 1, D))
    assert isinstance(seen["."][0].source, GivenWeights)


def test_few_queries_and_keys_are_kept_though_their_weights_are_fewer() -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return regard.attend(x, x, x)

    for width, kind in ((2**13, ComputedWeights), (2**14, GivenWeights)):
        with regard.observe(model := Wide()) as seen:
            model(draw(B, 1, 4, width))
        assert isinstance(seen["."][0].source, kind)


@pytest.mark.parametrize("how", ["plain", "grouped", "steps", "weights wanted", "nested"])
def test_the_values_are_kept_and_give_the_output(how: str) -> None:
    class Grouped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q, k = x[:, None].expand(-1, 4, -1, -1), torch.stack([x, 2 * x], 1)
            return F.scaled_dot_product_attention(q, k, k + 1, enable_gqa=True)

    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([regard.attend(one, x, x) for one in x.split(1, -2)], -2)

    class Wanted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(D, 2, batch_first=True)
            nn.init.eye_(self.inner.out_proj.weight)

        def forward(self, x: Tensor) -> Tensor:
            output, _ = self.inner(x, x, x, need_weights=True)
            return output.unflatten(-1, (2, D // 2)).transpose(1, 2)

    model: nn.Module = {"grouped": Grouped, "steps": Steps, "weights wanted": Wanted}.get(how, Plain)()
    site, x = "inner" if how == "weights wanted" else ".", draw(B, T, D)
    with regard.observe(model) as seen:
        if how == "weights wanted":  # which asks a change with more values than the model has
            with regard.intervene(model, site, lambda weights: weights):
                output = model(x)
        else:
            output = model(x)
    found = seen[site][0]
    value = found.value if how != "grouped" else found.value.repeat_interleave(2, 1)
    torch.testing.assert_close(found.full() @ value, output, atol=1e-5, rtol=0)
    if len(found.shape) < 4:
        return
    for part in (found.select(1, 1), found.select(1).frozen().select(1), found.select(slice(1, 2), 1).select(0)):
        torch.testing.assert_close(part.full() @ part.value, output[1, 1], atol=1e-5, rtol=0)
    cut = found.crop(3, 0, 7)
    assert cut.value.shape[-2] == 7
    assert found.mean_heads().value is None


def test_the_values_of_many_keys_are_not_kept() -> None:
    for keys, kept in ((1024, True), (1025, False)):
        with regard.observe(model := Plain()) as seen:
            model(draw(1, keys, D))
        assert (seen["."][0].value is not None) is kept


def test_values_of_another_number_of_keys_are_refused() -> None:
    with pytest.raises(regard.ShapeError, match=r"^value needs 5 positions on axis -2, .* got shape \[4, 3\]"):
        regard.attention_map(draw(2, 3), draw(5, 3)).with_value(draw(4, 3))


def test_beyond_the_budget_maps_live_on_disk() -> None:
    model = Plain()
    x = draw(B, 101, D)
    with regard.observe(model) as seen:
        model(x)
    with regard.observe(model, budget=0) as spilled:
        model(x)
    source = spilled["."][0].source
    assert isinstance(source, ComputedWeights)
    assert source.query.untyped_storage().filename is not None
    assert torch.equal(spilled["."][0].full(), seen["."][0].full())


def test_sites_are_chosen_by_pattern() -> None:
    model = nn.ModuleDict({"one": Plain(), "two": Plain()})
    with regard.observe(model, sites=["t*"]) as seen:
        model["one"](draw(B, T, D))
        model["two"](draw(B, T, D))
    assert list(seen) == ["two"]
    with regard.observe(model, sites="one") as seen:
        model["one"](draw(B, T, D))
    assert list(seen) == ["one"]
    with pytest.raises(regard.ChoiceError, match="the model has no module 'ones': did you mean 'one'"):
        regard.observe(model, sites=["ones"])
    with pytest.raises(regard.ChoiceError, match=r"no module of the model matches 'ones\*'; it has 'one', "):
        regard.observe(model, sites=["ones*"])
    with pytest.raises(IndexError, match=r"seen\[site\] has 1 map, one per forward, from 0; there is no number 3"):
        seen["one"][3]
    assert seen["one"][-1] is seen["one"][0]
    assert seen["one"][:2] == [seen["one"][0]]


def test_an_unseen_site_is_named_with_the_nearest() -> None:
    model = nn.ModuleDict({"one": Plain(), "two": Plain()})
    with regard.observe(model) as seen:
        model["one"](draw(B, T, D))
    with pytest.raises(UnseenSite, match=r"^no attention was seen at 'oen'; seen: 'one'$"):
        seen["oen"]
    assert seen.get("two") is None
    assert "two" not in seen
    with regard.observe(model) as seen:
        pass
    with pytest.raises(KeyError, match="seen: nothing: no attention happened"):
        seen["one"]


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_what_cannot_be_seen_is_refused() -> None:
    class HandAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(x @ x.mT, -1) @ x

    model = nn.Sequential(Plain(), nn.Flatten(1, 2), HandAttention())
    with (
        pytest.raises(
            regard.RegardError, match=r"^'2' \(HandAttention\) computes attention by hand and cannot be seen: call"
        ),
        regard.observe(model),
    ):
        model(draw(B, T, D))
    with regard.observe(model, sites=["0"]) as seen:  # what was not asked for may be silent
        model(draw(B, T, D))
    assert list(seen) == ["0"]
    with pytest.raises(regard.RegardError, match="is a scripted module"):
        regard.observe(nn.Sequential(torch.jit.script(nn.Identity())))
    with pytest.raises(regard.RegardError, match=r"is a compiled module: observe \._orig_mod"):
        regard.observe(torch.compile(Plain()))
    with pytest.raises(regard.ChoiceError, match=r"expected an nn\.Module or what regard\.load returns; got int"):
        module_of(5)


def test_autocast_is_seen_as_the_kernel_sees_it() -> None:
    model, x = Plain(), draw(B, T, D)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(x)
        with regard.observe(model) as seen:
            assert torch.equal(model(x), before)
        heads = model.project(x).unflatten(-1, (2, D // 2)).transpose(1, 2)
    weights = seen["."][0].full()
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights @ heads.float(), before.float(), atol=2e-2, rtol=2e-2)


def test_a_context_copied_into_threads_sees_every_thread() -> None:
    model = nn.Sequential(Plain())

    async def look() -> None:
        await asyncio.gather(*(asyncio.to_thread(model, draw(B, n, D)) for n in (T, S, 17, 19)))

    with regard.observe(model) as seen:
        asyncio.run(look())
    assert sorted(one.shape[-1] for one in seen["0"]) == [T, S, 17, 19]


def test_blocks_may_close_in_any_order() -> None:
    model = Plain()
    first, second = regard.observe(model), regard.observe(model)
    seen = [first.__enter__(), second.__enter__()]
    model(draw(B, T, D))
    first.__exit__(None, None, None)
    model(draw(B, T, D))
    second.__exit__(None, None, None)
    model(draw(B, T, D))
    assert [len(one["."]) for one in seen] == [1, 2]
    assert not torch_module._global_forward_hooks
    assert not torch_module._global_forward_hooks_with_kwargs


def test_a_task_that_outlives_its_block_is_not_seen() -> None:
    model = Plain()

    async def look() -> Observation:
        gate = asyncio.Event()

        async def later() -> None:
            await gate.wait()
            model(draw(B, T, D))

        with regard.observe(model) as seen:
            task = asyncio.create_task(later())
            await asyncio.sleep(0)
        gate.set()
        await task
        return seen

    assert not asyncio.run(look())


def test_subclasses_of_torchs_modules_are_seen_as_they_are() -> None:
    class Turned(nn.MultiheadAttention):
        def forward(self, query: Tensor, *args, **kwargs):
            return super().forward(query.flip(1), *args, **kwargs)

    class Lazy(nn.TransformerEncoderLayer):
        def forward(self, src: Tensor, *_, **__) -> Tensor:
            return self.linear1(src)

    torch.manual_seed(0)
    x = draw(B, T, D)
    turned = Turned(D, 2, batch_first=True).eval()
    with torch.no_grad(), regard.observe(turned) as seen:
        _, weights = turned(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(seen["."][0].full(), weights)
    layer = Lazy(D, 2, 16, batch_first=True)
    with pytest.raises(regard.RegardError, match="the model ran, and no attention was seen"), regard.observe(layer):
        layer(x)


def test_only_single_steps_under_one_spec_are_joined() -> None:
    class Two(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return regard.attend(q, k, k) + regard.attend(q, k, k, score="dot")

    class Steps(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return torch.cat([regard.attend(one, k, k) for one in q.split(1, -2)], -2)

    class Cache(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            first = regard.attend(q, k, k)
            return first + regard.attend(q, k.mul_(2), k)

    q, k = draw(B, 5, 3), draw(B, 7, 3)
    with regard.observe(model := Two()) as seen:
        model(q, k)
    assert [one.shape[-2] for one in seen["."]] == [5, 5]
    torch.testing.assert_close(seen["."][1].full(), torch.softmax(q @ k.mT, -1))
    with regard.observe(model := Steps()) as seen:
        model(q, k)
    assert len(seen["."]) == 1
    torch.testing.assert_close(seen["."][0].full(), torch.softmax(q @ k.mT / 3**0.5, -1))
    want = [torch.softmax(q[:, :1] @ k.mT * f / 3**0.5, -1) for f in (1, 2)]
    with regard.observe(model := Cache()) as seen:
        model(q[:, :1], k.clone())
    torch.testing.assert_close([one.full() for one in seen["."]], want)


def test_a_checkpointed_module_of_torch() -> None:
    from torch.utils.checkpoint import checkpoint

    class Saver(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(D, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(lambda y: self.inner(y, y, y)[0], x, use_reentrant=False)

    model = Saver()
    with regard.observe(model) as seen:
        model(draw(B, T, D).requires_grad_()).sum().backward()
    assert len(seen["inner"]) == 1


def test_a_child_written_by_hand_is_not_excused_by_its_parent() -> None:
    class HandAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(x @ x.mT, -1) @ x

    class Root(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.hand = HandAttention()

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.hand(x).unflatten(-1, (2, D // 2)).transpose(1, 2)

    with pytest.raises(regard.RegardError, match=r"'hand' \(HandAttention\)"), regard.observe(model := Root()):
        model(draw(B, T, D))


def test_parametrized_weights_are_read_once() -> None:
    from torch.nn.utils.parametrizations import spectral_norm

    outputs = []
    for look in (False, True):
        torch.manual_seed(0)
        model = spectral_norm(nn.MultiheadAttention(D, 2, batch_first=True), "in_proj_weight")
        x = draw(B, T, D)
        for _ in range(3):
            if look:
                with regard.observe(model) as seen:
                    outputs.append(model(x, x, x)[0])
                assert len(seen["."]) == 1
            else:
                outputs.append(model(x, x, x)[0])
    assert all(torch.equal(a, b) for a, b in zip(outputs[:3], outputs[3:], strict=True))


def test_a_mode_that_a_forward_leaves_behind_does_not_keep_ours() -> None:
    class Leaves(Plain):
        def forward(self, x: Tensor) -> Tensor:
            self.mode = torch.device("cpu")
            self.mode.__enter__()
            return super().forward(x)

    model = Leaves()
    with regard.observe(model) as seen:
        model(draw(B, T, D))
    assert len(seen["."]) == 1
    model.mode.__exit__(None, None, None)
    assert _get_current_function_mode() is None


@pytest.mark.parametrize("kind", ["recurrent", "luong"])
def test_a_recurrent_decoders_steps_are_one_map_in_inference_mode_too(kind: str) -> None:
    torch.manual_seed(0)
    model = build(20, CONFIGS[kind]).eval()
    with torch.inference_mode(), regard.observe(model) as seen:
        model(tokens(S), tokens(T))
    assert [one.shape for one in seen["decoder.cross"]] == [(B, T, S)]


class AttentionBlock(nn.Module):
    """A residual block around an attention of torch, which several blocks may share."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x, x, x, need_weights=False)[0]


def test_one_attention_in_two_layers_is_one_site_with_two_maps() -> None:
    torch.manual_seed(0)
    shared = nn.MultiheadAttention(D, 2, batch_first=True)
    model = nn.Sequential(AttentionBlock(shared), AttentionBlock(shared)).eval()
    x = draw(B, T, D)
    with torch.no_grad():
        between = model[0](x)
        wants = [shared(y, y, y, average_attn_weights=False)[1] for y in (x, between)]
        with regard.observe(model) as seen:
            model(x)
        assert list(seen) == ["0.inner"]
        for one, want in zip(seen["0.inner"], wants, strict=True):
            torch.testing.assert_close(one.full(), want)
        assert seen["1.inner"] is seen["0.inner"]
        for pattern in ("1.inner", "1.*"):
            with regard.observe(model, sites=[pattern]) as seen:
                model(x)
            assert len(seen["0.inner"]) == 2
        with regard.intervene(model, "1.inner", torch.zeros_like):
            assert not torch.equal(model(x), between)


def test_a_pattern_that_records_nothing_is_named() -> None:
    model = nn.ModuleDict({"one": Plain(), "two": Plain()})
    sentence = r"^sites='two\.project' recorded nothing: the model ran, .* attended: 'two'"
    with pytest.raises(regard.RegardError, match=sentence), regard.observe(model, sites=["*", "two.project"]):
        model["two"](draw(B, T, D))
    with regard.observe(model, sites=["one", "two"]) as seen:  # two did not run
        model["one"](draw(B, T, D))
    assert list(seen) == ["one"]

    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Plain(), Plain()

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x)

    either = Either()
    with pytest.raises(regard.RegardError, match="sites='two' recorded nothing"), regard.observe(either, sites="two"):
        either(draw(B, T, D))
    with pytest.raises(regard.ChoiceError, match="sites is empty: name a site or a pattern, or leave sites out"):
        regard.observe(model, sites=[])


def test_a_search_that_gives_no_map_of_a_chosen_site_says_so(tiny_run: Path) -> None:
    model = load(tiny_run)
    with (
        pytest.raises(regard.RegardError, match=r"sites='encoder' recorded nothing"),
        regard.observe(model, sites=["encoder"]),
    ):
        model("le chat noir")


def test_torchs_modules_outside_the_module_tree_belong_to_the_module_that_calls_them() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = [nn.MultiheadAttention(D, 2, batch_first=True).eval() for _ in range(2)]

        def forward(self, x: Tensor) -> Tensor:
            for attention in self.hidden:
                x = attention(x, x, x, need_weights=False)[0]
            return x

    torch.manual_seed(0)
    model, x = nn.Sequential(Hidden()), draw(B, T, D)
    with torch.no_grad():
        before = model(x)
        want = model[0].hidden[0](x, x, x, average_attn_weights=False)[1]
        with regard.observe(model) as seen:
            assert torch.equal(model(x), before)
    assert list(seen) == ["0"]
    assert len(seen["0"]) == 2
    torch.testing.assert_close(seen["0"][0].full(), want)


def test_a_mode_that_a_forward_enters_around_torchs_modules_is_left_in_order() -> None:
    class Enters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(D, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            with torch.device("cpu"):
                x = self.inner(x, x, x)[0]
            return F.scaled_dot_product_attention(x, x, x)

    model = Enters()
    for _ in range(2):
        with regard.observe(model) as seen:
            model(draw(B, T, D))
        assert list(seen) == ["inner", "."]
        assert _get_current_function_mode() is None


def test_a_change_may_run_modules_of_its_own() -> None:
    mix, model = nn.Linear(T, T), nn.Sequential(Plain())
    with regard.intervene(model, "0", mix), regard.observe(model) as seen:
        model(draw(B, T, D))
    assert len(seen["0"]) == 1
    assert _get_current_function_mode() is None


def double(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x) + 1


def triple(x: Tensor) -> Tensor:
    return 3 * F.gelu(x)


def runs_while_compiling(graph: nn.Module, inputs: list[Tensor]) -> nn.Module:
    graph(*inputs)
    return graph


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["eager", runs_while_compiling])
@pytest.mark.parametrize("inner", [double, triple])
@pytest.mark.parametrize("step_in", [False, True])
def test_functions_that_compile_inside_the_forward(backend, inner, step_in: bool) -> None:
    torch._dynamo.reset()

    class Compiles(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.compile(inner, backend=backend)

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(self.inner(x), x, x)

    model, x = Compiles(), draw(B, T, D)
    with torch.no_grad():
        if step_in:
            with regard.intervene(model, ".", lambda weights: weights):
                got = model(x)
        else:
            with regard.observe(model) as seen:
                got = model(x)
            assert len(seen["."]) == (2 if inner is double else 1)
        torch.testing.assert_close(got, model(x))
    assert _get_current_function_mode() is None


@pytest.mark.filterwarnings("ignore")
def test_a_model_is_exported_inside_the_block_as_outside() -> None:
    model, x = nn.Sequential(Plain()), draw(B, T, D)
    with regard.observe(model) as seen:
        exported = torch.export.export(model, (x,))
        model(x)
    assert len(seen["0"]) == 1
    torch.testing.assert_close(exported.module()(x), model(x))


class Mixer(nn.Module):
    """Attention written by hand, under a name that does not say so."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.project, self.how = nn.Linear(D, D), how

    def forward(self, x: Tensor) -> Tensor:
        q = self.project(x)
        if self.how == "operators":
            scores = (q @ x.transpose(-2, -1)) / D**0.5
            scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -1e9)
            return F.dropout(scores.softmax(-1), 0.0) @ x
        if self.how == "einsum":
            scores = torch.einsum("btd,bsd->bts", q, x) * 0.3 + torch.zeros(T, T)
            return torch.einsum("bts,bsd->btd", [torch.softmax(scores.float(), -1).to(x.dtype), x])
        if self.how == "one sequence at a time":
            weights = [torch.softmax(dim=-1, input=torch.mm(a, b.T)) for a, b in zip(q, x, strict=True)]
            return torch.stack([torch.mm(a, b) for a, b in zip(weights, x, strict=True)])
        if self.how == "written out":
            scores = torch.cat([q @ x.mT, torch.zeros(B, T, 1)], -1)
            weights = (scores - scores.amax(-1, keepdim=True)).exp()
            return (weights / weights.sum(-1, keepdim=True))[..., :-1].tril() @ x
        scores = torch.baddbmm(torch.zeros(B, T, T), q, x.mT)
        scores += 1
        return torch.bmm(nn.Softmax(-1)(scores), x)


@pytest.mark.parametrize("how", ["operators", "einsum", "functions", "one sequence at a time", "written out"])
def test_attention_by_hand_is_refused_whatever_its_name(how: str) -> None:
    model = nn.Sequential(Mixer(how), Plain())
    with pytest.raises(regard.RegardError, match=r"^'0' \(Mixer\) computes attention by hand"), regard.observe(model):
        model(draw(B, T, D))
    with regard.observe(model, sites=["1"]) as seen:
        model(draw(B, T, D))
    assert list(seen) == ["1"]


def test_a_softmax_that_is_no_attention_is_not_refused() -> None:
    class Router(nn.Module):
        """A mixture of experts, gated outputs, a distribution over a vocabulary, and a state that decays."""

        def __init__(self) -> None:
            super().__init__()
            self.gate, self.attend = nn.Parameter(torch.randn(D, 3)), Plain()
            self.experts = nn.ModuleList(nn.Linear(D, D) for _ in range(3))
            self.vocabulary = nn.Embedding(17, D)

        def forward(self, x: Tensor) -> Tensor:
            gates = (x @ self.gate).softmax(-1)
            mixed = torch.einsum("bte,bted->btd", gates, torch.stack([expert(x) for expert in self.experts], -2))
            expected = (mixed @ self.vocabulary.weight.t()).softmax(-1) @ self.vocabulary.weight
            decay = torch.exp(torch.einsum("btd,dn->btdn", x, -self.gate.exp()))  # as a state-space model's
            read = torch.einsum("btdn,btn->btd", decay * x[..., None], x @ self.gate)
            return self.attend(expected * (x * x).softmax(-1) + read)

    with regard.observe(model := Router()) as seen:
        model(draw(B, T, D))
    assert list(seen) == ["attend"]


def test_a_list_of_maps_says_that_it_is_one() -> None:
    model = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    with regard.observe(model) as seen:
        model(*[torch.randn(1, 5, 8)] * 3)
    with pytest.raises(
        AttributeError, match=r"a list of maps, one per forward: use one of them, seen\[site\]\[0\]\.entropy"
    ):
        seen["."].entropy  # noqa: B018
    with pytest.raises(AttributeError, match="a list of maps has no attribute 'entropie'"):
        seen["."].entropie  # noqa: B018


def test_a_notebook_shows_the_sites_and_their_heads() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False)
    with regard.observe(model.eval()) as seen:
        model(torch.randn(1, 5, 8))
    page = seen._repr_html_()
    assert page.count("<img") == 4
    assert all(site in page for site in seen)
    assert seen["layers.0.self_attn"][0].site == "layers.0.self_attn"


class CallsTorch(nn.Module):
    """Self-attention by torch's function."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize("make", [CallsTorch, lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()])
def test_a_model_without_numbers_has_maps_without_numbers(make: Any, tmp_path: Path) -> None:
    with torch.device("meta"):
        model, x = make(), torch.rand(3, 5, 8)
    with regard.observe(model) as seen:
        assert model(x).shape == (3, 5, 8)
    (one,) = next(iter(seen.values()))
    assert one.full().shape == one.shape
    assert one.distance().shape[-1] == 9
    site = next(iter(seen))
    with regard.intervene(model, site, lambda weights: 2 * weights), regard.swap(model, normalizer="sparsemax"):
        assert model(x).shape == (3, 5, 8)
    for ask in (one.entropy, one.plot, one.look, one.numpy, lambda: one.save(tmp_path / "x")):
        with pytest.raises(regard.RegardError, match=r"statistics, draws, figures and files .* the meta device hides"):
            ask()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_observation_is_not_copied_and_its_maps_are(how: Any) -> None:
    model, x = CallsTorch(), torch.rand(3, 5, 8)
    with regard.observe(model) as seen:
        model(x)
    with pytest.raises(
        regard.RegardError, match=r"belongs to its model, and is not copied: copy its maps, dict\(seen\)"
    ):
        how(seen)
    (one,) = copy.deepcopy(dict(seen))["."]
    assert torch.equal(one.full(), seen["."][0].full())


def test_steps_of_other_batches_are_not_one_sequence() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    with regard.observe(model) as seen:
        for size in (2, 1):
            model(torch.randn(size, 7, 16))
    for look in (seen.along, seen.look):
        with pytest.raises(regard.RegardError, match=r"has maps of \[2, 4\] and of \[1, 4\] before queries and keys"):
            look()


def test_a_mask_that_is_written_to_within_a_forward_is_kept_as_it_was() -> None:
    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen = torch.zeros(1, 3, dtype=torch.bool)
            mask = Allow(seen)
            rows = []
            for t in range(3):
                seen[0, t] = True
                rows.append(regard.attend(x[..., t : t + 1, :], x, x, mask=mask))
            return torch.cat(rows, -2)

    model = Steps()
    with regard.observe(model) as seen:
        model(torch.randn(1, 3, 4))
    (maps,) = seen.values()
    found = torch.cat([one.full() for one in maps], -2)
    assert torch.equal(found.reshape(3, 3) > 0, torch.ones(3, 3).tril().bool())


def test_a_full_disk_for_what_is_observed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    model = CallsTorch()
    sentence = r"No space left on device: what is observed beyond budget = 0 bytes"
    with pytest.raises(RegardError, match=sentence), regard.observe(model, budget=0):
        model(torch.randn(1, 5, 8))


def test_a_translation_has_no_steps_to_join(tiny_run: Path) -> None:
    model = regard.load(tiny_run)
    with regard.observe(model) as seen:
        model(["le chat", "la maison"])
    assert seen.along() == {}
    assert "<html" in seen.look().html()


def test_scores_with_a_tensor_of_settings_are_compared_step_by_step() -> None:
    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scales = torch.ones(2, 1, 1), torch.full((2, 1, 1), 2.0)
            steps = [regard.attend(x[..., :1, :], x, x, score=regard.ScaledDot(scale)) for scale in scales]
            return torch.cat(steps, -2)

    model, x = Steps(), torch.randn(1, 2, 3, 4)
    with regard.observe(model) as seen:
        output = model(x)
    found = torch.cat([one.full() @ x for one in seen["."]], -2)
    torch.testing.assert_close(found, output)


@pytest.mark.parametrize("budget", [float("nan"), -1.0])
def test_a_budget_is_a_number_of_bytes(budget: float) -> None:
    with pytest.raises(regard.ConfigError, match="budget must be a number of bytes, 0 or more; got"):
        regard.observe(nn.MultiheadAttention(4, 1), budget=budget)
