"""A model as a folder: only an empty one is written to."""

from pathlib import Path

import pytest
import torch
import transformers

import regard
from adversary.folders import make
from regard.export.folder import check_empty, export_bundle


def test_only_an_empty_folder_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_empty(tmp_path / "empty")
    check_empty(tmp_path / "missing")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(regard.ConfigError, match="file is a file: choose a folder"):
        check_empty(tmp_path / "file")
    with pytest.raises(regard.ConfigError, match="is not empty: choose another folder"):
        check_empty(tmp_path)


def test_both_layouts_give_the_same_model(tmp_path: Path) -> None:
    model = regard.load("shakespeare")
    export_bundle(model.bundle, tmp_path / "regard", "float32")
    export_bundle(model, tmp_path / "hf", "float32", "hf")
    tokens = torch.tensor([[5, 9, 11, 7]])
    with torch.inference_mode():
        expected = model.model(tokens)
        for name in ("regard", "hf"):
            torch.testing.assert_close(regard.load(tmp_path / name).model(tokens), expected, rtol=1e-5, atol=1e-5)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
        torch.testing.assert_close(theirs(tokens).logits, expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(regard.ChoiceError, match="unknown layout 'hg': expected one of 'hf'"):
        export_bundle(model, tmp_path / "other", "float32", "hg")


def test_a_model_whose_texts_begin_with_bos_completes_as_before_in_either_layout(tmp_path: Path) -> None:
    words = ["the", "cat", "black", "sleeps", "on", "a", "table", "dog"]
    lines = [" ".join(words[(n * k) % 8] for k in range(1, 3 + n % 5)) for n in range(1, 60)]
    (tmp_path / "t.txt").write_text("".join(f"{line}\n" for line in lines))
    sizes = {"model.width": 16, "model.heads": 4, "model.layers": 1, "tokenizer.kind": "words"}
    steps = {"training.max_steps": 4, "training.evaluate_every": 4, "texts.length": 24}
    texts = {"texts.train": str(tmp_path / "t.txt"), "texts.documents": "lines"}
    model = regard.train("shakespeare", sizes | steps | texts, run=tmp_path / "run").model
    export_bundle(model, tmp_path / "hf", "float32", "hf")
    expected, found = (one("the cat", length=6, beam=2) for one in (model, regard.load(tmp_path / "hf")))
    assert expected.source_ids[0] == model.tokenizer.bos
    assert (found.source_ids, found.text) == (expected.source_ids, expected.text)
    assert found.log_prob == pytest.approx(expected.log_prob, abs=1e-4)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs("the cat").input_ids == list(expected.source_ids)


@pytest.mark.filterwarnings("ignore:Recommended.*sacremoses")  # texts without odd quotes need none
def test_a_marian_keeps_its_two_tokenizers(tmp_path: Path) -> None:
    model = regard.load(make("marian", tmp_path / "marian"))
    export_bundle(model, tmp_path / "hf", "float32", "hf")
    again, text = regard.load(tmp_path / "hf"), "le chat noir"
    assert (again(text).ids, again(text).text) == (model(text).ids, model(text).text)
    theirs = transformers.MarianTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs(text)["input_ids"][:-1] == model(text).source_ids[:-1]  # this folder names another end
    for layout in ("ctranslate2", "onnx", "torch"):
        with pytest.raises(regard.ConfigError, match="two sentencepiece models, which the layout"):
            export_bundle(model, tmp_path / layout, "float32", layout)
        assert not (tmp_path / layout).exists()


@pytest.mark.parametrize("kind", ["marian", "t5"])
def test_a_model_may_have_more_tokens_than_its_tokenizer_names(kind: str, tmp_path: Path) -> None:
    """As a T5 has: 32,128, of which 32,100 have names."""
    model, text = regard.load(make(kind, tmp_path / kind)), "le chat"
    size = len(model.model.readout()[0])
    assert len(model.tokenizer) == size > max(model.tokenizer.encode_target("the black chat noir le")) + 1
    word = "the" if kind == "marian" else "chat"
    begun = model(text, prefix=word)
    assert begun.ids[: len(model.tokenizer.encode_target(word))] == model.tokenizer.encode_target(word)
    assert word in model(text, force=[word]).text
    forbidden = model(text, forbid=[word])
    assert word not in forbidden.text.split()
