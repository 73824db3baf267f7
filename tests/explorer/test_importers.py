"""Attention of other programs on the page: the same numbers, the right beam, one sentence for what does not fit."""

import base64
import gzip
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from safetensors.torch import save
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel

from regard.errors import DataError, ShapeError
from regard.explorer import importers
from regard.explorer.importers import page_of_attentions, page_of_generate, page_of_inseq, page_of_links


@pytest.fixture(scope="module")
def bart() -> BartForConditionalGeneration:
    torch.manual_seed(1)
    config = BartConfig(
        vocab_size=31, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, init_std=1.0,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, attn_implementation="eager",
        max_position_embeddings=40, forced_eos_token_id=None,
    )  # fmt: skip
    return BartForConditionalGeneration(config).eval()


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_of_an_encoder_decoder(bart: BartForConditionalGeneration, beams: int) -> None:
    source = torch.tensor([[0, 7, 9, 11, 2]])
    made = bart.generate(
        source, num_beams=beams, max_new_tokens=6, min_new_tokens=5, output_attentions=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    sequence = made.sequences[0]
    t = len(sequence) - 1
    page = page_of_generate(made, [f"t{int(i)}" for i in sequence[1:]], [f"s{int(i)}" for i in source[0]])
    with torch.no_grad():
        whole = bart(input_ids=source, decoder_input_ids=sequence[None, :-1], output_attentions=True)
    (run,) = page.document["runs"]
    wanted = {
        "encoder.layers.0.self": whole.encoder_attentions[0], "decoder.layers.1.self": whole.decoder_attentions[1],
        "decoder.layers.0.cross": whole.cross_attentions[0], "decoder.layers.1.cross": whole.cross_attentions[1],
    }  # fmt: skip
    for info in run["maps"]:
        if info["site"] in wanted:
            found = page.tensors[f"{info['tensors']}.weights"]
            torch.testing.assert_close(found, wanted[info["site"]][0], atol=1e-5, rtol=0)
    assert run["sequences"]["output"] == [f"t{int(i)}" for i in sequence[1:]][:t]


def test_generate_of_a_decoder() -> None:
    torch.manual_seed(2)
    config = GPT2Config(vocab_size=23, n_positions=32, n_embd=16, n_layer=2, n_head=2, attn_implementation="eager")
    model = GPT2LMHeadModel(config).eval()
    made = model.generate(
        torch.tensor([[3, 4, 5]]), max_new_tokens=4, do_sample=False, output_attentions=True,
        return_dict_in_generate=True, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    for number in (-1, 1):
        with pytest.raises(ShapeError, match=rf"sequence = {number}: the output has 1, from 0 to 0"):
            page_of_generate(made, [f"t{int(i)}" for i in made.sequences[0]], sequence=number)
    page = page_of_generate(made, [f"t{int(i)}" for i in made.sequences[0]])
    with torch.no_grad():
        whole = model(made.sequences[:, :-1], output_attentions=True).attentions
    for layer in range(2):
        torch.testing.assert_close(page.tensors[f"0.{layer}.weights"], whole[layer][0], atol=1e-5, rtol=0)


def test_tensors_as_bertviz_takes_them() -> None:
    layers = [torch.rand(1, 2, 4, 4).softmax(-1) for _ in range(3)]
    page = page_of_attentions(layers, list("abcd"))
    assert [one["site"] for one in page.document["runs"][0]["maps"]] == ["layers.0", "layers.1", "layers.2"]
    torch.testing.assert_close(page.tensors["0.1.weights"], layers[1][0])


def test_links() -> None:
    page = page_of_links(["0-0 1-2 2-1"], ["le chat noir"], ["the black cat"])
    weights = page.tensors["0.0.weights"]
    assert weights.reshape(3, 3).argmax(-1).tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("links", "sentence"),
    [
        ("0:1", "line 1: '0:1' is no link: expected i-j, two numbers from 0"),
        ("0-" + "1" * 5003, f"line 1: '0-{'1' * 38}' is no link: expected i-j, two numbers from 0"),
        ("0-9", "line 1: 0-9 goes beyond 2 source and 1 target words"),
    ],
)
def test_links_that_are_none(links: str, sentence: str) -> None:
    with pytest.raises(DataError) as error:
        page_of_links([links], ["a b"], ["c"])
    assert str(error.value) == sentence


def test_links_of_more_words_than_a_page_holds() -> None:
    long = "le " * 6007
    with pytest.raises(DataError, match=r"^line 1: together the maps have 36,084,049 cells; expected at most 33,554,"):
        page_of_links(["0-0"], [long], [long])


def test_what_does_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"layers\.0 has 4 positions and 3 names were given for them"):
        page_of_attentions([torch.rand(1, 2, 4, 4)], list("abc"))
    with pytest.raises(ShapeError, match="one sequence"):
        page_of_attentions([torch.rand(3, 2, 4, 4)])
    with pytest.raises(ShapeError, match="nothing to show"):
        page_of_attentions()
    with pytest.raises(DataError, match="output_attentions=True"):
        page_of_generate(object(), [])


def wrapped(module: str, name: str, **attributes: Any) -> dict[str, Any]:
    """As inseq's serializer writes an instance."""
    return {"__instance_type__": [module, name], "attributes": attributes}


def of_inseq(scores: torch.Tensor, source: list[str], target: list[str], first: int) -> str:
    """A file of inseq 0.7's `FeatureAttributionOutput.save`."""
    names = [
        [wrapped("inseq.utils.typing", "TokenWithId", id=n, token=token) for n, token in enumerate(some)]
        for some in (source, target)
    ]
    sequence = wrapped(
        "inseq.data.attribution", "FeatureAttributionSequenceOutput", source=names[0], target=names[1],
        source_attributions=base64.b64encode(save({"attribution": scores.contiguous()})).decode(),
        target_attributions=None, step_scores={}, sequence_scores=None, attr_pos_start=first, attr_pos_end=len(target),
    )  # fmt: skip
    whole = {"sequence_attributions": [sequence], "step_attributions": None, "info": {}}
    return json.dumps(wrapped("inseq.data.attribution", "FeatureAttributionOutput", **whole))


def test_a_file_of_inseq(tmp_path: Path) -> None:
    source, target = ["le", "chat", "</s>"], ["<s>", "the", "cat"]
    heads = torch.rand(3, 2, 2, 5).softmax(0)  # inputs, outputs, layers, heads
    path = tmp_path / "heads.json.gz"
    path.write_bytes(gzip.compress(of_inseq(heads, source, target, 1).encode()))
    page = page_of_inseq(path)
    run = page.document["runs"][0]
    assert [one["site"] for one in run["maps"]] == [f"source attributions.layers.{n}" for n in range(2)]
    assert run["sequences"]["output"] == ["the", "cat"]
    torch.testing.assert_close(page.tensors["0.1.weights"].float(), heads[:, :, 1].permute(2, 1, 0))
    gradients = torch.randn(3, 2, 7)  # inputs, outputs, width
    path = tmp_path / "gradients.json"
    path.write_text(of_inseq(gradients, source, target, 1), "utf-8")
    norms = gradients.norm(dim=-1).T
    torch.testing.assert_close(page_of_inseq(path).tensors["0.0.weights"].view(2, 3), norms / norms.sum(-1)[:, None])


def test_a_file_of_inseq_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        page_of_inseq(tmp_path)
    assert str(error.value) == f"{tmp_path}: expected a regular file; got a folder"
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        page_of_inseq(tmp_path / "none.json")


ENDLESS = '{"sequence_attributions": [{"source": [], "target": [], "attr_pos_start": Infinity, "attr_pos_end": 0}]}'


def test_layers_of_nothing_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    path.write_text(of_inseq(torch.zeros(3, 0, 1_000_000_007, 1), ["le"] * 3, ["the"], 1), "utf-8")
    with pytest.raises(DataError, match="no scores"):
        page_of_inseq(path)


@pytest.mark.parametrize(
    "text",
    ["{}", "[", "[1]", '{"sequence_attributions": "\\ud800"}', '{"sequence_attributions": [{"source": 3}]}', ENDLESS],
)
def test_no_file_of_inseq(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text, "utf-8")
    with pytest.raises(DataError, match=r"not a file of inseq's FeatureAttributionOutput\.save"):
        page_of_inseq(path)


def test_a_few_bytes_that_claim_many_layers() -> None:
    packed = base64.b64encode(safetensors.torch.save({"attribution": torch.ones(1, 1, 2000, 1).bool()})).decode()
    with pytest.raises(ValueError, match="2,000 layers or heads"):
        importers._attributions(packed, "x")


def test_layers_without_weights_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"layers\.0: expected a tensor of weights; got None"):
        inspect.unwrap(page_of_attentions)((None, None), ["a"])


def generated(window: int | None = None, how: str = "eager") -> Any:
    sizes = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "vocab_size": 40, "sliding_window": window, "attn_implementation": how,
    }  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MistralForCausalLM(transformers.MistralConfig(**sizes)).eval()
    given = torch.randint(3, 39, (1, 5))
    made = model.generate(
        given, max_new_tokens=6, output_attentions=True, return_dict_in_generate=True, eos_token_id=None,
        do_sample=False,
    )  # fmt: skip
    return model, made


def test_a_window_that_drops_keys_keeps_their_positions() -> None:
    model, made = generated(4)
    names = [f"t{i}" for i in range(11)]
    page = page_of_generate(made, names)
    whole = model(made.sequences, output_attentions=True).attentions[0][0]
    found = page.tensors["0.0.weights"]
    torch.testing.assert_close(found, whole[:, : found.shape[1], : found.shape[2]], atol=1e-5, rtol=1e-4)


def test_outputs_without_weights_and_names_that_do_not_fit_are_refused() -> None:
    _, made = generated(how="sdpa")
    with pytest.raises(DataError, match='has no attention: load the model with attn_implementation="eager"'):
        page_of_generate(made, ["a"])
    _, made = generated()
    with pytest.raises(ShapeError, match=r"tokens: expected 10 or 11 names; got 60"):
        page_of_generate(made, ["a"] * 60)
    with pytest.raises(ShapeError, match=r"source_tokens: expected no names; got 1"):
        page_of_generate(made, ["a"] * 11, ["b"])
    with pytest.raises(ShapeError, match=r"tokens: expected a list of texts"):
        inspect.unwrap(page_of_generate)(made, [5, 6, 7])
    with pytest.raises(ShapeError, match="real numbers"):
        page_of_attentions([torch.rand(2, 3, 3, device="meta")])


def test_a_small_file_that_holds_millions_of_values_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json.gz"
    path.write_bytes(gzip.compress(b"[" + b"[]," * 9_000_000 + b"0]", 1))
    with pytest.raises(DataError, match="expected at most 8,388,608 values"):
        page_of_inseq(path)


def test_names_of_hypotheses_that_ended_early_and_of_other_kinds_are_taken() -> None:
    model, _ = generated()
    made = model.generate(
        torch.randint(3, 39, (1, 3)), max_new_tokens=6, num_beams=3, num_return_sequences=3, output_attentions=True,
        return_dict_in_generate=True, eos_token_id=list(range(3, 30)), pad_token_id=0, do_sample=False,
    )  # fmt: skip
    for n in range(3):
        names = [f"t{i}" for i in range(made.sequences.shape[1])]
        page_of_generate(made, names, sequence=n)
    inspect.unwrap(page_of_attentions)([torch.rand(2, 3, 3)], iter("abc"))
    with pytest.raises(ShapeError, match="tokens: expected a list of texts; got None"):
        inspect.unwrap(page_of_attentions)([torch.rand(2, 3, 3)], None)
