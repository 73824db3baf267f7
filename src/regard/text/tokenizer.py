"""Tokenizers, learned from training data only: bytes, characters, words, BPE, unigram (`tokenizers` underneath).

What a round trip `decode(encode(text))` keeps, by kind (`Tokenizer.loses` says it in a sentence):

| kind | keeps |
|---|---|
| bytes | everything, with nfc off |
| byte_bpe | everything, with nfc off |
| characters | everything but characters never seen in training |
| bpe, unigram | the same, and the mark ▁ (which becomes a space) and spaces at the start |
| words | words seen in training; spaces become one, and stand around punctuation too |
"""

import json
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import tokenizers
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from regard.arguments import check_arguments
from regard.errors import BundleError, ConfigError
from regard.storage import write_text, writing_to
from regard.text.protocol import Span as Span
from regard.text.tokenizer_file import read_tokenizer_json, refused

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>"]
FAILS = "the model's tokenizer fails on this text"
MASK = "<mask>"  # only of a masked language model


class TokenizerConfig(BaseModel):
    """Settings of the tokenizer."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["bytes", "characters", "words", "bpe", "byte_bpe", "unigram"] = "bpe"
    """What a token is; "bpe", "byte_bpe" and "unigram" learn pieces of words."""
    vocabulary: int = Field(8000, gt=4, le=2**24)
    """Number of tokens at most, special ones included; "bytes" always has 260."""
    nfc: bool = True
    """Compose characters first (Unicode NFC), so that é is one character however it was typed."""
    lower: bool = False
    """Lowercase all texts first, sources and targets alike; the model then writes no capitals."""
    digits: bool = False
    """Make every digit a token of its own (bpe, unigram, byte_bpe): the model then copies numbers digit by digit."""


class Tokenizer:
    """Text to ids and back. Ids of BOS, EOS, PAD and UNK are the module's constants.

    Attributes:
        kind: what a token is.
        loses: what decode(encode(text)) does not keep, as a sentence; empty where it keeps everything.
    """

    def __init__(self, inner: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
        inner.encode_special_tokens = True  # "</s>" within a text is no EOS
        self._inner = inner
        self._strings: dict[int, str] = {}  # of the tokens that were asked for
        self.config = config
        self.kind = config.kind
        losses = (
            _LOSSES[config.kind],
            "Characters are composed (NFC)." if config.nfc else "",
            "Capitals become small letters." if config.lower else "",
        )
        self.loses = " ".join(filter(None, losses))

    def __getstate__(self) -> dict[str, Any]:
        return {
            **vars(self),
            "encode_special_tokens": self._inner.encode_special_tokens,
        }  # which its own pickle forgets

    def __setstate__(self, state: dict[str, Any]) -> None:
        special = state.pop("encode_special_tokens", True)
        vars(self).update(state)
        self._inner.encode_special_tokens = special

    pad, bos, eos = PAD, BOS, EOS
    parses_specials = False

    @property
    def lowers(self) -> bool:
        """Whether texts are put in lower case, so that a model writes no capitals."""
        return self.config.lower

    @property
    def mask(self) -> int | None:
        """Id of the mask token; None where there is none."""
        found = self._inner.token_to_id(MASK)
        return None if found is None else int(found)

    def __len__(self) -> int:
        return int(self._inner.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS and EOS."""
        return list(self._encode(text).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, without BOS and EOS."""
        with refused(FAILS):
            return [list(e.ids) for e in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    encode_target, encode_target_batch = encode, encode_batch  # one vocabulary for both sides

    def marked(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids of a text between BOS and EOS, and the span of each in the text."""
        found = self._encode(text)
        return [BOS, *found.ids, EOS], [(0, 0), *found.offsets, (0, 0)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens are left out."""
        with refused("the model's tokenizer fails on these tokens"):
            return str(self._inner.decode([i for i in ids if i > UNK], skip_special_tokens=True))

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The tokens' own strings."""
        known = self._strings
        return [
            known[i] if i in known else known.setdefault(i, self._inner.id_to_token(i) or SPECIALS[UNK]) for i in ids
        ]

    def source_spans(self, text: str) -> list[Span]:
        """Span in `text` of each token of `encode(text)`, in characters."""
        return list(self._encode(text).offsets)

    def encode_spans(self, texts: Sequence[str]) -> list[list[Span]]:
        """`source_spans` of many texts."""
        with refused(FAILS):
            return [list(e.offsets) for e in self._inner.encode_batch(list(texts), add_special_tokens=False)]

    def _encode(self, text: str) -> Any:
        with refused(FAILS):
            return self._inner.encode(text, add_special_tokens=False)

    def target_spans(self, ids: Sequence[int]) -> list[Span]:
        """Span in `decode(ids)` of each token, in characters."""
        ends = [0, *(len(self.decode(ids[: n + 1])) for n in range(len(ids)))]
        return [(min(a, b), b) if i > UNK else (0, 0) for i, (a, b) in zip(ids, pairwise(ends), strict=True)]

    def merges(self) -> list[tuple[str, str]]:
        """The (left, right) tokens of every merge of a BPE, in the order in which they were learned; none of other
        kinds."""
        found = json.loads(self._inner.to_str())["model"].get("merges", [])
        return [(left, right) for left, right in (m.split(" ") if isinstance(m, str) else m for m in found)]

    def identity(self) -> tuple[object, ...]:
        """Vocabulary, merges, rules and special ids: tokenizers of one identity read and write every text alike."""
        return PAD, BOS, EOS, self._inner.to_str()

    @check_arguments
    def save(self, path: Path) -> None:
        """Write a `tokenizer.json` of the tokenizers library; the settings are stored separately."""
        with writing_to(path):
            write_text(path, self._inner.to_str(pretty=True))

    @classmethod
    @check_arguments
    def load(cls, path: Path, config: TokenizerConfig) -> "Tokenizer":
        """Load a tokenizer that `save` wrote.

        Raises:
            BundleError: the file is missing or is not a tokenizer.
        """
        inner = read_tokenizer_json(path)
        if any(inner.id_to_token(i) is None for i in range(inner.get_vocab_size())):
            raise BundleError(f"{path} is not a tokenizer file of regard: its tokens are not numbered 0, 1, 2, …")
        if [inner.id_to_token(i) for i in range(len(SPECIALS))] != SPECIALS:
            raise BundleError(f"{path} is not a tokenizer file of regard: its first tokens are not {SPECIALS}")
        return cls(inner, config)

    @classmethod
    def learn(cls, texts: Iterable[str], config: TokenizerConfig, mask: bool = False) -> "Tokenizer":
        """Learn a vocabulary from training texts; `mask` adds a mask token."""
        specials = [*SPECIALS, MASK] if mask else SPECIALS
        inner = tokenizers.Tokenizer(_model(config.kind, specials))
        inner.normalizer = _normalizer(config)
        inner.pre_tokenizer, inner.decoder = _splitter(config), _joiner(config.kind)
        trainer = _trainer(config, specials)
        if trainer is not None:
            try:
                inner.train_from_iterator(texts, trainer)
            except Exception as error:
                raise ConfigError(f"tokenizer.vocabulary = {config.vocabulary}: {error}") from error
        return cls(_in_order(inner, len(specials)) if config.kind == "unigram" else inner, config)


def _in_order(inner: tokenizers.Tokenizer, specials: int) -> tokenizers.Tokenizer:
    """The same pieces in one order, which training gives to equal scores at random.

    Characters that training has left out get the lowest scores, a fixed step apart, at random.
    """
    whole = json.loads(inner.to_str())
    pieces = whole["model"]["vocab"]
    learned = [(float(f"{score:.9g}"), piece) for piece, score in pieces[specials:]]
    lowest = min((score for score, _ in learned), default=0.0)
    steps = sorted((round((score - lowest) / 1e-4), score, piece) for score, piece in learned if len(piece) == 1)
    left_out: dict[str, float] = {}
    for step, score, piece in steps:
        if step > len(left_out):
            break
        if abs(score - lowest - step * 1e-4) > 1e-6:  # a learned one's lies between them
            continue
        left_out[piece] = score
    moved = dict(zip(sorted(left_out), sorted(left_out.values(), reverse=True), strict=True))
    ordered = sorted((-moved.get(piece, score), piece) for score, piece in learned)
    whole["model"]["vocab"] = pieces[:specials] + [[piece, -score] for score, piece in ordered]
    return tokenizers.Tokenizer.from_str(json.dumps(whole))


def words(text: str) -> list[Span]:
    """Spans of the words of `text.split()`."""
    return [match.span() for match in re.finditer(r"\S+", text)]


def word_of_each(spans: Sequence[Span], text: str) -> list[int | None]:
    """Index of the word of `text.split()` that each token belongs to; None for white space."""
    spans_of_words = words(text)
    starts = {index: number for number, (a, b) in enumerate(spans_of_words) for index in range(a, b)}
    found: list[int | None] = []
    for a, b in spans:
        if a == b:  # the later bytes of a character that began in an earlier token
            a = max(0, a - 1)
        found.append(next((starts[i] for i in range(a, b) if i in starts), None))
    return found


def tokens_of_words(owners: Sequence[int | None]) -> dict[int, list[int]]:
    """{word: indices of its tokens}, of what `word_of_each` returns.

    White space belongs to the word that follows, at the end to the last.
    """
    following = max((owner for owner in owners if owner is not None), default=None)
    found: dict[int, list[int]] = {}
    for index in reversed(range(len(owners))):
        own = owners[index]
        following = following if own is None else own
        if following is not None:
            found.setdefault(following, []).insert(0, index)
    return dict(sorted(found.items()))


_LOSSES = {
    "bytes": "",
    "byte_bpe": "",
    "characters": "Characters never seen in training become unknown.",
    "bpe": "Characters never seen in training become unknown; ▁ becomes a space; spaces at the start vanish.",
    "unigram": "Characters never seen in training become unknown; ▁ becomes a space; spaces at the start vanish.",
    "words": "Words never seen in training become unknown; every run of spaces becomes one.",
}


def _normalizer(config: TokenizerConfig) -> normalizers.Normalizer | None:
    steps: list[normalizers.Normalizer] = [normalizers.NFC()] if config.nfc else []
    steps += [normalizers.Lowercase()] if config.lower else []
    return normalizers.Sequence(steps) if len(steps) > 1 else next(iter(steps), None)


def _model(kind: str, specials: list[str]) -> models.Model:
    match kind:
        case "bytes":
            alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
            return models.BPE(vocab={token: i for i, token in enumerate([*specials, *alphabet])}, merges=[])
        case "characters" | "words":
            return models.WordLevel(unk_token=SPECIALS[UNK])
        case "unigram":
            return models.Unigram()
        case _:
            return models.BPE(unk_token=SPECIALS[UNK])


def _splitter(config: TokenizerConfig) -> pre_tokenizers.PreTokenizer:
    splitter = _kind_splitter(config.kind)
    if not config.digits:
        return splitter
    return pre_tokenizers.Sequence([splitter, pre_tokenizers.Digits(individual_digits=True)])


def _kind_splitter(kind: str) -> pre_tokenizers.PreTokenizer:
    match kind:
        case "bytes":
            return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        case "byte_bpe":
            return pre_tokenizers.ByteLevel(add_prefix_space=False)
        case "characters":
            return pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        case "words":
            return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
        case _:
            # French narrow spaces stand before ? ! : ; and belong to no word
            narrow = pre_tokenizers.Split(Regex(r"\s"), "isolated")
            return pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), narrow, pre_tokenizers.Punctuation()])


def _joiner(kind: str) -> decoders.Decoder:
    match kind:
        case "bytes" | "byte_bpe":
            return decoders.ByteLevel()
        case "characters":
            return decoders.Fuse()
        case "words":
            return decoders.WordPiece(prefix=" ", cleanup=False)
        case _:
            return decoders.Metaspace()


def _trainer(config: TokenizerConfig, specials: list[str]) -> trainers.Trainer | None:
    common: dict[str, Any] = {"vocab_size": config.vocabulary, "special_tokens": specials, "show_progress": False}
    match config.kind:
        case "bytes":
            return None
        case "characters" | "words":
            return trainers.WordLevelTrainer(**common)
        case "unigram":
            return trainers.UnigramTrainer(**common, unk_token=SPECIALS[UNK])
        case "byte_bpe":
            return trainers.BpeTrainer(**common, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        case _:
            return trainers.BpeTrainer(**common, limit_alphabet=max(1, config.vocabulary - len(specials)))
