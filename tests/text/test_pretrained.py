"""Tokenizers of folders, as transformers reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizers import models, processors

from regard.errors import BundleError
from regard.text.pretrained import Pieces, read_tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "日", "本", "日本"]


def bert(folder: Path, settings: dict[str, Any], added: dict[str, int] | None = None) -> Any:
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if added is not None:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    return read_tokenizer(folder, "bert", {}, 100)


def test_added_tokens_and_characters_of_chinese(tmp_path: Path) -> None:
    own = bert(tmp_path, {"tokenize_chinese_chars": False}, {"<|user|>": 9})
    assert own.encode("hello <|user|> 日本") == [5, 9, 8]
    assert bert(tmp_path, {}).encode("日本") == [6, 7]
    with pytest.raises(BundleError, match="has the number 12; expected 9"):
        bert(tmp_path, {}, {"<|user|>": 12})
    with pytest.raises(BundleError, match="word_tokenizer_type = 'mecab': regard cannot cut words by it"):
        bert(tmp_path, {"word_tokenizer_type": "mecab"})


def test_a_special_token_may_have_the_number_0(tmp_path: Path) -> None:
    letters = sorted({*"Paristh", "Ġ"})
    names = ["<s>", "<pad>", "</s>", "<unk>", *letters, "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({name: n for n, name in enumerate(names)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    own = read_tokenizer(tmp_path, "roberta", {}, 100)
    theirs = transformers.RobertaTokenizerFast.from_pretrained(tmp_path)
    ids = theirs("Paris is this")["input_ids"]
    assert own.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert own.encode("<s>Paris")[0] == 0


@pytest.mark.parametrize("template", [None, "<s> $A"])
def test_a_text_begins_with_bos_where_the_template_says_so(tmp_path: Path, template: str | None) -> None:
    inner = tokenizers.Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2, "<unk>": 3}, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if template:
        inner.post_processor = processors.TemplateProcessing(template, special_tokens=[("<s>", 0)])
    inner.save(str(tmp_path / "tokenizer.json"))
    for named in (0, 2):  # a config's own BOS is of texts that are empty, where the template says another
        own = read_tokenizer(tmp_path, "llama", {"bos": named}, 100)
        assert own.begins == (template is not None)
        assert own.bos == (0 if template else named)
        assert own.encode("a b") == [1, 2]
    assert read_tokenizer(tmp_path, "marian", {"bos": 0, "start": 2}, 100).bos == 2


def test_the_target_language_of_marian_is_a_token() -> None:
    made = Pieces.__new__(Pieces)
    made._ids = {">>fr<<": 7, "<unk>": 1}
    assert made._cut(">>fr<< hello") == ([7], " hello")
    assert made._cut(">>de<< hello") == ([], ">>de<< hello")
    assert made._cut("hello") == ([], "hello")
