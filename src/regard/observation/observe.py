"""observe: where any model looks, without changing a bit of what it computes."""

import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from regard.attention.biases import Added, Bias, Both
from regard.attention.maps.compact import compact_bias, compact_mask, freeze
from regard.attention.maps.map import AttentionMap
from regard.attention.scores import Projected, ProjectedProduct
from regard.attention.spec import Spec
from regard.attention.watch import Call, is_watching, on_search_result, watching
from regard.errors import ChoiceError, RegardError, nearest
from regard.observation.sites import Tracker, is_torchs_own
from regard.observation.torch_calls import forget_masks, layer_call, module_call
from regard.observation.transformers_calls import interface_notified
from regard.shapes import batch_shape, share_heads

BUDGET = 2 * 2**30  # bytes that an observation holds in memory unless told otherwise


class UnseenSite(ChoiceError, KeyError):
    """A site that has no map."""

    __str__ = Exception.__str__  # a KeyError would quote the sentence


class Observation(Mapping[str, list[AttentionMap]]):
    """What was seen: site -> maps, sites in the order of their first call; readable after the block, detached.

    A site is the path of the module in which the attention happened, "." is the observed module itself.
    """

    def __init__(self, model: nn.Module, sites: Sequence[str] | None, budget: int) -> None:
        self._tracker = Tracker(model, started=self._started, finished=self._finished)
        self._sites = None if sites is None else known_sites(sites, self._tracker.names.values())
        self._shelf = Shelf(budget)
        self._maps: dict[str, list[AttentionMap]] = {}
        self._local = threading.local()
        self._lock = threading.Lock()
        self._met: set[nn.Module] = set()  # modules that ran
        self._told: set[str] = set()  # sites that attended

    def __getitem__(self, site: str) -> list[AttentionMap]:
        if site not in self._maps:
            known = ", ".join(map(repr, nearest(str(site), list(self._maps))[:6])) or "nothing: no attention happened"
            raise UnseenSite(f"no attention was seen at {site!r}; seen: {known}")
        return self._maps[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)

    def __repr__(self) -> str:
        lines = [f"{site}: {len(maps)} of {list(maps[0].shape)}" for site, maps in self._maps.items()]
        return "\n".join(["Observation", *(f"  {line}" for line in lines)])

    def along(self, beam_indices: Tensor | None = None) -> dict[str, AttentionMap]:
        """The steps of transformers' `generate` joined: one map per site `[sequences, heads, T, S]`, detached.

        Args:
            beam_indices: `generate`'s own (`return_dict_in_generate=True`), `[sequences, steps]`, -1 beyond a
                sequence's end; None where nothing was reordered (greedy search and sampling).

        Returns:
            {site: map} of the sites that were seen at every step; row t belongs to the t-th step, after the rows
            of a decoder-only model's prompt; keys that do not exist yet have weight 0.
        """
        steps = max(map(len, self._maps.values()), default=0)
        return {site: _along(site, maps, beam_indices) for site, maps in self._maps.items() if len(maps) == steps}

    @contextmanager
    def _watching(self) -> Iterator["Observation"]:
        with ExitStack() as stack:
            stack.enter_context(interface_notified())
            stack.enter_context(self._tracker.tracking())
            stack.enter_context(on_search_result(self._announced))
            stack.enter_context(watching(self._called))
            yield self
        self._refuse_silence()

    def _chosen(self, site: str | None) -> bool:
        return site is not None and (self._sites is None or any(fnmatchcase(site, s) for s in self._sites))

    @property
    def _run(self) -> "_Run":
        """What happens in this thread."""
        run: _Run = self._local.__dict__.setdefault("run", _Run())
        return run

    def _called(self, call: Call) -> None:
        site, run = self._tracker.path(call.owner), self._run
        if site is None or _in_backward():
            return
        self._told.add(site)
        run.answered.add(site)
        if not self._chosen(site):
            return
        with torch.no_grad():
            kept = Kept(self._keep(call, site), call)
        if run.pending is None:
            self._add(site, [self._finish([kept])])
            run.copies.clear()
        else:
            run.pending.setdefault(site, []).append(kept)

    def _announced(self, model: nn.Module, maps: Mapping[str, AttentionMap]) -> None:
        path = self._tracker.names.get(model)
        if path is None:
            return
        for site, found in maps.items():
            whole = site if path == "." else f"{path}.{site}"
            self._told.add(whole)
            if self._chosen(whole):
                self._add(whole, [found])

    def _add(self, site: str, maps: list[AttentionMap]) -> None:
        with self._lock:
            self._maps.setdefault(site, []).extend(maps)

    def _started(self, module: nn.Module) -> None:
        if _in_backward():
            return
        run = self._run
        run.ran.add(module)
        if module is self._tracker.model:
            run.depth += 1
            if run.depth == 1:
                run.pending, run.trouble = {}, sys.exc_info()[1]
                forget_masks()
        if isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer):
            run.answered.discard(self._tracker.names.get(_attention_of(module), ""))
        if isinstance(module, nn.TransformerEncoderLayer):
            run.ran.discard(module.self_attn)

    def _finished(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if _in_backward():
            return
        run = self._run
        if output is not None and is_watching(self._called):
            if module in self._tracker.names:
                self._met.add(module)
            with torch.no_grad():
                self._understand(module, args, kwargs)
        if module is self._tracker.model and run.depth:
            run.depth -= 1
            if not run.depth:
                pending, run.pending = run.pending or {}, None
                if sys.exc_info()[1] is run.trouble:  # a forward that failed is no forward
                    for site, calls in pending.items():
                        self._add(site, [self._finish(group) for group in _groups(calls)])
                self._local.run = _Run()

    def _understand(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Torch's own modules, which are not looked into but understood from what they were given."""
        if not isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer) or not is_torchs_own(module):
            return
        attention = _attention_of(module)
        site = self._tracker.names.get(attention)
        if site is None or site in self._run.answered:
            return
        if module is attention:
            self._called(_of(attention, module_call(attention, args, kwargs)))  # type: ignore[arg-type]
        elif attention not in self._run.ran:  # the layer took the fast path, on which no module runs
            self._called(_of(attention, layer_call(module, args, kwargs)))  # type: ignore[arg-type]

    def _keep(self, call: Call, site: str | None) -> Call:
        """A copy that nobody else can change, in the smallest exact form."""
        query, key, spec = freeze(call.query.detach(), call.key.detach(), call.spec)
        shape = (*batch_shape(query, share_heads(query, key)), query.shape[-2], key.shape[-2])
        # of what several calls share (a decoder's memory, a model's mask) there is one copy
        k = self._once(call.key, site, lambda: _clone(key))
        mask = self._once(spec.mask, shape[-2:], lambda: compact_mask(spec.mask, shape, query.device))
        bias = self._once(_identity(spec.bias), shape[-2:], lambda: _own(compact_bias(spec.bias, shape, query.device)))
        through = None if call.through is None else _clone(call.through.detach())
        return Call(_clone(query), k, k[..., :0], Spec(spec.score, spec.normalizer, mask, bias), call.owner, through)

    def _once(self, thing: Any, kind: Any, make: Any) -> Any:
        if thing is None:
            return None
        uncounted = isinstance(thing, Tensor) and thing.is_inference()  # nobody counts its changes: compare
        tag = id(thing), kind, thing._version if isinstance(thing, Tensor) and not uncounted else 0
        copies = self._run.copies
        if tag not in copies or (uncounted and not torch.equal(copies[tag][2], thing)):
            # the thing is held, so that its id stays its own
            copies[tag] = thing, make(), thing.clone() if uncounted else None
        return copies[tag][1]

    def _finish(self, calls: "list[Kept]") -> AttentionMap:
        """One map of calls that belong together, kept as whichever is smaller: queries and keys, or weights."""
        first = calls[0].call
        query = first.query if len(calls) == 1 else torch.cat([kept.call.query for kept in calls], -2)
        found = AttentionMap.from_spec(query, first.key, first.spec)
        if first.through is not None:
            return found.through(first.through)
        if prod(found.shape) < query.numel() + first.key.numel():
            return AttentionMap.from_weights(self._shelf.put(found.full(force=True)))
        return AttentionMap.from_spec(self._shelf.put(query), self._shelf.put(first.key), first.spec)

    def _refuse_silence(self) -> None:
        """A module that looks as if it attended, and was not seen to, is named."""
        names = self._tracker.names
        looks = [module for module in self._met if _looks(module)]
        silent = [
            names[module] for module in looks
            if not any(_within(site, names[module]) for site in self._told)
            and not any(_looks(parent) and names[parent] in self._told for parent in _around(names, module))
            and self._chosen(names[module])
        ]  # fmt: skip
        if silent:
            example = min(silent)
            kind = next(type(module).__name__ for module, name in names.items() if name == example)
            raise RegardError(
                f"{len(silent)} attention modules ran and cannot be seen, {example!r} ({kind}) among them: {_BY_HAND}"
            )
        if self._tracker.model in self._met and not self._told:
            raise RegardError(f"the model ran, and no attention was seen: it has none, or {_BY_HAND}")


_BY_HAND = (
    "they compute attention by hand. What can be seen: regard.attend, scaled_dot_product_attention, "
    "nn.MultiheadAttention and nn.Transformer, and transformers' attention interface"
)


@dataclass(frozen=True, eq=False)
class Kept:
    """A call's copy, and the call."""

    call: Call
    made_of: Call


class _Run:
    """What happens in one thread while the observed module runs."""

    def __init__(self) -> None:
        self.pending: dict[str, list[Kept]] | None = None  # calls of the forward that is running
        self.depth = 0
        self.trouble: BaseException | None = None  # that was there before it began
        self.copies: dict[Any, tuple[Any, Any, Any]] = {}
        self.answered: set[str] = set()
        self.ran: set[nn.Module] = set()


class Shelf:
    """Where tensors are kept: in memory up to a budget, on disk beyond it."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.held: dict[int, Tensor] = {}
        self.used = 0

    def put(self, tensor: Tensor) -> Tensor:
        """The same tensor, or its like on disk."""
        if id(tensor) in self.held:
            return self.held[id(tensor)]
        size = tensor.numel() * tensor.element_size()
        if self.used + size > self.budget and size:
            return self._on_disk(tensor)
        self.used += size
        self.held[id(tensor)] = tensor
        return tensor

    def _on_disk(self, tensor: Tensor) -> Tensor:
        with tempfile.NamedTemporaryFile(prefix="regard-") as file:  # a mapped file lives on without its name
            mapped = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
            mapped.copy_(tensor.flatten())
        return mapped.view(tensor.shape)


def observe(
    model: Any, sites: Sequence[str] | None = None, *, budget: int = BUDGET
) -> AbstractContextManager[Observation]:
    """See every attention of a model: `with regard.observe(model) as seen: model(...)`.

    For what `regard.load` returns and for any module: regard's own under any kernel; torch modules that use
    `scaled_dot_product_attention`, `nn.MultiheadAttention` or `nn.Transformer`, fast paths included; every model of
    transformers, whatever backend it was loaded with. No output changes by a bit, and no kernel is replaced.
    One forward of the observed module is one map per site (a recurrent decoder's steps are joined); in a search of
    ours, one map `[heads, T, S]` per returned hypothesis; transformers' `generate` gives one per step (`along`).

    Args:
        model: an nn.Module, or what `regard.load` returns.
        sites: which sites to keep, by path or pattern ("decoder.layers.*.cross"); all by default.
        budget: bytes of queries and keys to hold in memory; what comes after them goes to a temporary file.

    Returns:
        a context manager that gives the `Observation`, a mapping site -> list of AttentionMap.

    Raises:
        ChoiceError: a site that the model has not, nearest spelling first; no module.
        RegardError: a compiled or scripted module; at the end of the block, attention that could not be seen.
    """
    return Observation(module_of(model), sites, budget)._watching()


def module_of(model: Any) -> nn.Module:
    """The nn.Module of what a person wants to look at.

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


def known_sites(sites: Sequence[str], paths: Any) -> Sequence[str]:
    """The patterns, each of which names a module.

    Raises:
        ChoiceError: one that names none, nearest spelling first.
    """
    paths = list(paths)
    for site in [sites] if isinstance(sites, str) else sites:
        if not any(fnmatchcase(path, site) for path in paths):
            raise ChoiceError(f"the model has no module {site!r}: did you mean {nearest(site, paths)[0]!r}?")
    return [sites] if isinstance(sites, str) else sites


def _groups(calls: list[Kept]) -> Iterator[list[Kept]]:
    """Calls of one site in one forward: single steps that ask the same keys under the same spec belong together."""
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
    alike = _alike(first.made_of.spec.score, kept.made_of.spec.score) and _alike(
        first.made_of.spec.normalizer, kept.made_of.spec.normalizer
    )
    single = a.query.shape == b.query.shape and a.query.shape[-2] == 1
    return alike and single and a.key is b.key and a.spec.mask is b.spec.mask and b.spec.bias is None


def _alike(a: nn.Module, b: nn.Module) -> bool:
    """Whether two scores, or two normalisers, are one."""
    while isinstance(a, Projected | ProjectedProduct) and isinstance(b, Projected | ProjectedProduct):
        a, b = a.score, b.score
    if a is b:
        return True
    plain = [{n: v for n, v in vars(x).items() if not n.startswith("_") and n != "training"} for x in (a, b)]
    parts = any(True for x in (a, b) for _ in (*x.parameters(), *x.buffers()))
    return type(a) is type(b) and not parts and plain[0] == plain[1]


def _in_backward() -> bool:
    """In a backward pass a forward is only done again (checkpointing)."""
    return torch._C._current_graph_task_id() != -1


def _looks(module: nn.Module) -> bool:
    """Whether a module looks as if it attended."""
    name = type(module).__name__.lower()
    return "attention" in name or name.endswith(("attn", "attn2d"))


def _around(names: Mapping[nn.Module, str], module: nn.Module) -> list[nn.Module]:
    """The modules that a module is inside of."""
    return [other for other, path in names.items() if other is not module and _within(names[module], path)]


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


def _of(module: nn.Module, call: Call) -> Call:
    return Call(call.query, call.key, call.value, call.spec, module)


def _within(site: str, path: str) -> bool:
    return path == "." or site == path or site.startswith(path + ".")


def _along(site: str, maps: list[AttentionMap], beam_indices: Tensor | None) -> AttentionMap:
    sizes = [(one.shape[-2], one.shape[-1]) for one in maps]
    widths, asked = [width for _, width in sizes], accumulate(rows for rows, _ in sizes)
    # every step finds the keys of all before it, at their places: a cache that grows, or one that is long enough
    keeps = widths == sorted(widths) and all(width >= rows for width, rows in zip(widths, asked, strict=True))
    if not keeps and len(set(widths)) > 1:
        raise RegardError(
            f"the steps at {site!r} do not follow each other (queries × keys: "
            f"{', '.join(f'{t} × {s}' for t, s in sizes[:6])} …): along joins one generate per block, with a cache "
            "that keeps every key; the maps of the steps themselves are in seen[site]"
        )
    width = max(one.shape[-1] for one in maps)
    rows = []
    for step, one in enumerate(maps):
        weights = torch.nn.functional.pad(one.full(force=True), (0, width - one.shape[-1]))
        if beam_indices is not None:
            if step >= beam_indices.shape[1]:
                break
            which = beam_indices[:, step].to(weights.device)
            weights = weights[which.clamp(min=0)] * (which >= 0).reshape(-1, *[1] * (weights.ndim - 1))
        rows.append(weights)
    return AttentionMap.from_weights(torch.cat(rows, -2))
