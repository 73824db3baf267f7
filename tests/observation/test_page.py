"""The page of what was observed."""

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

import regard
from regard.errors import RegardError


def test_an_encoder_of_transformers() -> None:
    torch.manual_seed(1)
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=20,
        attn_implementation="eager",
    )  # fmt: skip
    model = BertModel(config).eval()
    given = torch.randint(0, 20, (2, 6))
    with regard.observe(model) as seen:
        model(given)
    page = seen.look(tokens=list("abcdef"))
    assert repr(page) == "Page('BertModel', 2 runs)"
    assert page.document["title"] == "BertModel"
    assert [run["label"] for run in page.document["runs"]] == ["input 1", "input 2"]
    info = page.document["runs"][1]["maps"][1]
    assert (info["rows"], info["columns"]) == ("text", "text")
    wanted = model(given, output_attentions=True).attentions[1][1]
    query, key, value = (page.tensors[f"{info['tensors']}.{name}"] for name in ("query", "key", "value"))
    torch.testing.assert_close((query @ key.mT).softmax(-1), wanted.detach(), atol=1e-5, rtol=0)
    assert value.shape == (2, 6, 8)


def test_the_steps_of_a_generation_are_joined() -> None:
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=23, n_positions=32, n_embd=16, n_layer=2, n_head=2)).eval()
    with regard.observe(model) as seen:
        model.generate(torch.tensor([[3, 4]]), max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)
    (run,) = seen.look().document["runs"]
    assert {(info["how"]["queries"], info["how"]["keys"]) for info in run["maps"]} == {(4, 4)}


def test_beams_are_those_of_the_returned_sequences() -> None:
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=23, n_positions=32, n_embd=16, n_layer=1, n_head=2)).eval()
    with regard.observe(model) as seen:
        made = model.generate(
            torch.tensor([[3, 4]]), max_new_tokens=3, num_beams=3, pad_token_id=0, eos_token_id=None,
            return_dict_in_generate=True,
        )  # fmt: skip
    assert len(seen.look().document["runs"]) == 3  # places in the beam
    page = seen.look(beam_indices=made.beam_indices)
    (run,) = page.document["runs"]
    wanted = seen.along(made.beam_indices)["transformer.h.0.attn"].full()[0]
    torch.testing.assert_close(page.tensors[f"{run['maps'][0]['tensors']}.weights"], wanted)


def test_two_sequences_are_named_by_their_maps() -> None:
    model = torch.nn.MultiheadAttention(6, 2)
    with regard.observe(model) as seen:
        model(torch.randn(3, 6), *[torch.randn(3, 6)] * 2)
    one = seen["."][0]
    one.query_tokens, one.key_tokens = ["the", "black", "cat"], ["le", "chat", "noir"]
    (run,) = seen.look().document["runs"]
    assert run["sequences"] == {"sequence 1": one.query_tokens, "sequence 2": one.key_tokens}
    assert (run["maps"][0]["rows"], run["maps"][0]["columns"]) == ("sequence 1", "sequence 2")


def test_names_of_another_number_are_refused() -> None:
    model, query, key = torch.nn.MultiheadAttention(6, 2), torch.randn(5, 6), torch.randn(7, 6)
    with regard.observe(model) as seen:
        model(query, query, query)
    assert repr(seen.look(tokens=list("abcde"))) == "Page('MultiheadAttention', 1 run)"
    with pytest.raises(regard.ShapeError, match=r"^tokens: got 3 names, .* have 5 positions here"):
        seen.look(tokens=list("abc"))
    with regard.observe(model) as across:
        model(query, key, key)
    with pytest.raises(regard.ShapeError, match=r"have no positions here"):
        across.look(tokens=list("abcde"))


def test_nothing_seen() -> None:
    with regard.observe(torch.nn.Linear(2, 2)) as seen:
        pass
    with pytest.raises(RegardError, match="nothing was seen"):
        seen.look()
