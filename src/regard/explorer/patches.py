"""What if a part of one head came from another sentence? The same output, given token by token (`regard.patch`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from regard.analysis.base import ForwardPass
from regard.attention.maps.map import AttentionMap
from regard.attention.watch import Call, calls_by_site, unwatched, watching
from regard.errors import shown
from regard.observation.intervene import Change, intervene, map_of
from regard.pipelines.base import InputError

Part = Literal["weights", "query", "key", "value"]
NAMES: Mapping[Part, str] = {"weights": "weights", "query": "queries", "key": "keys", "value": "values"}


@dataclass(frozen=True, eq=False)
class Patched:
    """A pass in which one head's part came from another pass.

    Attributes:
        logits: `[positions, V]`.
        maps: `[heads, T, S]` of every site; of the patched one with the part.
        sharing: how many heads have the part, with grouped keys and values.
    """

    logits: Tensor
    maps: dict[str, AttentionMap]
    sharing: int = 1


def patched(given: ForwardPass, other: ForwardPass, site: str, head: int, part: Part) -> Patched:
    """A pass with one head's weights, queries, keys or values from another pass of the same module.

    A recurrent decoder attends step by step: every step takes the part of the same step.

    Args:
        given: the pass.
        other: where the part comes from, with the same decoder input.
        site: the attention.
        head: of it; the only one where it has one.
        part: what is taken.

    Raises:
        InputError: no such head; a part of another size, since the inputs have different numbers of tokens.
    """
    taken, theirs, calls = list[Tensor](), list[Call](), list[Call]()

    def take(own: Tensor) -> Tensor:
        taken.append(own.detach().clone())
        return own

    with torch.inference_mode(), unwatched(), watching(theirs.append), intervene(other.module, site, take, part):
        other()
    sites = calls_by_site(other.module, theirs)
    if site not in sites:  # a pattern, say
        raise InputError(f"site: expected one of {', '.join(sites)}; got {shown(site)}")
    heads = _heads(sites[site][0].query)
    if head >= heads:
        raise InputError(f"this site has {heads} heads, numbered from 0; there is no head {head}")
    sharing = heads // _heads(taken[0])
    put, again = (_Put(taken, head // sharing) for _ in range(2))
    with torch.inference_mode(), unwatched(), watching(calls.append), intervene(given.module, site, put, part):
        logits = given.logits()[0]
    with torch.inference_mode():
        found = calls_by_site(given.module, calls)
        maps = {name: _map(some, again if name == site else None, part) for name, some in found.items()}
    return Patched(logits, maps, sharing)


def _heads(part: Tensor) -> int:
    return part.shape[-3] if part.ndim > 3 else 1


@dataclass
class _Put:
    """A change that puts a head's part, kept from the calls of another run, into the same calls of this one."""

    taken: Sequence[Tensor]
    head: int
    calls: int = field(default=0)

    def __call__(self, own: Tensor) -> Tensor:
        there = self.taken[self.calls]
        self.calls += 1
        if there.shape != own.shape:
            raise InputError(
                f"the other sentence has {there.shape[-2]} × {there.shape[-1]} numbers here, this one "
                f"{own.shape[-2]} × {own.shape[-1]}: take a sentence of as many tokens"
            )
        if _heads(own) == 1:
            return there
        mixed = own.clone()
        mixed[..., self.head, :, :] = there[..., self.head, :, :]
        return mixed


def _map(calls: Sequence[Call], put: Change | None, part: Part) -> AttentionMap:
    """The map of all calls of a site; they were recorded as they were before the patch, which is put in again."""
    found = []
    for call in calls:
        patch: dict[str, Any] = {part: put(getattr(call, part))} if put and part in ("query", "key") else {}
        one = map_of(replace(call, **patch))
        found.append(AttentionMap.from_weights(put(one.full())) if put and part == "weights" else one)
    if len(found) == 1 and len(found[0].shape) > 3:
        return found[0].select(0)
    rows = torch.cat([one.full() for one in found], -2)[0]
    return AttentionMap.from_weights(rows if rows.ndim > 2 else rows[None])
