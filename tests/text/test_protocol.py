"""Every tokenizer offers what pipelines rely on."""

from pathlib import Path

import tokenizers

import regard
from regard.text.pretrained import Fast, Pieces
from regard.text.protocol import TextTokenizer
from regard.text.tokenizer import BOS, EOS, Tokenizer, TokenizerConfig


def test_ours_and_the_fast_ones_are_tokenizers() -> None:
    own = Tokenizer.learn(["le chat noir"] * 3, TokenizerConfig(kind="words", vocabulary=20))
    fast = Fast(tokenizers.Tokenizer(tokenizers.models.BPE()), {}, 97)
    for one in (own, fast, regard.load("fr-en").tokenizer):
        assert isinstance(one, TextTokenizer)
    for name in (
        "encode",
        "encode_batch",
        "marked",
        "decode",
        "tokens",
        "source_spans",
        "target_spans",
        "identity",
        "__len__",
    ):
        assert hasattr(Pieces, name)  # Marian's needs files to be made


def test_tokenizers_of_one_identity_read_alike_and_others_differ(tmp_path: Path) -> None:
    texts, config = ["le chat noir", "un chat blanc"] * 3, TokenizerConfig(vocabulary=31)
    own = Tokenizer.learn(texts, config)
    own.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json", config).identity() == own.identity()
    others = [{"vocabulary": 29}, {"vocabulary": 31, "lower": True}, {"vocabulary": 31, "kind": "unigram"}]
    found = [Tokenizer.learn(texts, TokenizerConfig(**one)).identity() for one in others]
    assert len({own.identity(), *found}) == 4
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"le": 0, "chat": 1}, unk_token="le"))
    assert Fast(inner, {"eos": 1}, 2).identity() != Fast(inner, {"eos": 0}, 2).identity()


def test_marked_is_the_text_between_its_specials() -> None:
    own = Tokenizer.learn(["le chat noir"] * 3, TokenizerConfig(kind="words", vocabulary=20))
    ids, spans = own.marked("le chat")
    assert ids == [BOS, *own.encode("le chat"), EOS]
    assert spans == [(0, 0), (0, 2), (3, 7), (0, 0)]
    assert own.marked("") == ([BOS, EOS], [(0, 0), (0, 0)])


def test_specials_are_parsed_where_it_says_so() -> None:
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[MASK]": 0, "le": 1, "[UNK]": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.add_special_tokens(["[MASK]"])
    fast = Fast(inner, {}, 97)
    assert fast.parses_specials
    assert fast.encode("le [MASK]") == [1, fast.mask]
    own = Tokenizer.learn(["le chat noir"] * 3, TokenizerConfig(kind="words", vocabulary=20), mask=True)
    assert not own.parses_specials
    assert own.mask not in own.encode("le <mask>")


def test_a_token_after_a_text_of_no_tokens_is_no_beginning() -> None:
    """The template is read from a text; where the tokenizer has none of its letters, it says nothing."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"</s>": 0, "А": 1, "<s>": 2}, merges=[]))
    inner.add_special_tokens(["</s>", "<s>"])
    inner.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    fast = Fast(inner, {"bos": 2, "eos": 0}, 3)
    assert (fast.bos, fast.begins) == (2, False)
    assert fast.marked("АА")[0] == [1, 1, 0]
