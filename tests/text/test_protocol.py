"""Every tokenizer offers what pipelines rely on."""

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
    for name in ("encode", "encode_batch", "marked", "decode", "tokens", "source_spans", "target_spans", "__len__"):
        assert hasattr(Pieces, name)  # Marian's needs files to be made


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
