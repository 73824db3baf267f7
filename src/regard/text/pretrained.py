"""Tokenizers of folders: `tokenizer.json`, WordPiece's `vocab.txt`, GPT-2's `vocab.json` and `merges.txt`, Marian's.

A folder without tokenizer files loads too; then whatever needs text is refused.
"""

import json
import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece

from regard.errors import BundleError, shown
from regard.storage import write_bytes, write_text, writing_to
from regard.text.protocol import Span, unnamed
from regard.text.tokenizer_file import BYTES, read_tokenizer_json, read_vocabulary, refused
from regard.untrusted import file_size, named, read_object

SPM_BYTES = 2**22  # of a sentencepiece model; those of opus-mt have a fifth as many


class Nothing:
    """The tokenizer of a folder that has none: it has special ids, and refuses everything that needs text."""

    lowers = begins = False

    def __init__(self, folder: Path, ids: dict[str, int]) -> None:
        self._folder = folder
        self.pad, self.bos, self.eos, self.mask = (
            ids.get("pad", 0),
            ids.get("start", ids.get("bos")),
            ids.get("eos"),
            None,
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise BundleError(f"{self._folder} has no tokenizer files: this model takes and gives ids, not text")


class Spelled:
    """Base of the tokenizers of pretrained folders; its length is the number of the model's tokens, named or not."""

    mask: int | None = None
    lowers = parses_specials = begins = False

    def __init__(self, ids: dict[str, int], vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self.pad: int = ids.get("pad", 0)
        self.bos: int | None = ids.get("start", ids.get("bos"))
        self.eos: int | None = ids.get("eos")

    def __len__(self) -> int:
        return self._vocabulary

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens are left out."""
        raise NotImplementedError

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, without special tokens."""
        return [self.encode(text) for text in texts]

    def encode_target(self, text: str) -> list[int]:
        """Ids of a target text, without special tokens; those of a source, where both sides share one model."""
        return self.encode(text)

    def encode_target_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_target` of many texts."""
        return [self.encode_target(text) for text in texts]

    def target_spans(self, ids: Sequence[int]) -> list[Span]:
        """Span in `decode(ids)` of each token, in characters."""
        ends = [0, *(len(self.decode(ids[: n + 1])) for n in range(len(ids)))]
        return [(min(a, b), b) for a, b in pairwise(ends)]


class Fast(Spelled):
    """A tokenizer of the tokenizers library.

    Args:
        inner: built in bounds.
        ids: special tokens.
        vocabulary: number of the model's tokens; a text with others is refused.
    """

    parses_specials = True

    def __init__(self, inner: tokenizers.Tokenizer, ids: dict[str, int], vocabulary: int) -> None:
        super().__init__(ids, vocabulary)
        self._inner = inner
        self._begin("start" in ids)
        names = {token.content: i for i, token in inner.get_added_tokens_decoder().items() if token.special}
        self.mask = next((names[name] for name in ("[MASK]", "<mask>") if name in names), None)

    def _begin(self, given: bool) -> None:
        """Note whether a text begins with BOS by the tokenizer's own template, whose token it then is.

        Args:
            given: whether the model says what a decoder starts with; else a config's BOS is of texts that are empty.
        """
        try:
            plain, marked = (self._inner.encode("a", add_special_tokens=specials).ids for specials in (False, True))
        except BaseException as error:  # a panic of the library: the first text says it
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            return
        # where the tokenizer has no "a", the one token may be the last of a text
        begins = marked[1:] == plain and len(marked) > len(plain) and (bool(plain) or marked[0] != self.eos)
        if begins and marked[0] < self._vocabulary:
            self.bos = self.bos if given else marked[0]
            self.begins = marked[0] == self.bos

    def encode(self, text: str) -> list[int]:
        return list(self._encode(text, False).ids)

    def marked(self, text: str) -> tuple[list[int], list[Span]]:
        found = self._encode(text, True)
        return list(found.ids), list(found.offsets)

    def decode(self, ids: Iterable[int]) -> str:
        with refused("the model's tokenizer fails on these tokens"):
            return str(self._inner.decode(list(ids), skip_special_tokens=True))

    def tokens(self, ids: Iterable[int]) -> list[str]:
        return [self._inner.id_to_token(i) or unnamed(i) for i in ids]

    def source_spans(self, text: str) -> list[Span]:
        return list(self._encode(text, False).offsets)

    def _encode(self, text: str, specials: bool) -> Any:
        with refused("the model's tokenizer fails on this text"):
            found = self._inner.encode(text, add_special_tokens=specials)
        if max(found.ids, default=0) >= self._vocabulary:
            token, i = max(zip(found.tokens, found.ids, strict=True), key=lambda pair: pair[1])
            raise BundleError(
                f"the model's tokenizer gives {named(token)} the number {i}; the model has {self._vocabulary} tokens"
            )
        return found

    def identity(self) -> tuple[object, ...]:
        return self.pad, self.bos, self.eos, self._inner.to_str()

    def save(self, path: Path) -> None:
        with writing_to(path):
            write_text(path, self._inner.to_str(pretty=True))


class Pieces(Spelled):
    """Marian's two sentencepiece models, source and target, with a vocabulary of their own."""

    def __init__(self, folder: Path, ids: dict[str, int], vocabulary: int) -> None:
        super().__init__(ids, vocabulary)
        try:
            sentencepiece = import_module("sentencepiece")
        except ImportError as error:
            raise BundleError(f"{folder}: its tokenizer needs sentencepiece: pip install 'regard[marian]'") from error
        for side in ("source", "target"):
            if (size := file_size(folder / f"{side}.spm")) > SPM_BYTES:
                raise BundleError(f"{folder / f'{side}.spm'}: expected at most {SPM_BYTES:,} bytes; got {size:,}")
        read_vocabulary(folder / "vocab.json")
        self._source, self._target = (
            sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{side}.spm"))
            for side in ("source", "target")
        )
        self._ids: dict[str, int] = read_object(folder / "vocab.json", BYTES)
        most = max(vocabulary, 1)
        if not all(type(i) is int and 0 <= i < most for i in self._ids.values()):
            raise BundleError(f"{folder / 'vocab.json'}: expected the number of each token, below {most}")
        for name in ("<unk>", "</s>"):
            if name not in self._ids:
                raise BundleError(f"{folder / 'vocab.json'}: no token {name}, which every text may need")
        self._names = {i: name for name, i in self._ids.items()}
        self._special = {self._ids[name] for name in ("</s>", "<pad>", "<unk>") if name in self._ids}

    def encode(self, text: str) -> list[int]:
        code, rest = self._cut(text)
        return [*code, *(self._ids.get(piece, self._ids["<unk>"]) for piece in _pieces(self._source, rest))]

    def _cut(self, text: str) -> tuple[list[int], str]:
        """The target language's token where a text begins with one, and the rest: >>fr<< hello."""
        found = re.match(r">>[^<>\s]+<<", text)
        code = self._ids.get(found[0]) if found else None
        return ([], text) if found is None or code is None else ([code], text[found.end() :])

    def encode_target(self, text: str) -> list[int]:
        return [self._ids.get(piece, self._ids["<unk>"]) for piece in _pieces(self._target, text)]

    def marked(self, text: str) -> tuple[list[int], list[Span]]:
        return [*self.encode(text), self._ids["</s>"]], [*self.source_spans(text), (len(text), len(text))]

    def decode(self, ids: Iterable[int]) -> str:
        pieces = [self._names.get(i, "") for i in ids if i not in self._special]
        with refused("the model's tokenizer fails on these tokens"):
            return str(self._target.decode(pieces))

    def tokens(self, ids: Iterable[int]) -> list[str]:
        return [self._names.get(i, unnamed(i)) for i in ids]

    def save(self, folder: Path) -> None:
        """Write the files of a folder: `source.spm`, `target.spm` and `vocab.json`."""
        for name, side in (("source.spm", self._source), ("target.spm", self._target)):
            write_bytes(folder / name, side.serialized_model_proto())
        write_text(folder / "vocab.json", json.dumps(self._ids, ensure_ascii=False, indent=2) + "\n")

    def identity(self) -> tuple[object, ...]:
        sides = [side.serialized_model_proto() for side in (self._source, self._target)]
        return self.pad, self.bos, self.eos, *sides, *sorted(self._ids.items())

    def source_spans(self, text: str) -> list[Span]:
        code, rest = self._cut(text)
        place = len(text) - len(rest)
        spans: list[Span] = [(0, place)] * len(code)
        for piece in _pieces(self._source, rest):
            letters = piece.replace("▁", " ").strip()
            start = text.find(letters, place) if letters else place
            start = place if start < 0 else start  # sentencepiece has normalized the text
            place = min(len(text), start + len(letters))
            spans.append((start, place))
        return spans


def _pieces(model: Any, text: str) -> list[str]:
    """A text cut by a sentencepiece model."""
    with refused("the model's tokenizer fails on this text"):
        return list(model.encode(text, out_type=str))


def read_tokenizer(folder: Path, family: str, ids: dict[str, int], vocabulary: int) -> Any:
    """The `TextTokenizer` of a folder in the Hugging Face layout; where it has no files, one that only refuses.

    Args:
        folder: of unknown origin.
        family: its `model_type`.
        ids: special tokens.
        vocabulary: number of the model's tokens.

    Raises:
        BundleError: its files are damaged.
    """
    with refused(f"{folder}: its tokenizer files cannot be read"):
        if (folder / "source.spm").exists() and (folder / "vocab.json").exists():
            return Pieces(folder, ids, vocabulary)
        inner = _inner(folder, family)
    return Nothing(folder, ids) if inner is None else Fast(inner, ids, vocabulary)


def _inner(folder: Path, family: str) -> tokenizers.Tokenizer | None:
    if (folder / "tokenizer.json").exists():
        return read_tokenizer_json(folder / "tokenizer.json")
    if (folder / "vocab.txt").exists():
        return _word_piece(folder)
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return _byte_pairs(folder, family)
    return None


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_object(path) if path.exists() else {}


def _checked(path: Path) -> str:
    """The name of a file in bounds, for a library that opens it."""
    read_vocabulary(path)
    return str(path)


def _word_piece(folder: Path) -> tokenizers.Tokenizer:
    """BERT's WordPiece: `vocab.txt`, lower case unless `tokenizer_config.json` turns it off."""
    settings = _settings(folder)
    inner = tokenizers.Tokenizer(WordPiece.from_file(_checked(folder / "vocab.txt"), unk_token="[UNK]"))
    if settings.get("word_tokenizer_type", "basic") != "basic":
        raise BundleError(
            f"{folder / 'tokenizer_config.json'}: word_tokenizer_type = {shown(settings['word_tokenizer_type'])}: "
            "regard cannot cut words by it"
        )
    inner.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True), strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )  # fmt: skip
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    _add_tokens(inner, folder)
    sep, cls = ((name, int(inner.token_to_id(name) or 0)) for name in ("[SEP]", "[CLS]"))
    inner.post_processor = processors.BertProcessing(sep, cls)
    return inner


def _add_tokens(inner: tokenizers.Tokenizer, folder: Path) -> None:
    """Add the tokens of `added_tokens.json`, each under its own number.

    Raises:
        BundleError: their numbers do not follow the vocabulary's.
    """
    path = folder / "added_tokens.json"
    added: dict[str, Any] = read_object(path) if path.exists() else {}
    if not all(isinstance(number, int) for number in added.values()):
        raise BundleError(f"{path}: expected the number of each token")
    for name, number in sorted(added.items(), key=lambda one: one[1]):
        inner.add_tokens([tokenizers.AddedToken(name, normalized=False)])
        if inner.token_to_id(name) != number:
            raise BundleError(f"{path}: {named(name)} has the number {number}; expected {inner.token_to_id(name)}")


def _byte_pairs(folder: Path, family: str) -> tokenizers.Tokenizer:
    """GPT-2's and RoBERTa's byte pairs, merged by `merges.txt`."""
    inner = tokenizers.Tokenizer(BPE.from_file(_checked(folder / "vocab.json"), _checked(folder / "merges.txt")))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=_settings(folder).get("add_prefix_space", False))
    inner.decoder = decoders.ByteLevel()
    known = ("<|endoftext|>", "<s>", "<pad>", "</s>", "<unk>", "<mask>")
    inner.add_special_tokens([name for name in known if inner.token_to_id(name) is not None])
    _add_tokens(inner, folder)
    if family == "roberta":
        sep, cls = ((name, int(inner.token_to_id(name) or 0)) for name in ("</s>", "<s>"))
        inner.post_processor = processors.RobertaProcessing(sep, cls, add_prefix_space=False)
    return inner
