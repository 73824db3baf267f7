"""easy-VQA (Zhou 2019): questions about colored shapes, in the package of that name."""

import json
from pathlib import Path

from regard.errors import DataError


def read(part: str) -> tuple[list[tuple[str, str, str]], Path]:
    """(picture, question, answer) of the part "train" or "test", and the folder of the pictures.

    Raises:
        DataError: the package is not installed.
    """
    try:
        import easy_vqa
    except ImportError as error:
        raise DataError("easy_vqa: the package is not installed: pip install easy-vqa") from error
    folder = Path(easy_vqa.__file__).parent / "data" / part
    rows = json.loads((folder / "questions.json").read_text("utf-8"))
    return [(f"{number}.png", question, answer) for question, answer, number in rows], folder / "images"
