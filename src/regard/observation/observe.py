"""observe: the attention of a model, recorded without changing a bit of what it computes."""

import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import accumulate, count
from math import prod
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from regard.arguments import check_arguments
from regard.attention.biases import Added, Bias, Both
from regard.attention.maps.compact import compact_bias, compact_mask, freeze
from regard.attention.maps.map import AttentionMap
from regard.attention.maps.page import page_of_maps
from regard.attention.maps.sources import tensors_in
from regard.attention.scores import Function, Projected, ProjectedProduct
from regard.attention.spec import Spec
from regard.attention.tracing import is_traced
from regard.attention.watch import Call, is_watching, on_search_result, watching
from regard.errors import ChoiceError, ConfigError, RegardError, ShapeError, nearest, shown
from regard.figures.page import Page
from regard.observation.hand_written import on_hand_written
from regard.observation.sites import Repeatable, Tracker, is_torchs_own
from regard.observation.torch_calls import forget_masks, is_tracing, layer_call, module_call, refuse_mapped
from regard.observation.transformers_calls import interface_notified
from regard.shapes import batch_shape, share_heads

BUDGET = 2 * 2**30  # bytes that an observation holds in memory by default
VECTORS = 2**16  # numbers that the queries and keys of an input may have even where its weights take less
KEYS = 1024  # that an attention may have for its values to be kept
_OTHER_SEQUENCE = ("key_value_states", "encoder_hidden_states", "cross_attention_states", "memory")


class UnseenSite(ChoiceError, KeyError):
    """A site that has no map."""

    __str__ = Exception.__str__  # a KeyError would quote the sentence


class MapList(list[AttentionMap]):
    """The maps of a site, one for each forward of the observed module."""

    def __getattr__(self, name: str) -> Any:
        if hasattr(AttentionMap, name):
            raise AttributeError(
                f"seen[site] is a list of maps, one per forward: use one of them, seen[site][0].{name}"
            )
        raise AttributeError(f"a list of maps has no attribute {name!r}")

    def __getitem__(self, index: Any) -> Any:
        try:
            return super().__getitem__(index)
        except IndexError:
            count = f"{len(self)} map{'s' if len(self) != 1 else ''}"
            raise IndexError(f"seen[site] has {count}, one per forward, from 0; there is no number {index}") from None


class Observation(Mapping[str, list[AttentionMap]]):
    """What was recorded: site -> maps, sites in the order of their first call; readable after the block, detached.

    A site is the path of the module in which the attention happened, "." is the observed module itself. A module that
    is registered under several paths is one site, its first path; any of its paths finds its maps.
    """

    def __init__(self, model: nn.Module, sites: Sequence[str] | None, budget: int) -> None:
        self._tracker = Tracker(model, started=self._started, finished=self._finished)
        self._sites = None if sites is None else known_sites(sites, self._tracker.paths)
        self._modules = {path: module for module, paths in self._tracker.paths.items() for path in paths}
        self._shelf = Shelf(budget)
        self._maps: dict[str, MapList] = {}
        self._forwards: dict[str, list[Forward | None]] = {}  # of which forward each map is
        self._caches: dict[tuple[nn.Module, Forward | None], int] = {}  # the cache that a site was given in a forward
        self._numbers: MutableMapping[Any, int] = WeakKeyDictionary()  # a number for every cache
        self._crossing: set[nn.Module] = set()  # modules that were given another sequence to attend to
        self._local = threading.local()
        self._lock = threading.Lock()
        self._ran: set[nn.Module] = set()
        self._attended: set[nn.Module] = set()
        self._by_hand: set[nn.Module] = set()  # modules that multiplied softmaxed products by values themselves
        self._searched = False  # a search of this model has announced its result

    def __getitem__(self, site: str) -> list[AttentionMap]:
        module = self._modules.get(site)
        site = self._tracker.names[module] if module is not None else site
        if site not in self._maps:
            known = ", ".join(map(repr, nearest(str(site), list(self._maps))[:6])) or "nothing: no attention happened"
            raise UnseenSite(f"no attention was seen at {shown(site)}; seen: {known}")
        return self._maps[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise RegardError("an observation belongs to its model, and is not copied: copy its maps, dict(seen)")

    def __repr__(self) -> str:
        lines = [
            f"{site}: {len(maps)} {'map' if len(maps) == 1 else 'maps'} {list(maps[0].shape)}"
            for site, maps in self._maps.items()
        ]
        return "\n".join(["Observation", *(f"  {line}" for line in lines)])

    def _repr_html_(self) -> str:
        """What a notebook shows: the sites, and of the first ones a small picture of each head."""
        from regard.figures.thumbnails import sites_table

        return sites_table(self._maps, f"{type(self._tracker.model).__name__}: {len(self._maps)} sites")

    @check_arguments
    def along(self, beam_indices: Tensor | None = None) -> dict[str, AttentionMap]:
        """The steps of transformers' `generate` joined: one map per site `[sequences, heads, T, S]`, detached.

        A step is one forward of the module that generates. A site takes part if it attended once in every step;
        encoders and vision towers, which do not attend over the generated sequence, do not. A key's column is its
        position in the sequence, also where a sliding window has dropped earlier keys from the cache.

        Args:
            beam_indices: `generate`'s own (`return_dict_in_generate=True`), `[sequences, steps]`, -1 beyond a
                sequence's end; None where nothing was reordered (greedy search and sampling). They do not count the
                steps that read a prompt in chunks, so generate without `prefill_chunk_size`.

        Returns:
            {site: map}; row t belongs to the t-th step, after the rows of a decoder-only model's prompt; keys that
            do not exist yet, or no longer, have weight 0.

        Raises:
            RegardError: steps that are not one generation with a cache; beams that the maps do not have.
        """
        steps = self._steps()
        if not steps:
            return {}
        taking_part = {}
        for site, forwards in self._forwards.items():
            if [forward for forward in forwards if forward in steps] == steps:  # once in each, in order
                found = zip(self._maps[site], forwards, strict=True)
                taking_part[site] = [one for one, forward in found if forward in steps]
        for site in self._aside(taking_part, steps):
            del taking_part[site]
        joined = {}
        for site, maps in taking_part.items():
            module = self._modules[site]
            caches = {self._caches.get((module, step)) for step in steps}
            joined[site] = _along(site, maps, beam_indices, caches, module in self._crossing)
        return joined

    @check_arguments
    def look(
        self, path: str | Path | None = None, *, tokens: Sequence[str] | None = None,
        beam_indices: Tensor | None = None,
    ) -> Page:  # fmt: skip
        """The page of the maps: each site's last, or the joined steps of a generation (`along`).

        Args:
            path: an .html file to write, which needs no network; None only makes the page.
            tokens: names of the positions of the sequence that attends to itself. A model of two sequences (an
                encoder–decoder) takes them from each map instead: its `query_tokens` and `key_tokens`.
            beam_indices: of a generation with beams, as for `along`: without them a row belongs to a place in the beam,
                not to a returned sequence.

        Raises:
            RegardError: nothing was seen.
            ShapeError: no sequence of as many positions as there are names attends to itself.
        """
        if not self._maps:
            raise RegardError("nothing was seen: no attention happened in the block")
        many = any(len(maps) > 1 for maps in self._maps.values())
        maps = (self.along(beam_indices) if many else {}) or {site: maps[-1] for site, maps in self._maps.items()}
        named = {} if tokens is None else {"text": list(tokens)}
        sizes = sorted({one.shape[-1] for one in maps.values() if one.shape[-1] == one.shape[-2]})
        if tokens is not None and len(tokens) not in sizes:
            raise ShapeError(
                f"tokens: got {len(tokens)} names, and the sequences that attend to themselves have "
                f"{' or '.join(map(str, sizes)) or 'no'} positions here: give one name for each position"
            )
        return page_of_maps(maps, type(self._tracker.model).__name__, named).written(path)

    def _steps(self) -> "list[Forward]":
        """The forwards of the module that generated, in order: of the outermost one that ran on its own."""
        forwards = sorted(
            {one for found in self._forwards.values() for one in found if one}, key=lambda one: one.number
        )
        if not forwards:
            return []
        size = {one.module: sum(1 for _ in one.module.modules()) for one in forwards}
        generating = max(size, key=lambda module: (_generates(module), size[module]))
        return [one for one in forwards if one.module is generating]

    def _aside(self, maps: dict[str, list[AttentionMap]], steps: "list[Forward]") -> list[str]:
        """Sites that attended within an input of their own: a vision tower inside the one step that there was."""
        modules = {site: self._modules[site] for site in maps}
        within = [site for site, found in maps.items() if any(one.shape[-2] == one.shape[-1] > 1 for one in found)]
        cached = {site for site, module in modules.items() if any((module, step) in self._caches for step in steps)}
        if cached:
            return [site for site in within if site not in cached]
        causal = {site: getattr(module, "is_causal", None) for site, module in modules.items()}
        return [site for site in within if causal[site] is False] if True in causal.values() else []

    @contextmanager
    def _watching(self) -> Iterator["Observation"]:
        with ExitStack() as stack:
            stack.enter_context(interface_notified())
            stack.enter_context(self._tracker.tracking())
            stack.enter_context(on_hand_written(self._found_by_hand))
            stack.enter_context(on_search_result(self._announced))
            stack.enter_context(watching(self._called))
            yield self
        self._refuse_silence()

    def _chosen(self, module: nn.Module) -> bool:
        return self._sites is None or any(matches(self._tracker.paths[module], pattern) for pattern in self._sites)

    @property
    def _run(self) -> "_Run":
        """The state of the forward that is running in this thread."""
        run: _Run = self._local.__dict__.setdefault("run", _Run())
        return run

    def _called(self, call: Call) -> None:
        module, run = self._tracker.module(call.owner), self._run
        if module is None or _in_backward() or is_tracing():
            return
        refuse_mapped()
        self._attended.add(module)
        run.answered.add(module)
        if not self._chosen(module):
            return
        site = self._tracker.names[module]
        with torch.no_grad():
            kept = Kept(self._keep(call, site), call, run.forward(self._tracker.stack))
        if run.pending is None:
            self._add(site, [self._finish([kept])], kept.forward)
            run.copies.clear()
        else:
            run.pending.setdefault(site, []).append(kept)

    def _found_by_hand(self) -> None:
        module = self._tracker.module()
        if module is not None and is_watching(self._called) and not _in_backward():
            self._by_hand.add(module)

    def _announced(self, model: nn.Module, maps: Mapping[str, AttentionMap]) -> None:
        path = self._tracker.names.get(model)
        if path is None:
            return
        self._searched = True
        for site, found in maps.items():
            whole = site if path == "." else f"{path}.{site}"
            module = self._modules.get(whole)
            if module is not None:
                self._attended.add(module)
            if self._sites is None or any(fnmatchcase(whole, pattern) for pattern in self._sites):
                self._add(whole, [found], None)

    def _add(self, site: str, maps: list[AttentionMap], forward: "Forward | None") -> None:
        for one in maps:
            one.site = site
        with self._lock:
            self._maps.setdefault(site, MapList()).extend(maps)
            self._forwards.setdefault(site, []).extend([forward] * len(maps))

    def _started(self, module: nn.Module) -> None:
        if _in_backward():
            return
        run = self._run
        run.ran.add(module)
        run.numbers[module] = next(_count)
        if module is self._tracker.model:
            run.depth += 1
            if run.depth == 1:
                run.pending, run.error = {}, sys.exc_info()[1]
                forget_masks()
        if isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer):
            run.answered.discard(self._tracker.module(_attention_of(module)))
        if isinstance(module, nn.TransformerEncoderLayer):
            run.ran.discard(module.self_attn)

    def _finished(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if _in_backward():
            return
        run = self._run
        if output is not None and is_watching(self._called):
            if module in self._tracker.names:
                self._ran.add(module)
            self._understand(module, args, kwargs)
            if module in self._attended:
                self._note(module, kwargs)
        if module is self._tracker.model and run.depth:
            run.depth -= 1
            if not run.depth:
                pending, run.pending = run.pending or {}, None
                if sys.exc_info()[1] is run.error:  # a forward that raised is not recorded
                    for site, calls in pending.items():
                        for group in _groups(calls):
                            self._add(site, [self._finish(group)], group[0].forward)
                self._local.run = _Run()

    def _understand(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record the attention of torch's own modules from their arguments: the mode is off while they run."""
        if not isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer) or not is_torchs_own(module):
            return
        attention = _attention_of(module)
        where = self._tracker.module(attention)
        if where is None or where in self._run.answered:
            return
        if module is attention or attention not in self._run.ran:  # a layer's fast path runs no module
            refuse_mapped()
            grad = torch.is_grad_enabled()
            with torch.no_grad():
                call = (
                    module_call(module, args, kwargs, grad)
                    if isinstance(module, nn.MultiheadAttention)
                    else layer_call(module, args, kwargs)
                )
            self._called(replace(call, owner=attention))

    def _note(self, module: nn.Module, kwargs: dict[str, Any]) -> None:
        """Note which cache a site was given, and whether it attends to another sequence."""
        given = [name for name, value in kwargs.items() if value is not None]
        if any(name in _OTHER_SEQUENCE for name in given):
            self._crossing.add(module)
        for name in given:
            if "past_key_value" in name or "cache" in name.split("_"):
                with suppress(TypeError):  # a tuple of tensors: no object of its own
                    number = self._numbers.setdefault(kwargs[name], next(_count))
                    self._caches[module, self._run.forward([*self._tracker.stack, module])] = number

    def _keep(self, call: Call, site: str | None) -> Call:
        """A copy that shares no memory with the model's tensors, in the smallest exact form."""
        query, key, spec = freeze(call.query.detach(), call.key.detach(), call.spec)
        shape = (*batch_shape(query, share_heads(query, key)), query.shape[-2], key.shape[-2])
        # what several calls share (a decoder's memory, a model's mask) is copied once
        k = self._once(call.key, site, lambda: _clone(key))
        written = tuple(map(_as_written, tensors_in(spec.mask)))
        mask = self._once(spec.mask, (shape[-2:], written), lambda: compact_mask(spec.mask, shape, query.device))
        bias = self._once(_identity(spec.bias), shape[-2:], lambda: _own(compact_bias(spec.bias, shape, query.device)))
        through = None if call.through is None else _clone(call.through.detach())
        v = k[..., :0]
        if through is None and shape[-1] <= KEYS:
            v = self._once(call.value, (site, "value"), lambda: _clone(call.value.detach()))
        return Call(_clone(query), k, v, Spec(spec.score, spec.normalizer, mask, bias), call.owner, through)

    def _once(self, thing: Any, kind: Any, make: Any) -> Any:
        if thing is None:
            return None
        uncounted = isinstance(thing, Tensor) and thing.is_inference()  # without a version counter: compare values
        tag = id(thing), kind, thing._version if isinstance(thing, Tensor) and not uncounted else 0
        copies = self._run.copies
        if tag not in copies or (uncounted and not torch.equal(copies[tag][2], thing)):
            # holding the tensor keeps its id from being reused
            copies[tag] = thing, make(), thing.clone() if uncounted else None
        return copies[tag][1]

    def _finish(self, calls: "list[Kept]") -> AttentionMap:
        """One map of calls that belong together, kept as whichever is smaller: queries and keys, or weights.

        Few queries and keys are kept, as they say why a weight is what it is; not those of a single query, whose keys
        each step of a generation would keep again.
        """
        first = calls[0].call
        query = first.query if len(calls) == 1 else torch.cat([kept.call.query for kept in calls], -2)
        found = AttentionMap.from_spec(query, first.key, first.spec)
        if first.through is not None:
            return found.through(first.through)
        vectors = query.numel() + first.key.numel()
        few = found.shape[-2] > 1 and vectors <= VECTORS * prod(found.shape[:-3])
        if prod(found.shape) < vectors and not few:
            found = AttentionMap.from_weights(self._shelf.put(found.full(force=True)))
        else:
            found = AttentionMap.from_spec(self._shelf.put(query), self._shelf.put(first.key), first.spec)
        if first.value.shape[-1] and all(kept.call.value is first.value for kept in calls):
            found.value = self._shelf.put(first.value)
        return found

    def _refuse_silence(self) -> None:
        """Refuse attention modules that ran unrecorded, and patterns in `sites` that recorded nothing.

        Raises:
            RegardError: naming one of them.
        """
        names = self._tracker.names
        inside = {module for parent in self._attended if _looks(parent) for module in parent.modules()}
        by_name = {module for module in self._ran if _looks(module) and module not in inside}
        by_name = {module for module in by_name if getattr(module, "score", module) is not None}  # a step without any
        silent = [
            module for module in by_name | self._by_hand
            if not any(part in self._attended for part in module.modules()) and self._chosen(module)
        ]  # fmt: skip
        if silent:
            example = min(silent, key=names.__getitem__)
            which = f"{names[example]!r} ({type(example).__name__})"
            many = f"{len(silent)} modules that compute attention by hand ran, {which} among them, and cannot be seen"
            one = f"{which} computes attention by hand and cannot be seen"
            raise RegardError(f"{one if len(silent) == 1 else many}: {WAY_OUT}")
        if self._tracker.model in self._ran and not self._attended:
            raise RegardError(
                f"the model ran, and no attention was seen: it has none, or computes it by hand: {WAY_OUT}"
            )
        for pattern in self._sites or ():
            matched = [module for module, paths in self._tracker.paths.items() if matches(paths, pattern)]
            ran = self._searched or self._tracker.model in self._ran or any(module in self._ran for module in matched)
            if ran and not any(fnmatchcase(site, pattern) for site in self._maps) and not self._attended & {*matched}:
                known = nearest(pattern, [names[module] for module in self._attended])[:3]
                raise RegardError(
                    f"sites={pattern!r} recorded nothing: the model ran, and no module of that path attended; "
                    f"attended: {', '.join(map(repr, known)) or 'nothing'}"
                )


WAY_OUT = (
    "call regard.attend or torch's scaled_dot_product_attention there; nn.MultiheadAttention, nn.Transformer and "
    "transformers' attention interface can be seen as they are"
)


@dataclass(frozen=True, eq=False)
class Kept:
    """A recorded call: its copy, the call itself, and the forward that it belongs to."""

    call: Call
    made_of: Call
    forward: "Forward | None"


@dataclass(frozen=True)
class Forward:
    """One run of a module that no module of the model encloses, or that generates; numbered in their order."""

    module: nn.Module
    number: int


_count = count()


class _Run:
    """The state of one thread while the observed module runs."""

    def __init__(self) -> None:
        self.pending: dict[str, list[Kept]] | None = None  # calls of the forward that is running
        self.depth = 0
        self.error: BaseException | None = None  # that was being handled before the forward began
        self.copies: dict[Any, tuple[Any, Any, Any]] = {}
        self.answered: set[nn.Module | None] = set()  # modules whose attention has been recorded
        self.ran: set[nn.Module] = set()
        self.numbers: dict[nn.Module, int] = {}  # of each module's latest forward

    def forward(self, stack: list[nn.Module]) -> Forward | None:
        """The forward that is running: of the outermost module that generates, else of the outermost one."""
        outermost = next(filter(_generates, stack), stack[0] if stack else None)
        return None if outermost is None else Forward(outermost, self.numbers.get(outermost, 0))


def _as_written(tensor: Tensor) -> Any:
    """What tells a tensor from itself after a write to it: torch's count of writes; its values where there is none."""
    if is_traced(tensor) or tensor.is_meta:
        return 0
    if not tensor.is_inference():
        return tensor._version
    return hash(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _allocate(file: int, size: int) -> None:
    """Room for a file that is mapped into memory: writing to a page for which the disk has none would end the process.

    Raises:
        OSError: the disk has none.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)


class Shelf:
    """Holds tensors in memory up to a budget of bytes, and in temporary files beyond it."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.held: dict[int, Tensor] = {}
        self.used = 0

    def put(self, tensor: Tensor) -> Tensor:
        """The same tensor, or a copy of it in a file that is mapped into memory."""
        if id(tensor) in self.held:
            return self.held[id(tensor)]
        size = tensor.numel() * tensor.element_size()
        if self.used + size > self.budget and size:
            return self._on_disk(tensor)
        self.used += size
        self.held[id(tensor)] = tensor
        return tensor

    def _on_disk(self, tensor: Tensor) -> Tensor:
        with tempfile.NamedTemporaryFile(prefix="regard-") as file:  # its mapping outlives its name
            try:
                _allocate(file.fileno(), tensor.numel() * tensor.element_size())
            except OSError as error:
                raise RegardError(
                    f"{tempfile.gettempdir()}: {error.strerror or error}: what is observed beyond budget = "
                    f"{self.budget:,} bytes goes to files there: give a larger budget, or set TMPDIR to a larger disk"
                ) from error
            mapped = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
            mapped.copy_(tensor.flatten())
        return mapped.view(tensor.shape)


@check_arguments
def observe(
    model: Any, sites: Sequence[str] | None = None, *, budget: float = BUDGET
) -> AbstractContextManager[Observation]:
    """See every attention of a model: `with regard.observe(model) as seen: model(...)`.

    For what `regard.load` returns and for any module: regard's own under any kernel; torch modules that use
    `scaled_dot_product_attention`, `nn.MultiheadAttention` or `nn.Transformer`, fast paths included; models from the
    transformers library that use its attention interface, with any backend. No output changes by a bit, and no kernel
    is replaced. One forward of the observed module is one map per site (a recurrent decoder's steps are joined); in a
    search of ours, one map `[heads, T, S]` per returned hypothesis; transformers' `generate` gives one per step
    (`along`).
    A map is what the model's own score and normalizer gave: under `intervene`, the weights before the change.

    Args:
        model: an nn.Module, or what `regard.load` returns.
        sites: which sites to keep, by path or pattern ("decoder.layers.*.cross"); all by default.
        budget: bytes of queries, keys and values to hold in memory; further ones go to temporary files. Values are
            kept of attentions to at most 1,024 keys.

    Returns:
        a context manager that gives the `Observation`, a mapping site -> list of AttentionMap; a new one each time it
        is entered.

    Raises:
        ChoiceError: a site that the model has not, nearest spelling first; no module.
        RegardError: a compiled or scripted module; attention inside `torch.func.vmap`; at the end of the block,
            attention that could not be seen, or a pattern in `sites` that recorded nothing although the model ran.
    """
    if not budget >= 0:
        raise ConfigError(f"budget must be a number of bytes, 0 or more; got {budget}")
    module = module_of(model)
    return Repeatable(lambda: Observation(module, sites, int(min(budget, 2**62)))._watching())


def module_of(model: Any) -> nn.Module:
    """The nn.Module to observe: a module itself, or the `.model` of what `regard.load` returns.

    Raises:
        ChoiceError: there is none.
        RegardError: it is compiled or scripted: its insides cannot be seen.
    """
    module = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(module, nn.Module):
        raise ChoiceError(f"expected an nn.Module or what regard.load returns; got {type(model).__name__}")
    for path, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise RegardError(
                f"{path or '.'} is a scripted module: it cannot be seen into; use the module it came from"
            )
        if hasattr(part, "_orig_mod"):
            raise RegardError(f"{path or '.'} is a compiled module: observe ._orig_mod, the module inside it")
    return module


def known_sites(sites: Sequence[str], paths: Mapping[nn.Module, Sequence[str]]) -> Sequence[str]:
    """The patterns, each of which names a module.

    Args:
        sites: paths or patterns.
        paths: every path of each module.

    Raises:
        ChoiceError: a pattern that names none, nearest spelling first; no pattern at all.
    """
    patterns = [sites] if isinstance(sites, str) else list(sites)
    if not patterns:
        raise ChoiceError("sites is empty: name a site or a pattern, or leave sites out for all")
    for pattern in patterns:
        if not any(matches(own, pattern) for own in paths.values()):
            known = [path for own in paths.values() for path in own]
            if any(sign in pattern for sign in "*?["):
                some = ", ".join(map(repr, [path for path in nearest(pattern, known) if path != "."][:3]))
                raise ChoiceError(
                    f"no module of the model matches {pattern!r}" + (f"; it has {some}, …" if some else "")
                )
            raise ChoiceError(f"the model has no module {pattern!r}: did you mean {nearest(pattern, known)[0]!r}?")
    return patterns


def matches(paths: Sequence[str], pattern: str) -> bool:
    """Whether a module of these paths is named by a path or pattern."""
    return any(fnmatchcase(path, pattern) for path in paths)


def _groups(calls: list[Kept]) -> Iterator[list[Kept]]:
    """Calls of one site in one forward; single queries over the same keys under the same spec are one map."""
    group: list[Kept] = []
    for kept in calls:
        if group and not _follows(group[0], kept):
            yield group
            group = []
        group.append(kept)
    if group:
        yield group


def _follows(first: Kept, kept: Kept) -> bool:
    a, b = first.call, kept.call
    single = a.query.shape == b.query.shape and a.query.shape[-2] == 1
    same = kept.forward == first.forward and a.key is b.key and a.spec.mask is b.spec.mask
    if not (single and same and b.spec.bias is None):
        return False
    one, other = first.made_of.spec, kept.made_of.spec
    return _alike(one.score, other.score) and _alike(one.normalizer, other.normalizer)


def _alike(a: nn.Module, b: nn.Module) -> bool:
    """Whether two scores, or two normalizers, compute the same."""
    while isinstance(a, Projected | ProjectedProduct) and isinstance(b, Projected | ProjectedProduct):
        a, b = a.score, b.score
    if isinstance(a, Function) and isinstance(b, Function) and a.function is b.function:
        return True
    if a is b:
        return True
    parts = any(True for x in (a, b) for _ in (*x.parameters(), *x.buffers()))
    if type(a) is not type(b) or parts or len(vars(a)) != len(vars(b)):
        return False
    plain = [{n: v for n, v in vars(x).items() if not n.startswith("_") and n != "training"} for x in (a, b)]
    return plain[0].keys() == plain[1].keys() and all(map(_equal, plain[0].values(), plain[1].values()))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return type(a) is type(b) and a.shape == b.shape and bool((a == b).all())
    with suppress(ValueError, TypeError, RuntimeError):  # of an array, say, which compares its elements
        return a is b or bool(a == b)
    return False


def _in_backward() -> bool:
    """Whether a backward pass runs: checkpointing repeats forwards there, which have been recorded."""
    return torch._C._current_graph_task_id() != -1


def _looks(module: nn.Module) -> bool:
    """Whether a module's class is named as an attention."""
    name = type(module).__name__.lower()
    return "attention" in name or name.endswith(("attn", "attn2d"))


def _generates(module: nn.Module) -> bool:
    return callable(getattr(module, "generate", None))


def _clone(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _identity(bias: Bias | None) -> Any:
    return bias.tensor if isinstance(bias, Added) else bias


def _own(bias: Bias | None) -> Bias | None:
    if isinstance(bias, Both):
        return Both(*(part for part in (_own(bias.left), _own(bias.right)) if part is not None))
    return Added(bias.tensor.detach().clone()) if isinstance(bias, Added) else bias


def _attention_of(module: nn.Module) -> nn.Module:
    """An `nn.MultiheadAttention`, or the one inside an `nn.TransformerEncoderLayer`."""
    return module.self_attn if isinstance(module, nn.TransformerEncoderLayer) else module


def _along(
    site: str, maps: list[AttentionMap], beam_indices: Tensor | None, caches: set[int | None], crossing: bool
) -> AttentionMap:
    """The maps of one site's steps as one; `crossing`: its keys are another sequence than its queries."""
    sizes = [(one.shape[-2], one.shape[-1]) for one in maps]
    starts = _starts(sizes, caches != {None}, crossing)
    if starts is None or len(caches) > 1:
        raise RegardError(
            f"the steps at {shown(site)} do not follow each other (queries × keys: "
            f"{', '.join(f'{t} × {s}' for t, s in sizes[:6])} …): along joins one generate per block, with a cache "
            "that keeps every key or the latest ones; the maps of the steps themselves are in seen[site]"
        )
    if beam_indices is not None and any(rows > 1 for rows, _ in sizes[1:]):
        raise RegardError(
            f"the steps at {shown(site)} have several new queries after the first one, as where a prompt is read in "
            "chunks: beam_indices do not count such steps; generate without prefill_chunk_size"
        )
    width = max(start + keys for start, (_, keys) in zip(starts, sizes, strict=True))
    rows: list[Tensor] = []
    for step, (one, start) in enumerate(zip(maps, starts, strict=True)):
        weights = torch.nn.functional.pad(one.full(force=True), (start, width - start - one.shape[-1]))
        if beam_indices is not None:
            if step >= beam_indices.shape[1]:
                break
            which = beam_indices[:, step].to(weights.device)
            if int(which.max()) >= len(weights):
                raise RegardError(
                    f"beam_indices name beam {int(which.max())}, and step {step} at {shown(site)} has {len(weights)}: "
                    "give the beam_indices of the generate that was observed"
                )
            weights = weights[which.clamp(min=0)] * (which >= 0).reshape(-1, *[1] * (weights.ndim - 1))
        batch = weights.shape[:-2]
        if rows and rows[0].shape[:-2] != batch:
            raise RegardError(
                f"{shown(site)} has maps of {list(rows[0].shape[:-2])} and of {list(batch)} before queries and keys: "
                "steps of one sequence have the same; the maps of the forwards themselves are in seen[site]"
            )
        rows.append(weights)
    return AttentionMap.from_weights(torch.cat(rows, -2))


def _starts(sizes: list[tuple[int, int]], cached: bool, crossing: bool) -> list[int] | None:
    """The position of each step's first key, from (queries, keys) of the steps; None if they are not one sequence.

    Keys are positions of the generated sequence itself (the cache keeps all, has room for more, or keeps the latest
    ones of a window, as many before each step that drops some), or, where the number of keys never changes, of another
    sequence.
    """
    widths = [keys for _, keys in sizes]
    seen = list(accumulate(rows for rows, _ in sizes))
    if len(set(widths)) == 1 and (crossing or not cached or widths[0] == 1):
        return [0] * len(sizes)
    if crossing:
        return None
    starts = [max(0, total - keys) for total, keys in zip(seen, widths, strict=True)]
    kept = [keys - rows for rows, keys in sizes]  # of the keys before each step
    dropping = [step for step, start in enumerate(starts) if start]
    if not dropping:
        return starts
    window = kept[dropping[0]]
    same = all(kept[step] == window for step in dropping)
    fits = all(total - rows <= window for total, (rows, _), start in zip(seen, sizes, starts, strict=True) if not start)
    # several new queries may also begin again (no keys are kept), or, once, follow guesses that were taken back
    told = all(sizes[step][0] == 1 for step in dropping) or (window > 0 and len(dropping) > 1)
    return starts if same and fits and told else None
