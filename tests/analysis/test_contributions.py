"""Contributions: the parts and the rest sum to the logit, and each part is what a linear model of it says."""

import pytest
import torch

import regard
from random_outputs import BLOCKS, SOURCE, completer, recurrent, translator
from regard.analysis.reasons import reasons
from regard.errors import ConfigError
from regard.nn.blocks import Residual
from regard.text.tokenizer import word_of_each

EXACT = {torch.float32: 1e-4, torch.float64: 1e-9}
RECURRENT = {
    "bahdanau": {},
    "luong": {"score": "general", "asks": "new", "feed": "previous"},
    "lstm": {"cell": "lstm", "score": "dot", "asks": "new", "feed": "none"},
    "location": {"score": "location", "location_reach": 2},
    "gate": {"gate": True, "score": "concat"},
    "hard": {"normalizer": "hard"},
    "none": {"score": "none"},
}


def check_sums(generation, dtype):
    assert generation.ids
    for step in {0, len(generation.ids) // 2, len(generation.ids) - 1}:
        found = regard.contributions(generation, step)
        total = sum(float(part.sum()) for part in found.parts.values()) + sum(found.rest.values())
        assert found.total == pytest.approx(total, abs=EXACT[dtype])
        assert found.logit == pytest.approx(total, abs=EXACT[dtype])
        with torch.no_grad():
            logits = generation.forward_pass().logits()[0, -len(generation.ids) :]
        assert found.logit == pytest.approx(float(logits[step, generation.ids[step]]), abs=EXACT[dtype])
        assert found.token == generation.tokens[step]
    return found


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_a_translators_parts_and_rest_sum_to_the_logit(name, dtype):
    generation = translator(dtype, **BLOCKS[name])(SOURCE, beam=1)
    found = check_sums(generation, dtype)
    heads = BLOCKS[name].get("heads", 3)
    sites = [f"decoder.layers.{layer}.{part}" for layer in (0, 1) for part in ("self", "cross")]
    assert list(found.parts) == [(site, head) for site in sites for head in range(heads)]
    for (site, _), part in found.parts.items():
        assert part.shape == (generation.attention[site].shape[-1],)


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("name", [*BLOCKS, "window"])
def test_a_completions_parts_and_rest_sum_to_the_logit(name, dtype):
    settings = BLOCKS.get(name, {"window": 2})
    found = check_sums(completer(dtype, **settings)("le chat", length=5, seed=1), dtype)
    assert {site for site, _ in found.parts} == {"decoder.layers.0.self", "decoder.layers.1.self"}


@pytest.mark.parametrize("changes", [{"cross_score": "additive"}, {"convolution": 1}, {"context": "running_mean"}])
def test_parts_need_no_product_score_no_transformer_encoder_and_no_plain_query(changes):
    check_sums(translator(torch.float64, **changes)(SOURCE, beam=1), torch.float64)


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_models_parts_and_rest_sum_to_the_logit(name, dtype):
    generation = recurrent(dtype, **RECURRENT[name])(SOURCE, beam=1)
    found = check_sums(generation, dtype)
    if name == "none":
        assert not found.parts
        assert set(found.rest) == {"context", "state", "output.bias"}
        assert found.by_word() == [(word, 0.0) for word in SOURCE.split()]
    else:
        assert [*found.parts] == [("decoder.cross", 0)]
        assert found.parts["decoder.cross", 0].shape == (len(generation.source_ids),)
        assert set(found.rest) == {"state", "output.bias"}


def linear_gradient(module, given, site, place, token, monkeypatch):
    """d logit / d output of a site, with every norm's size and everything that other parts read held fixed."""

    def frozen(norm, x):
        centred = isinstance(norm, torch.nn.LayerNorm)
        moved = x - x.mean(-1, keepdim=True) if centred else x
        size = (moved.square().mean(-1, keepdim=True) + norm.eps).sqrt().detach()
        return moved / size * norm.weight + (norm.bias if centred else 0)

    def forward(self, x, part):
        joined = x + part(self.norm(x).detach() if self.before else x.detach())
        return joined if self.before else self.norm(joined)

    monkeypatch.setattr(torch.nn.LayerNorm, "forward", frozen)
    monkeypatch.setattr(torch.nn.RMSNorm, "forward", frozen)
    monkeypatch.setattr(type(module.decoder.layers[0].around_self.norm), "forward", frozen)
    monkeypatch.setattr(Residual, "forward", forward)
    kept = []

    def keep(_, args, output):
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    hook = module.get_submodule(site).register_forward_hook(keep)
    logits = given.logits()
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[0, place, token], kept)
    monkeypatch.undo()
    return gradient[0, place]


@pytest.mark.parametrize("site", ["decoder.layers.0.cross", "decoder.layers.1.self"])
@pytest.mark.parametrize("name", ["pre", "post", "post-rms", "llama", "general"])
def test_each_part_is_its_weight_times_its_value_along_the_linearised_gradient(name, site, monkeypatch):
    model = translator(torch.float64, **BLOCKS[name])
    generation = model(SOURCE, beam=1)
    step, module, given = 1, model.model, generation.forward_pass()
    found = regard.contributions(generation, step)
    gradient = linear_gradient(module, given, site, step, generation.ids[step], monkeypatch)
    attention = module.get_submodule(site)
    inputs = []
    hook = attention.value.register_forward_hook(lambda _, args, output: inputs.append(output[0].detach()))
    with torch.no_grad():
        given.logits()
    hook.remove()
    width, group = attention.head_width, attention.heads // attention.key_heads
    for head in range(attention.heads):
        weights = generation.attention[site].tile([step], slice(None))[head, 0]
        own = inputs[0][:, (head // group) * width : (head // group + 1) * width]
        out = attention.output.weight.detach()[:, head * width : (head + 1) * width]
        for j, weight in enumerate(weights):
            expected = float(weight * (out @ own[j]) @ gradient)
            assert float(found.parts[site, head][j]) == pytest.approx(expected, abs=1e-9)


def test_words_get_the_sum_of_their_tokens_over_cross_attention():
    generation = translator()(SOURCE, beam=1)
    found = regard.contributions(generation, 1)
    cross = sum(part for (site, _), part in found.parts.items() if site.endswith("cross"))
    words = found.by_word()
    assert [word for word, _ in words] == SOURCE.split()
    owners = word_of_each(generation.translator.tokenizer.source_spans(SOURCE), SOURCE)
    assert set(owners) >= set(range(4))
    for number, (_, given) in enumerate(words):
        own = [place for place, owner in enumerate(owners) if owner == number]
        assert given == pytest.approx(float(cross[own].sum()), abs=1e-4)


def test_a_completions_words_are_those_of_the_text_so_far():
    generation = completer()("le chat noir", length=4, seed=1)
    found = regard.contributions(generation, 0)
    words, given = found.by_word(), generation.forward_pass()
    assert [word for word, _ in words] == given.text.split()
    assert [word for word, _ in words][:2] == ["le", "chat"]
    owners = word_of_each(given.spans, given.text)
    every = sum(found.parts.values())
    own = [place for place, owner in enumerate(owners) if owner == 1]
    assert words[1][1] == pytest.approx(float(every[own].sum()), abs=1e-4)


def test_negative_steps_count_from_the_end_and_others_are_refused():
    generation = translator()(SOURCE, beam=1)
    last = regard.contributions(generation, -1)
    assert last.logit == regard.contributions(generation, len(generation.ids) - 1).logit
    for step in (len(generation.ids), -len(generation.ids) - 1):
        with pytest.raises(ConfigError, match="is none of the output's"):
            regard.contributions(generation, step)


def test_outputs_without_a_single_forward_pass_are_refused():
    model = translator()
    with pytest.raises(ConfigError, match=r"^expected a result, .*; got a Transformer$"):
        reasons(model.model)
    with pytest.raises(ConfigError, match="none of the output's 0 tokens"):
        regard.contributions(model(""), 0)
    with pytest.raises(ConfigError, match="an empty translation"):
        model("").forward_pass()
    with pytest.raises(ConfigError, match="an empty completion"):
        completer()("le", length=0).forward_pass()
    joined = model("Le chat dort. Le chat mange.", beam=1)
    with pytest.raises(ConfigError, match="sentence by sentence"):
        regard.contributions(joined, 0)
    regard.contributions(joined.searched[0], 0)


@pytest.mark.parametrize("name", ["transformer", "recurrent", "decoder", "none"])
def test_the_picture_is_drawn(name, tmp_path):
    made = {
        "transformer": lambda: translator()(SOURCE, beam=1),
        "recurrent": lambda: recurrent()(SOURCE, beam=1),
        "decoder": lambda: completer()("le chat", length=3, seed=1),
        "none": lambda: recurrent(score="none")(SOURCE, beam=1),
    }[name]()
    regard.contributions(made, 0).plot(tmp_path / "parts.svg")
    drawn = (tmp_path / "parts.svg").read_text()
    assert "output.bias" in drawn
    assert ("cross, head 0" in drawn) == (name in ("transformer", "recurrent"))
