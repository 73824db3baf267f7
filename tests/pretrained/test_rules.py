"""What a folder says about generating: read from both files, refused by name where it cannot be followed."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

import regard
from regard.pretrained.folder import load_pretrained, save_pretrained
from regard.pretrained.rules import GenerationRules, read_rules

V = 60


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, eos_token_id=7
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def say(folder: Path, values: dict[str, Any] | None) -> Path:
    path = folder / "generation_config.json"
    path.unlink(missing_ok=True)
    if values is not None:
        path.write_text(json.dumps(values), "utf-8")
    return folder


def test_several_tokens_may_end_a_text(llama: Path) -> None:
    found = load_pretrained(say(llama, {"eos_token_id": [2, 50, 2]}))
    assert (found.rules.ends, found.ids["eos"]) == ((2, 50), 2)
    assert regard.load(str(llama)).tokenizer.eos == 2
    assert regard.load(str(llama)).bundle.rules.ends == (2, 50)


def test_config_json_counts_where_generation_config_json_is_silent(llama: Path) -> None:
    assert load_pretrained(say(llama, None)).rules == GenerationRules(ends=(7,))
    assert load_pretrained(say(llama, {"temperature": 0.5})).rules == GenerationRules(ends=(7,))
    found = load_pretrained(say(llama, {"eos_token_id": None}))
    assert (found.rules, "eos" in found.ids) == (GenerationRules(), False)


def test_every_rule_is_read(llama: Path) -> None:
    values = {
        "eos_token_id": 3, "suppress_tokens": [5, 6, 999], "begin_suppress_tokens": [8], "forced_bos_token_id": 9,
        "forced_eos_token_id": [3], "bad_words_ids": [[11], [12, 13], [3], [14, 999]],
    }  # fmt: skip
    want = GenerationRules((3,), (5, 6), (8,), 9, 3, ((11,), (12, 13)))
    found = load_pretrained(say(llama, values))
    assert found.rules == want
    assert read_rules(want.as_json(), {}, V, "") == want


def test_rules_are_written_and_transformers_reads_them(llama: Path, tmp_path: Path) -> None:
    rules = GenerationRules((2, 50), (5,), (8,), 9, 2, ((12, 13),))
    found = load_pretrained(say(llama, rules.as_json()))
    save_pretrained(tmp_path, found.model, found.config, found.ids, found.rules)
    assert load_pretrained(tmp_path).rules == rules
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.suppress_tokens, theirs.begin_suppress_tokens) == ([2, 50], [5], [8])
    assert (theirs.forced_bos_token_id, theirs.forced_eos_token_id, theirs.bad_words_ids) == (9, 2, [[12, 13]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eos_token_id": "</s>"}, "eos_token_id = '</s>' cannot be read: expected a token id or a list of them"),
        ({"suppress_tokens": [-1]}, r"suppress_tokens = \[-1\] cannot be read"),
        ({"begin_suppress_tokens": [True]}, "begin_suppress_tokens = "),
        ({"forced_bos_token_id": V}, "forced_bos_token_id = 60 cannot be read: the model has 60 tokens"),
        ({"forced_eos_token_id": [1, 2]}, r"forced_eos_token_id = \[1, 2\] cannot be read: expected one token id"),
        ({"bad_words_ids": [5]}, r"bad_words_ids = \[5\] cannot be read: expected a list of lists of token ids"),
        ({"bad_words_ids": [[]]}, r"bad_words_ids = \[\[\]\] cannot be read"),
        ({"sequence_bias": [[[5], -1.0]]}, "sequence_bias = .* cannot be read: regard cannot generate by it"),
        ({"force_words_ids": [[5]]}, "force_words_ids = "),
        ({"forced_decoder_ids": [[1, 5]]}, "forced_decoder_ids = .*: only forced_bos_token_id can be followed"),
        ({"exponential_decay_length_penalty": [5, 1.1]}, "exponential_decay_length_penalty = "),
        ({"encoder_repetition_penalty": 1.2}, "encoder_repetition_penalty = 1.2 cannot be read"),
        ({"encoder_no_repeat_ngram_size": 2}, "encoder_no_repeat_ngram_size = 2 cannot be read"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(llama: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(regard.BundleError, match=message):
        load_pretrained(say(llama, values))


def test_neutral_values_are_no_rules(llama: Path) -> None:
    neutral = {
        "eos_token_id": 7, "suppress_tokens": None, "begin_suppress_tokens": [], "forced_bos_token_id": None,
        "bad_words_ids": None, "sequence_bias": None, "force_words_ids": None, "guidance_scale": 1.0,
        "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0,
    }  # fmt: skip
    assert load_pretrained(say(llama, neutral)).rules == GenerationRules(ends=(7,))


def test_an_encoder_has_no_rules(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=V, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    assert load_pretrained(tmp_path).rules == GenerationRules()


def test_an_exported_model_keeps_its_rules(llama: Path, tmp_path: Path) -> None:
    from regard.export.folder import export_bundle

    say(llama, {"eos_token_id": [3, 50], "suppress_tokens": [5], "bad_words_ids": [[12, 13]]})
    loaded = regard.load(str(llama))
    export_bundle(loaded, tmp_path / "out", "float32", "hf")
    assert regard.load(str(tmp_path / "out")).bundle.rules == loaded.bundle.rules
