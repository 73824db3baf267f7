"""Text as it may be pasted in public and printed on any terminal."""

import getpass
import re
from contextlib import suppress
from pathlib import Path

LONGEST = 300  # characters of one text


def redact(text: object) -> str:
    """One line of printable ASCII: the home folder is `~`, a folder named after the user is `USER`.

    Args:
        text: the value of an environment variable, a name from a driver, a message of an exception.
    """
    found = str(text)
    with suppress(RuntimeError):  # no home folder
        for home in {str(Path.home()), str(Path.home().resolve())}:
            if len(home) > 1:
                found = re.sub(rf"{re.escape(home)}(?=[/\\:;\s'\"]|$)", "~", found)
    with suppress(Exception):  # no user name: KeyError, OSError or ImportError, depending on the system
        user = re.escape(getpass.getuser())
        found = re.sub(rf"(?<=[/\\]){user}(?=[/\\:;\s'\"]|$)", "USER", found)
    found = "".join(letter if " " <= letter <= "~" else _escaped(letter) for letter in found)
    return found if len(found) <= LONGEST else f"{found[:LONGEST]}..."


def reason(error: Exception) -> str:
    """The first line of an exception's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return redact(lines[0] if lines else type(error).__name__)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
