"""Masks, biases and scores in their smallest exact form: what a map keeps, and what it writes to disk.

A mask whose rows have no gaps is two numbers a row; a bias that depends on the distance alone is one number
a diagonal; a score is a comparison of projected queries and keys.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.attention.biases import Added, Bias, Both, ByDistance, Diagonals
from regard.attention.frozen import frozen_module
from regard.attention.masks import Allow, Causal, Mask, Prefix, Spans
from regard.attention.spec import Spec
from regard.attention.tracing import are_hidden
from regard.shapes import score_dtype


def compact_mask(mask: Mask | None, shape: tuple[int, ...], device: torch.device, block: int = 256) -> Mask | None:
    """The same mask as it is, if it is a number; else as spans of keys or as one bool tensor (`spans`)."""
    small = isinstance(mask, Prefix) or (isinstance(mask, Causal) and not isinstance(mask.offset, Tensor))
    return mask if mask is None or small or isinstance(mask, Spans) else spans(mask, shape, device, block)


def spans(mask: Mask, shape: tuple[int, ...], device: torch.device, block: int = 256) -> Spans | Allow:
    """The same mask as spans of keys, if no row has a gap; as one bool tensor otherwise."""
    starts, ends = [], []
    columns = torch.arange(shape[-1], device=device)
    for rows in torch.arange(shape[-2], device=device).split(block):
        tile = mask.tile(rows, columns, shape)
        tile = tile.expand(*tile.shape[:-2], len(rows), shape[-1])
        start, end = _ends(tile)
        if bool((end - start != tile.sum(-1)).any()):
            return Allow(mask.full(shape, device).clone())
        starts.append(start)
        ends.append(end)
    return Spans(torch.cat(starts, -1), torch.cat(ends, -1))


def _ends(tile: Tensor) -> tuple[Tensor, Tensor]:
    """The first True and the one after the last; (0, 0) in a row without any."""
    some = tile.any(-1)
    first = pad(tile, (0, 1)).int().argmax(-1)  # one place more, as there may be no keys
    last = tile.shape[-1] - pad(tile.flip(-1), (0, 1)).int().argmax(-1)
    return first * some, last * some


def compact_bias(bias: Bias | None, shape: tuple[int, ...], device: torch.device) -> Bias | None:
    """The same bias by diagonals, if it depends on the distance alone; as it is otherwise."""
    if isinstance(bias, Both):
        parts = (compact_bias(part, shape, device) for part in (bias.left, bias.right))
        return Both(*(part for part in parts if part is not None))
    if isinstance(bias, ByDistance) and not isinstance(bias, Diagonals) and shape[-1] and shape[-2]:
        return Diagonals(bias.by_distance(torch.arange(1 - shape[-2], shape[-1], device=device), shape))
    if not isinstance(bias, Added) or not shape[-1] or not shape[-2]:
        return bias
    tensor = bias.tensor
    if tensor.ndim < 2 or tensor.shape[-2:] != shape[-2:] or min(shape[-2:]) < 2:
        return bias
    if not torch.equal(tensor[..., 1:, 1:], tensor[..., :-1, :-1]):
        return bias
    return Diagonals(torch.cat([tensor[..., 1:, 0].flip(-1), tensor[..., 0, :]], -1).to(device).clone())


def split_float_mask(tensor: Tensor) -> tuple[Mask | None, Bias | None]:
    """A float mask that is added to the scores, as what it forbids and what it adds.

    -inf, or the most negative number of its type, is a prohibition where the row allows anything else: there
    the softmax gives exactly 0. In a row of nothing else the most negative number drowns every score, and the
    row becomes uniform where it stands; there it stays a bias.
    """
    lowest = torch.finfo(tensor.dtype).min
    low = tensor <= lowest
    hidden = are_hidden(tensor)
    if not hidden and not bool(low.any()):
        return None, Added(tensor) if bool(tensor.any()) else None
    drowned = low.all(-1, keepdim=True) & (tensor == lowest)
    rest = tensor.masked_fill(low, 0).masked_fill(drowned, lowest)
    if hidden:
        return Allow(~low | drowned), Added(rest)
    return Allow(~low | drowned), Added(rest) if bool(rest.any()) else None


def freeze(query: Tensor, key: Tensor, spec: Spec) -> tuple[Tensor, Tensor, Spec]:
    """The same attention with nothing in it that training changes: parameters are copied, or applied."""
    score = spec.score
    if any(True for _ in score.parameters()):
        wide = score_dtype(query, key)
        q, k = query.to(wide), key.to(wide)
        query, key, score = score.project_query(q), score.project_key(k), score.compared()
    score = frozen_module(score)
    bias = None if spec.bias is None else spec.bias.frozen()
    return query, key, Spec(score, spec.normalizer.frozen(), spec.mask, bias)
