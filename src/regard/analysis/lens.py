"""The logit lens: what every layer of a model would predict, had it to answer at once.

The residual stream x_l after l blocks goes through what the model itself computes after its last block (final norm,
scale, head), without the blocks between. Early layers need not speak the output's language: what the lens shows there
is a reading by the last layer's own readout, not a prediction that the model makes (Belrose et al. 2023, section 1).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.analysis.base import ForwardPass, as_inputs, as_pass, check_single
from regard.arguments import check_arguments
from regard.errors import ConfigError, ShapeError
from regard.models.recurrent import Recurrent

Names = Callable[[Sequence[int]], list[str]]


@dataclass(frozen=True, eq=False)
class Lens:
    """The logits of every layer.

    Attributes:
        logits: `[layers + 1, *positions, V]`, from the embedded tokens to the last block's output; positions are those
            of the model's own logits: `[B, T]`, or `[B]` of a classifier. `logits[-1]` are these logits.
        layers: names of the first axis.
        tokens: of the positions: what the model is given there, where known.
        names: from token ids to their strings, where there is a tokenizer.
    """

    logits: Float[Tensor, "layers ... V"]
    layers: list[str]
    tokens: list[str] = field(default_factory=list)
    names: Names | None = None

    def probabilities(self) -> Float[Tensor, "layers ... V"]:
        """softmax(logits), in at least float32."""
        return self.logits.to(torch.promote_types(self.logits.dtype, torch.float32)).softmax(-1)

    @check_arguments
    def top(self, k: int = 5, row: int = 0) -> list[list[list[tuple[Any, float]]]]:
        """The k most probable tokens of every layer and position, best first.

        Args:
            k: how many; all where the vocabulary has fewer.
            row: which input of the batch.

        Returns:
            for each layer, for each position (a classifier has one) k pairs (token, probability); a token is its
            string where a tokenizer is known, else its id.
        """
        if k < 1:
            raise ConfigError(f"top needs k of at least 1; got {k}")
        rows = self.logits.shape[1]
        if not -rows <= row < rows:
            raise ConfigError(f"row {row}: the batch has {rows}, numbered from 0")
        size = self.logits.shape[-1]
        best, ids = self.probabilities()[:, row].reshape(len(self.logits), -1, size).topk(min(k, size), -1)
        return [
            [list(zip(self._named(some), shares, strict=True)) for some, shares in zip(*layer, strict=True)]
            for layer in zip(ids.tolist(), best.tolist(), strict=True)
        ]

    @check_arguments
    def plot(
        self, path: str | Path | None = None, row: int = 0, theme: str = "light", *,
        tokens: Sequence[str] | None = None, names: Names | None = None,
    ) -> Any:  # fmt: skip
        """Draw a table of layers and positions: each cell has the most probable token, its color the probability.

        Args:
            path: a .png, .svg or .pdf file; None only makes the figure.
            row: which input of the batch.
            theme: "light" or "dark".
            tokens: of the positions, for a model that does not name its own.
            names: from token ids to their strings, likewise: `tokenizer.convert_ids_to_tokens` of transformers.

        Returns:
            the matplotlib figure.

        Raises:
            ShapeError: another number of tokens than of positions.
        """
        from regard.figures.tables import draw_words

        if names is not None:
            return replace(self, names=names).plot(path, row, theme, tokens=tokens)
        best = [[cell[0] for cell in layer] for layer in self.top(1, row)]
        count = len(best[0])
        if tokens is not None and len(tokens) != count:
            raise ShapeError(f"tokens: got {len(tokens)} names for {count} positions: give one name for each position")
        known = tokens or self.tokens
        columns = "columns: the tokens that the model is given" if known else "columns: positions"
        return draw_words(
            [[probability for _, probability in layer] for layer in best],
            [[str(token) for token, _ in layer] for layer in best],
            self.layers, known or [str(i) for i in range(count)], path,
            title="The most probable token after each layer" if self.logits.ndim > 3 else
                  "The most probable class after each layer",
            note=columns if self.names else f"{columns}; cells: {'token' if self.logits.ndim > 3 else 'class'} ids",
            theme=theme,
        )  # fmt: skip

    def _named(self, ids: Sequence[int]) -> list[Any]:
        return list(ids) if self.names is None else self.names(ids)


class TunedLens(nn.Module):
    """Affine translators, one for each layer but the last: x_l → x_l + A_l x_l + b_l, the identity before training.

    Early layers do not write in the language of the last layer's readout; the translator of a layer is what best turns
    the one into the other, so that its reading is a prediction (Belrose et al. 2023, equations 3 and 4).

    Args:
        layers: how many layers are translated: the model's blocks, for the last is read as it is.
        width: d.

    Attributes:
        matrix: A `[layers, d, d]`.
        offset: b `[layers, d]`.
        divergences: {layer: KL of the last layer's prediction from this layer's, in nats a position, over the inputs,
            (before training, after it)}.
    """

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(layers, width, width))
        self.offset = nn.Parameter(torch.zeros(layers, width))
        self.divergences: dict[str, tuple[float, float]] = {}

    def forward(self, states: Float[Tensor, "*n d"], layer: int) -> Float[Tensor, "*n d"]:
        """The states of a layer in the language of the last one."""
        own = states.to(self.matrix.dtype)
        return states + (own @ self.matrix[layer].T + self.offset[layer]).to(states.dtype)


@check_arguments
@torch.inference_mode(False)  # within such a block of the caller's there would be no gradient
def tune_lens(model: Any, inputs: Any, steps: int = 200, learning_rate: float = 0.001, seed: int = 0) -> TunedLens:
    """Train the translators of a tuned lens on some inputs: minimize KL(last layer's prediction ‖ layer's prediction).

    The model itself stays as it is. One step is one input at every layer, by Adam with a cosine schedule.

    Args:
        model, inputs: as for `logit_lens`, of each input; a single one is a list of one.
        steps: how many.
        learning_rate: of the first step.
        seed: of the order of the inputs.

    Returns:
        the translators; `divergences` says what they gained. Read it on other inputs than these: a matrix has d²
        numbers, and few inputs are learned by heart.

    Raises:
        ConfigError: no input, or fewer than one step; what `logit_lens` refuses.

    Source: Belrose et al. 2023, "Eliciting latent predictions from Transformers with the tuned lens", section 3.
    """
    inputs = as_inputs(inputs)
    if not inputs or steps < 1:
        raise ConfigError(f"a tuned lens needs inputs and steps of at least 1; got {len(inputs)} inputs, {steps} steps")
    if not 0 < learning_rate < inf:
        raise ConfigError(f"learning_rate must be above 0, and finite; got {learning_rate}")
    passes = [as_pass(model, one) for one in inputs]
    with _opened(passes[0]) as first:
        width = next(iter(first.stream.values())).shape[-1]
        tuned = TunedLens(len(first.stream), width).to(first.logits.device)
    names = list(first.stream)
    before = _divergences(passes, tuned)
    parameters = list(tuned.parameters())
    optimizer = torch.optim.Adam(parameters, learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed % 2**63)
    for _ in range(steps):
        given = passes[int(torch.randint(len(passes), (), generator=generator))]
        with _opened(given) as opened, torch.enable_grad():
            losses = _losses(opened, tuned)
            gradients = torch.autograd.grad(torch.stack(losses).sum(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        schedule.step()
    after = _divergences(passes, tuned)
    if not all(map(isfinite, after)):
        raise ConfigError(
            f"the lens diverged: learning_rate = {learning_rate:g} is too large, or the model's states are not finite"
        )
    tuned.divergences = dict(zip(names, zip(before, after, strict=True), strict=True))
    return tuned.requires_grad_(False)


def _losses(opened: "_Opened", tuned: TunedLens) -> list[Tensor]:
    """KL(p_last ‖ p_layer) of every layer, the mean over positions."""
    wanted = opened.logits.float().log_softmax(-1)
    losses = []
    for layer, states in enumerate(opened.stream.values()):
        found = opened.read(tuned(states, layer)).float().log_softmax(-1)
        losses.append((wanted.exp() * (wanted - found)).sum(-1).mean())
    return losses


def _divergences(passes: Sequence[ForwardPass], tuned: TunedLens) -> list[float]:
    total: list[Tensor] = []
    for given in passes:
        with torch.no_grad(), _opened(given) as opened:
            total.append(torch.stack(_losses(opened, tuned)))
    found: list[float] = torch.stack(total).mean(0).tolist()
    return found


@check_arguments
def logit_lens(model: Any, inputs: Any, offsets: TunedLens | None = None) -> Lens:
    """softmax(W_U · norm(x_l)) at every layer l and position (nostalgebraist 2020; Belrose et al. 2023, equation 2).

    W_U and norm are whatever the model computes after its last block: a final norm only where it has one (a post-norm
    model's x_l is taken as it is), a scale, a bias, the layers of a BERT's head. Of an encoder–decoder, layers and
    positions are the decoder's. A recurrent decoder projects [s_t; c_t]: its two layers are [s_t; 0], before it has
    attended, and [s_t; c_t].

    Args:
        model: what `load` returns, or any module with a stack of blocks (an `nn.ModuleList`, each of whose members runs
            once) and logits: regard's, torch's, transformers'. In evaluation mode.
        inputs: an input of what `load` returns, whose own output is given to the decoder; or the arguments of the
            module's forward by their names.
        offsets: translators of `tune_lens`, through which every layer but the last is read.

    Raises:
        ConfigError: a text for a bare module; a module without logits, or without a stack of blocks; translators of
            another model.
    """
    given = as_pass(model, inputs)
    tokenizer = getattr(model, "tokenizer", None)
    names = None if tokenizer is None else tokenizer.tokens
    with torch.no_grad(), _opened(given) as opened:
        if offsets is not None:
            layers, width = len(opened.stream), next(iter(opened.stream.values())).shape[-1]
            if offsets.offset.shape != (layers, width):
                raise ConfigError(
                    f"these translators are of {len(offsets.offset)} layers of width {offsets.offset.shape[1]}, and "
                    f"this model has {layers} of width {width}: use those that tune_lens gave for it"
                )
        found = [
            opened.read(states if offsets is None else offsets(states, layer))
            for layer, states in enumerate(opened.stream.values())
        ]
    return Lens(torch.stack([*found, opened.logits]), [*opened.stream, opened.last], given.tokens, names)


@dataclass(frozen=True, eq=False)
class _Opened:
    """A forward pass whose layers can be read.

    Attributes:
        stream: {layer: states} of every layer but the last.
        last: name of the last layer.
        logits: the model's own.
        read: from states to logits, by what the model computes after its last block.
    """

    stream: dict[str, Tensor]
    last: str
    logits: Tensor
    read: Callable[[Tensor], Tensor]


@contextmanager
def _opened(given: ForwardPass) -> Iterator[_Opened]:
    """The layers of a pass, readable inside the block."""
    check_single(given.module)
    if isinstance(given.module, Recurrent):
        yield _recurrent(given)
        return
    with torch.no_grad():
        runs, logits = _recorded(given)
    stacks = _stacks(given.module, runs)
    if not stacks:
        raise ConfigError(
            f"{type(given.module).__name__} has no stack of blocks to look into: a ModuleList whose members run once "
            "each, one after the other, on states of one width"
        )
    blocks = stacks[-1]
    first, _ = runs[blocks[0]][0]
    stream = [first, *(_states(runs[block][0][1]) for block in blocks[:-1])]
    answers = {block: runs[block][0][1] for stack in stacks for block in stack}
    own = answers[blocks[-1]]

    def read(states: Tensor) -> Tensor:
        answers[blocks[-1]] = _with_states(own, states)
        return given.logits()

    with _answering(answers):  # the model runs anew, and its blocks only pass on what they gave before
        names = [f"layer {number}" if number else "embedding" for number in range(len(stream))]
        yield _Opened(dict(zip(names, stream, strict=True)), f"layer {len(blocks)}", logits, read)


def _recurrent(given: ForwardPass) -> _Opened:
    """A recurrent decoder's state alone, and its state and context."""
    module, arguments = given.module, given.arguments
    assert isinstance(module, Recurrent)
    with torch.no_grad():
        memory = module.encode(arguments["source"], arguments.get("source_allowed"))
        features = module.hidden(memory, arguments["target"])
        state = features.clone()
        state[..., module.config.width :] = 0
        return _Opened({"state": state}, "state and context", module.project(features), module.project)


Runs = dict[nn.Module, list[tuple[Any, Any]]]  # of every module, the states that it was given and its output


def _recorded(given: ForwardPass) -> tuple[Runs, Tensor]:
    """What the members of all lists of modules were given and gave, in the order in which they finished."""
    runs: Runs = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        states = next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)
        runs.setdefault(module, []).append((states, output))

    members = {block for parts in _lists(given.module).values() for block in parts}
    hooks = [block.register_forward_hook(note, with_kwargs=True) for block in members]
    try:
        return runs, given.logits()
    finally:
        for hook in hooks:
            hook.remove()


def _stacks(module: nn.Module, runs: Runs) -> list[list[nn.Module]]:
    """The lists of blocks that are no part of another one, in the order in which they finished."""
    order = {block: number for number, block in enumerate(runs)}
    found: dict[str, list[nn.Module]] = {}
    for path, blocks in _lists(module).items():
        within = any(path.startswith(f"{outer}.") for outer in found)
        if not within and all(len(runs.get(block, [])) == 1 and _is_block(*runs[block][0]) for block in blocks):
            places = [order[block] for block in blocks]
            if places == sorted(places):
                found[path] = blocks
    return sorted(found.values(), key=lambda blocks: order[blocks[-1]])


def _lists(module: nn.Module) -> Mapping[str, list[nn.Module]]:
    """The members of every list of modules, outer lists before those inside them."""
    return {path: [*part] for path, part in module.named_modules() if isinstance(part, nn.ModuleList) and len(part)}


def _is_block(states: Any, output: Any) -> bool:
    """Whether a module turned states into states."""
    first = output[0] if isinstance(output, tuple) and output else output
    return isinstance(states, Tensor) and isinstance(first, Tensor) and states.shape == first.shape and states.ndim > 2


def _states(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _with_states(output: Any, states: Tensor) -> Any:
    return (states, *output[1:]) if isinstance(output, tuple) else states


@contextmanager
def _answering(answers: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Inside the block, these modules compute nothing: each returns what stands in `answers` at the time."""
    own = {module: vars(module).get("forward") for module in answers}
    for module in answers:
        module.forward = lambda *_, module=module, **__: answers[module]
    try:
        yield
    finally:
        for module, forward in own.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward
