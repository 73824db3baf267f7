"""Keys and values of the tokens so far: a value that grows by one token a step without being copied every time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from regard.attention.tracing import is_traced

ROOM = 32  # rows of a new buffer, at least


class _Buffer:
    """Storage shared by the caches of one sequence of appends; a row that has been written is never written again."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.key, self.value = key, value
        self._filled = 0
        self._lock = Lock()  # two threads may continue the same cache

    def claim(self, first: int, rows: int) -> bool:
        """Reserve `rows` rows from `first` on; False where they are taken or beyond the end."""
        with self._lock:
            free = self._filled == first and first + rows <= self.key.shape[-2]
            self._filled += rows if free else 0
        return free

    def accepts(self, key: Tensor, value: Tensor) -> bool:
        """Whether such rows can be written here: same dtypes, and no inference tensors outside inference mode."""
        outside = self.key.is_inference() and not torch.is_inference_mode_enabled()
        return not outside and self.key.dtype == key.dtype and self.value.dtype == value.dtype

    def write(self, first: int, key: Tensor, value: Tensor) -> None:
        """Write claimed rows."""
        self.key[..., first : first + key.shape[-2], :] = key
        self.value[..., first : first + value.shape[-2], :] = value


@dataclass(frozen=True, eq=False)
class KVCache:
    """Keys and values of n tokens.

    `append` returns a longer cache and changes none that exists. Without gradients, n appends in a row copy O(n) rows
    in total: the result is a view of a buffer with room behind it, and the next append writes there. A second append
    to the same cache finds that room taken and copies.

    Attributes:
        key: `[*batch, n, d_k]`.
        value: `[*batch, n, d_v]`.
    """

    key: Tensor
    value: Tensor
    _buffer: _Buffer | None = field(default=None, repr=False)
    _end: int = field(default=0, repr=False)  # the buffer's row behind this cache's last one

    def __len__(self) -> int:
        return self.key.shape[-2]

    def append(self, key: Tensor, value: Tensor) -> "KVCache":
        """The cache with m more tokens.

        Args:
            key: `[*batch, m, d_k]`; its dtype is the new cache's.
            value: `[*batch, m, d_v]`; likewise.
        """
        if torch.is_grad_enabled() or is_traced(key):  # backward and graphs need tensors that nothing writes to
            return KVCache(_joined(self.key, key), _joined(self.value, value))
        buffer, end, rows = self._buffer, self._end, key.shape[-2]
        if buffer is None or not buffer.accepts(key, value) or not buffer.claim(end, rows):
            end, room = len(self), max(ROOM, 2 * (len(self) + rows))
            buffer = _Buffer(*(new.new_empty(*new.shape[:-2], room, new.shape[-1]) for new in (key, value)))
            buffer.claim(0, end + rows)
            buffer.write(0, self.key, self.value)
        buffer.write(end, key, value)
        end += rows
        first = end - rows - len(self)
        return KVCache(buffer.key[..., first:end, :], buffer.value[..., first:end, :], buffer, end)

    def drop(self, tokens: int) -> "KVCache":
        """The cache without its first `tokens` tokens; nothing is copied."""
        if not tokens:
            return self
        return KVCache(self.key[..., tokens:, :], self.value[..., tokens:, :], self._buffer, self._end)

    def map(self, change: Callable[[Tensor], Tensor]) -> "KVCache":
        """The cache whose key and value are `change(key)` and `change(value)`."""
        return KVCache(change(self.key), change(self.value))

    def __reduce__(self) -> tuple[Any, ...]:
        return KVCache, (self.key.clone(), self.value.clone())  # copied and pickled without the buffer


def _joined(past: Tensor, new: Tensor) -> Tensor:
    return torch.cat([past.to(new.dtype), new], -2)
