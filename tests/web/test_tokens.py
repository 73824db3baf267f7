"""Tokens: files that hold one, and those that do not."""

from pathlib import Path

import pytest

from regard.errors import ConfigError
from regard.web.tokens import is_loopback, is_token, read_token


def test_a_token_is_the_word_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("secret-1\n")
    assert read_token(path) == "secret-1"


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "the file is empty"), (b" \n", "the file is empty"), (b"two words", "expected one token"),
        (b"a\nb", "expected one token"), ("é".encode(), "expected one token"), (b"\xff", "not UTF-8"),
    ],
)  # fmt: skip
def test_files_without_a_token_are_refused(tmp_path: Path, raw: bytes, sentence: str) -> None:
    path = tmp_path / "token"
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=sentence):
        read_token(path)
    with pytest.raises(ConfigError, match="no such file"):
        read_token(tmp_path / "none")


def test_equal_tokens_and_loopback_addresses() -> None:
    assert is_token("secret", "secret")
    assert not any(is_token(given, "secret") for given in ("", "secre", "secret ", "sécret", "\udcff"))
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))
