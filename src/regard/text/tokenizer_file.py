"""Tokenizer files of unknown origin: built in bounds, their failures in a sentence."""

import base64
import binascii
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from regard.errors import BundleError, RegardError
from regard.untrusted import first_line, read_text

BYTES = 20_000_000  # of a tokenizer's file; Llama 3's has 17,209,920
ENTRIES = 1_200_000  # of all its lists; each needs some 300 bytes of memory
GROWTH = 64  # characters that one of a text may become before it is cut into tokens
AROUND = 64  # special tokens around a text
NFKC = 18  # characters that Unicode's longest composition becomes
TABLE = 2**19  # bytes of a table of characters; sentencepiece's own has 240,007
CHUNK = 1024  # nodes of its trie that are looked at together
LONGEST = 4 * 64  # bytes of a replacement in a table of characters
LETTERS = np.arange(1, 256)  # bytes of a text


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Failures of the tokenizers library as a `BundleError`: it raises bare Exceptions, and panics, which are none."""
    try:
        yield
    except RegardError:
        raise
    except Exception as error:
        raise BundleError(f"{what}: {first_line(error)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # a class that cannot be imported
            raise
        raise BundleError(f"{what}: {first_line(error)}") from error


def read_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a `tokenizer.json`, without its padding, truncation and random merges.

    Raises:
        BundleError: it cannot be read, or makes a text many times longer.
    """
    text = read_vocabulary(path)
    _check_charsmaps(text, path)
    with refused(f"{path} is not a tokenizer file"):
        inner = tokenizers.Tokenizer.from_str(text)
    inner.no_padding()
    inner.no_truncation()
    if getattr(inner.model, "dropout", None) is not None:
        inner.model.dropout = None
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        part = getattr(inner, name)
        if part is not None and (growth := _growth(json.loads(part.__getstate__()))) > GROWTH:
            raise BundleError(
                f"{path}: its {name} may make a text {growth:.3g} times as long; expected at most {GROWTH} times"
            )
    if inner.num_special_tokens_to_add(False) > AROUND:
        raise BundleError(f"{path}: its post_processor puts more than {AROUND} special tokens around a text")
    return inner


def read_vocabulary(path: Path) -> str:
    """The text of a tokenizer's file, in JSON or in lines.

    Raises:
        BundleError: it cannot be read, or is larger than known tokenizers are.
    """
    text = read_text(path, BYTES)
    if max(text.count(","), text.count("\n")) > ENTRIES:
        raise BundleError(f"{path}: damaged: expected at most {ENTRIES:,} entries; got more")
    return text


def _growth(part: Any) -> float:
    """Upper bound of the characters that one character becomes in a normalizer, a pre-tokenizer or a decoder."""
    if not isinstance(part, dict):
        return 1.0
    kind, total = part.get("type"), 1.0
    for name in ("normalizers", "pretokenizers", "decoders"):
        for inner in part.get(name, []):
            total = min(total * _growth(inner), 1e300)
    if kind == "Replace":
        content, literal = part["content"], part["pattern"].get("String", "")
        # a regular expression, and an empty literal, may match between any two characters
        return max(1.0, len(content) / len(literal)) if literal else 1.0 + len(content)
    if kind in ("Prepend", "Append"):
        return max(1.0, len(part.get("prepend", "")) / AROUND)
    if kind == "Precompiled":
        return float(NFKC)
    return total * (4.0 if kind == "ByteLevel" and "normalizers" not in part else 1.0)


def _check_charsmaps(text: str, path: Path) -> None:
    """Refuse sentencepiece's tables of characters in which a look-up would leave the table."""
    found = re.findall(r'"precompiled_charsmap"\s*:\s*(?:null|"([A-Za-z0-9+/=]*)")', text)
    if len(found) < text.count("precompiled_charsmap") or not all(not one or is_charsmap(one) for one in found):
        raise BundleError(f"{path}: its precompiled_charsmap is damaged")


def is_charsmap(given: str) -> bool:
    """Whether every look-up in this table stays in it: a double-array trie (Yata et al. 2007) and texts, base64."""
    try:
        raw = base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        return False
    size = int.from_bytes(raw[:4], "little")
    if not 4 <= len(raw) <= TABLE or not size or size % 4 or 4 + size > len(raw):
        return False
    units, texts = np.frombuffer(raw, "<u4", size // 4, 4).astype(np.int64), raw[4 + size :]
    try:
        texts.decode("utf-8")
    except UnicodeDecodeError:
        return False
    if max(map(len, texts.split(b"\0"))) > LONGEST:
        return False
    begins = (np.frombuffer(texts, np.uint8) & 0xC0) != 0x80  # where a character of the texts begins
    seen, waiting = np.zeros(len(units), bool), [_offset(units[:1])]
    while waiting:
        bases = waiting.pop()
        if len(bases) > CHUNK:
            waiting.append(bases[CHUNK:])
            bases = bases[:CHUNK]
        bases = bases[~seen[np.minimum(bases, len(units) - 1)]]
        if not len(bases):
            continue
        if int(bases.max()) | 255 >= len(units):
            return False
        seen[bases] = True
        nodes = (bases[:, None] ^ LETTERS)[(units[bases[:, None] ^ LETTERS] & 0x800000FF) == LETTERS]
        following = nodes ^ _offset(units[nodes])
        ends = following[(units[nodes] >> 8 & 1) == 1]
        if len(ends) and int(ends.max()) >= len(units):
            return False
        values = units[ends] & 0x7FFFFFFF
        if len(values) and (int(values.max()) >= len(texts) or not begins[values].all()):
            return False
        waiting.append(np.unique(following))
    return True


def _offset(units: Any) -> Any:
    return (units >> 10) << ((units & 0x200) >> 6)
