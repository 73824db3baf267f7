"""Explanations of one prediction: what each position of the input gave to it, by every method of this package.

Each is one number a position, from one generation; which of them is to be believed is measured by `faithfulness`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.analysis.alti import Mixing
from regard.analysis.base import ForwardPass
from regard.analysis.contributions import Attributor, Generated
from regard.analysis.erasure import SOURCE, TOKENS, check_words
from regard.analysis.flow import LONGEST, HeadGradient, flow
from regard.analysis.parts import AttentionPart, Part, Parts
from regard.analysis.residual import Stream, Write, head_outputs, head_weights
from regard.attention.maps.map import AttentionMap
from regard.device import device_of
from regard.models.recurrent import Recurrent
from regard.nn.embedding import Embedding
from regard.observation.observe import observe
from regard.shapes import share_heads

STEPS = 16  # of the path of integrated gradients
POSITIONS = 4096  # of the copies of an input whose gradients are computed in one batch
LONGEST_FLOW = LONGEST // 2  # positions; every one is a maximum flow through all layers

Explanation = Float[Tensor, "S"]


def explanations(generation: Generated, steps: Sequence[int]) -> dict[str, Explanation]:
    """What each position of the input gave to the tokens chosen at some steps, one number each; summed over the steps.

    - attention: α_ij, the mean over heads of all sites that attend to the input (cross-attention where there is any).
    - alignment: the mean over the heads that the model's word alignment is read from, where it has one.
    - norms: ‖Σ_h α_ij v_j W_O‖, the mean over these sites (Kobayashi et al. 2020, section 3). Transformers.
    - contributions: Σ α_ij (v_j W_O) · u over sites and heads: see `contributions`.
    - rollout, flow: of the maps below, by `flow` (Abnar and Zuidema 2020); of an encoder–decoder the encoder's maps,
      then the mean cross-attention. flow up to 32 positions. Transformers.
    - gradient rollout: of the same maps weighted by ∇A, y = log p (Chefer, Gur and Wolf 2021, equations 5 and 6).
    - alti: of the vectors that move, through all layers (Ferrando et al. 2022). Transformers.
    - gradient × input: x_j · ∂ log p/∂x_j, x the token's vector (Shrikumar et al. 2017).
    - integrated gradients: x_j · ∫ ∂ log p(a x)/∂x_j da by 16 midpoints, from the vector 0 (Sundararajan et al. 2017,
      equation 1).

    Args:
        generation: a translation or a completion of what `load` returns.
        steps: indices of tokens in `generation.ids`.

    Returns:
        {name: `[S]`}, in float64: source positions, or the positions up to that which predicts the first of the tokens.

    Raises:
        ConfigError: the output for a picture or a sound.
    """
    return Explainer(generation)(steps)


class Explainer:
    """`explanations` of any tokens of one output: maps, streams and the layers' contributions are computed once.

    Args:
        generation: a translation or a completion of what `load` returns.

    Attributes:
        attribution: `contributions` of its tokens.

    Raises:
        ConfigError: the output for a picture or a sound.
    """

    def __init__(self, generation: Generated) -> None:
        self.attribution = Attributor(generation)
        self.given = given = self.attribution.given
        check_words(given)
        self.crossing = SOURCE in given.arguments
        self.maps = _maps(given)
        self.reading = [site for site in self.maps if site.endswith("cross")] or list(self.maps)
        self.alignment = _aligned(generation)
        self.chain: list[AttentionMap] = []
        if not isinstance(given.module, Recurrent):
            self.chain = _chain(self.maps, self.reading, self.crossing)
            # where source and output have one length, nothing stays where it is in the last map, which crosses
            self.residual = [0.5] * len(self.chain)
            self.residual[-1] *= not self.crossing
            self.mixing = Mixing(self.attribution.streams, "decoder")

    def __call__(self, steps: Sequence[int]) -> dict[str, Explanation]:
        """Of the tokens chosen at some steps together."""
        given, maps, reading = self.given, self.maps, self.reading
        length = given.arguments[SOURCE if self.crossing else TOKENS].shape[1]
        offset = 0 if self.crossing else length - len(given.predicted)
        size = length if self.crossing else offset + min(steps) + 1
        found: dict[str, Tensor] = {}

        def add(name: str, row: Tensor) -> None:
            row = row.detach().cpu().double()[:size]
            found[name] = found.get(name, torch.zeros(size, dtype=torch.float64)) + row

        for step in steps:
            place = offset + step
            for site in reading:
                add("attention", _row(maps[site], place) / len(reading))
            if self.alignment is not None:
                add("alignment", _row(maps[self.alignment[0]], place, self.alignment[1]))
            if self.chain:
                for row in _norms(self.attribution.streams["decoder"], reading, place):
                    add("norms", row / len(reading))
            parts = self.attribution(step).parts
            for (site, _), part in parts.items():
                if site in reading:
                    add("contributions", part)
            if self.chain:
                add("rollout", flow(self.chain, target=place, residual=self.residual))
                add("alti", self.mixing(place)[0])
                add("gradient rollout", self._weighted(step, place))
                if max(self.chain[-1].shape[-2:]) <= LONGEST_FLOW:
                    add("flow", flow(self.chain, "flow", target=place, residual=self.residual))
        first, path = _gradients(given, steps)
        add("gradient × input", first)
        add("integrated gradients", path)
        return found

    def _weighted(self, step: int, place: int) -> Explanation:
        """The row of a position of the rollout that gradients weigh; cross-attentions' heads stand side by side."""
        slopes = _head_gradients(self.given, step)
        if not self.crossing:
            maps, given = self.chain, [slopes[site] for site in self.reading]
        else:
            inside = [site for site in self.maps if site.startswith("encoder.")]
            joint = torch.cat([self.maps[site].full(force=True) for site in self.reading])
            maps = [*(self.maps[site] for site in inside), AttentionMap.from_weights(joint)]
            across = [slopes[site] for site in self.reading]
            outputs, values = ([getattr(one, name) for one in across] for name in ("output", "value"))
            given = [*(slopes[site] for site in inside), HeadGradient(torch.cat(outputs), torch.cat(values))]
        return flow(maps, "gradient", target=place, residual=self.residual, gradients=given)


def _maps(given: ForwardPass) -> dict[str, AttentionMap]:
    """{site: `[heads, T, S]`} of the whole pass."""
    if isinstance(given.module, Recurrent) and given.module.decoder.cross.score is None:
        return {}  # the context is a fixed vector
    with torch.no_grad(), observe(given.module) as seen:
        given()
    return {site: one[0].select(0) for site, one in seen.items()}


def _row(map: AttentionMap, place: int, heads: Sequence[int] | None = None) -> Tensor:
    """The mean over heads of one row `[S]`."""
    row = map.tile([place], slice(None))[..., 0, :].reshape(-1, map.shape[-1])
    return (row if heads is None else row[list(heads)]).mean(0)


def _aligned(generation: Any) -> tuple[str, list[int]] | None:
    """Site and heads of the word alignment, of results that have one."""
    shown = getattr(generation, "alignment", None) if getattr(generation, "attention", None) else None
    return None if shown is None or not shown.site else (shown.site, shown.heads)


def _norms(stream: Stream, sites: Sequence[str], place: int) -> Iterator[Tensor]:
    for step in stream.steps:
        if isinstance(step, Write) and step.attention is not None and step.name in sites:
            weights, values = head_outputs(step, place)
            with torch.no_grad():
                moved = values @ head_weights(step.attention, len(weights)).to(values.dtype)
            yield (weights[:, :, None] * moved).sum(0).norm(dim=-1)


def _chain(maps: dict[str, AttentionMap], reading: Sequence[str], crossing: bool) -> list[AttentionMap]:
    """The maps that lead from the input to the output, the lowest first."""
    if not crossing:
        return [maps[site] for site in reading]
    mean = torch.stack([maps[site].mean_heads().full(force=True) for site in reading]).mean(0)
    inside = [one for site, one in maps.items() if site.startswith("encoder.")]
    return [*inside, AttentionMap.from_weights(mean)]


def _head_gradients(given: ForwardPass, step: int) -> dict[str, HeadGradient]:
    """{site: ∂ log p/∂o of its heads' outputs, and their values} of the token chosen at a step."""
    probes: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}

    def probe(site: str, _: int, part: Part) -> Tensor:
        assert isinstance(part, AttentionPart)
        own = part.output()
        probes[site] = torch.zeros_like(own, requires_grad=True)
        values[site] = share_heads(part.call.query, part.call.value).detach()[0].expand(*own.shape[1:-2], -1, -1)
        return own + probes[site]

    with torch.enable_grad(), Parts(given.module, "head").visiting(probe):
        logits = given.logits()[0, -len(given.predicted) :].double().log_softmax(-1)
    found = torch.autograd.grad(logits[step, given.predicted[step]], list(probes.values()))
    return {site: HeadGradient(slope[0], values[site]) for site, slope in zip(probes, found, strict=True)}


def _gradients(given: ForwardPass, steps: Sequence[int]) -> tuple[Tensor, Tensor]:
    """gradient × input and integrated gradients `[S]` of Σ log p over the steps."""

    shares = torch.tensor([1.0, *((n + 0.5) / STEPS for n in range(STEPS))], device=device_of(given.module))
    size = sum(value.shape[1] for value in given.arguments.values() if isinstance(value, Tensor) and value.ndim > 1)
    parts = shares.split(max(1, POSITIONS // size))
    found = [_gradient(given.copies(len(some)), steps, some) for some in parts]
    vectors, gradients = found[0][0], torch.cat([gradient for _, gradient in found])
    return (vectors * gradients[0]).sum(-1), (vectors * gradients[1:].mean(0)).sum(-1)


def _gradient(given: ForwardPass, steps: Sequence[int], shares: Tensor) -> tuple[Tensor, Tensor]:
    """The vectors x_j `[S, d]` of the input's tokens, and ∂ Σ log p/∂x_j `[n, S, d]` at each of n shares of them."""
    kept: list[tuple[Tensor, Tensor]] = []

    def scaled(vectors: Tensor) -> Tensor:
        leaf = (vectors.detach() * shares[:, None, None]).requires_grad_()
        kept.append((vectors.detach(), leaf))
        return leaf

    with torch.enable_grad(), _changing_inputs(given, scaled):
        logits = given.logits()[:, -len(given.predicted) :].double().log_softmax(-1)
        wanted = logits[:, list(steps), [given.predicted[step] for step in steps]].sum()
    vectors, leaf = kept[0]
    (gradient,) = torch.autograd.grad(wanted, leaf)
    return vectors[0], gradient


@contextmanager
def _changing_inputs(given: ForwardPass, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block, the vectors of the input's tokens are `change` of what the embedding gives; only the first time
    that it is given these tokens."""
    ids = given.arguments[SOURCE if SOURCE in given.arguments else TOKENS]
    used = False

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        nonlocal used
        if used or not torch.equal(args[0], ids):
            return None
        used = True
        return change(output)

    tables = [part for part in given.module.modules() if isinstance(part, Embedding)]
    hooks = [table.register_forward_hook(hook) for table in tables]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
