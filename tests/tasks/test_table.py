"""Models of every task measured on files; folders in the Hugging Face layout against transformers' own losses."""

import json
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tokenizers
import torch
import transformers
from PIL import Image
from tokenizers import models, pre_tokenizers, processors
from torch.nn.functional import cross_entropy

import regard
from made import made_sounds, made_table, tone
from regard import experiment
from regard.errors import ConfigError, DataError
from regard.tasks.table import TASKS, evaluate

WORDS = ["the", "cat", "dog", "sat", "ran", "on", "a", "mat", "le", "chat", "chien", "noir"]
LINES = ["the cat sat on the mat", "a dog ran", "the dog sat on a dog"]


def write_tokenizer(folder: Path, specials: list[str], template: str | None = None) -> tokenizers.Tokenizer:
    """A word-level tokenizer whose special tokens come first; `template` is its post-processor."""
    names = [*specials, *WORDS]
    made = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token=specials[-1]))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(specials)
    if template:
        used = [(name, names.index(name)) for name in specials if name in template]
        made.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    made.save(str(folder / "tokenizer.json"))
    return made


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def seeded(model: Any) -> Any:
    """Larger weights than transformers' own, so that a wrong id changes the loss by a lot."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:  # Marian's are sines
                parameter.copy_(torch.randn_like(parameter) * 0.4)
    return model.eval()


def t5(folder: Path) -> Any:
    made = write_tokenizer(folder, ["<pad>", "</s>", "<unk>"], "$A </s>")
    model = seeded(
        transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=len(WORDS) + 3, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2,
                decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
            )
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    return model, made


def marian(folder: Path) -> Any:
    """With PAD in the place of a real word: "cat" has the id that our own tokenizers give to PAD."""
    names = ["cat", "</s>", "<unk>", *(word for word in WORDS if word != "cat"), "<pad>"]
    made = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["</s>", "<unk>", "<pad>"])
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    pad = len(names) - 1
    config = transformers.MarianConfig(
        vocab_size=len(names), decoder_vocab_size=len(names), d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
        pad_token_id=pad, decoder_start_token_id=pad, eos_token_id=1, bos_token_id=None, forced_eos_token_id=None,
        max_position_embeddings=64,
    )  # fmt: skip
    model = seeded(transformers.MarianMTModel(config))
    model.save_pretrained(folder)
    return model, made


@pytest.mark.parametrize("family", [t5, marian], ids=["t5", "marian"])
def test_a_translators_loss_is_transformers(family: Any, tmp_path: Path) -> None:
    model, tokenizer = family(tmp_path)
    sources, targets = ["le chat noir", "le chien", "chat"], ["the cat cat", "the dog", "cat"]
    total, tokens = 0.0, 0
    for source, target in zip(sources, targets, strict=True):
        ids, labels = (torch.tensor([tokenizer.encode(text).ids]) for text in (source, target))
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * labels.numel()
        tokens += labels.numel()
    files = write_lines(tmp_path / "source", sources), write_lines(tmp_path / "target", targets)
    numbers, outputs = evaluate(regard.load(tmp_path), *files, beam=1)
    assert numbers["tokens"] == tokens
    assert numbers["loss"] == pytest.approx(total / tokens, rel=1e-4)
    assert numbers["perplexity"] == pytest.approx(exp(total / tokens), rel=1e-3)
    assert len(outputs) == 3


def gpt2(folder: Path, positions: int = 64, template: str | None = None) -> Any:
    made = write_tokenizer(folder, ["<|endoftext|>", "<unk>"], template)
    config = transformers.GPT2Config(
        vocab_size=len(WORDS) + 2, n_embd=16, n_layer=1, n_head=2, n_positions=positions, bos_token_id=0, eos_token_id=0
    )
    model = seeded(transformers.GPT2LMHeadModel(config))
    model.save_pretrained(folder)
    return model, made


@pytest.mark.parametrize("template", [None, "<|endoftext|> $A"], ids=["no BOS", "BOS"])
def test_a_decoders_loss_is_transformers(template: str | None, tmp_path: Path) -> None:
    model, tokenizer = gpt2(tmp_path, template=template)
    text = "\n".join(LINES)
    ids = torch.tensor([tokenizer.encode(text).ids])
    with torch.no_grad():
        expected = float(model(input_ids=ids, labels=ids).loss)
    (tmp_path / "text").write_text(text)
    numbers, _ = evaluate(regard.load(tmp_path), tmp_path / "text")
    assert numbers["tokens"] == ids.shape[1] - 1  # the first token is given
    assert numbers["loss"] == pytest.approx(expected, rel=1e-4)
    assert numbers["bits_per_character"] == pytest.approx(expected * (ids.shape[1] - 1) / len(text) / log(2), rel=1e-4)


def test_windows_are_no_longer_than_the_positions(tmp_path: Path) -> None:
    """By hand: windows of 7 positions, each of which predicts the token after every one of its own."""
    model, tokenizer = gpt2(tmp_path, positions=7)
    text = " ".join(WORDS * 3)
    ids = tokenizer.encode(text).ids
    total = 0.0
    for first in range(0, len(ids) - 1, 7):
        window, goal = ids[first : first + 7], ids[first + 1 : first + 8]
        with torch.no_grad():
            logits = model(torch.tensor([window])).logits[0, : len(goal)]
        total += float(cross_entropy(logits, torch.tensor(goal), reduction="sum"))
    (tmp_path / "text").write_text(text)
    numbers, _ = evaluate(regard.load(tmp_path), tmp_path / "text")
    assert numbers["tokens"] == len(ids) - 1
    assert numbers["loss"] == pytest.approx(total / (len(ids) - 1), rel=1e-4)


def bert(folder: Path) -> Any:
    """config.json names no bos and no eos, as bert-base's."""
    made = write_tokenizer(folder, ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"], "[CLS] $A [SEP]")
    config = transformers.BertConfig(
        vocab_size=len(WORDS) + 5, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )  # fmt: skip
    model = seeded(transformers.BertForMaskedLM(config))
    model.save_pretrained(folder)
    return model, made


def test_an_encoders_loss_is_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same masked tokens, given to both."""
    from regard.data.texts import Masked

    model, tokenizer = bert(tmp_path)
    seen = []
    original = Masked.epoch

    def spy(self: Masked, epoch: int, start: int = 0) -> Any:
        for batch in original(self, epoch, start):
            seen.append(batch)
            yield batch

    monkeypatch.setattr(Masked, "epoch", spy)
    numbers, _ = evaluate(regard.load(tmp_path), write_lines(tmp_path / "text", [*LINES, "", "cat"]))
    total, tokens = 0.0, 0
    for batch in seen:
        labels = batch.target.masked_fill(~batch.target_allowed, -100)
        with torch.no_grad():
            out = model(input_ids=batch.tokens, attention_mask=batch.allowed.long(), labels=labels)
        total, tokens = total + float(out.loss) * int((labels >= 0).sum()), tokens + int((labels >= 0).sum())
        rows = [row[real].tolist() for row, real in zip(batch.tokens, batch.allowed, strict=True)]
        assert all((row[0], row[-1]) == (1, 2) for row in rows)  # [CLS] and [SEP] are there and never masked
        assert sorted(map(len, rows)) == sorted(len(tokenizer.encode(line).ids) for line in [*LINES, "cat"])
        assert not (batch.target_allowed & (batch.target < 5)).any()
        assert set(batch.tokens[batch.target_allowed].tolist()) <= {3, *range(5, 5 + len(WORDS))}
    assert (numbers["tokens"], numbers["sentences"]) == (tokens, 4)
    assert numbers["loss"] == pytest.approx(total / tokens, rel=1e-4)
    (tmp_path / "long").write_text("cat\n" + "cat " * 15 + "\n")
    with pytest.raises(DataError, match=r"long:2: a text of 17 tokens is too long"):
        evaluate(regard.load(tmp_path), tmp_path / "long")


def test_an_encoder_without_a_head_is_one_sentence(tmp_path: Path) -> None:
    model, _ = bert(tmp_path)
    model.bert.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no output layer that predicts tokens"):
        evaluate(regard.load(tmp_path), write_lines(tmp_path / "text", LINES))


def test_nothing_to_measure_is_a_sentence(tmp_path: Path) -> None:
    for family in (gpt2, bert, t5):
        (tmp_path / family.__name__).mkdir()
        family(tmp_path / family.__name__)
    for text in ("", "\n\n", "  \n"):
        (tmp_path / "empty").write_text(text)
        for name in ("gpt2", "bert", "t5"):
            reference = tmp_path / "empty" if name == "t5" else None
            with pytest.raises(DataError, match=r"empty: there is nothing to (predict|translate)"):
                evaluate(regard.load(tmp_path / name), tmp_path / "empty", reference)
    with pytest.raises(DataError, match="nothing to measure"):
        evaluate(
            regard.load(tmp_path / "t5"), write_lines(tmp_path / "s", ["a", ""]), write_lines(tmp_path / "r", ["", "a"])
        )


def test_what_a_task_cannot_measure_is_one_sentence(tmp_path: Path) -> None:
    config = transformers.WhisperConfig(
        vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=8,
        decoder_attention_heads=2, decoder_ffn_dim=8, max_target_positions=32, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=3,
    )  # fmt: skip
    transformers.WhisperForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="cannot be measured"):
        evaluate(regard.load(tmp_path), tmp_path / "x.csv")
    (tmp_path / "gpt").mkdir()
    gpt2(tmp_path / "gpt")
    (tmp_path / "text").write_text("the cat")
    with pytest.raises(ConfigError, match="measured on --source alone, without --reference"):
        evaluate(regard.load(tmp_path / "gpt"), tmp_path / "text", tmp_path / "text")
    (tmp_path / "t5").mkdir()
    t5(tmp_path / "t5")
    with pytest.raises(ConfigError, match="is measured against --reference"):
        evaluate(regard.load(tmp_path / "t5"), tmp_path / "text")


TRAINING = {
    "max_steps": 2, "evaluate_every": 2, "warmup": 1, "batch_tokens": 1600, "label_smoothing": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def transcriber(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("sounds")
    config = {
        "task": "transcribe",
        "files": {"layout": "an4", "files": str(made_sounds(folder / "an4")), "group": "speaker", "dev_share": 0.3,
                  "lower": True},
        "tokenizer": {"kind": "characters", "vocabulary": 40},
        "model": {"kind": "transformer", "width": 16, "heads": 2, "ffn_width": 24, "encoder_layers": 1,
                  "decoder_layers": 1, "source_encoder": {"kind": "sound", "channels": 4, "width": 16}},
        "training": TRAINING | {"metric": "wer"},
    }  # fmt: skip
    return experiment.train(config, run=folder / "run").model


def test_transcripts_are_measured_on_a_table(transcriber: Any, tmp_path: Path) -> None:
    rows = [("a.wav", "yes no"), ("b.wav", "go")]
    for name, text in rows:
        samples = np.concatenate([tone(word) for word in text.split()])
        soundfile.write(tmp_path / name, samples, 16_000)
    for table, text in {
        "t.csv": "file,text\n" + "".join(f"{a},{b}\n" for a, b in rows),
        "t.tsv": "text\tfile_name\n" + "".join(f"{b}\t{a}\n" for a, b in rows),
        "t.jsonl": "".join(json.dumps({"audio": a, "sentence": b}) + "\n" for a, b in rows) + "\n",
    }.items():
        (tmp_path / table).write_text(text)
        numbers, outputs = evaluate(transcriber, tmp_path / table, beam=1)
        assert outputs == [" ".join(transcriber(tmp_path / name, beam=1).text.split()) for name, _ in rows]
        assert numbers["tokens"] == sum(len(text) + 1 for _, text in rows)
        assert {"loss", "perplexity", "exact", "wer", "bleu"} <= numbers.keys()
        (tmp_path / table).unlink()
    tokenizer, total = transcriber.tokenizer, 0.0
    for name, text in rows:  # an independent loss, one recording at a time through the module itself
        features = transcriber.read(tmp_path / name).features if not transcriber.hears else None
        if features is None:
            from regard.data.sound import log_mel, read_sound

            features = log_mel(read_sound(tmp_path / name), transcriber.encoder_config.bands)
        goal = [*tokenizer.encode(text), tokenizer.eos]
        with torch.inference_mode():
            logits = transcriber.model(
                features[None], torch.tensor([[tokenizer.bos, *goal[:-1]]]), torch.ones(1, features.shape[1]).bool()
            )
        total += float(cross_entropy(logits[0], torch.tensor(goal), reduction="sum"))
    assert numbers["loss"] == pytest.approx(total / numbers["tokens"], rel=1e-4)


def test_folders_of_several_layouts(transcriber: Any, tmp_path: Path) -> None:
    numbers, outputs = evaluate(transcriber, made_sounds(tmp_path / "an4"), beam=1)
    assert numbers["examples"] == len(outputs) == 30
    digits, beside, nothing = (tmp_path / name for name in ("digits", "beside", "nothing"))
    for folder in (digits, beside, nothing):
        folder.mkdir()
    soundfile.write(digits / "7_theo_3.wav", tone("go"), 16_000)
    soundfile.write(beside / "one.wav", tone("go"), 16_000)
    (beside / "one.txt").write_text("go\n")
    for folder in (digits, beside):
        assert evaluate(transcriber, folder, beam=1)[0]["examples"] == 1
    with pytest.raises(DataError, match="there is nothing to measure"):
        evaluate(transcriber, nothing)
    with pytest.raises(DataError, match="no such file"):
        evaluate(transcriber, tmp_path / "nowhere.csv")
    (tmp_path / "t.csv").write_text("file,words\na.wav,yes\n")
    with pytest.raises(DataError, match=r"t.csv:2: no column 'text': there are file, words"):
        evaluate(transcriber, tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("file,text\na.wav,\n")
    with pytest.raises(DataError, match=r"t.csv:2: the text is empty"):
        evaluate(transcriber, tmp_path / "t.csv")
    with pytest.raises(ConfigError, match="no --reference"):
        evaluate(transcriber, tmp_path / "t.csv", tmp_path / "t.csv")


def test_captions_are_measured(tmp_path: Path) -> None:
    folder = made_table(tmp_path / "set")
    config = {
        "task": "caption",
        "files": {"table": str(folder / "captions.csv.gz"), "files": str(folder / "images"), "file": "image",
                  "text": "caption", "dev_share": 0.3},
        "tokenizer": {"kind": "words", "vocabulary": 40},
        "model": {"kind": "recurrent", "width": 16, "embedding": 8, "score_width": 6,
                  "source_encoder": {"kind": "grid", "size": 32, "first": 8, "channels": [16], "width": 16}},
        "training": TRAINING | {"metric": "exact"},
    }  # fmt: skip
    model = experiment.train(config, run=tmp_path / "run").model
    (folder / "images" / "metadata.csv").write_text("file_name,text\n0.png,it is red\n1.png,it is green\n")
    numbers, outputs = evaluate(model, folder / "images", beam=1)
    assert numbers["tokens"] == 8
    assert outputs == [
        " ".join(g.text.split()) for g in model([folder / "images" / f"{n}.png" for n in (0, 1)], beam=1)
    ]


def test_answers_are_measured(tmp_path: Path) -> None:
    rows = ["file,question,answer"]
    for number in range(6):
        colour = ("red", "blue")[number % 2]
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,what colour is it?,{colour}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    config = {
        "task": "answer",
        "questions": {"table": str(tmp_path / "t.csv"), "files": str(tmp_path), "dev_share": 0.2},
        "tokenizer": {"kind": "words", "vocabulary": 40},
        "model": {"kind": "stacked", "embedding": 12, "score_width": 8,
                  "source_encoder": {"kind": "grid", "size": 32, "first": 8, "channels": [16], "width": 24}},
        "training": TRAINING | {"metric": "exact"},
    }  # fmt: skip
    model = experiment.train(config, run=tmp_path / "run").model
    (tmp_path / "u.csv").write_text("\n".join([*rows, "0.png,is it round?,perhaps"]))
    numbers, outputs = evaluate(model, tmp_path / "u.csv")
    assert outputs == [model(tmp_path / r.split(",")[0], r.split(",")[1]).text for r in rows[1:]] + [outputs[-1]]
    right = sum(a == r.split(",")[2] for a, r in zip(outputs, rows[1:], strict=False))
    assert numbers["accuracy"] == pytest.approx(100 * right / 7)
    assert (numbers["tokens"], numbers["examples"]) == (6, 7)
    assert numbers["unknown"] == pytest.approx(100 / 7)
    (tmp_path / "u.csv").write_text("file,question,answer\n")
    with pytest.raises(DataError, match="there is nothing to measure"):
        evaluate(model, tmp_path / "u.csv")


def test_every_task_has_its_line() -> None:
    from typing import get_args

    from regard.tasks.config import REQUIREMENTS, ExperimentConfig

    assert TASKS.keys() == REQUIREMENTS.keys() == set(get_args(ExperimentConfig.model_fields["task"].annotation))
