"""What a page asks of its model: another text, what if, may it be believed."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from regard.attention.maps.map import AttentionMap
from regard.attention.maps.page import Draft
from regard.explorer.patches import NAMES, Part, patched
from regard.observation.intervene import intervene, uniform
from regard.pipelines.atlas import MOST, atlas_of
from regard.pipelines.base import InputError
from regard.pipelines.page import SETTINGS, add_text, axes_of, dependence_of, look_at, recorded

LONGEST = 2_000  # characters of a text
CANDIDATES = 6  # tokens named before and after a change
HEADS = ("uniform", "ablate", "force")  # changes of a head's weights
Maps = Mapping[str, AttentionMap]
Number = Annotated[int, Field(ge=0, lt=2**31)]  # of a word, a token or a head, from 0: more is no number of torch's


class Asked(BaseModel):
    """A question in JSON; what it does not know it refuses."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Look(Asked):
    """Another text to look at."""

    text: str = Field(min_length=1, max_length=LONGEST)


class Change(Asked):
    """A change of the source (drop, replace) or of a head: of its weights (uniform, ablate, force), or a patch."""

    kind: Literal["drop", "replace", "uniform", "ablate", "force", "patch"]
    word: Number = 0
    text: str = Field("", max_length=LONGEST)
    key: Number = 0
    part: Part = "weights"


class WhatIf(Asked):
    """A change, and the output before it."""

    source: str = Field(min_length=1, max_length=LONGEST)
    output: str = Field("", max_length=4 * LONGEST)
    position: Number = 0
    site: str = Field(max_length=200)
    head: Number = 0
    change: Change


class Believe(Asked):
    """A test of a site's map for one token of the output, or for all of it."""

    source: str = Field(min_length=1, max_length=LONGEST)
    output: str = Field("", max_length=4 * LONGEST)
    site: str = Field(max_length=200)
    position: Number | None = None
    yields: bool = False  # to whatever else is asked meanwhile


class Atlas(Asked):
    """Importance and roles of the heads over texts; samples where there are none."""

    texts: list[Annotated[str, Field(min_length=1, max_length=LONGEST)]] = Field(default=[], max_length=MOST)


def atlas(pipeline: Any, asked: Atlas) -> dict[str, Any]:
    """What `regard.pipelines.atlas.atlas_of` gives."""
    return atlas_of(pipeline, asked.texts)


def look(
    pipeline: Any, asked: Look, against: Sequence[Any] = (), steps: Mapping[int, Any] | None = None
) -> dict[str, Any]:
    """The document and the packed tensors of another text; the test of the model's own map is a question of its own.

    Args:
        pipeline: of the model.
        asked: the text.
        against: models that the page compares it with.
        steps: checkpoints of its training, as `look_at` takes them.
    """
    page = look_at([pipeline, *against], [asked.text], tests=False, steps=steps)
    return {"document": page.plain, "tensors": page.packed}


def what_if(pipeline: Any, asked: WhatIf) -> dict[str, Any]:
    """The output, the candidates for one of its tokens, and the attention, before and after a change.

    The attention is that to the source; of a decoder alone, that within the text. `page` is None for any other model,
    and for one that attends step by step. A patch leaves the output as it is: its probability is what changes.

    Raises:
        InputError: a word that the source does not have, or nothing left of it; an empty output.
    """
    before = _made(pipeline, asked.source)
    if asked.change.kind == "patch":
        return _patch(pipeline, asked, before)
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
        done += f" in {_head_name(first, asked)}"
    same = "the output stays the same" if after.text == before.text else "the output changes"
    return {
        "text": after.text, "step": changed,
        "before": {"text": before.text, "step": _candidates(pipeline, kept, asked.position)},
        "sentence": f"With {done}, {same}.",
        "page": page and {"document": page.plain, "tensors": page.packed},
    }  # fmt: skip


def _patch(pipeline: Any, asked: WhatIf, before: Any) -> dict[str, Any]:
    """The same output, given token by token, with a part of one head from the run of another text."""
    text = asked.change.text.strip()
    if not text:
        raise InputError("there is no other sentence to patch from: write one")
    kept = before.forward_pass()
    other = _with_output(pipeline, _made(pipeline, text), before)
    own, found = (patched(kept, one, asked.site, asked.head, asked.change.part) for one in (kept, other))
    drawn = Draft("what if", task=pipeline.task)
    logs = []
    for label, one in (("before", own), ("after", found)):
        _add(drawn, label, before, partial(_instead, one.maps))
        wanted = torch.tensor(before.ids, device=one.logits.device)[:, None]
        logs.append(one.logits[-len(wanted) :].float().log_softmax(-1).gather(-1, wanted)[:, 0])
        _set_words(drawn.document["runs"][-1], logs[-1].tolist())
    first = drawn.document["runs"][0]
    best = [one.logits[-len(before.ids) :].argmax(-1) for one in (own, found)]
    others, more = int((best[0] != best[1]).sum()), float((logs[1] - logs[0]).sum())
    shared = f" (which {found.sharing} heads share)" if found.sharing > 1 else ""
    page = drawn.page()
    ratio = math.exp(min(abs(more), 50))
    often = f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"
    often += f" times {'more' if more > 0 else 'less'} probable ({f'{more:+.2f}'.replace('-', '−')} nats)"
    return {
        "text": before.text, "step": _named(pipeline, found.logits, asked.position),
        "before": {"text": before.text, "step": _named(pipeline, own.logits, asked.position)},
        "sentence": f"With the {NAMES[asked.change.part]} of {_head_name(first, asked)}{shared} from “{text}”, the "
                    f"same output is {often if abs(more) >= 0.005 else 'as probable as before'}, and another token is "
                    f"the most probable at {others} of its {len(before.ids)} positions.",
        "page": {"document": page.plain, "tensors": page.packed},
    }  # fmt: skip


def _instead(maps: Maps, _: Maps) -> Maps:
    return maps


def _set_words(run: dict[str, Any], logs: Sequence[float]) -> None:
    """The log-probabilities of a run's words under a patch, from those of its output's tokens."""
    if (words := run.get("words", {}).get("output")) is None:
        return
    sums = [0.0] * len(words["texts"])
    for owner, log in zip(words["owner"], logs, strict=False):
        if owner >= 0:
            sums[owner] += log
    words["log_prob"] = sums
    words.pop("entropy", None)


def _head_name(run: Mapping[str, Any], asked: WhatIf) -> str:
    heads = {one["site"]: one["how"]["heads"] for one in run["maps"]}.get(asked.site)
    return asked.site if heads == 1 else f"head {asked.head} of {asked.site}"


def how_faithful(pipeline: Any, asked: Believe, between: Callable[[], None] | None = None) -> dict[str, Any]:
    """Whether a site's map may be believed for an output, as `regard.pipelines.page.dependence_of` gives it.

    Args:
        pipeline: of the model.
        asked: about which site and output.
        between: called before each forward pass; what it raises ends the test.

    Raises:
        InputError: a position that the output does not have.
    """
    made = _made(pipeline, asked.source)
    given = made.forward_pass()
    if asked.position is not None and asked.position >= len(given.predicted):
        raise InputError(f"the output has {len(given.predicted)} tokens; there is no token {asked.position + 1}")
    site_of_source = given.source_tokens and not asked.site.endswith("self")
    columns = given.source_tokens if site_of_source or "encoder" in asked.site.split(".") else given.tokens
    found = dependence_of(given, asked.site, columns, asked.position, between)
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
        return _named(pipeline, given.logits()[0], position)


def _named(pipeline: Any, logits: Tensor, position: int) -> list[list[Any]]:
    """The most probable tokens of a row of logits `[positions, V]`, the last one at most."""
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
