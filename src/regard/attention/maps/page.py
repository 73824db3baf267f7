"""The page of maps: their document, which is plain data, and the tensors it names (`regard.figures.page`)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard import __version__
from regard.attention.maps.packed import pack_map
from regard.errors import ConfigError
from regard.figures.page import Page
from regard.figures.still import still

if TYPE_CHECKING:
    from regard.attention.maps.map import AttentionMap

# bytes of tensors that a page may have for values to be among them: a page of 3 MB for a translation, else of 8 MB
ROOM = {"translate": 2_000_000}
LARGEST = 6_000_000
STILL = 48  # queries or keys of a map that has a picture for where scripts are off
Sequences = Mapping[str, Sequence[str]]


class Draft:
    """A page that is being put together.

    Attributes:
        document: as `Page` takes it.
        tensors: by name, as `Page` takes them.
        tests: whether maps are tested before the page is shown; else a run names the site `to_test`, and the page asks.
    """

    def __init__(self, title: str, **about: Any) -> None:
        self.tests = True
        self.document: dict[str, Any] = {"regard": __version__, "title": title, **about, "runs": []}
        self.tensors: dict[str, Tensor] = {}
        self._values: list[tuple[bool, dict[str, Any], Tensor]] = []  # whether of a chosen site, of which map
        self._first: tuple[AttentionMap, dict[str, Any], dict[str, Any]] | None = None

    def add_run(
        self, label: str, maps: Mapping[str, "AttentionMap"], sequences: Sequences, *,
        axes: Mapping[str, tuple[str, str]] | None = None, **about: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Add a run: one input with its output and its maps.

        Args:
            label: its name among the runs.
            maps: `[heads, T, S]` or `[T, S]`, by site; those without queries or keys are left out.
            sequences: names of positions, by the name of the sequence.
            axes: which sequences a site's queries and keys are; a map's own tokens by default.
            about: what else the page shows of it.
        """
        number = len(self.document["runs"])
        run: dict[str, Any] = {
            "label": label, "sequences": {name: list(names) for name, names in sequences.items()}, "maps": [], **about
        }  # fmt: skip
        for place, (site, seen) in enumerate(maps.items()):
            if 0 in seen.shape:
                continue
            note, parts = pack_map(seen)
            prefix = f"{number}.{place}"
            value = parts.pop("value", None)
            self.tensors |= {f"{prefix}.{name}": part for name, part in parts.items()}
            named = (axes or {}).get(site)
            sides = named or [self._own(run, names) for names in (seen.query_tokens, seen.key_tokens)]
            run["maps"].append({"site": site, "tensors": prefix, "how": note, "rows": sides[0], "columns": sides[1]})
            if value is not None:
                self._values.append((site == run.get("chosen", {}).get("site"), run["maps"][-1], value))
            first = self._first is None or self._first[2] is run
            if first and (self._first is None or site == run.get("chosen", {}).get("site")):
                self._first = seen, run["maps"][-1], run
        self.document["runs"].append(run)
        return run

    @staticmethod
    def _own(run: dict[str, Any], names: list[str] | None) -> str | None:
        """The name of the sequence that a map's own tokens make; the page shows it where a map is of two."""
        if names is None:
            return None
        known = next((name for name, those in run["sequences"].items() if those == names), None)
        if known is None:
            known = f"sequence {len(run['sequences']) + 1}"
            run["sequences"][known] = list(names)
        return str(known)

    def page(self) -> Page:
        """The page of the runs that have maps; with the values that it has room for, those of chosen sites first.

        Raises:
            ConfigError: none has.
        """
        runs = [run for run in self.document["runs"] if run["maps"]]
        if not runs:
            raise ConfigError("there is no attention to look at: the output is empty, or the model attends to nothing")
        room = ROOM.get(self.document.get("task", ""), LARGEST) - sum(part.nbytes for part in self.tensors.values())
        tensors = dict(self.tensors)
        for _, info, value in sorted(self._values, key=lambda one: not one[0]):
            info["values"] = value.nbytes <= room  # a page that leaves some out says so
            if info["values"]:
                room -= value.nbytes
                tensors[f"{info['tensors']}.value"] = value
        return Page({**self.document, "runs": runs}, tensors, self._still())

    def _still(self) -> str:
        """A picture of the first run's chosen map, where it is small enough for one."""
        if self._first is None:
            return ""
        seen, info, run = self._first
        if max(seen.shape[-2:]) > STILL:
            return ""
        weights = seen.full().detach().cpu()
        heads = run.get("chosen", {}).get("heads") if run.get("chosen", {}).get("site") == info["site"] else None
        weights = weights.reshape(-1, *weights.shape[-2:])
        mean = (weights[heads] if heads else weights).mean(0)
        rows, columns = (
            run["sequences"].get(info[side] or "", [str(n) for n in range(size)])[:size]
            for side, size in zip(("rows", "columns"), mean.shape, strict=True)
        )
        shown = "" if info["site"] == "map" else f"{info['site']}: "
        return still(mean.numpy(), rows, columns, f"{shown}{run.get('source') or self.document['title']}")


def page_of_map(seen: "AttentionMap", title: str = "attention map") -> Page:
    """The page of a map; every entry of further batch axes is a run.

    Args:
        seen: `[*batch, heads, T, S]` or `[T, S]`.
        title: of the page.
    """
    draft = Draft(title, task="map")
    for label, one in _entries(seen):
        draft.add_run(label, {"map": one}, {})
    return draft.page()


def page_of_maps(seen: Mapping[str, "AttentionMap"], title: str, sequences: Sequences | None = None) -> Page:
    """The page of an observed model's maps, by site; the entries of a batch are runs.

    Args:
        seen: `[batch, heads, T, S]` each.
        title: of the page.
        sequences: {"text": names of the positions of the sequence that attends to itself}, where known.
    """
    draft = Draft(title, task="maps")
    known = sequences or {}
    by_run: dict[str, dict[str, AttentionMap]] = {}
    for site, whole in seen.items():
        for label, one in _entries(whole):
            by_run.setdefault(label, {})[site] = one
    for label, maps in by_run.items():
        size = len(known.get("text", ()))
        axes = {site: ("text", "text") for site, one in maps.items() if size and tuple(one.shape[-2:]) == (size, size)}
        draft.add_run(label, maps, known, axes=axes)
    return draft.page()


def _entries(seen: "AttentionMap") -> Iterable[tuple[str, "AttentionMap"]]:
    """The maps `[heads, T, S]` of a batch, with their names."""
    batch = seen.shape[:-3]
    if not batch:
        yield "the map", seen
        return
    for index in torch.cartesian_prod(*map(torch.arange, batch)).view(-1, len(batch)).tolist():
        yield f"input {', '.join(str(i + 1) for i in index)}", seen.select(*index)
