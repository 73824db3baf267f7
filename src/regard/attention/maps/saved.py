"""A map on disk: queries, keys and what is done with them in their smallest exact form, or the weights.

    N = 4,096, d = 64: 2 MiB a head in float32, 1 MiB in float16, where the weights take 64 MiB.

A score is written as its comparison of projected queries and keys, a mask as spans of keys, a bias by diagonals,
where that is exact. What has no such form (a callable) is written as weights.
"""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.attention.biases import Added, Diagonals
from regard.attention.maps.compact import compact_bias, spans
from regard.attention.maps.sources import ComputedWeights, GivenWeights, Through, WeightSource
from regard.attention.masks import Allow, Spans
from regard.attention.normalizers import Entmax, Normalizer, Share, Sigmoid, Sink, Softmax, Uniform
from regard.attention.scores import Additive, Compared, Concat, Distance, Product, Projected, Score, is_product
from regard.attention.spec import Spec
from regard.errors import shown
from regard.shapes import check
from regard.storage import digest, parse_json, without_halves, write_tensors, writing_to
from regard.untrusted import file_size, named, open_tensors

FORMAT = 1
DTYPES = ("float64", "float32", "bfloat16", "float16")  # of a map
FLOATS = tuple(getattr(torch, name) for name in DTYPES)
KINDS = {
    "mask": (torch.bool,),
    "mask.start": (torch.int32,),
    "mask.end": (torch.int32,),
}  # of tensors that are no FLOATS

Tokens = tuple[list[str] | None, list[str] | None]  # of the queries and of the keys
Full = Callable[[WeightSource, tuple[int, ...]], Tensor]  # the whole matrix of a source with this shape


def save_map(source: WeightSource, shape: tuple[int, ...], tokens: Tokens, full: Full, path: Path, half: bool) -> None:
    """Write a map; see `AttentionMap.save`."""
    tensors, note = take_apart(source, shape, full)
    if half:
        narrow = {"weights", "query", "key", "v", "through"}
        if note.get("normalizer") == "share":  # features are as small as they are large
            narrow -= {"query", "key"}
        fits = torch.finfo(torch.float16).max
        tensors = {
            name: t.to(torch.float16) if name in narrow and t.numel() and float(t.detach().abs().amax()) < fits else t
            for name, t in tensors.items()
        }
    dtype = str(source.like.dtype).removeprefix("torch.")
    names = [None if some is None else [without_halves(one) for one in some] for some in tokens]
    note |= {"format": FORMAT, "dtype": dtype, "query_tokens": names[0], "key_tokens": names[1]}
    own = {name: t.detach().clone() for name, t in tensors.items()}  # queries and keys may be one tensor
    note["digest"] = digest(own, json.dumps(note))  # in the note: safetensors keeps no order of several entries
    with writing_to(path):
        write_tensors(path, own, {"map": json.dumps(note)})


def is_map(path: Path) -> bool:
    """Whether a file is a saved map, by its header."""
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with open_tensors(path) as file:
            return "map" in (file.metadata() or {})
    except Exception:  # safetensors raises bare OSError and its own error types
        return False


def load_map(path: Path) -> tuple[WeightSource, tuple[int, ...], Tokens]:
    """Read what `save_map` wrote: the source, its shape, and the tokens."""
    size = file_size(path)  # refuses a pipe, which would never end
    with open_tensors(path) as file:
        note = parse_json((file.metadata() or {})["map"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if not isinstance(note, dict):
        raise ValueError(f"its note should be an object; got {shown(note)}")
    written = note.pop("digest", None)  # maps of 0.1.0 have none
    if written is not None and written != digest(tensors, json.dumps(note)):
        raise ValueError("its contents are not what was written (the digest differs)")
    if note["format"] != FORMAT:
        raise ValueError(f"its format is {shown(note['format'])}, and this regard reads {FORMAT}")
    _check_note(note)
    _check_tensors(tensors, size)
    dtype = getattr(torch, note["dtype"])
    source: WeightSource
    if "weights" in tensors:
        weights = tensors["weights"].to(dtype)
        source, shape = GivenWeights(weights if dtype == torch.float64 else weights.float()), tuple(weights.shape)
    else:
        spec = Spec(_score(note, tensors), _normalizer(note, tensors), _mask(tensors), _bias(tensors))
        query, key = tensors["query"].to(dtype), tensors["key"].to(dtype)
        check(query, key)
        source = ComputedWeights.of(query, key, spec)
        shape = source.shape
    if "through" in tensors:
        source, shape = Through(source, tensors["through"], shape), (*shape[:-1], tensors["through"].shape[-1])
    if 0 not in shape:  # what does not fit together fails here, not in the first answer
        source.weigh(torch.tensor([0, shape[-2] - 1]))
    return source, shape, (note["query_tokens"], note["key_tokens"])


def _check_note(note: dict[str, Any]) -> None:
    """Refuse settings of kinds that `save_map` does not write: a file may come from anywhere."""
    if note["dtype"] not in DTYPES:
        raise ValueError(f"dtype should be one of {', '.join(DTYPES)}; got {shown(note['dtype'])}")
    for name in ("query_tokens", "key_tokens"):
        tokens = note[name]
        if tokens is not None and not (isinstance(tokens, list) and all(isinstance(one, str) for one in tokens)):
            raise ValueError(f"{name} should be a list of strings or null; got {shown(tokens)}")
    for name in ("softcap", "width", "alpha"):
        number = note.get(name)
        if number is not None and not (type(number) in (int, float) and 0 < number < torch.finfo(torch.float64).max):
            raise ValueError(f"{name} should be a positive number; got {shown(number)}")


def _check_tensors(tensors: dict[str, Tensor], size: int) -> None:
    """Refuse kinds that `save_map` does not write, and axes that only an empty tensor can have."""
    for name, tensor in tensors.items():
        kinds = KINDS.get(name, FLOATS)
        if tensor.dtype not in kinds:
            raise ValueError(f"{named(name)} should be {' or '.join(map(str, kinds))}; got {tensor.dtype}")
        if max(tensor.shape, default=0) > size:
            raise ValueError(f"{named(name)} has the shape {list(tensor.shape)} in a file of {size:,} bytes")
    if "weights" in tensors and tensors["weights"].ndim < 2:
        raise ValueError(f"weights should have at least 2 axes [T, S]; got {list(tensors['weights'].shape)}")


def take_apart(source: WeightSource, shape: tuple[int, ...], full: Full) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings from which the map can be made again."""
    if isinstance(source, Through):
        tensors, note = take_apart(source.source, source.whole, full)
        inner = tensors.get("through")  # of a map that went through a matrix before
        return tensors | {"through": source.matrix if inner is None else inner @ source.matrix}, note
    if not isinstance(source, ComputedWeights):
        return {"weights": full(source, shape)}, {}
    compared, normalized = _compared(source), _normalized(source.spec.normalizer)
    if compared is None or normalized is None:
        return {"weights": full(source, shape)}, {}
    if type(source.spec.normalizer) is Share and prod(source.shape) < sum(t.numel() for t in compared[0].values()):
        return {"weights": full(source, shape)}, {}  # there are more features than keys
    tensors = compared[0] | normalized[0]
    device = source.query.device
    mask = None if source.spec.mask is None else spans(source.spec.mask, source.shape, device)
    if isinstance(mask, Spans):
        tensors |= {"mask.start": mask.start.int(), "mask.end": mask.end.int()}
    elif mask is not None:
        tensors["mask"] = mask.tensor
    bias = compact_bias(source.spec.bias, source.shape, device)
    if isinstance(bias, Diagonals):
        tensors["bias.diagonals"] = bias.values
    elif isinstance(bias, Added):
        tensors["bias"] = bias.tensor
    elif bias is not None:
        rows, columns = (torch.arange(n, device=device) for n in source.shape[-2:])
        tensors["bias"] = bias.tile(rows, columns, source.shape)
    return tensors, compared[1] | normalized[1]


def _compared(source: ComputedWeights) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Projected queries and keys, and how they are compared."""
    score, wide = source.spec.score, source.like.dtype
    query, key = source.query.to(wide), source.key.to(wide)
    plain = score
    while isinstance(plain, Projected | Compared):
        plain = plain.score
    if is_product(score):
        return _vectors(*score.as_dot(query, key)), {"score": "dot", "softcap": _plain(score.softcap)}
    if isinstance(plain, Additive | Concat) and type(plain) in (Additive, Concat):  # no class of its own
        return _vectors(score.project_query(query), score.project_key(key)) | {"v": plain.v}, {"score": "additive"}
    if type(plain) is Distance:
        width = plain.width.detach().item() if isinstance(plain.width, Tensor) else plain.width
        return _vectors(query, key), {"score": "distance", "width": abs(width)}  # its square counts
    return None


def _plain(number: float | Tensor | None) -> float | None:
    """A number, learned or not, as Python's."""
    return number.item() if isinstance(number, Tensor) else number


def _vectors(query: Tensor, key: Tensor) -> dict[str, Tensor]:
    return {"query": query, "key": key}


def _score(note: dict[str, Any], tensors: dict[str, Tensor]) -> Score:
    if note["score"] == "dot":
        score = Product()
        score.softcap = note["softcap"]
        return score
    if note["score"] == "additive":
        with torch.random.fork_rng(devices=[]):  # reading a file draws nothing
            additive = Additive(1, 1, len(tensors["v"]))
        additive.v = torch.nn.Parameter(tensors["v"], requires_grad=False)
        return Compared(additive)
    if note["score"] == "distance":
        return Distance(note["width"])
    raise ValueError(f"this regard knows no score {shown(note['score'])} in a file")


def _normalized(normalizer: Normalizer) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    if type(normalizer) is Softmax:
        return {}, {"normalizer": "softmax"}
    if type(normalizer) is Uniform:
        return {}, {"normalizer": "uniform"}
    if type(normalizer) is Sigmoid:
        return {}, {"normalizer": "sigmoid"}
    if type(normalizer) is Share:
        return {}, {"normalizer": "share"}
    if type(normalizer) is Entmax:
        return {}, {"normalizer": "entmax", "alpha": normalizer.alpha}
    if type(normalizer) is Sink:
        return {"sink": torch.as_tensor(normalizer.logits)}, {"normalizer": "sink"}
    return None


def _normalizer(note: dict[str, Any], tensors: dict[str, Tensor]) -> Normalizer:
    if note["normalizer"] == "sink":
        return Sink(tensors["sink"])
    if note["normalizer"] == "entmax":
        return Entmax(note["alpha"])
    plain: dict[str, type[Normalizer]] = {"softmax": Softmax, "sigmoid": Sigmoid, "uniform": Uniform, "share": Share}
    if note["normalizer"] not in plain:
        raise ValueError(f"this regard knows no normalizer {shown(note['normalizer'])} in a file")
    return plain[note["normalizer"]]()


def _mask(tensors: dict[str, Tensor]) -> Spans | Allow | None:
    if "mask.start" in tensors:
        return Spans(tensors["mask.start"], tensors["mask.end"])
    return Allow(tensors["mask"]) if "mask" in tensors else None


def _bias(tensors: dict[str, Tensor]) -> Diagonals | Added | None:
    if "bias.diagonals" in tensors:
        return Diagonals(tensors["bias.diagonals"])
    return Added(tensors["bias"]) if "bias" in tensors else None
