"""What a page asks of its model: another text, what if, may it be believed."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from regard.attention.maps.map import AttentionMap
from regard.attention.maps.page import Draft
from regard.observation.intervene import intervene, uniform
from regard.pipelines.atlas import MOST, atlas_of
from regard.pipelines.base import InputError
from regard.pipelines.page import SETTINGS, add_text, axes_of, dependence_of, look_at, recorded

LONGEST = 2_000  # characters of a text
CANDIDATES = 6  # tokens named before and after a change
HEADS = ("uniform", "ablate", "force")  # changes of a head's weights


class Asked(BaseModel):
    """A question in JSON; what it does not know it refuses."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Look(Asked):
    """Another text to look at."""

    text: str = Field(min_length=1, max_length=LONGEST)


class Change(Asked):
    """A change of the source (drop, replace), or of a head's weights (uniform, ablate, force)."""

    kind: Literal["drop", "replace", "uniform", "ablate", "force"]
    word: int = Field(0, ge=0)
    text: str = Field("", max_length=200)
    key: int = Field(0, ge=0)


class WhatIf(Asked):
    """A change, and the output before it."""

    source: str = Field(min_length=1, max_length=LONGEST)
    output: str = Field("", max_length=4 * LONGEST)
    position: int = Field(0, ge=0)
    site: str = Field(max_length=200)
    head: int = Field(0, ge=0)
    change: Change


class Believe(Asked):
    """A test of a site's map for one token of the output, or for all of it."""

    source: str = Field(min_length=1, max_length=LONGEST)
    output: str = Field("", max_length=4 * LONGEST)
    site: str = Field(max_length=200)
    position: int | None = Field(None, ge=0)


class Atlas(Asked):
    """Importance and roles of the heads over texts; samples where there are none."""

    texts: list[Annotated[str, Field(min_length=1, max_length=LONGEST)]] = Field(default=[], max_length=MOST)


def atlas(pipeline: Any, asked: Atlas) -> dict[str, Any]:
    """What `regard.pipelines.atlas.atlas_of` gives."""
    return atlas_of(pipeline, asked.texts)


def look(pipeline: Any, asked: Look) -> dict[str, Any]:
    """The document and the packed tensors of another text."""
    page = look_at([pipeline], [asked.text])
    return {"document": page.plain, "tensors": page.packed}


def what_if(pipeline: Any, asked: WhatIf) -> dict[str, Any]:
    """The output, the candidates for one of its tokens, and the attention, before and after a change.

    The attention is that to the source; of a decoder alone, that within the text. `page` is None for any other model,
    and for one that attends step by step.

    Raises:
        InputError: a word that the source does not have, or nothing left of it; an empty output.
    """
    before = _made(pipeline, asked.source)
    change, source = asked.change, asked.source
    if change.kind in ("drop", "replace"):
        words = source.split()
        if change.word >= len(words):
            raise InputError(f"the source has {len(words)} words; there is no word {change.word + 1}")
        said = words[change.word]
        words[change.word : change.word + 1] = change.text.split() if change.kind == "replace" else []
        source = " ".join(words)
        if not source:
            raise InputError("nothing is left of the source: leave out another word")
        done = f"leaving out “{said}”" if change.kind == "drop" else f"“{change.text.strip()}” instead of “{said}”"
        around: AbstractContextManager[Any] = nullcontext()
    else:
        done = {"uniform": "equal weights", "ablate": "no weights", "force": "all weight on "}[change.kind]
        around = intervene(pipeline.model, asked.site, _change(pipeline, asked))
    kept = before.forward_pass()
    drawn = Draft("what if", task=pipeline.task)
    _add(drawn, "before", before, dict)
    with around:
        after = _made(pipeline, source)
        # the same output tokens before it, so that the candidates can be compared
        given = kept if source == asked.source else _with_output(pipeline, after, before)
        # in a decoder alone, the same token stands further on where the beginning became longer
        further = len(given.tokens) - len(kept.tokens)
        changed = _candidates(pipeline, given, max(0, asked.position + further))
        _add(drawn, "after", after, lambda maps: _changed(pipeline, maps, asked))
    page = drawn.page() if all(run["maps"] for run in drawn.document["runs"]) else None
    first = drawn.document["runs"][0]
    if change.kind == "force":
        done += _key_name(pipeline, first["sequences"], asked)
    if change.kind in HEADS:
        heads = {one["site"]: one["how"]["heads"] for one in first["maps"]}.get(asked.site)
        done += f" in {asked.site}" if heads == 1 else f" in head {asked.head} of {asked.site}"
    same = "the output stays the same" if after.text == before.text else "the output changes"
    return {
        "text": after.text, "step": changed,
        "before": {"text": before.text, "step": _candidates(pipeline, kept, asked.position)},
        "sentence": f"With {done}, {same}.",
        "page": page and {"document": page.plain, "tensors": page.packed},
    }  # fmt: skip


def how_faithful(pipeline: Any, asked: Believe) -> dict[str, Any]:
    """Whether a site's map may be believed for an output, as `regard.pipelines.page.dependence_of` gives it.

    Raises:
        InputError: a position that the output does not have.
    """
    made = _made(pipeline, asked.source)
    given = made.forward_pass()
    if asked.position is not None and asked.position >= len(given.predicted):
        raise InputError(f"the output has {len(given.predicted)} tokens; there is no token {asked.position + 1}")
    site_of_source = given.source_tokens and not asked.site.endswith("self")
    columns = given.source_tokens if site_of_source or "encoder" in asked.site.split(".") else given.tokens
    found = dependence_of(given, asked.site, columns, asked.position)
    step = None if asked.position is None else f"“{made.tokens[asked.position]}”"
    return {**found, **({"step": step} if step else {})}


def _made(pipeline: Any, source: str) -> Any:
    settings = {name: one for name, one in SETTINGS.get(pipeline.task, {}).items() if name != "n_best"}
    made = pipeline(source, **settings)
    if not made.ids:
        raise InputError("the output is empty: there is nothing to ask about")
    return made


def _with_output(pipeline: Any, after: Any, before: Any) -> Any:
    """The pass over the changed source and the output that was there before."""
    if pipeline.task == "translate":
        return replace(after, ids=before.ids, tokens=before.tokens, text=before.text).forward_pass()
    return pipeline.pass_over([*after.source_ids, *before.ids[:-1]], before.ids)


Maps = Mapping[str, AttentionMap]


def _add(draft: Draft, label: str, made: Any, changed: Callable[[Maps], Maps]) -> None:
    """Add a result to a page, its maps changed; nothing where the page has no maps of such a model."""
    task = draft.document["task"]
    if task == "translate":
        replace(made, attention=changed(made.attention)).add_to(draft, label, whole=False)
    elif task == "complete":
        given = made.forward_pass()
        add_text(draft, given, changed(recorded(given)), label, made.headline())


def _changed(pipeline: Any, maps: Maps, asked: WhatIf) -> Maps:
    """The maps after a change: of the head whose weights were changed as they were changed."""
    found = dict(maps)
    if asked.change.kind in HEADS and asked.site in found:
        weights = found[asked.site].full().detach()
        _check_key(asked, weights.shape[-1])
        found[asked.site] = AttentionMap.from_weights(_change(pipeline, asked)(weights[None])[0])
    return found


def _key_name(pipeline: Any, sequences: Mapping[str, Sequence[str]], asked: WhatIf) -> str:
    """The key that got all the weight; with its number from 1, where others have the same name."""
    names = sequences["text" if pipeline.task == "complete" else axes_of(asked.site)[1]]
    key = asked.change.key
    if key >= len(names):  # a decoder's step that the output before the change did not have
        return f"key {key + 1}"
    name = names[key] if names[key].strip() else names[key].replace(" ", "␣").replace("\n", "↵")
    return f"“{name}”" + (f" (key {key + 1})" if names.count(names[key]) > 1 else "")


def _check_key(asked: WhatIf, keys: int) -> None:
    if asked.change.kind == "force" and asked.change.key >= keys:
        raise InputError(f"there are {keys} keys; there is no key {asked.change.key + 1}")


def _candidates(pipeline: Any, given: Any, position: int) -> list[list[Any]]:
    """The most probable tokens at a position of the logits, the last one at most."""
    with torch.no_grad():
        logits = given.logits()[0]
    shares, ids = logits[min(position, len(logits) - 1)].float().softmax(-1).topk(CANDIDATES)
    return [
        [name, round(p, 5)] for name, p in zip(pipeline.tokenizer.tokens(ids.tolist()), shares.tolist(), strict=True)
    ]


def _change(pipeline: Any, asked: WhatIf) -> Callable[[Tensor], Tensor]:
    """The change of one head's weights `[*batch, heads, T, S]`; of all where there is one head."""
    change, head = asked.change, asked.head
    causal = pipeline.task == "complete" or axes_of(asked.site) == ("output", "before")

    def one(weights: Tensor) -> Tensor:
        if change.kind == "uniform":
            return uniform(weights)
        if change.kind == "ablate":
            return torch.zeros_like(weights)
        queries, keys = weights.shape[-2:]
        if not causal:
            _check_key(asked, keys)
        forced = (torch.arange(keys, device=weights.device) == change.key).to(weights.dtype)
        if not causal:
            return forced.expand_as(weights)
        # a query that stands before the key, as in a decoder's first steps, keeps its weights
        place = torch.arange(queries, device=weights.device) + keys - queries
        return torch.where(place[:, None] >= change.key, forced, weights)

    def changed(weights: Tensor) -> Tensor:
        if weights.ndim < 4 or weights.shape[-3] == 1:
            return one(weights)
        if head >= weights.shape[-3]:
            raise InputError(f"this site has {weights.shape[-3]} heads, numbered from 0; there is no head {head}")
        kept = weights.clone()
        kept[..., head, :, :] = one(weights[..., head, :, :])
        return kept

    return changed
