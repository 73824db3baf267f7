"""`load`: a trained model by its name or its folder, ready to use."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from regard.arguments import check_arguments
from regard.bundle import INFO, Bundle, load_bundle
from regard.device import find_device, random_numbers_kept
from regard.errors import BundleError, ChoiceError, ConfigError, nearest, shown
from regard.pipelines.answerer import Answerer
from regard.pipelines.base import ModelOnly, Pipeline
from regard.pipelines.captioner import Captioner
from regard.pipelines.completer import Completer
from regard.pipelines.engines import ENGINES, with_engine
from regard.pipelines.ensemble import EnsembleTranslator
from regard.pipelines.filler import Filler
from regard.pipelines.transcriber import Transcriber
from regard.pipelines.translator import Translator
from regard.pretrained.folder import is_gguf, is_pretrained, load_pretrained
from regard.storage import without_halves
from regard.text.pretrained import Fast, read_tokenizer
from regard.untrusted import faults_of

SHIPPED = Path(__file__).parents[1] / "shipped"
HUB = "hf:"
EXPORTED = {"shared_vocabulary.json": "ctranslate2", "onnx.json": "onnx", "torch.json": "torch"}
KINDS = {  # of models, by the tasks that they can do
    "complete": ("decoder",),
    "fill": ("encoder",),
    "translate": ("recurrent", "transformer"),
    "caption": ("recurrent", "transformer"),
    "transcribe": ("recurrent", "transformer", "speech"),
    "answer": ("stacked", "questions"),
}


def shipped() -> list[str]:
    """Names of the models that come with regard."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{INFO}"))


@check_arguments
@torch.inference_mode(False)  # within such a block, a model would have weights that no gradient flows to
def load(
    name: str | Path | Sequence[str | Path],
    device: str | torch.device = "cpu",
    precision: str = "float32",
    engine: str = "regard",
) -> Any:
    """A model ready to use: a shipped one by name, a run's or bundle's folder, or one in the Hugging Face layout.

    Args:
        name: a shipped model's name; a folder ("./name" is always one); a .gguf file; or "hf:OWNER/NAME", which
            huggingface_hub downloads. Several, in a list or in one text with commas between them, are an ensemble of
            translators with one tokenizer: the next token has the mean of the probabilities that they give it
            (docs/outputs.md).
        device: "cpu", "cuda", "cuda:1", "mps", or "auto": the accelerator that torch finds, or the CPU. Inputs are
            moved to the model; `.model.to(…)` moves it later.
        precision: of the products of a search: "float32"; "bfloat16"; "int8", with a scale for each row, which is
            faster (docs/benchmarks.md says by how much) and changes few outputs; or "auto": int8 where the processor
            has instructions for it and the model can be searched so, else float32. What is computed outside a search,
            a loss say, stays in float32.
        engine: "regard", or "ctranslate2": the search of a Transformer translator runs in CTranslate2 (extra
            "ctranslate2"), with precision "float32", "int8" or "auto"; or "onnx": encoder and steps of a translator run
            in onnxruntime (extra "onnx") in float32, under regard's own search. What an engine does not show is refused
            by name.

    Returns:
        a `Translator` (of several names an `EnsembleTranslator`), `Completer` (a decoder alone), `Filler` (an encoder
        alone), `Captioner`, `Transcriber` or `Answerer`; `ModelOnly` where there is no pipeline for the task. `.model`
        is the nn.Module.

    Raises:
        ChoiceError: neither a shipped model nor a folder, or an unknown device; lists the known names, nearest spelling
            first. Or a module, which is no name.
        ConfigError: this machine does not have the device; a model that is searched in float32 only; an unknown
            precision; several models that are no ensemble.
        BundleError: the folder is damaged, its training is not finished, or it holds what regard does not know.
    """
    where = find_device(device)
    with random_numbers_kept():  # a model is built with weights that are drawn before its own are read
        some = [_find(one) for one in names_of(name)]
        found = some[0] if len(some) == 1 else EnsembleTranslator(some)
    if engine != "regard":
        if where.type != "cpu":
            raise ConfigError(f'engine = "{engine}" is for a CPU here; got device = "{where}"')
        return with_engine(found, engine, precision)
    if precision != "float32":
        found.use(precision, where)
    if where.type != "cpu":
        found.model.to(where)
    return found


def names_of(name: str | Path | Sequence[str | Path]) -> list[str | Path]:
    """The names of an ensemble's members; of one model its own.

    Args:
        name: a name, several in a list, or several in one text with commas between them; a folder or file whose own
            name has a comma is one.

    Raises:
        ChoiceError: no name, or an empty one; a name that is neither a text nor a path, or at which no file can be
            looked for.
    """
    several = isinstance(name, Sequence) and not isinstance(name, bytes | bytearray)
    if not isinstance(name, str | PathLike) and not several:
        raise ChoiceError(
            f"load takes a name or a folder; got a {type(name).__name__}: regard.observe, regard.patch and the other "
            "findings take a module of your own as it is"
        )
    for one in [name] if isinstance(name, str | PathLike) else name:
        if not isinstance(one, str | PathLike):
            raise ChoiceError(f"load takes names of models; got a {type(one).__name__} among them: {shown(one)}")
        try:
            Path(one).exists()
        except OSError as error:  # too long, or in a folder that may not be read
            raise ChoiceError(f"load: no model can be looked for at {str(one)!r:.60}: {error.strerror}") from error
    if isinstance(name, str):
        found: list[str | Path] = [name] if Path(name).exists() else [part.strip() for part in name.split(",")]
    else:
        found = list(name) if isinstance(name, Sequence) else [name]
    if not found or (len(found) > 1 and not all(map(str, found))):
        raise ChoiceError(f"load: expected the name of a model, or several for an ensemble; got {name!r}")
    return found


def files_of_model(name: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files whose contents tell a model from another one: a bundle's description, which has the digests of its
    other files; of another folder all files; none of a model that is downloaded.

    Args:
        name: as `names_of` takes it.
    """
    found: list[Path] = []
    for one in names_of(name):
        place = SHIPPED / str(one) if str(one) in shipped() else Path(one)
        if (place / INFO).is_file():
            found.append(place / INFO)
        elif place.is_dir():
            found += sorted(path for path in place.iterdir() if path.is_file())
        elif place.is_file():
            found.append(place)
    return found


def _find(name: str | Path) -> Pipeline[Any, Any]:
    """`load` on the CPU."""
    text = str(name)
    if text in shipped():
        return _ready(load_bundle(SHIPPED / text), text)
    if text.startswith(HUB):
        return _pretrained(_download(text.removeprefix(HUB)), text)
    folder = Path(name)
    if is_gguf(folder):
        return _pretrained(folder, without_halves(folder.stem))
    if folder.is_dir():
        exported = [kind for file, kind in EXPORTED.items() if (folder / file).is_file()]
        if exported and not (folder / INFO).exists():
            kind = exported[0]
            raise BundleError(
                f"{folder}: an export for {kind}, which other programs run; load the model that it was made from"
                + (f', with engine="{kind}" to compute with it' if kind in ENGINES else "")
            )
        if not (folder / INFO).exists() and is_pretrained(folder):
            return _pretrained(folder, _name_of(folder))
        return _ready(load_bundle(folder), _name_of(folder))
    known = ", ".join(map(repr, nearest(text, shipped())))
    if "/" in text or text.endswith(".gguf"):
        kind = "file" if text.endswith(".gguf") else "folder"
        raise BundleError(
            f"{text}: no such {kind}; expected the folder that `regard train` printed at its end, or a shipped model: "
            f"one of {known}"
        )
    raise ChoiceError(f"unknown model {text!r}: expected one of {known}, or the folder of a run")


def _name_of(folder: Path) -> str:
    """The name of a folder, which a server and pages can write: of ".", that of the folder it is."""
    name = folder.name if folder.name not in ("", "..") else folder.resolve().name or str(folder)
    return without_halves(name)


def _ready(bundle: Bundle, name: str) -> Pipeline[Any, Any]:
    """The pipeline that can serve a model: its task, and what the model is able to do.

    Raises:
        BundleError: settings of the search that its task does not have; a model that cannot do its task.
    """
    kinds = KINDS.get(bundle.task)
    if kinds is not None and bundle.model_config.kind not in kinds:
        raise BundleError(f"{name}: a model of kind {bundle.model_config.kind!r} cannot {bundle.task}")
    try:
        return _pipeline(bundle, name)
    except ValidationError as error:
        raise BundleError(f"{name}: its decoding settings cannot be read: {faults_of(error)}") from error


def _pipeline(bundle: Bundle, name: str) -> Pipeline[Any, Any]:
    reads_media = getattr(bundle.model_config, "source_encoder", None) is not None
    match bundle.task:
        case "complete":
            return Completer(bundle, name)
        case "fill":
            return Filler(bundle, name)
        case "translate":
            return Translator(bundle, name)
        case "caption" if reads_media:
            return Captioner(bundle, name)
        case "transcribe" if reads_media:
            return Transcriber(bundle, name)
        case "answer":
            return Answerer(bundle, name)
    return ModelOnly(bundle, name)


def _pretrained(folder: Path, name: str) -> Pipeline[Any, Any]:
    found = load_pretrained(folder)
    tokenizer: Any
    if found.tokenizer:
        tokenizer = Fast(found.tokenizer, found.ids, found.vocabulary)
    else:
        tokenizer = read_tokenizer(folder, found.family, found.ids, found.vocabulary)
    begins = found.task == "complete" and getattr(tokenizer, "begins", False)
    settings = {"begins": True} if begins else {}
    return _ready(Bundle(found.task, ("", ""), found.model, found.config, tokenizer, settings, rules=found.rules), name)


def _download(name: str) -> Path:
    """A model of the hub, downloaded once."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise BundleError(f"hf:{name}: pip install huggingface_hub, which downloads it") from error
    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.spm"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BundleError(f"hf:{name}: could not be downloaded: {first}") from error
