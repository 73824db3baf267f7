"""The bearer token of a server, and which addresses need none."""

import hmac
import ipaddress
from pathlib import Path

from regard.errors import BundleError, ConfigError, not_utf8
from regard.untrusted import file_size

LONGEST = 4096  # bytes of the file


def read_token(path: Path) -> str:
    """The token in a file, white space around it left out.

    Raises:
        ConfigError: the file cannot be read, is empty, or holds more than one printable ASCII word.
    """
    try:
        size = file_size(path)
        token = path.read_bytes().decode("utf-8").strip() if size <= LONGEST else ""
    except UnicodeDecodeError as error:
        raise ConfigError(f"--token-file {path}: {not_utf8(error)}") from error
    except (OSError, BundleError) as error:
        raise ConfigError(f"--token-file {error}") from error
    if size > LONGEST:
        raise ConfigError(f"--token-file {path}: expected at most {LONGEST:,} bytes; got {size:,}")
    if not token:
        raise ConfigError(f"--token-file {path}: the file is empty: write a long random token into it")
    return check_token(token, f"--token-file {path}")


def check_token(token: str, where: str = "token") -> str:
    """Refuse what no client could send as a bearer token, and an empty one, which every client has.

    Raises:
        ConfigError: it is no text, is empty, or is not one word of printable ASCII.
    """
    if not isinstance(token, str) or not (token.isascii() and token.isprintable()) or " " in token or not token:
        raise ConfigError(f"{where}: expected one token of printable ASCII characters on one line")
    return token


def is_loopback(host: str) -> bool:
    """Whether only programs of the same machine reach this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_token(given: str, token: str) -> bool:
    """Whether they are equal, in time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), token.encode())
