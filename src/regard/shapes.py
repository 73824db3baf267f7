"""The glossary of axes, and the checks that stand at the public doors.

One name per axis, in the words of the papers:

| axis | meaning |
|---|---|
| `*batch` | any leading axes; heads are one of them |
| `T` | queries (target positions) |
| `S` | keys (source positions) |
| `d_k`, `d_v` | width of a query or key; width of a value |
| `d` | width of a model's states |
| `B`, `N`, `K` | batch; sentences; hypotheses of one sentence |
| `V` | vocabulary |

A mask is always *allowed*: True means that this query may attend to this key.
"""

from collections.abc import Sequence
from typing import NoReturn, TypeGuard

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.errors import ShapeError, shown

Query = Float[Tensor, "*batch T d_k"]
Key = Float[Tensor, "*batch S d_k"]
Value = Float[Tensor, "*batch S d_v"]
Scores = Float[Tensor, "*batch T S"]
Allowed = Bool[Tensor, "..."]
Tokens = Int[Tensor, "B T"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HEADS = -3  # the axis that may be grouped, in inputs of at least four axes


def _fail(message: str) -> NoReturn:
    raise ShapeError(message)


def check(query: Tensor, key: Tensor, value: Tensor | None = None) -> None:
    """Refuse tensors that cannot attend to each other.

    Args:
        query: `[*batch, T, d_k]`.
        key: `[*batch, S, d_k]`; batch axes equal or 1, the heads axis may divide the query's.
        value: `[*batch, S, d_v]`.

    Raises:
        ShapeError: names the argument, the axis, both sizes and the way out.
    """
    named = {"query": query, "key": key} | ({} if value is None else {"value": value})
    check_tensors(**named)
    if value is not None and _fit(query, key, value):
        return
    for name, tensor in named.items():
        if tensor.device != query.device:
            _fail(f"{name} is on {tensor.device} and query on {query.device}: move one of them with .to()")
        if tensor.ndim < 2:
            _fail(f"{name} needs at least 2 axes [positions, width]; got shape {list(tensor.shape)}")
        if not tensor.is_floating_point():
            _fail(f"{name} must be a floating-point tensor; got {tensor.dtype}: embed token ids first")
        if tensor.dtype not in FLOATS:  # of one byte: nothing can add them
            _fail(f"{name} must be of float64, float32, bfloat16 or float16; got {tensor.dtype}: convert it with .to()")
        if tensor.ndim != query.ndim:
            _fail(
                f"{name} has {tensor.ndim} axes {list(tensor.shape)} and query has {query.ndim} "
                f"{list(query.shape)}: add the missing batch axes with unsqueeze"
            )
    if value is not None and value.shape[-2] != key.shape[-2]:
        _fail(
            f"key has {key.shape[-2]} positions on axis -2 and value has {value.shape[-2]}: "
            "every key needs exactly one value"
        )
    for axis in range(query.ndim - 2):
        _check_batch_axis(named, axis)


def _fit(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the tensors are floating-point and have equal batch axes: what most are is seen at once."""
    shape = key.shape
    return (
        query.device == key.device == value.device
        and len(shape) == len(query.shape) >= 2
        and shape[:-1] == value.shape[:-1]
        and shape[:-2] == query.shape[:-2]
        and query.dtype in FLOATS
        and key.dtype in FLOATS
        and value.dtype in FLOATS
    )


def check_tensors(**named: object) -> None:
    """Refuse arguments that are no tensors, and tensors that are not dense: sparse and nested ones.

    Raises:
        ShapeError: names the argument.
    """
    for name, given in named.items():
        if not isinstance(given, Tensor):
            _fail(f"{name}: expected a tensor; got {'None' if given is None else f'a {type(given).__name__}'}")
        if not is_dense(given):
            _fail(f"{name}: expected a dense tensor; got {_kind(given)}")


def is_dense(given: object) -> TypeGuard[Tensor]:
    """Whether it is a tensor, and neither sparse nor nested."""
    return isinstance(given, Tensor) and given.layout is torch.strided and not given.is_nested


def _kind(tensor: Tensor) -> str:
    """What a tensor that is not dense is."""
    return "a nested tensor" if tensor.is_nested else f"a tensor of layout {str(tensor.layout).removeprefix('torch.')}"


def described(given: object) -> str:
    """What a tensor is, in a sentence: its type, shape and device; of anything else its repr."""
    if not isinstance(given, Tensor):
        return shown(given)
    return f"{given.dtype} {list(given.shape)} on {given.device}" if is_dense(given) else _kind(given)


def check_widths(query: Tensor, key: Tensor) -> None:
    """Refuse a query and a key of different width where the score is a plain product of the two."""
    if query.shape[-1] != key.shape[-1]:
        _fail(
            f"query has width {query.shape[-1]} on axis -1 and key has {key.shape[-1]}: this score needs "
            "equal widths; General, Additive and Concat take different ones"
        )


def _check_batch_axis(named: dict[str, Tensor], axis: int) -> None:
    query = named["query"]
    wanted = query.shape[axis]
    place = axis - query.ndim
    for name in [n for n in named if n != "query"]:
        size = named[name].shape[axis]
        if size in (1, wanted) or wanted == 1:
            continue
        if place == HEADS and query.ndim >= 4:
            if size and wanted % size == 0:
                continue
            _fail(
                f"query has {wanted} heads on axis -3 and {name} has {size}: grouped heads need a "
                "number of key heads that divides the number of query heads"
            )
        _fail(f"query has size {wanted} on batch axis {place} and {name} has {size}: batch axes must be equal or 1")
    if len(named) == 3:
        key, value = named["key"].shape[axis], named["value"].shape[axis]
        if key != value and 1 not in (key, value):
            _fail(f"key has size {key} on batch axis {place} and value has {value}: they must be equal or 1")


def batch_shape(query: Tensor, key: Tensor) -> tuple[int, ...]:
    """The batch axes of the scores, with the query's heads."""
    if query.shape[:-2] == key.shape[:-2]:
        return query.shape[:-2]
    pairs = zip(query.shape[:-2], key.shape[:-2], strict=True)
    return tuple(k if q == 1 else q for q, k in pairs)


def output_batch(scores: tuple[int, ...], value: Tensor) -> tuple[int, ...]:
    """The batch axes of the output: values may have more than the scores `(*batch, T, S)`."""
    if scores[:-2] == value.shape[:-2]:
        return scores[:-2]
    return tuple(v if s == 1 else s for s, v in zip(scores[:-2], value.shape[:-2], strict=True))


def score_dtype(*tensors: Tensor) -> torch.dtype:
    """What scores are made in: float64 if anything is, else float32."""
    return torch.float64 if torch.float64 in [tensor.dtype for tensor in tensors] else torch.float32


def fits(own: Sequence[int], shape: Sequence[int], grows: bool = False) -> bool:
    """Whether a tensor of shape `own` broadcasts from the right to `shape`.

    Args:
        own: its shape.
        shape: with at least as many axes.
        grows: axes of size 1 in `shape` may become larger.
    """
    # by hand: torch.broadcast_shapes imports half a second of torch at its first call
    pairs = zip(reversed(own), reversed(shape), strict=False)
    return len(own) <= len(shape) and all(size in (1, wanted) or (grows and wanted == 1) for size, wanted in pairs)


def broadcast_to_scores(tensor: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """`tensor` with its last two axes expanded to T and S, refused unless it broadcasts to `shape`."""
    if not fits(tensor.shape, shape):
        _fail(
            f"{name} has shape {list(tensor.shape)} and the scores have {list(shape)}: "
            f"a {name} must broadcast from the right to [*batch, T, S]; add axes of size 1 with unsqueeze"
        )
    return tensor.expand(*tensor.shape[:-2], *shape[-2:])


def share_heads(query: Tensor, tensor: Tensor) -> Tensor:
    """A key or value with grouped heads repeated to the query's: query head h uses head h // group."""
    if query.ndim < 4 or tensor.shape[HEADS] in (1, query.shape[HEADS]) or query.shape[HEADS] == 1:
        return tensor
    groups = query.shape[HEADS] // tensor.shape[HEADS]
    if torch.compiler.is_exporting():  # repeat_interleave would put a guard on the number of keys into the graph
        return tensor.index_select(HEADS, torch.arange(query.shape[HEADS], device=tensor.device) // groups)
    return tensor.repeat_interleave(groups, HEADS)
