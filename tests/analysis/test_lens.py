"""The logit lens: every layer's states through the model's own readout, the last layer's being its logits."""

import copy

import pytest
import torch
from matplotlib.text import Text
from torch import nn

import regard
from random_outputs import BLOCKS, SIZES, SOURCE, bundle, completer, recurrent, translator
from regard.analysis.lens import Lens, TunedLens, tune_lens
from regard.errors import ConfigError, DataError, ShapeError
from regard.models.language import EncoderConfig
from regard.pipelines.filler import Filler


def logits_of(model, text):
    with torch.no_grad():
        return model.forward_pass(text).logits()


def unpatched(module):
    return all("forward" not in vars(part) and not part._forward_hooks for part in module.modules())


@pytest.mark.parametrize("name", BLOCKS)
def test_of_a_translator_every_layer_is_its_collected_state_read_out(name):
    model = translator(**BLOCKS[name])
    lens, given = regard.logit_lens(model, SOURCE), model.forward_pass(SOURCE)
    assert torch.equal(lens.logits[-1], logits_of(model, SOURCE))
    module, states = model.model, []
    with torch.no_grad():
        module.hidden(module.encode(given.arguments["source"]), given.arguments["target"], collect=states)
        expected = [module.project(module._scaled(module.decoder.norm(one))) for one in states[:-1]]
    assert len(expected) == 2
    torch.testing.assert_close(lens.logits[:-1], torch.stack(expected), atol=1e-6, rtol=1e-5)
    assert lens.tokens == given.tokens
    assert lens.layers == ["embedding", "layer 1", "layer 2"]
    assert unpatched(module)


@pytest.mark.parametrize("name", BLOCKS)
def test_of_a_decoder_alone_likewise_in_float64(name):
    model = completer(torch.float64, **BLOCKS[name])
    lens, states, module = regard.logit_lens(model, SOURCE), [], model.model
    assert lens.logits.dtype == torch.float64
    assert torch.equal(lens.logits[-1], logits_of(model, SOURCE))
    with torch.no_grad():
        module.hidden(model.forward_pass(SOURCE).arguments["tokens"], collect=states)
        expected = [module.project(module.decoder.norm(one)) for one in states[:-1]]
    torch.testing.assert_close(lens.logits[:-1], torch.stack(expected), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("changes", [{}, {"norm": "after", "tied": False}])
def test_of_an_encoder_alone_states_go_through_its_head(changes):
    model = Filler(bundle(EncoderConfig(kind="encoder", layers=3, **{**SIZES, **changes}), "fill"), "random")
    lens, states, module = regard.logit_lens(model, SOURCE), [], model.model
    with torch.no_grad():
        module.encode(model.forward_pass(SOURCE).arguments["tokens"], collect=states)
        expected = [module.project(module.head(module.encoder.norm(one))) for one in states[:-1]]
    assert torch.equal(lens.logits[-1], logits_of(model, SOURCE))
    torch.testing.assert_close(lens.logits[:-1], torch.stack(expected), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"score": "location"}, {"cell": "lstm", "score": "none"}, {"gate": True}])
def test_of_a_recurrent_decoder_layers_are_the_state_and_the_state_with_its_context(changes):
    model = recurrent(**changes)
    lens, module = regard.logit_lens(model, SOURCE), model.model
    assert lens.layers == ["state", "state and context"]
    torch.testing.assert_close(lens.logits[-1], logits_of(model, SOURCE), atol=0, rtol=0)
    given = model.forward_pass(SOURCE).arguments
    with torch.no_grad():
        state = module.hidden(module.encode(given["source"]), given["target"])[..., : module.config.width]
        weight, bias = module.readout()
        expected = state @ weight[:, : module.config.width].T + bias
    torch.testing.assert_close(lens.logits[0], expected, atol=1e-6, rtol=1e-5)


def test_of_a_caption_layers_are_the_decoders(tmp_path):
    from PIL import Image

    model = regard.load("emoji")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    lens = regard.logit_lens(model, tmp_path / "red.png")
    made = model(tmp_path / "red.png")
    assert lens.logits.shape[:3] == (len(lens.layers), 1, len(made.ids))
    assert torch.equal(lens.logits[-1], logits_of(model, tmp_path / "red.png"))
    found = regard.contributions(made, 0)
    assert found.total == pytest.approx(found.logit, abs=1e-4)
    with pytest.raises(ConfigError, match="has no words"):
        found.by_word()


def test_a_batch_is_given_by_the_arguments_of_the_forward():
    model = completer()
    tokens = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
    lens = regard.logit_lens(model.model, {"tokens": tokens})
    with torch.no_grad():
        assert torch.equal(lens.logits[-1], model.model(tokens))
    assert lens.logits.shape[:3] == (3, 2, 5)
    top = lens.top(2, row=1)
    assert [len(top), len(top[0]), len(top[0][0])] == [3, 5, 2]
    share, ids = lens.logits[1, 1, 3].softmax(-1).topk(2)  # without a tokenizer tokens are their ids
    assert top[1][3] == [(int(i), pytest.approx(float(p))) for i, p in zip(ids, share, strict=True)]


def test_tokens_are_strings_where_there_is_a_tokenizer():
    model = completer()
    lens = regard.logit_lens(model, SOURCE)
    best = lens.logits[1, 0, 2].argmax()
    assert lens.top(1)[1][2][0][0] == model.tokenizer.tokens([int(best)])[0]
    assert len(lens.top(10**6)[0][0]) == lens.logits.shape[-1]
    with pytest.raises(ConfigError, match="at least 1"):
        lens.top(0)


def test_the_table_is_drawn(tmp_path):
    lens = regard.logit_lens(translator(), SOURCE)
    lens.plot(tmp_path / "lens.svg")
    assert "layer 2" in (tmp_path / "lens.svg").read_text()
    Lens(torch.zeros(2, 1, 3, 4), ["a", "b"]).plot(tmp_path / "ids.svg")
    with pytest.raises(DataError, match=r"end it in \.png"):
        lens.plot(tmp_path / "lens.doc")


def shown(figure):
    """The texts of a figure."""
    return [" ".join(text.get_text().split()) for text in figure.findobj(Text)]


def test_a_figure_says_what_stands_in_columns_and_cells():
    lens = Lens(torch.eye(4)[None, None, :3].repeat(2, 1, 1, 1), ["a", "b"])
    assert "columns: positions; cells: token ids" in shown(lens.plot())
    named = shown(lens.plot(tokens=["one", "two", "three"], names=lambda ids: [f"t{i}" for i in ids]))
    assert {"one", "two", "three", "t0", "t1", "t2", "columns: the tokens that the model is given"} < {*named}
    assert "2" not in named
    with pytest.raises(ShapeError, match="got 2 names for 3 positions"):
        lens.plot(tokens=["one", "two"])


def test_a_classifier_has_one_position():
    lens = Lens(torch.tensor([[[0.0, 1.0, 0.0]], [[0.0, 0.0, 2.0]]]), ["embedding", "layer 1"])
    assert [[id for id, _ in position] for layer in lens.top(1) for position in layer] == [[1], [2]]
    assert {"The most probable class after each layer", "columns: positions; cells: class ids"} < {*shown(lens.plot())}


def test_torchs_own_layers_are_looked_into_too():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0)
            self.encoder = nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(8), enable_nested_tensor=False)
            self.head = nn.Linear(8, 11)

        def forward(self, x):
            return self.head(self.encoder(x))

    torch.manual_seed(1)
    module, x = Own(), torch.randn(2, 5, 8)
    lens = regard.logit_lens(module, {"x": x})
    with torch.no_grad():
        states = [x]
        for layer in module.encoder.layers:
            states.append(layer(states[-1]))
        expected = torch.stack([module.head(module.encoder.norm(one)) for one in states])
    torch.testing.assert_close(lens.logits, expected, atol=1e-5, rtol=1e-5)


def test_what_has_no_layers_is_refused_and_left_as_it_was():
    with pytest.raises(ConfigError, match="no stack of blocks"):
        regard.logit_lens(nn.Sequential(nn.Linear(3, 3)), {"input": torch.zeros(1, 2, 3)})
    with pytest.raises(ConfigError, match=r"expected the arguments of .*'s forward as a dict .*; got a str"):
        regard.logit_lens(completer().model, SOURCE)
    with pytest.raises(ConfigError, match="expected a tensor or"):
        regard.logit_lens(nn.GRU(3, 3), {"input": torch.zeros(1, 2, 3)})

    class Shared(nn.Module):  # one block that runs twice: an ALBERT
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 3)])

        def forward(self, x):
            return self.layers[0](self.layers[0](x))

    module = Shared()
    with pytest.raises(ConfigError, match="no stack of blocks"):
        regard.logit_lens(module, {"x": torch.zeros(1, 2, 3)})
    assert unpatched(module)


HEADS = {
    "gpt2": lambda model: lambda x: model.lm_head(model.transformer.ln_f(x)),
    "llama": lambda model: lambda x: model.lm_head(model.model.norm(x)),
    "bert": lambda model: model.cls,
    "t5": lambda model: lambda x: model.lm_head(model.decoder.final_layer_norm(x) * model.model_dim**-0.5),
}


def tiny(name):
    """A random model from transformers, and its arguments."""
    import transformers

    torch.manual_seed(0)
    ids, v = torch.randint(5, 40, (2, 7)), {"vocab_size": 43, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    match name:
        case "gpt2":
            config = transformers.GPT2Config(n_embd=12, n_layer=3, n_head=2, n_positions=16, **v)
            return transformers.GPT2LMHeadModel(config).eval(), {"input_ids": ids}
        case "llama":
            config = transformers.LlamaConfig(
                hidden_size=12, intermediate_size=20, num_hidden_layers=3, num_attention_heads=3,
                num_key_value_heads=1, **v,
            )  # fmt: skip
            return transformers.LlamaForCausalLM(config).eval(), {"input_ids": ids}
        case "bert":
            config = transformers.BertConfig(
                hidden_size=12, intermediate_size=20, num_hidden_layers=3, num_attention_heads=3, **v
            )
            return transformers.BertForMaskedLM(config).eval(), {"input_ids": ids}
    config = transformers.T5Config(
        d_model=12, d_kv=4, d_ff=20, num_layers=2, num_decoder_layers=3, num_heads=3, tie_word_embeddings=True, **v
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    return model, {"input_ids": ids, "decoder_input_ids": ids[:, :5]}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.filterwarnings("ignore")  # of transformers' own
def test_of_transformers_models_every_hidden_state_goes_through_their_norm_and_head(name):
    pytest.importorskip("transformers")
    model, given = tiny(name)
    lens = regard.logit_lens(model, given)
    assert unpatched(model)
    with torch.no_grad():
        output = model(**given, output_hidden_states=True)
        states = output.decoder_hidden_states if name == "t5" else output.hidden_states
        expected = torch.stack([HEADS[name](model)(one) for one in states[:-1]])
        torch.testing.assert_close(lens.logits[-1], output.logits, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(lens.logits[:-1], expected, atol=1e-6, rtol=1e-5)
    assert len(lens.layers) == 4


TEXTS = ["le chat noir dort", "la vache", "le chat dort"]


@pytest.mark.parametrize("make", [translator, completer, recurrent], ids=["transformer", "decoder", "recurrent"])
def test_a_tuned_lens_begins_as_the_logit_lens_and_comes_nearer_to_the_last_layer(make):
    model = make()
    plain = regard.logit_lens(model, TEXTS[0])
    width = model.model.readout()[0].shape[1]
    fresh = regard.logit_lens(model, TEXTS[0], offsets=TunedLens(len(plain.layers) - 1, width))
    assert torch.equal(fresh.logits, plain.logits)
    tuned = tune_lens(model, TEXTS, steps=12, learning_rate=0.02)
    assert list(tuned.divergences) == plain.layers[:-1]
    for before, after in tuned.divergences.values():
        assert after < 0.9 * before
    found = regard.logit_lens(model, TEXTS[0], offsets=tuned)
    assert torch.equal(found.logits[-1], plain.logits[-1])
    assert not torch.equal(found.logits[0], plain.logits[0])
    assert all(parameter.grad is None for parameter in model.model.parameters())
    torch.testing.assert_close(regard.logit_lens(model, TEXTS[0]).logits, plain.logits)  # the model is as it was


def test_a_tuned_lens_measures_the_divergence_of_its_docstring():
    model = completer()
    tuned = tune_lens(model, TEXTS[:1], steps=1, learning_rate=1e-9)
    logits = regard.logit_lens(model, TEXTS[0]).logits.log_softmax(-1)
    expected = [(logits[-1].exp() * (logits[-1] - one)).sum(-1).mean() for one in logits[:-1]]
    before = [first for first, _ in tuned.divergences.values()]
    assert before == pytest.approx([float(one) for one in expected], rel=1e-4)


def test_refusals_of_a_tuned_lens():
    model = completer()
    with pytest.raises(ConfigError, match="needs inputs and steps of at least 1; got 0 inputs, 5 steps"):
        tune_lens(model, [], steps=5)
    with pytest.raises(ConfigError, match="translators are of 3 layers of width 12, and this model has 2 of width 12"):
        regard.logit_lens(model, TEXTS[0], offsets=TunedLens(3, 12))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_tuned_lens_of_any_precision(dtype: torch.dtype) -> None:
    model = copy.deepcopy(regard.load("shakespeare").model).to(dtype)
    given = {"tokens": torch.tensor([[1, 5, 9, 7]])}
    tuned = tune_lens(model, [given], steps=2, seed=2**70)
    assert tuned.divergences
    assert regard.logit_lens(model, given, offsets=tuned).logits.isfinite().all()
    with pytest.raises(ConfigError, match="learning_rate must be above 0"):
        tune_lens(model, [given], steps=2, learning_rate=-1.0)
