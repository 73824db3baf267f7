"""Decoders and encoders alone from the outside: trained, loaded, asked, exported, and read from folders of others."""

import importlib.util
import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers
from typer.testing import CliRunner

import regard
from regard.cli.main import app, run
from regard.data.texts import Masked
from regard.errors import ConfigError
from regard.experiment import Run
from regard.export.folder import export_bundle
from regard.pipelines.base import InputError
from regard.pipelines.completer import Completer, Completion
from regard.pipelines.filler import Filler
from regard.pipelines.page import look_at
from regard.pipelines.translator import Translator
from regard.tasks import language

TEXT = "the cat sat on the mat and the dog ran in the park\nthe dog sat on the cat and ran\n" * 30
BLOCKS = {
    "width": 16, "layers": 2, "heads": 2, "ffn_width": 20, "positions": "rotary", "normalization": "rms",
    "dropout": 0.0,
    "activation": "silu", "gated": True, "ffn_biases": False, "biases": (), "scaled": False,
}  # fmt: skip
TRAINING = {
    "max_steps": 30, "evaluate_every": 15, "batch_tokens": 200, "learning_rate": 0.02, "warmup": 2, "metric": "loss",
    "label_smoothing": 0.0, "optimizer": "muon", "schedule": "cosine",
}  # fmt: skip

LONGER = {"max_steps": 200, "evaluate_every": 100}
PARTS = ("cat", "dog", "cow", "man"), ("sat", "ran", "lay"), ("mat", "bed", "road")
LINES = "".join(f"the {a} {b} on the {c}\n" for a, b, c in product(*PARTS))


def config(task: str, path: Path, **more: object) -> dict:
    kind = {"complete": "decoder", "fill": "encoder"}[task]
    output = {"output_bias": False} if task == "complete" else {}
    texts = {"train": str(path), "length": 16, "documents": "files" if task == "complete" else "lines"}
    return {
        "task": task, "texts": texts, "tokenizer": {"kind": "characters" if task == "complete" else "words"},
        "model": {"kind": kind, **BLOCKS, **output}, "training": TRAINING | (LONGER if task == "fill" else {}),
    } | more  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "long.txt").write_text(TEXT)
    (folder / "lines.txt").write_text(LINES)
    return {
        "complete": regard.train(config("complete", folder / "long.txt"), run=folder / "complete"),
        "fill": regard.train(config("fill", folder / "lines.txt"), run=folder / "fill"),
    }


def test_a_run_learns_and_loads(runs) -> None:
    for task, kind in (("complete", Completer), ("fill", Filler)):
        entries = [e for e in runs[task].journal if e["event"] == "evaluation"]
        assert entries[-1]["dev_loss"] < entries[0]["dev_loss"]
        loaded = regard.load(runs[task].path)
        assert isinstance(loaded, kind)
        assert all(
            torch.equal(a, b)
            for a, b in zip(loaded.model.parameters(), runs[task].model.model.parameters(), strict=True)
        )


@pytest.mark.parametrize("task", ["complete", "fill"])
def test_a_run_that_was_interrupted_ends_the_same(task: str, runs, tmp_path: Path) -> None:
    whole = runs[task]
    settings = config(task, whole.path.parent / ("long.txt" if task == "complete" else "lines.txt"))

    class Stopped(Exception):
        pass

    def stop(event: dict) -> None:
        if event.get("step") == settings["training"]["evaluate_every"] + 5:
            raise Stopped

    with pytest.raises(Stopped):
        regard.train(settings, run=tmp_path / "again", report=stop)
    again = regard.train(settings, run=tmp_path / "again", resume=True)
    for a, b in zip(whole.model.model.parameters(), again.model.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_completions(runs) -> None:
    model = regard.load(runs["complete"].path)
    made = model("the cat ", length=12, temperature=0)
    assert isinstance(made, Completion)
    assert len(made.tokens) == 12
    assert made.text == "".join(made.tokens)
    assert model("the cat ", length=12, temperature=0).ids == made.ids
    assert made.score == made.log_prob < 0
    site = made.attention["decoder.layers.1.self"]
    assert site.shape == (2, 12, 8 + 11)
    assert site.query_tokens == made.tokens
    several = model(["the cat ", "a"], length=5, seed=3)
    assert [one.source for one in several] == ["the cat ", "a"]
    assert several[0].text == model("the cat ", length=5, seed=3).text
    assert model("the cat ", length=0).text == ""
    assert model("", length=3, temperature=0).source_tokens == ["<s>"]


def test_log_probs_and_maps_are_those_of_the_whole_pass(runs) -> None:
    model = regard.load(runs["complete"].path)
    made = model("the dog ", length=9, seed=5, temperature=1.5, top_k=8)
    ids = [*model.encode("the dog "), *made.ids]
    with regard.observe(model.model) as seen, torch.no_grad():
        logits = model.model(torch.tensor([ids]))[0].log_softmax(-1)
    wanted = sum(float(logits[i - 1, ids[i]]) for i in range(len(ids) - len(made.ids), len(ids)))
    assert made.log_prob == pytest.approx(wanted, abs=1e-4)
    for site, found in made.attention.items():
        whole = seen[site][0].full()[0, :, -len(made.ids) - 1 : -1, :-1]
        torch.testing.assert_close(found.full(), whole, rtol=1e-4, atol=1e-5)


def test_observe_announces_a_completion(runs) -> None:
    model = regard.load(runs["complete"].path)
    with regard.observe(model) as seen:
        made = model("the ", length=4, temperature=0, record=False)
    torch.testing.assert_close(seen["decoder.layers.0.self"][0].full(), made.attention["decoder.layers.0.self"].full())


def test_empty_stop_strings_stop_nothing_and_beams_stop_too(runs) -> None:
    model = regard.load(runs["complete"].path)
    plain = model("the ", length=8, temperature=0)
    assert model("the ", length=8, temperature=0, stop=[""]).text == plain.text
    beam = model("the ", length=8, beam=2)
    letter = beam.text[-1]
    assert model("the ", length=8, beam=2, stop=[letter]).text == beam.text[: beam.text.index(letter)]


def test_beams_are_at_least_as_likely_as_greed(runs) -> None:
    model = regard.load(runs["complete"].path)
    greedy, beam = model("the ", length=8, temperature=0), model("the ", length=8, beam=4, n_best=3)
    assert beam.log_prob >= greedy.log_prob - 1e-5
    assert [one.log_prob for one in beam.alternatives] == sorted((o.log_prob for o in beam.alternatives), reverse=True)
    assert len(beam.alternatives) == 2


def test_stop_strings_end_the_text_and_streams_give_the_same(runs) -> None:
    model = regard.load(runs["complete"].path)
    whole = model("the cat ", length=40, temperature=0).text
    for stop in (whole[3:5], whole[7:9], "nowhere"):
        made = model("the cat ", length=40, temperature=0, stop=[stop])
        assert made.text == whole.split(stop)[0]
        pieces = list(model.stream("the cat ", length=40, temperature=0, stop=[stop]))
        assert "".join(pieces) == made.text
    assert len(list(model.stream("the cat ", length=40, temperature=0))) == 40


def test_settings_that_make_no_sense(runs) -> None:
    model = regard.load(runs["complete"].path)
    for settings, message in (
        ({"temprature": 1.0}, "unknown setting 'temprature': known are length, stop"),
        ({"length": -1}, "length must be 0 or more"),
        ({"beam": 2, "n_best": 3}, "n_best between 1 and beam"),
        ({"beam": 2, "temperature": 0.5}, "a beam search does not sample: leave out temperature, or leave out beam"),
        ({"beam": 2, "length": -1}, "length must be 0 or more; got -1"),
    ):
        with pytest.raises(regard.ConfigError, match=message):
            model("the", **settings)


def test_gaps(runs) -> None:
    model = regard.load(runs["fill"].path)
    found = model("the [MASK] sat on the <mask>", top=3)
    assert len(found.gaps) == 2
    assert all(len(gap) == 3 and gap[0][1] >= gap[1][1] >= gap[2][1] for gap in found.gaps)
    best = [gap[0][0] for gap in found.gaps]
    assert found.text == f"the {best[0]} sat on the {best[1]}"
    assert best[1] in ("mat", "bed", "road")
    with pytest.raises(InputError, match=r"there is no gap: write \[MASK\]"):
        model("the cat")
    with pytest.raises(regard.ConfigError, match="top must be at least 1"):
        model("the [MASK]", top=0)


def test_vectors(runs) -> None:
    for task in ("complete", "fill"):
        model = regard.load(runs[task].path)
        found = model.embed("the cat sat")
        n = len(found.tokens)
        assert found.static.shape == (n, 16)
        assert found.layers.shape == (3, n, 16)
        assert found.words == ["the", "cat", "sat"]
        own = [i for i, (a, b) in enumerate(found.spans) if a >= 4 and b <= 7 and b > a]
        torch.testing.assert_close(found.of_word(1), found.layers[:, own].mean(1))
        for place in (3, -1):
            with pytest.raises(ConfigError, match=f"place = {place}: the text has 3 words, from 0"):
                found.of_word(place)
        assert float(found.sentence.norm()) == pytest.approx(1)
        other = model.embed("a cat")
        same = next(i for i, (_, end) in enumerate(other.spans) if end > 2)
        torch.testing.assert_close(found.static[own[0]], other.static[same])


def test_meanings(runs, tmp_path: Path) -> None:
    model = regard.load(runs["fill"].path)
    texts = ["the cat sat on the mat", "the cat ran on the road.", "a Cat"]
    found = model.meaning("cat", texts)
    assert found.layers.shape == (3, 3, 16)
    torch.testing.assert_close(found.layers[1], model.embed(texts[1]).of_word(1))
    torch.testing.assert_close(found.cosines, found.cosines.mT)
    assert torch.allclose(found.cosines.diagonal(dim1=1, dim2=2), torch.ones(3, 3))
    assert 0 < found.explained[1] <= found.explained[0] <= 1
    directions = torch.nn.functional.normalize(found.layers, dim=-1).flatten(0, 1)
    centered = directions - directions.mean(0)
    points = found.projection.flatten(0, 1)
    assert float(points.square().sum() / centered.square().sum()) == pytest.approx(sum(found.explained), abs=1e-5)
    _, _, plane = torch.linalg.svd(centered)
    torch.testing.assert_close(points.abs(), (centered @ plane[:2].T).abs(), atol=1e-4, rtol=1e-4)
    assert {one.word for one in found.moved_by[0]} == {"the", "sat", "on", "mat"}
    assert [one.change for one in found.moved_by[0]] == sorted((o.change for o in found.moved_by[0]), reverse=True)
    assert all("cat" not in dict(near) for near in found.after)
    assert len(found.lines()) > 10
    found.plot(tmp_path / "cat.png")
    json.dumps(found.as_json())
    with pytest.raises(regard.ConfigError, match=r"the word 'dog' does not stand in the text 'the cat' \(nearest"):
        model.meaning("dog", ["the cat"])
    with pytest.raises(regard.ConfigError, match="layer must be between 0 and 2; got 3"):
        model.meaning("cat", ["the cat"], layer=3)
    with pytest.raises(regard.ConfigError, match="at least one text"):
        model.meaning("cat", [])


def test_attention_and_leave_one_out_count_the_same_words(runs) -> None:
    model = regard.load(runs["fill"].path)
    found = model.contributions("the cat sat on the mat", "sat")
    assert sorted(one.place for one in found) == [0, 1, 3, 4, 5]
    assert 0 < sum(one.attention for one in found) < 1
    assert model.contributions("sat", "sat") == []


def invoke(*arguments: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, [str(a) for a in arguments])
    return found.exit_code, found.stdout


def test_the_commands(runs, tmp_path: Path) -> None:
    decoder, encoder = runs["complete"].path, runs["fill"].path
    code, shown = invoke("complete", "the ", "a ", "--model", decoder, "--length", 6, "--temperature", 0)
    assert (code, len(shown.splitlines())) == (0, 2)
    assert shown.startswith("the ")
    code, shown = invoke("complete", "the ", "--model", decoder, "--length", 6, "--json", "--beam", 2)
    assert json.loads(shown)["text"]
    code, shown = invoke("fill", "the [MASK] sat", "no gap", "--model", encoder)
    assert (code, shown.splitlines()[1]) == (1, "")
    code, shown = invoke("fill", "the [MASK] sat", "--model", encoder, "--json", "--top", 2)
    assert len(json.loads(shown)["gaps"][0]) == 2
    text = tmp_path / "text"
    text.write_text(TEXT)
    code, shown = invoke("evaluate", decoder, "--source", text, "--json")
    numbers = json.loads(shown)
    assert numbers["bits_per_character"] == pytest.approx(numbers["loss"] / 0.693147, rel=1e-2)
    code, shown = invoke("evaluate", encoder, "--source", text)
    assert "perplexity" in shown
    code, shown = invoke("meaning", "cat", "the cat sat", "a cat ran", "--model", encoder, "--look", tmp_path / "m.svg")
    assert code == 0
    assert "nearest sense" in shown
    assert (tmp_path / "m.svg").exists()


def test_a_model_for_another_task_is_named(runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fill", "the [MASK]", "--model", str(runs["complete"].path)]) == 2
    assert "is a model for `regard complete`, not for `regard fill`" in capsys.readouterr().err
    assert run(["complete", "le chat", "--model", "fr-en"]) == 2
    assert "fr-en is a model for `regard translate`" in capsys.readouterr().err


def test_standard_input_line_by_line(runs) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "regard", "fill", "--model", str(runs["fill"].path)],
        input=b"the [MASK] sat\n\xff\nthe [MASK] ran\n", capture_output=True, check=False,
    )  # fmt: skip
    assert found.returncode == 1
    assert len(found.stdout.split(b"\n")) == 4
    assert b"line 2: not UTF-8" in found.stderr


def test_configs_that_contradict_themselves(tmp_path: Path) -> None:
    good = config("complete", tmp_path / "a")
    for change, message in (
        ({"texts": None}, r'task = "complete" needs \[texts\]'),
        ({"model": {"kind": "encoder", **BLOCKS}}, r'task = "complete" needs model.kind = .decoder'),
        ({"training": {"metric": "bleu"}}, r'task = "complete" needs training.metric = "loss"'),
        ({"task": "translate"}, r'task = "translate" needs \[data\]'),
    ):
        with pytest.raises(regard.ConfigError, match=message):
            regard.train(good | change, run=tmp_path / "run")


def test_a_run_exports_to_the_layout_of_others(runs, tmp_path: Path) -> None:
    code, _ = invoke("export", runs["complete"].path, tmp_path / "hf", "--layout", "hf")
    assert code == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ours = regard.load(runs["complete"].path)
    ids = torch.tensor([ours.encode("the cat sat on the mat")])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours.model(ids), rtol=1e-4, atol=1e-5)
    back = regard.load(tmp_path / "hf")
    assert back("the cat", length=5, temperature=0).ids == ours("the cat", length=5, temperature=0).ids
    with pytest.raises(regard.BundleError, match="no family of the Hugging Face layout has these parts"):
        export_bundle(regard.load(runs["fill"].path), tmp_path / "no", "float32", "hf")
    known = "'hf', 'ctranslate2', 'onnx', 'regard', 'torch'"
    with pytest.raises(regard.ChoiceError, match=f"unknown layout 'h5': expected one of {known}"):
        export_bundle(ours, tmp_path / "no", "float32", "h5")
    with pytest.raises(regard.BundleError, match="--layout hf"):
        export_bundle(back, tmp_path / "no", "float32")


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "on", "mat", "river", "bank"]


def bert(folder: Path, unnamed: int = 0) -> None:
    torch.manual_seed(0)
    settings = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 10}
    config = transformers.BertConfig(vocab_size=len(VOCABULARY) + unnamed, **settings)
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")


def test_a_folder_of_others_fills_and_tells_meanings(tmp_path: Path) -> None:
    bert(tmp_path)
    model = regard.load(tmp_path)
    assert isinstance(model, Filler)
    ids, spans = model.encode("The cats sat on")
    theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    assert ids == theirs("The cats sat on").input_ids
    assert spans[1:3] == [(0, 3), (4, 7)]
    assert model.tokenizer.decode(ids) == "the cats sat on"
    found = model("the [MASK] sat on the [MASK]", top=2)
    assert len(found.gaps) == 2
    assert model.meaning("bank", ["the river bank", "the bank"]).layers.shape == (2, 3, 12)


def test_tokens_without_a_name_take_no_part_in_masking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bert(tmp_path, unnamed=500)
    model, drawn = regard.load(tmp_path), []
    assert isinstance(model, Filler)
    (tmp_path / "lines.txt").write_text("the cats sat on the bank\n" * 5)
    monkeypatch.setattr(language, "Masked", lambda *given, **more: drawn.append(given[3]) or Masked(*given, **more))
    language.evaluate_filler(model, tmp_path / "lines.txt")
    special = {model.tokenizer.mask, *model.encode("")[0]}
    assert {VOCABULARY.index(name) for name in ("the", "cat")} <= set(drawn[0])
    assert set(drawn[0]) <= set(range(len(VOCABULARY))) - special


def test_an_encoder_without_a_head_has_a_page_and_ways_of_its_words(tmp_path: Path) -> None:
    bert(tmp_path)
    whole = regard.load(tmp_path)
    transformers.BertModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    model, texts = regard.load(tmp_path), ["the river bank", "the cats sat on the bank"]
    assert model.model.head is None
    page, other = (look_at([one], texts) for one in (model, whole))
    assert len(page.document["runs"]) == 2
    assert {way["word"]: way["runs"] for way in page.document["ways"]}["bank"] == [0, 1]
    for name, part in other.tensors.items():
        torch.testing.assert_close(page.tensors[name], part)
    assert other.document["runs"][0]["lens"] is not None
    assert page.document["runs"][0]["lens"] is None


def test_a_folder_without_tokenizer_files_takes_ids(tmp_path: Path) -> None:
    bert(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    model = regard.load(str(tmp_path))
    assert model.model(torch.tensor([[5, 6]])).shape == (1, 2, len(VOCABULARY))
    with pytest.raises(regard.BundleError, match="has no tokenizer files: this model takes and gives ids, not text"):
        model.embed("the cat")


def test_gpt2s_files_and_tokenizer_json(tmp_path: Path) -> None:
    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, "th", "the", "Ġthe", "<|endoftext|>"]
    end = len(names) - 1
    (tmp_path / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nth e\nĠ the\n")
    small = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "bos_token_id": end, "eos_token_id": end}
    settings = transformers.GPT2Config(vocab_size=len(names), **small)
    transformers.GPT2LMHeadModel(settings).save_pretrained(tmp_path)
    model = regard.load(tmp_path)
    assert isinstance(model, Completer)
    assert model.tokenizer.tokens(model.encode("the thé the")) == ["the", "Ġ", "th", "Ã", "©", "Ġthe"]
    made = model("the thé", length=50, seed=1)
    assert model.tokenizer.decode(model.encode("the thé")) == "the thé"
    assert len(made.ids) <= 16 - 5 + 1  # it knows no more places
    assert model("", length=2, seed=1).source_tokens == ["<|endoftext|>"]
    with pytest.raises(InputError, match="a text of 20 tokens is too long: this model takes 16; cut it"):
        model("q" * 20)
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.save(str(tmp_path / "tokenizer.json"))
    assert regard.load(tmp_path).encode("b c") == [1, 2]
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(regard.BundleError, match=r"tokenizer\.json is not a tokenizer file: EOF"):
        regard.load(tmp_path)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(name: str, **_: object) -> str:
        raise OSError(f"cannot reach {name}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(regard.BundleError, match="hf:a/b: could not be downloaded: cannot reach a/b"):
        regard.load("hf:a/b")


def test_the_hub_is_asked_for_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    bert(tmp_path)
    asked = []

    def give(name: str, **more: object) -> str:
        asked.append((name, more["allow_patterns"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", give)
    assert isinstance(regard.load("hf:a/b"), Filler)
    ((name, patterns),) = asked
    assert name == "a/b"
    assert "*.bin" not in patterns


def test_marians_pieces(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text("le chat noir\nun chat blanc\nle chien noir\n" * 20)
    for side in ("source", "target"):
        sentencepiece.SentencePieceTrainer.train(
            input=str(tmp_path / "text"), model_prefix=str(tmp_path / side), vocab_size=18, minloglevel=2
        )
        (tmp_path / f"{side}.model").rename(tmp_path / f"{side}.spm")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "source.spm"))
    pieces = [processor.id_to_piece(i) for i in range(3, processor.get_piece_size())]
    names = ["</s>", "<unk>", *pieces, "<pad>"]
    (tmp_path / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    torch.manual_seed(0)
    small = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    settings = transformers.MarianConfig(
        vocab_size=len(names), decoder_vocab_size=len(names), d_model=8, encoder_ffn_dim=8, decoder_ffn_dim=8,
        pad_token_id=len(names) - 1, decoder_start_token_id=len(names) - 1, eos_token_id=0, **small,
    )  # fmt: skip
    transformers.MarianMTModel(settings).save_pretrained(tmp_path)
    model = regard.load(tmp_path)
    assert isinstance(model, Translator)
    made = model("le chat noir", beam=2)
    assert len(made.tokens) <= 30
    assert made.source_tokens[-1] == "</s>"
    assert model.tokenizer.decode(model.tokenizer.encode("le chat noir")) == "le chat noir"
    spans = model.tokenizer.source_spans("le chat noir")
    assert "".join("le chat noir"[a:b] for a, b in spans) == "lechatnoir"
    assert set(made.attention) == {"decoder.layers.0.self", "decoder.layers.0.cross"}
    engines = [name for name in ("onnxruntime", "ctranslate2") if importlib.util.find_spec(name)]
    code = "import regard, sys; print([regard.load(sys.argv[1], engine=e)('le chat noir').text for e in sys.argv[2:]])"
    names = [name.removesuffix("runtime") for name in engines]
    told = subprocess.run(  # a graph is traced without the tests' type checks
        [sys.executable, "-W", "ignore", "-c", code, tmp_path, *names], capture_output=True, text=True, check=True
    )
    assert told.stdout == f"{[model('le chat noir').text] * len(names)}\n"


def test_meanings_need_whole_words_in_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the cat sleeps on a table\nsome dog eats the bread\n" * 30)
    sizes = {"model.width": 16, "model.heads": 2, "model.ffn_width": 16, "model.layers": 1}
    tokens = {"tokenizer.kind": "characters", "tokenizer.vocabulary": 60}
    texts = {"texts.train": str(tmp_path / "t.txt"), "texts.length": 64, "training.max_steps": 1}
    model = regard.train("english", sizes | tokens | texts, run=tmp_path / "run").model
    with pytest.raises(ConfigError, match="this model's vocabulary has none of 3 letters or more"):
        model.meaning("cat", ["the cat", "a cat sleeps"])


def test_meanings_follow_a_swap_and_gaps_are_counted_as_they_are_read() -> None:
    model = regard.load("english")
    texts = ["the bank of the river", "the bank lends money"]
    plain = model.meaning("bank", texts).layers
    with regard.swap(model, normalizer="softmax1"):
        model.meaning("bank", texts)
        swapped = model.candidates.layers if hasattr(model.candidates, "layers") else None
    assert torch.equal(model.meaning("bank", texts).layers, plain)
    assert swapped is None or not torch.equal(swapped, model.candidates.layers)
    filled = model("I [MA\u200bSK] you and [MASK].")
    assert len(filled.gaps) == 2
    assert "[MA" not in filled.text
    with pytest.raises(ConfigError, match="unknown setting 'foo': known are top"):
        model("a [MASK]", foo=1)
