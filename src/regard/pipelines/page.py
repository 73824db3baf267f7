"""The page of a result: its tokens, words, maps, and what was measured of them (`regard.attention.maps.page`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard.analysis.base import ForwardPass
from regard.analysis.dependence import dependence
from regard.analysis.erasure import Erasure
from regard.analysis.lens import logit_lens
from regard.attention.maps.map import AttentionMap
from regard.attention.maps.page import Draft
from regard.attention.watch import Call, calls_by_site, unwatched, watching
from regard.device import device_of, random_numbers_kept, seed_generators
from regard.errors import ConfigError, RegardError
from regard.figures.page import Page
from regard.pipelines.atlas import atlas_of
from regard.pipelines.base import as_inputs
from regard.pipelines.reading import name_heads
from regard.pipelines.ways import ways_of
from regard.text.protocol import Span
from regard.text.tokenizer import word_of_each
from regard.text.tokenizer import words as word_spans

if TYPE_CHECKING:
    from regard.pipelines.result import Result

LONGEST = 160  # tokens of an output that is looked at layer by layer; of it and its source where a map is tested
POSITIONS = 2048  # of the copies of an input whose weights are changed in one batch
TRANSLATED: dict[str, Any] = {"n_best": 3, "beam": 4, "split": False}
SETTINGS: dict[str, dict[str, Any]] = {"translate": TRANSLATED, "complete": {"length": 64, "seed": 0}}
CHEAP = 40  # tokens that are left out of an input, each in turn, before a page is shown
AT_ONCE = 16  # inputs without a token, between two looks at what else is asked
CANDIDATES = 5  # tokens named for each layer and position


@torch.inference_mode(False)  # within such a block of the caller's there would be no gradient
def page_of(result: "Result") -> Page:
    """The page of a result of any pipeline: its maps and those of its alternatives.

    Raises:
        ConfigError: the result was read in several parts, each of which has a page of its own.
    """
    pipeline = pipeline_of(result)
    draft = Draft(f"{pipeline.name}: {result.source[:60]}", model=pipeline.name, task=pipeline.task or "")
    add_with_alternatives(draft, result, "the output")
    return draft.page()


@torch.inference_mode(False)  # within such a block of the caller's there would be no gradient
def look_at(
    pipelines: Sequence[Any], inputs: Sequence[str], atlas: bool = False, tests: bool = True,
    steps: Mapping[int, Any] | None = None,
) -> Page:  # fmt: skip
    """The page of what some models make of some inputs; every model's output for every input is a run.

    Args:
        pipelines: what `regard.load` returns.
        inputs: texts, or names of files for models that take these.
        atlas: with importance and roles of the first model's heads, over the inputs where there are several, else over
            samples (`atlas_of`).
        tests: whether the first model's maps are tested now, which is most of the time that a page takes; a served
            page asks for it when they are drawn.
        steps: checkpoints of the first model's training by their steps (`regard.pipelines.checkpoints`), which a slider
            runs through.

    Raises:
        InputError: an input that cannot be worked on.
        ConfigError: a model without attention to look at.
    """
    pipelines, inputs = as_inputs(pipelines), as_inputs(inputs)
    if not pipelines or not inputs:
        raise ConfigError(f"a page needs a model and an input; got {len(pipelines)} models and {len(inputs)} inputs")
    first = pipelines[0]
    all_models = [(None, one) for one in pipelines] + list((steps or {}).items())
    draft = Draft(f"{first.name}: {inputs[0][:60]}", model=first.name, task=first.task or "")
    read: dict[int, str] = {}  # texts of the first model, where it is an encoder, by the number of their run
    for given in inputs:
        for step, pipeline in all_models:
            name = f"step {step}" if step is not None else f"{pipeline.name}" if len(all_models) > 1 else ""
            named = [name, f"“{given[:40]}”" if len(inputs) > 1 else ""]
            label = ", ".join(part for part in named if part) or "the output"
            draft.tests = tests or pipeline is not first
            at_step = {} if step is None else {"step": step}
            if pipeline.task == "answer":
                raise ConfigError(
                    f"{pipeline.name} takes a picture and a question, where a page of models has one input for all: "
                    f"regard answer PICTURE QUESTION --model {pipeline.name} --look page.html makes one of the answer"
                )
            if pipeline.task in ("translate", "complete", "caption", "transcribe"):
                settings = SETTINGS.get(pipeline.task, {})
                if step is not None:  # of the beam the first: there are many steps
                    settings = {key: value for key, value in settings.items() if key != "n_best"}
                made = {"settings": settings, "own": pipeline is first} | at_step
                add_with_alternatives(draft, pipeline(given, **settings), label, made)
            elif hasattr(pipeline, "forward_pass"):
                about = {
                    "source": given,
                    "made": {"model": pipeline.name, "number": 0, "own": pipeline is first} | at_step,
                }
                add_pass(draft, _with_words(pipeline, given), label, about, pipeline.tokenizer)
                if pipeline is first and draft.document["runs"][-1]["words"]:
                    read[len(draft.document["runs"]) - 1] = given
            else:
                raise ConfigError(
                    f"{pipeline.name} has no page of texts: it is a model alone; observe it with inputs of its own: "
                    "with regard.observe(model) as seen: model.model(...), then seen.look()"
                )
    if read and hasattr(first, "meaning"):
        draft.document["ways"] = ways_of(first, read)
    if atlas:
        draft.document["atlas"] = atlas_of(first, inputs if len(inputs) > 1 else ())
    return draft.page()


def _with_words(pipeline: Any, text: str) -> ForwardPass:
    """An encoder's pass, with the words of its tokens where the text has no gap."""
    given: ForwardPass = pipeline.forward_pass(text)
    ids, spans = pipeline.encode(text)
    same = ids == given.arguments["tokens"][0].tolist()
    return replace(given, text=text, spans=spans) if same else given


def add_with_alternatives(draft: Draft, result: "Result", label: str, made: Mapping[str, Any] | None = None) -> None:
    """Add a result and its alternatives to a page.

    Args:
        draft: the page.
        result: of any pipeline.
        label: its name among the page's runs.
        made: how it was made, where that is known: the settings, and whether by the page's `own` model.

    Raises:
        ConfigError: the result was read in several parts, each of which has a page of its own.
    """
    if getattr(result, "parts", None) or getattr(result, "pieces", None):
        raise ConfigError("this result is made of several parts, each with its own attention: look at one of its parts")
    others = [one for one in result.alternatives if hasattr(one, "add_to")]  # an answer's have no attention
    for number, one in enumerate([result, *others]):
        one.add_to(draft, f"{label}, number {number + 1} of the beam" if number else label, whole=not number)
        draft.document["runs"][-1]["made"] = {"model": pipeline_of(result).name, "number": number, **(made or {})}


def add_pass(draft: Draft, given: ForwardPass, label: str, about: dict[str, Any], tokenizer: Any = None) -> None:
    """Add a model without a source to a page: a decoder's beginning and continuation, an encoder's text.

    Args:
        draft: the page.
        given: the pass over the text.
        label: its name among the page's runs.
        about: what else the page says of it.
        tokenizer: names the candidates after each layer; None leaves out these, and the test of a map.
    """
    maps = recorded(given)
    if tokenizer is not None:
        about = {**about, "lens": lens_of(given, "text", tokenizer)} if len(given.tokens) <= LONGEST else {**about}
        if not given.predicted:
            about["untested"] = "an encoder has none"
        elif maps:
            about |= tested(draft, given, list(maps)[-1], given.tokens)
    add_text(draft, given, maps, label, about)


def add_text(
    draft: Draft, given: ForwardPass, maps: Mapping[str, AttentionMap], label: str, about: Mapping[str, Any]
) -> None:
    """Add maps in which the positions of one text attend to each other, `[heads, T, T]` by site, to a page."""
    words = {"text": named_words(given.text, given.spans, len(given.tokens))} if given.spans else {}
    axes = dict.fromkeys(maps, ("text", "text"))
    draft.add_run(label, maps, {"text": given.tokens}, axes=axes, words=words, **about)


def recorded(given: ForwardPass) -> dict[str, AttentionMap]:
    """The maps `[heads, T, S]` of all sites with queries, keys and values, from one forward pass over one input.

    Empty where a site attends step by step, as in a recurrent decoder: there the search's own maps are kept.
    """
    found = _calls(given)
    if any(len(some) != 1 for some in found.values()):
        return {}
    maps = {site: AttentionMap.from_spec(c.query, c.key, c.spec).with_value(c.value) for site, (c, *_) in found.items()}
    return {site: one.select(0) for site, one in maps.items()}


def with_values(maps: Mapping[str, AttentionMap], given: ForwardPass) -> dict[str, AttentionMap]:
    """The maps of a search, with the values that a pass over its output gives their weights to.

    Args:
        maps: `[heads, T, S]` by site.
        given: the pass.
    """
    found = dict(maps)
    for site, (first, *others) in _calls(given).items():
        # a score that follows the weights takes them as further coordinates
        value = first.value[..., : getattr(first.owner, "memory_width", None)]
        same = all(one.value.shape == first.value.shape and torch.equal(one.value, first.value) for one in others)
        if site in found and same and value.shape[-2] == found[site].shape[-1]:
            found[site] = found[site].with_value(value[0])
    return found


def _calls(given: ForwardPass) -> dict[str, list[Call]]:
    """The attentions of one forward pass, by site."""
    calls: list[Call] = []
    with torch.inference_mode(), unwatched(), watching(calls.append):
        given()
    return calls_by_site(given.module, calls)


def tested(draft: Draft, given: ForwardPass, site: str, columns: Sequence[str]) -> dict[str, Any]:
    """What a run says of its map's test: what was found, which site the page will ask for, or why none is."""
    if max(len(given.tokens), len(columns)) > LONGEST:
        return {"untested": f"it has more than {LONGEST} tokens or parts, which would take long"}
    if not draft.tests:
        return {"to_test": site}
    return {"believe": dependence_of(given, site, columns, left_out=len(columns) <= CHEAP)}


def dependence_of(
    given: ForwardPass, site: str, columns: Sequence[str], position: int | None = None,
    between: Callable[[], None] | None = None, left_out: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Whether a site's map may be believed, as the page shows it.

    Args:
        given: the pass over source and output.
        site: whose map.
        columns: names of its keys.
        position: of the output's token whose log-probability is asked for; the whole output's by default.
        between: called before each forward pass; what it raises ends the test.
        left_out: also with each token of a text left out.
    """
    device = device_of(given.module)
    wanted = torch.tensor(given.predicted, device=device)

    def outputs(copies: int) -> Tensor:
        if between is not None:
            between()
        logs = given.copies(copies).logits()[:, -len(wanted) :].float().log_softmax(-1)
        own = logs.gather(-1, wanted.expand(copies, -1)[..., None])[..., 0]
        return own.sum(-1) if position is None else own[:, position]

    with random_numbers_kept(device):
        seed_generators(0, device)
        positions = max(1, len(given.tokens), len(given.source_tokens))
        most = max(1, POSITIONS // positions)
        unit = "nats of log-probability"
        found = dependence(given.module, site, lambda: outputs(1)[0], copies=outputs, at_once=most, unit=unit)
    measures = {name: getattr(found, name).tolist() for name in ("attention", "gradient", "zeroed")}
    erasure = Erasure.of_tokens(given) if left_out else None
    if erasure is not None and list(columns) == list(given.source_tokens if erasure.crossing else given.tokens):
        measures["left_out"] = _left_out(erasure, position, between)
    return {
        "sentence": found.sentence, "holds": found.holds, "matters": found.matters, "change": found.change,
        "agreement": found.agreement, "site": site, "columns": list(columns), "measures": measures,
    }  # fmt: skip


def _left_out(erasure: Erasure, position: int | None, between: Callable[[], None] | None) -> list[float]:
    """By how much the output's log-probability falls without each of the tokens, of which its own are none."""
    count = len(erasure.words)
    logs = []
    for kept in torch.cat([torch.ones(1, count), 1 - torch.eye(count)]).bool().split(AT_ONCE):
        if between is not None:
            between()
        own = erasure(kept)
        logs.append(own.sum(-1) if position is None else own[:, position])
    whole, *rest = torch.cat(logs).tolist()
    return [whole - one for one in rest]


def lens_of(given: ForwardPass, rows: str, tokenizer: Any) -> dict[str, Any] | None:
    """The most probable tokens after each layer; None where the model has no layers to look into."""
    try:
        lens = logit_lens(given.module, given.arguments)
    except RegardError:
        return None
    probabilities, ids = lens.logits[:, 0].float().softmax(-1).topk(CANDIDATES, -1)
    top = [
        [
            [[name, round(p, 5)] for name, p in zip(tokenizer.tokens(position), shares, strict=True)]
            for position, shares in zip(layer, parts, strict=True)
        ]
        for layer, parts in zip(ids.tolist(), probabilities.tolist(), strict=True)
    ]
    return {"layers": lens.layers, "rows": rows, "top": top}


def axes_of(site: str) -> tuple[str, str]:
    """The sequences of a site of an encoder–decoder: the decoder's queries predict the output's tokens."""
    if "encoder" in site.split("."):  # also of an ensemble's member
        return "source", "source"
    return ("output", "before") if site.endswith("self") else ("output", "source")


def named_words(text: str, spans: Sequence[Span], tokens: int) -> dict[str, Any]:
    """The words of a text, and the word of each of its tokens; -1 for none."""
    owners = [-1 if owner is None else owner for owner in word_of_each(list(spans), text)]
    return {
        "texts": [text[first:end] for first, end in word_spans(text)], "owner": (owners + [-1] * tokens)[:tokens],
    }  # fmt: skip


def why_shown(alignment: Mapping[str, Any], site: str, heads: Sequence[int]) -> str:
    """Why these heads are shown."""
    if alignment.get("site") == site:
        return f"{name_heads(heads)}: nearest to the word alignments of development sentences"
    return f"{name_heads(heads)}: all heads of the last site that attends to the source"


def pipeline_of(result: Any) -> Any:
    """The pipeline that a result came from."""
    names = ("translator", "completer", "answerer", "pipeline")
    return next(found for name in names if (found := getattr(result, name, None)) is not None)
