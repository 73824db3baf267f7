"""Pages of attention that other programs computed: transformers' outputs, plain tensors, inseq's files, links."""

import base64
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from torch import Tensor

from regard.attention.maps.map import AttentionMap
from regard.attention.maps.page import Draft
from regard.data.files import read_bytes
from regard.errors import DataError, ShapeError, shown
from regard.figures.page import Page
from regard.storage import parse_json

Layers = Sequence[Tensor]
LARGEST = 2**28  # bytes of a file of inseq's, unpacked
PARTS = 2**23  # of its JSON: each takes some hundred bytes of memory
LAYERS = 1000  # and heads, of one model
CELLS = 2**25  # of the maps of links on a page, source words times target words


def page_of_attentions(
    attentions: Layers | None = None, tokens: Sequence[str] = (), *, encoder_attentions: Layers | None = None,
    decoder_attentions: Layers | None = None, cross_attentions: Layers | None = None,
    encoder_tokens: Sequence[str] = (), decoder_tokens: Sequence[str] = (), title: str = "attention",
) -> Page:  # fmt: skip
    """The page of tensors of weights, one for each layer, as transformers' models give and BertViz takes them.

    Args:
        attentions: self-attention `[1, heads, N, N]` or `[heads, N, N]` of each layer.
        tokens: its N names.
        encoder_attentions, decoder_attentions: of an encoder–decoder, likewise.
        cross_attentions: `[1, heads, T, S]` or `[heads, T, S]` of each layer.
        encoder_tokens, decoder_tokens: the S and T names.
        title: of the page.

    Raises:
        ShapeError: nothing to show, more than one sequence, or names that do not fit.
    """
    groups = [
        ("layers", "", attentions, "text", "text"), ("encoder.layers", ".self", encoder_attentions, "source", "source"),
        ("decoder.layers", ".self", decoder_attentions, "output", "output"),
        ("decoder.layers", ".cross", cross_attentions, "output", "source"),
    ]  # fmt: skip
    names = {
        "text": _names("tokens", tokens), "source": _names("encoder_tokens", encoder_tokens),
        "output": _names("decoder_tokens", decoder_tokens),
    }  # fmt: skip
    maps, axes = {}, {}
    for stack, kind, layers, rows, columns in groups:
        for number, weights in enumerate(() if layers is None else layers):
            site = f"{stack}.{number}{kind}"
            if not isinstance(weights, Tensor):
                raise ShapeError(f"{site}: expected a tensor of weights; got {shown(weights)}")
            maps[site] = AttentionMap.from_weights(_one(weights, site))
            axes[site] = rows, columns
            for side, size in zip((rows, columns), maps[site].shape[-2:], strict=True):
                if names[side] and len(names[side]) != size:
                    raise ShapeError(f"{site} has {size} positions and {len(names[side])} names were given for them")
    if not maps:
        raise ShapeError("there is nothing to show: give attentions, or those of an encoder–decoder")
    draft = Draft(title, task="maps")
    draft.add_run("the output", maps, {side: own for side, own in names.items() if own}, axes=axes)
    return draft.page()


def page_of_generate(
    output: Any, tokens: Sequence[str], source_tokens: Sequence[str] = (), *, sequence: int = 0,
    title: str = "generation",
) -> Page:  # fmt: skip
    """The page of what transformers' `generate` returns with `output_attentions` and `return_dict_in_generate`.

    Row t is the query that predicted the t-th token; of beams, each row is that of the output's own ancestor
    (`beam_indices`), so a map belongs to one hypothesis from the first token to the last.

    Args:
        output: of `generate`, for one input.
        tokens: names of the output's tokens; of a decoder alone, the prompt's first.
        source_tokens: names of the encoder's positions.
        sequence: which of the returned sequences.
        title: of the page.

    Raises:
        DataError: the output has no attention.
        ShapeError: names that do not fit, a sequence that the output does not have.
    """
    across = getattr(output, "cross_attentions", None)
    within = getattr(output, "decoder_attentions", None) if across is not None else getattr(output, "attentions", None)
    if not within:
        raise DataError(
            "this output has no attention: generate(..., output_attentions=True, return_dict_in_generate=True)"
        )
    if not all(step and all(isinstance(one, Tensor) for one in step) for step in within):
        raise DataError(
            'this output has no attention: load the model with attn_implementation="eager", since others return none'
        )
    count = within[0][0].shape[0] if getattr(output, "beam_indices", None) is None else len(output.beam_indices)
    if not 0 <= sequence < count:
        raise ShapeError(f"sequence = {sequence}: the output has {count}, from 0 to {count - 1}")
    beams = getattr(output, "beam_indices", None)
    own = [sequence] * len(within) if beams is None else [int(one) for one in beams[sequence]]
    steps = [n for n, one in enumerate(own[: len(within)]) if one >= 0]
    sequences = getattr(output, "sequences", None)
    padded = set() if sequences is None else {sequences.shape[-1]}  # names of a hypothesis that ended early
    if across is None:
        maps = [_joined(within, layer, steps, own, follow=True) for layer in range(len(within[0]))]
        queries = maps[0].shape[-2]
        names = _names("tokens", tokens, {queries, queries + 1, *padded})
        _names("source_tokens", source_tokens, set())
        return page_of_attentions([_square(one) for one in maps], names[:queries], title=title)
    encoder = getattr(output, "encoder_attentions", None) or ()
    per_input = max(1, len(within[0][0]) // max(1, len(encoder[0]))) if encoder else 1
    inside = [_square(_joined(within, layer, steps, own, follow=True)) for layer in range(len(within[0]))]
    queries = inside[0].shape[-2]
    names = _names("tokens", tokens, {queries, queries + 1, *padded})
    return page_of_attentions(
        encoder_attentions=[one[own[0] // per_input] for one in encoder], decoder_attentions=inside,
        cross_attentions=[_joined(across, layer, steps, own) for layer in range(len(across[0]))],
        encoder_tokens=source_tokens, decoder_tokens=names[:queries], title=title,
    )  # fmt: skip


def page_of_links(lines: Sequence[str], sources: Sequence[str], targets: Sequence[str], title: str = "links") -> Page:
    """The page of word alignments in Pharaoh's form, "i-j" for source word i and target word j; a run for each line.

    Args:
        lines: links, separated by white space.
        sources, targets: the texts, whose words white space separates.
        title: of the page.

    Raises:
        DataError: not as many lines as texts; texts with too many words for one page; a link that is none, or to a
            word that is not there.
    """
    if not len(lines) == len(sources) == len(targets):
        raise DataError(f"{len(lines)} lines of links for {len(sources)} sources and {len(targets)} targets")
    draft, cells = Draft(title, task="maps"), 0
    for number, (line, source, target) in enumerate(zip(lines, sources, targets, strict=True), 1):
        words = {"source": source.split(), "output": target.split()}
        cells += len(words["source"]) * len(words["output"])
        if cells > CELLS:
            raise DataError(f"line {number}: together the maps have {cells:,} cells; expected at most {CELLS:,}")
        weights = torch.zeros(len(words["output"]), len(words["source"]))
        for link in line.split():
            left, _, right = link.partition("-")
            if not (left.isdecimal() and right.isdecimal() and len(link) <= 40):
                raise DataError(f"line {number}: {link[:40]!r} is no link: expected i-j, two numbers from 0")
            if int(left) >= len(words["source"]) or int(right) >= len(words["output"]):
                raise DataError(
                    f"line {number}: {link} goes beyond {len(words['source'])} source and {len(words['output'])} "
                    "target words"
                )
            weights[int(right), int(left)] = 1
        weights /= weights.sum(-1, keepdim=True).clamp(min=1)
        maps = {"links": AttentionMap.from_weights(weights)}
        axes = {"links": ("output", "source")}
        draft.add_run(f"line {number}", maps, words, axes=axes, source=source, text=target)
    return draft.page()


def page_of_inseq(path: str | Path) -> Page:
    """The page of what inseq's `FeatureAttributionOutput.save` writes; a run for each sequence.

    Scores per layer and head, `[inputs, outputs, layers, heads]`, are a map for each layer. Of scores per coordinate of
    the embedding, `[inputs, outputs, width]`, the Euclidean norm is shown; scores with a sign by their magnitude. Rows
    are divided by their sum.

    Args:
        path: a .json file, or .json.gz of `compress=True`.

    Raises:
        DataError: the file cannot be read, or is not of that form.

    Source: Sarti et al. 2023 (inseq).
    """
    path = Path(path)
    try:
        raw = read_bytes(path, LARGEST)
        if sum(map(raw.count, (b"[", b"{", b","))) > PARTS:
            raise DataError(f"{path}: expected at most {PARTS:,} values; got more")
        document = _plain(parse_json(raw))
        draft = Draft(path.name, task="maps")
        for number, one in enumerate(document["sequence_attributions"], 1):
            source, target = ([str(token["token"]) for token in one[side]] for side in ("source", "target"))
            first, end = int(one["attr_pos_start"]), int(one["attr_pos_end"])
            sequences = {"source": source, "target": target, "output": target[first:end]}
            maps, axes = {}, {}
            for side in ("source", "target"):
                for site, weights in _attributions(one.get(f"{side}_attributions"), f"{side} attributions"):
                    expected = [len(sequences["output"]), len(sequences[side])]
                    if list(weights.shape[-2:]) != expected:
                        raise DataError(f"{path}: {site} are {list(weights.shape[-2:])}, and its tokens {expected}")
                    maps[site] = AttentionMap.from_weights(weights)
                    axes[site] = "output", side
            if not maps:
                raise DataError(f"{path}: sequence {number} has no attributions")
            draft.add_run(f"sequence {number}", maps, sequences, axes=axes, source=" ".join(source))
    except (
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        AttributeError,
        OSError,
        EOFError,
        RecursionError,
        SafetensorError,
    ) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: not a file of inseq's FeatureAttributionOutput.save ({type(error).__name__}: {str(error)[:80]})"
        ) from error
    return draft.page()


def _plain(value: Any) -> Any:
    """JSON without the names of the classes that wrote it."""
    if isinstance(value, dict):
        inner = value["attributes"] if "__instance_type__" in value else value
        return {name: _plain(one) for name, one in inner.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _attributions(packed: str | None, name: str) -> list[tuple[str, Tensor]]:
    """The maps `[heads, T, S]` or `[T, S]` in a safetensors file in base64; none where there is none."""
    if packed is None:
        return []
    scores = read_tensors(base64.b64decode(packed, validate=True))["attribution"].float().nan_to_num(0.0).abs()
    if not scores.numel():  # a shape of a few bytes may name any number of layers of nothing
        raise ValueError("no scores")
    if scores.ndim == 4:
        if max(scores.shape[2:]) > LAYERS:
            raise ValueError(f"scores of {max(scores.shape[2:]):,} layers or heads; expected at most {LAYERS:,}")
        layers = scores.permute(2, 3, 1, 0)
        found = [(f"{name}.layers.{number}", one) for number, one in enumerate(layers)]
    elif scores.ndim in (2, 3):
        found = [(name, (scores if scores.ndim == 2 else scores.norm(dim=-1)).T)]
    else:
        raise ValueError(f"scores of {scores.ndim} axes")
    return [(site, one / one.sum(-1, keepdim=True).clamp(min=1e-12)) for site, one in found]


def _one(weights: Tensor, site: str) -> Tensor:
    """The weights `[heads, T, S]` of one sequence.

    Raises:
        ShapeError: there are several, or no heads.
    """
    one = weights[0] if weights.ndim == 4 and len(weights) == 1 else weights
    if one.ndim != 3:
        raise ShapeError(f"{site} needs weights [heads, T, S] of one sequence; got shape {list(weights.shape)}")
    if one.is_meta or one.is_complex():
        raise ShapeError(f"{site} needs weights that are real numbers; got {one.dtype} on {one.device}")
    return one.detach().float().cpu()


def _joined(
    steps: Sequence[Layers], layer: int, used: Sequence[int], own: Sequence[int], follow: bool = False
) -> Tensor:
    """A layer's rows of all steps `[heads, T, S]`, each padded with keys that did not exist yet.

    Args:
        steps: of each step, the weights of its layers.
        layer: which.
        used, own: the steps, and which hypothesis of each.
        follow: whether the keys are the queries so far: a window that has dropped the earliest ones has the latest.
    """
    rows = [steps[n][layer][own[n]].detach().float().cpu() for n in used]
    ends = list(accumulate(row.shape[-2] for row in rows))
    dropped = [max(0, end - row.shape[-1]) if follow else 0 for end, row in zip(ends, rows, strict=True)]
    most = max(first + row.shape[-1] for first, row in zip(dropped, rows, strict=True))
    padded = [
        torch.nn.functional.pad(row, (first, most - first - row.shape[-1]))
        for first, row in zip(dropped, rows, strict=True)
    ]
    return torch.cat(padded, -2)


def _names(what: str, given: Any, sizes: set[int] | None = None) -> list[str]:
    """Names as a list; none may be given.

    Raises:
        ShapeError: they are no texts, or not as many as there are.
    """
    names: list[Any] = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [None]
    if not all(isinstance(one, str) for one in names):
        raise ShapeError(f"{what}: expected a list of texts; got {shown(given)}")
    if sizes is not None and names and len(names) not in sizes:
        raise ShapeError(f"{what}: expected {' or '.join(map(str, sorted(sizes))) or 'no'} names; got {len(names)}")
    return names


def _square(weights: Tensor) -> Tensor:
    """Weights `[heads, N, S]` with S cut or padded to N, so that rows and columns have the same names."""
    t, s = weights.shape[-2:]
    return torch.nn.functional.pad(weights, (0, t - s)) if t >= s else weights[..., :t]
