"""Tokenisers: what goes in comes out, but for what `loses` says; and every token knows where it stands."""

import copy
import json
import pickle
import random
import re
import unicodedata
from functools import cache

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from regard.errors import BundleError, RegardError
from regard.text.tokenizer import (
    BOS,
    EOS,
    PAD,
    SPECIALS,
    UNK,
    Tokenizer,
    TokenizerConfig,
    _in_order,
    word_of_each,
    words,
)

KINDS = ["bytes", "characters", "words", "bpe", "byte_bpe", "unigram"]
CORPUS = [
    "le chat noir dort .", "la vache est là !", "Tom a vu le chat .", "qu' est - ce que c' est ?",
    "il n' y a rien , rien du tout .", "le chat a vu la vache .",
] * 3  # fmt: skip
SCRIPTS = [
    "the black cat", "l'homme qu'il a vu aujourd'hui", "Vraiment\u202f? Oui\u202f!", "«\u00a0Là\u00a0», dit-il.",
    "我 喜欢 猫。", "日本語の文 です", "한국어 문장 입니다", "القط الأسود ينام", "חתול שחור", "काली बिल्ली सोती है",
    "แมวดำ นอน", "черный кот спит", "👩‍👩‍👧 is 🧑🏽‍🚀 here 🇫🇷", "x² + y² ≤ 1", "e\u0301te\u0301 naı\u0308ve", "a\tb\nc",
    " two  spaces ", "one", "3,14 €", "a\u2028b c",
]  # fmt: skip


@cache
def learned(kind, nfc=True, corpus=tuple(CORPUS), vocabulary=400):
    return Tokenizer.learn(corpus, TokenizerConfig(kind=kind, vocabulary=vocabulary, nfc=nfc))


@cache
def of_all_scripts(kind, nfc=True):
    return learned(kind, nfc, corpus=tuple(SCRIPTS * 2), vocabulary=2000)


def round_trip(tokenizer, text):
    return tokenizer.decode(tokenizer.encode(text))


@pytest.mark.parametrize("kind", ["bytes", "byte_bpe"])
@settings(deadline=None, max_examples=150)
@given(text=st.text())
@example("a\0b")
@example("a\u2028b\u2029c\x85d\x0be\r\nf")
@example("e\u0301 \u0301\u0301 A\u030a")
@example("</s> <pad><s><unk> <|endoftext|>")
@example("  \u202f ▁ \u00a0 Ġ ")
@example("\ufeff\uffff\U0010ffff")
@example("")
def test_bytes_keep_everything(kind, text):
    tokenizer = learned(kind, nfc=False)
    assert tokenizer.loses == ""
    assert round_trip(tokenizer, text) == text
    assert not {PAD, BOS, EOS, UNK} & set(tokenizer.encode(text))


@pytest.mark.parametrize("kind", ["bytes", "byte_bpe"])
@settings(deadline=None, max_examples=100)
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cn"])))  # other versions of Unicode name more letters
@example("e\u0301")
@example("\u212b \uf900")
def test_nfc_composes_and_nothing_else(kind, text):
    tokenizer = learned(kind, nfc=True)
    assert tokenizer.loses == "Characters are composed (NFC)."
    assert round_trip(tokenizer, text) == unicodedata.normalize("NFC", text)


SEEN = sorted(set("".join(CORPUS)))


@settings(deadline=None, max_examples=100)
@given(text=st.text(st.sampled_from(SEEN)))
def test_characters_keep_what_they_have_seen(text):
    assert round_trip(learned("characters", nfc=False), text) == text


@settings(deadline=None, max_examples=100)
@given(text=st.text())
@example("a\r\nb")
def test_characters_lose_what_they_have_not_seen(text):
    tokenizer = learned("characters", nfc=False)
    assert tokenizer.loses == "Characters never seen in training become unknown."
    assert [i == UNK for i in tokenizer.encode(text)] == [letter not in SEEN for letter in text]
    assert round_trip(tokenizer, text) == "".join(letter for letter in text if letter in SEEN)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@settings(deadline=None, max_examples=100)
@given(text=st.text(st.sampled_from(SEEN)))
def test_subwords_keep_what_they_have_seen_but_spaces_at_the_start(kind, text):
    tokenizer = learned(kind, nfc=False)
    assert "spaces at the start vanish" in tokenizer.loses
    assert round_trip(tokenizer, text).lstrip(" ") == text.lstrip(" ")
    if not text.startswith(" "):
        assert round_trip(tokenizer, text) == text


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_subwords_make_a_space_of_the_mark(kind):
    assert "▁ becomes a space" in learned(kind).loses
    assert round_trip(learned(kind), "le▁chat") == "le chat"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_subwords_do_not_know_strange_letters(kind):
    tokenizer = learned(kind)
    assert "never seen in training become unknown" in tokenizer.loses
    assert UNK in tokenizer.encode("le 猫")
    assert round_trip(tokenizer, "le 猫").strip() == "le"


def test_characters_that_unigram_has_left_out_are_in_one_order_around_learned_ones():
    def pieces(order):
        given = [("<unk>", 0.0), ("le", -3.0), ("x", -8.99985)]  # a learned character between those left out
        return given + [(piece, -9.0 + step * 1e-4) for step, piece in enumerate(order)]

    found = []
    for order in ("abcde", "edcba", "cabed"):
        inner = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces(order), 0, False))
        found.append(_in_order(inner, 1).to_str())
    assert found[0] == found[1] == found[2]
    assert sorted(piece for piece, _ in json.loads(found[0])["model"]["vocab"][1:]) == sorted(["le", *"abcdex"])


@settings(deadline=None, max_examples=100)
@given(parts=st.lists(st.tuples(st.sampled_from(" ".join(CORPUS).split()), st.sampled_from([" ", "  ", "\t"]))))
def test_words_keep_words_with_single_spaces(parts):
    tokenizer = learned("words", nfc=False)
    assert "every run of spaces becomes one" in tokenizer.loses
    text = "".join(word + space for word, space in parts)
    pieces = re.findall(r"\w+|[^\w\s]", text)  # spaces stand around punctuation too
    assert round_trip(tokenizer, text) == " ".join(pieces)


def test_words_do_not_know_strange_words():
    tokenizer = learned("words")
    assert "Words never seen in training become unknown" in tokenizer.loses
    assert tokenizer.encode("le chien noir")[1] == UNK
    assert UNK not in tokenizer.encode("le chat noir")


@pytest.mark.parametrize("kind", ["bpe", "unigram", "characters"])
def test_every_letter_of_a_large_alphabet_is_known(kind):
    letters = [chr(0x4E00 + n) for n in range(600)]
    tokenizer = Tokenizer.learn(["".join(letters[i : i + 10]) for i in range(0, 600, 10)], TokenizerConfig(kind=kind))
    assert all(round_trip(tokenizer, letter) == letter for letter in letters)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["</s>", "a <pad> b", "<s><unk></s>"])
def test_a_text_that_names_special_tokens_is_text(kind, text):
    tokenizer = learned(kind, corpus=(*CORPUS, text), nfc=False)
    ids = tokenizer.encode(text)
    assert not {PAD, BOS, EOS, UNK} & set(ids)
    assert tokenizer.encode_batch([text]) == [ids]
    assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_have_their_numbers_and_vanish(kind):
    tokenizer = learned(kind)
    assert tokenizer.kind == kind
    assert tokenizer.tokens([PAD, BOS, EOS, UNK]) == SPECIALS == ["<pad>", "<s>", "</s>", "<unk>"]
    ids = tokenizer.encode("le chat")
    assert tokenizer.decode([BOS, *ids, EOS, PAD, PAD]) == tokenizer.decode(ids)
    assert tokenizer.decode([PAD, BOS, EOS, UNK]) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_beyond_the_vocabulary_is_unknown(kind):
    assert learned(kind).tokens([10**6]) == ["<unk>"]


@cache
def large_corpus():
    dice = random.Random(0)
    return [
        " ".join("".join(dice.choices("abcdefghijklmnopqrst", k=dice.randrange(2, 8))) for _ in range(12))
        for _ in range(120)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocabulary", [50, 270, 600])
def test_vocabulary_size_is_respected(kind, vocabulary):
    tokenizer = Tokenizer.learn(large_corpus(), TokenizerConfig(kind=kind, vocabulary=vocabulary))
    if kind in ("bytes", "byte_bpe"):  # 256 bytes and the special tokens are the least
        vocabulary = 260 if kind == "bytes" else max(260, vocabulary)
    assert len(tokenizer) == (4 + 20 + 1 if kind == "characters" else vocabulary)
    assert all(0 <= i < len(tokenizer) for text in large_corpus() for i in tokenizer.encode(text))


@pytest.mark.parametrize("kind", ["characters", "words", "bpe", "unigram"])
def test_a_vocabulary_too_small_for_the_letters_is_respected_or_refused(kind):
    try:
        assert len(Tokenizer.learn(CORPUS, TokenizerConfig(kind=kind, vocabulary=9))) <= 9
    except RegardError as error:
        assert "vocabulary" in str(error)  # noqa: PT017 (both are fine)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("corpus", [(), ("",), ("a",)])
def test_learning_from_next_to_nothing(kind, corpus):
    tokenizer = Tokenizer.learn(corpus, TokenizerConfig(kind=kind))
    assert len(tokenizer) >= len(SPECIALS)
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_merges_are_learned():
    assert learned("bpe").tokens(learned("bpe").encode("le chat")) == ["▁le", "▁chat"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_text_and_many_are_encoded_alike(kind):
    tokenizer = of_all_scripts(kind)
    assert tokenizer.encode_batch(SCRIPTS) == [tokenizer.encode(text) for text in SCRIPTS]
    assert tokenizer.encode_spans(SCRIPTS) == [tokenizer.source_spans(text) for text in SCRIPTS]
    assert tokenizer.encode_batch([]) == tokenizer.encode_spans([]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_learned_twice_are_the_same(kind, tmp_path):
    config = TokenizerConfig(kind=kind, vocabulary=90)
    one, two = (Tokenizer.learn(CORPUS, config) for _ in range(2))
    assert one.tokens(range(len(one))) == two.tokens(range(len(two)))
    assert one.identity() == two.identity()
    one.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json", config).identity() == one.identity()


# where tokens stand


@settings(deadline=None, max_examples=100)
@given(text=st.text() | st.text(st.sampled_from("ab \t\n\x1c\u00a0\u2028\u202f'é猫")))
def test_words_are_those_of_split(text):
    assert [text[a:b] for a, b in words(text)] == text.split()


@settings(deadline=None, max_examples=100)
@given(text=st.text(st.sampled_from("ab \u202f'猫"), max_size=12), data=st.data())
def test_word_of_each_against_a_plain_loop(text, data):
    place = st.integers(0, len(text))
    spans = [tuple(sorted(pair)) for pair in data.draw(st.lists(st.tuples(place, place)))]
    owner, word, inside = [], -1, False
    for letter in text:
        word, inside = word + (not letter.isspace() and not inside), not letter.isspace()
        owner.append(word if inside else None)
    expected = []
    for a, b in spans:
        letters = range(a, b) if a < b else range(max(0, a - 1), b)
        expected.append(next((owner[i] for i in letters if owner[i] is not None), None))
    assert word_of_each(spans, text) == expected


def by_word(tokenizer, ids, owners, count):
    return [tokenizer.decode([i for i, o in zip(ids, owners, strict=True) if o == n]).strip() for n in range(count)]


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe", "byte_bpe", "unigram"])
@pytest.mark.parametrize("text", SCRIPTS, ids=ascii)
@pytest.mark.parametrize("nfc", [True, False])
def test_the_tokens_of_a_word_spell_it(kind, text, nfc):
    tokenizer = of_all_scripts(kind, nfc)
    ids = tokenizer.encode(text)
    source = word_of_each(tokenizer.source_spans(text), text)
    expected = [unicodedata.normalize("NFC", word) if nfc else word for word in text.split()]
    assert by_word(tokenizer, ids, source, len(text.split())) == expected
    decoded = tokenizer.decode(ids)
    target = word_of_each(tokenizer.target_spans(ids), decoded)
    assert by_word(tokenizer, ids, target, len(decoded.split())) == decoded.split() == expected


@pytest.mark.parametrize("text", ["le chat noir", "Là , dit - il", "le   chat"])
def test_words_stand_where_they_stand(text):
    tokenizer = learned("words", corpus=(*CORPUS, text))
    assert [text[a:b] for a, b in tokenizer.source_spans(text)] == text.split()
    ids = tokenizer.encode(text)
    decoded = tokenizer.decode(ids)
    assert [decoded[a:b].strip() for a, b in tokenizer.target_spans(ids)] == text.split()


@pytest.mark.parametrize("kind", KINDS)
def test_spaces_belong_to_no_word(kind):
    tokenizer = learned(kind, corpus=(*CORPUS, "a\u202f! b"))
    text = "le\u202f! a"
    spans = tokenizer.source_spans(text)
    for (a, b), word in zip(spans, word_of_each(spans, text), strict=True):
        assert (word is None) == (not text[a:b].strip())
    assert {word for word in word_of_each(spans, text) if word is not None} == {0, 1, 2}


@pytest.mark.parametrize("kind", ["bytes", "characters", "words", "bpe", "byte_bpe", "unigram"])
def test_no_token_is_of_two_words(kind):
    text = "日本\u3000語が\u3000好き"  # the spaces of Japanese
    tokenizer = Tokenizer.learn([text] * 5, TokenizerConfig(kind=kind))
    assert all(len(text[a:b].split()) <= 1 for a, b in tokenizer.source_spans(text))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_target_spans_tile_the_output_whatever_was_produced(kind, data):
    tokenizer = of_all_scripts(kind)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
    spans, length = tokenizer.target_spans(ids), len(tokenizer.decode(ids))
    assert len(spans) == len(ids)
    assert all(0 <= a <= b for a, b in spans)
    assert max((b for _, b in spans), default=0) == length


def test_target_spans_by_hand():
    tokenizer = learned("bpe")
    ids = tokenizer.encode("le chat .")
    assert tokenizer.tokens(ids) == ["▁le", "▁chat", "▁", "."]  # punctuation is cut off
    assert tokenizer.target_spans(ids) == [(0, 2), (2, 7), (7, 8), (8, 9)]
    assert tokenizer.target_spans([]) == []


# on the disk


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nfc", [True, False])
def test_save_and_load(kind, nfc, tmp_path):
    tokenizer = of_all_scripts(kind, nfc)
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json", tokenizer.config)
    assert (len(loaded), loaded.kind, loaded.loses) == (len(tokenizer), kind, tokenizer.loses)
    assert loaded.tokens(range(len(loaded))) == tokenizer.tokens(range(len(tokenizer)))
    for text in [*SCRIPTS, "</s> <pad>", "\0 never seen \U0001f47d"]:
        ids = tokenizer.encode(text)
        assert loaded.encode(text) == ids
        assert loaded.decode(ids) == tokenizer.decode(ids)
        assert loaded.source_spans(text) == tokenizer.source_spans(text)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-9], lambda raw: b"", lambda raw: b"{}", lambda raw: b"\xff" + raw]
)
def test_a_damaged_file_is_refused(damage, tmp_path):
    path = tmp_path / "tokenizer.json"
    learned("bpe").save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BundleError, match=r"tokenizer\.json( is not a tokenizer file|: damaged: .*can't decode)"):
        Tokenizer.load(path, TokenizerConfig())


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"none\.json: no such file"):
        Tokenizer.load(tmp_path / "none.json", TokenizerConfig())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_reads_the_names_of_special_tokens_as_text(again):
    for kind in ("bpe", "byte_bpe", "unigram"):
        made = learned(kind)
        assert EOS not in made.encode("le </s> chat")
        assert again(made).encode("le </s> chat") == made.encode("le </s> chat")
        assert again(again(made)).encode("le </s> chat") == made.encode("le </s> chat")


def test_characters_that_training_leaves_out_have_one_order():
    letters = [chr(0x4E00 + n) for n in range(300)]
    texts = [" ".join(letters[n : n + 3] + ["".join(letters[n : n + 2])] * 2) for n in range(0, 300, 3)]
    config = TokenizerConfig(kind="unigram", vocabulary=500)
    one, two, three = (Tokenizer.learn(texts, config) for _ in range(3))
    assert one.identity() == two.identity() == three.identity()
    assert len({one.encode(letter)[-1] for letter in letters}) == 300
