"""Keys and values that grow by one place a step, without being copied every time."""

import torch
from torch import Tensor

FIRST = 32  # places of room at least


class _Room:
    """A buffer, of which the first `filled` places are taken."""

    def __init__(self, buffer: Tensor, filled: int) -> None:
        self.buffer, self.filled = buffer, filled


def append(past: Tensor, new: Tensor) -> Tensor:
    """`past` and `new` joined along axis -2, `[*batch, n + m, d]`.

    Where no gradient is asked for, the result is a view that knows the room behind it, and the next places are written
    there: n steps copy O(n) places instead of O(n²). Whoever goes on a second time from the same past, or from
    another order of it (beams), gets a copy: what was returned never changes.
    """
    past = past.to(new.dtype)
    if torch.is_grad_enabled() and (past.requires_grad or new.requires_grad):
        return torch.cat([past, new], -2)
    n, m = past.shape[-2], new.shape[-2]
    room = getattr(past, "room_behind", None)
    outside = room is not None and room.buffer.is_inference() and not torch.is_inference_mode_enabled()
    if room is None or outside or room.filled != n or room.buffer.shape[-2] < n + m:
        buffer = past.new_empty(*past.shape[:-2], max(FIRST, 2 * (n + m)), past.shape[-1])
        buffer[..., :n, :] = past
        room = _Room(buffer, n)
    room.buffer[..., n : n + m, :] = new
    room.filled = n + m
    joined = room.buffer[..., : n + m, :]
    setattr(joined, "room_behind", room)  # noqa: B010 - a tensor takes attributes, its stubs do not say so
    return joined
