"""Which word made this word: the logit of an output's token as a sum over sites, heads and positions attended to."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.analysis.base import ForwardPass, check_step
from regard.analysis.residual import FrozenNorm, Stream, Write, head_outputs, head_weights, record
from regard.arguments import check_arguments
from regard.attention.maps.map import AttentionMap
from regard.attention.watch import Call, calls_by_site, watching
from regard.errors import ConfigError
from regard.models.recurrent import SITE, Recurrent
from regard.observation.intervene import refuse_intervened
from regard.text.tokenizer import word_of_each

Parts = dict[tuple[str, int], Float[Tensor, "S"]]
Taken = tuple[float, Parts, dict[str, float]]  # logit, parts, rest


@runtime_checkable
class Generated(Protocol):
    """An output of what `load` returns: a translation, a completion, a caption."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def tokens(self) -> list[str]: ...

    def forward_pass(self) -> ForwardPass:
        """The pass over the input and this output."""
        ...


def ids_of(generation: Any) -> list[int]:
    """The ids of an output's tokens.

    Raises:
        ConfigError: it is no output of what `load` returns.
    """
    try:
        found: list[int] = generation.ids
    except AttributeError as error:
        raise ConfigError(
            f"expected a result, such as model(text) of a model that regard.load returns; got a "
            f"{type(generation).__name__}"
        ) from error
    return found


@dataclass(frozen=True, eq=False)
class Contributions:
    """The logit of one token, taken apart.

    Attributes:
        token: the token.
        logit: the model's own.
        parts: {(site, head): `[S]`}, what each position attended to gave through that head: α_ij (v_j W_O) · u.
        rest: {name: number}, what was given by everything that is no attention.
        keys: {site: tokens of the positions that it attends to}, where known.
        text, spans: the source, and where its tokens stand in it.
    """

    token: str
    logit: float
    parts: Parts
    rest: dict[str, float]
    keys: dict[str, list[str]] = field(default_factory=dict, repr=False)
    text: str = field(default="", repr=False)
    spans: list[tuple[int, int]] = field(default_factory=list, repr=False)

    @property
    def total(self) -> float:
        """The sum of all parts and the rest: the logit, up to rounding."""
        return float(sum(float(part.sum()) for part in self.parts.values()) + sum(self.rest.values()))

    def sites(self) -> list[str]:
        """The sites that attend to the source: cross-attention where there is any, else self-attention."""
        every = list(dict.fromkeys(site for site, _ in self.parts))
        return [site for site in every if site.endswith("cross")] or every

    def by_word(self) -> list[tuple[str, float]]:
        """What each word of the source gave, in its order: the sum over its tokens, sites and heads.

        Tokens that belong to no word (EOS, lone spaces) are left out. The words of a decoder alone are those of
        the text so far.

        Raises:
            ConfigError: a source that has no words: a picture or a sound.
        """
        if not self.spans:
            raise ConfigError("the source of this output has no words: .parts has its positions")
        sites, words = self.sites(), self.text.split()
        found = [0.0] * len(words)
        given = [part for (site, _), part in self.parts.items() if site in sites]
        total: list[float] = torch.stack(given).sum(0).tolist() if given else []
        for word, number in zip(word_of_each(self.spans, self.text), total, strict=False):
            if word is not None:
                found[word] += number
        return list(zip(words, found, strict=True))

    @check_arguments
    def plot(self, path: str | Path | None = None, theme: str = "light") -> Any:
        """Draw the parts of the sites that attend to the source, by head and position, and beside them everything else.

        Args:
            path: a .png, .svg or .pdf file; None only makes the figure.
            theme: "light" or "dark".

        Returns:
            the matplotlib figure.
        """
        from regard.figures.tables import draw_parts

        sites = self.sites()
        shown = {f"{site}, head {head}": part for (site, head), part in self.parts.items() if site in sites}
        others = dict.fromkeys((site for site, _ in self.parts if site not in sites), 0.0)
        for (site, _), part in self.parts.items():
            if site in others:
                others[site] += float(part.sum())
        size = len(next(iter(shown.values()))) if shown else 0
        names = self.keys.get(sites[0], []) if sites else []
        return draw_parts(
            [part.tolist() for part in shown.values()], list(shown), names or [str(i) for i in range(size)],
            {**others, **self.rest}, path, title=f"What wrote the logit of {self.token}",
            note=f"all parts sum to {self.logit:.2f}", theme=theme,
        )  # fmt: skip


def contributions(generation: Generated, step: int) -> Contributions:
    """Direct logit attribution of the token chosen at one step, per attention site, head and position attended to.

        logit_t = Σ_(site, head) Σ_j α_ij (v_j W_O) · u + rest,   u = Aᵀ W_U[t]

    A is the product of the norms that stand between the site and the logit, each with its σ frozen at its actual value
    (Elhage et al. 2021, "Handling layer normalization"): for a pre-norm model the final norm alone; for a post-norm
    model every later one. The rest are embeddings, feed-forwards, bias vectors of attentions' outputs, norms' offsets
    and the output's bias; a value's own bias is part of v_j. All parts and the rest sum to the logit.

    Direct means: what a part wrote into the residual stream of this position, as the output layer reads it. What later
    parts made of it is counted as theirs: a feed-forward that answers to a head's output keeps the whole answer in the
    rest, and what came into the encoder's states before the decoder attended to them is not followed further. A frozen
    σ says nothing of what would happen without a part, whose absence would change σ; ablation measures that.

    For a recurrent model the logit is W_s s_t + W_c c_t + b with c_t = Σ_j α_tj h_j (Bahdanau et al. 2015, section
    3.1): each source state's part is β α_tj W_c h_j (β is 1 without a gate); the state and the bias are the rest.

    Args:
        generation: a translation, a completion or a description of what `load` returns.
        step: index of the token in `generation.ids`; negative ones count from the end.

    Raises:
        ConfigError: no result; no such step; an output without a forward pass; a model of another kind.
    """
    check_step(step, len(ids_of(generation)))
    return Attributor(generation)(step)


class Attributor:
    """`contributions` of any token of one output, whose forward pass is made once.

    Args:
        generation: a translation, a completion or a description of what `load` returns.

    Attributes:
        given: the forward pass.
        streams: {path: residual stream} of a Transformer; empty for a recurrent model.

    Raises:
        ConfigError: no result; an output without a forward pass; a model of another kind.
        RegardError: within `intervene`.
    """

    def __init__(self, generation: Generated) -> None:
        self.ids, self.tokens = ids_of(generation), generation.tokens
        self.given: ForwardPass = generation.forward_pass()
        refuse_intervened(self.given.module, "contributions")
        self.streams: dict[str, Stream] = {}
        self._parts: Callable[[int, int], Taken]
        with torch.no_grad():
            if isinstance(self.given.module, Recurrent):
                self._parts = _of_recurrent(self.given)
            else:
                self.streams, logits = record(self.given)
                self._parts = _of_stack(self.given, self.streams, logits)

    def __call__(self, step: int) -> Contributions:
        """Of the token of one step; negative steps count from the end.

        Raises:
            ConfigError: no such step.
        """
        check_step(step, len(self.ids))
        given, step = self.given, step % len(self.ids)
        with torch.no_grad():
            logit, parts, rest = self._parts(step, self.ids[step])
        across = given.source_tokens
        keys = {site: across if site.endswith("cross") else given.tokens for site, _ in parts}
        return Contributions(self.tokens[step], logit, parts, rest, keys, given.text, given.spans)


def _of_stack(given: ForwardPass, streams: dict[str, Stream], logits: Tensor) -> Callable[[int, int], Taken]:
    """Of a Transformer with a decoder."""
    if "decoder" not in streams:
        raise ConfigError(f"{type(given.module).__name__} has no decoder whose logits could be taken apart")
    module: Any = given.module
    weight, bias = module.readout()

    def of(step: int, token: int) -> Taken:
        place = logits.shape[1] - len(given.predicted) + step
        direction = weight[token] * getattr(module, "output_scale", 1.0)
        parts, rest = follow(streams["decoder"], direction, place)
        rest["output.bias"] = float(bias[token])
        return float(logits[0, place, token]), parts, rest

    return of


def follow(stream: Stream, direction: Float[Tensor, "d"], place: int) -> tuple[Parts, dict[str, float]]:
    """direction · x at the end of a stream, at one position, by what was written into it: from the last part back."""
    parts: list[tuple[tuple[str, int], Tensor]] = []
    rest: dict[str, float] = {}
    for step in reversed(stream.steps):
        if isinstance(step, FrozenNorm):
            if step.bias is not None:
                rest[f"{step.name}.bias"] = float(direction @ step.bias)
            direction = step.pull(direction, place)
        elif step.attention is None:
            rest[step.name] = float(step.added[place] @ direction)
        else:
            found = _by_source(step, direction, place)
            parts += [((step.name, head), found[head]) for head in reversed(range(len(found)))]
            if step.attention.output.bias is not None:
                rest[f"{step.name}.output.bias"] = float(direction @ step.attention.output.bias)
    rest |= {name: float(term[place] @ direction) for name, term in reversed(stream.start.items())}
    return dict(reversed(parts)), dict(reversed(rest.items()))


def _by_source(write: Write, direction: Tensor, place: int) -> Float[Tensor, "H S"]:
    """α_ij (v_j W_O) · direction."""
    assert write.attention is not None
    weights, values = head_outputs(write, place)
    into = head_weights(write.attention, len(weights)) @ direction  # [H, d_v]
    return weights * (values @ into[:, :, None].to(values.dtype))[..., 0]


def _of_recurrent(given: ForwardPass) -> Callable[[int, int], Taken]:
    module, arguments = given.module, given.arguments
    assert isinstance(module, Recurrent)
    calls: list[Call] = []
    memory = module.encode(arguments["source"], arguments.get("source_allowed"))
    with watching(calls.append):
        features = module.hidden(memory, arguments["target"])
    weight, bias = module.readout()
    logits, own = module.project(features), calls_by_site(module, calls).get(SITE)
    width = module.config.width

    def of(step: int, token: int) -> Taken:
        state, context = features[0, step].split([width, features.shape[-1] - width])
        from_state, from_context = weight[token].split([len(state), len(context)])
        rest = {"state": float(from_state @ state), "output.bias": float(bias[token])}
        logit = float(logits[0, step, token])
        if own is None:  # no attention: the context is the summary of the source
            return logit, {}, {"context": float(from_context @ context), **rest}
        return logit, {(SITE, 0): _of_context(module, own[step], from_context)}, rest

    return of


def _of_context(module: Recurrent, call: Call, direction: Tensor) -> Float[Tensor, "S"]:
    """β α_tj h_j · direction."""
    cross = module.decoder.cross
    weights = AttentionMap.from_spec(call.query, call.key, call.spec).full(force=True)[0, 0]
    values = call.value[0, :, : cross.memory_width].to(weights.dtype)
    gate: nn.Linear | None = cross.gate
    if gate is not None:
        weights = weights * torch.sigmoid(gate(call.query[0, 0, : gate.in_features]))
    return weights * (values @ direction.to(values.dtype))
