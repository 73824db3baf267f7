"""A decoding worked through: what every step read, asked, found, and said.

The output layer of a recurrent decoder is linear in state and context, o = W_s s + W_c c + b, so a
logit splits exactly into what the state, the context and the bias gave (Bahdanau et al. 2015 read
through their o; nothing here is an approximation). A Transformer's logits have no such split: its
trace has scores and weights of the alignment's site, and predictions.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.cells import cell_len
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from regard.arguments import check_arguments
from regard.attention.watch import Call, calls_by_site, unwatched, watching
from regard.bundle import Bundle
from regard.device import device_of
from regard.errors import harmless
from regard.models.recurrent import Recurrent

TOP = 3


@dataclass(frozen=True)
class Prediction:
    """A candidate for the next token; logit = from_state + from_context + bias where the model is recurrent."""

    token: str
    probability: float
    logit: float
    from_state: float | None
    from_context: float | None
    bias: float | None


@dataclass(frozen=True)
class TraceStep:
    """One output step.

    Attributes:
        number: from 1.
        previous: the token that was fed in.
        token: the token that came out.
        asks: which state asked: "s_{t-1}", "s_t", or "" where nothing asks.
        state_norm: ‖s‖ of that state (of the query, for a Transformer).
        scores: e over the source tokens.
        weights: α over the source tokens.
        context_norm: ‖c‖.
        predictions: the most probable next tokens, and the token itself if it is not among them.
    """

    number: int
    previous: str
    token: str
    asks: str
    state_norm: float
    scores: list[float]
    weights: list[float]
    context_norm: float
    predictions: list[Prediction]


@dataclass(frozen=True)
class Trace:
    """The steps of one decoding, over the tokens of one source."""

    source: str
    source_tokens: list[str]
    site: str
    heads: list[int]
    steps: list[TraceStep]

    def as_json(self) -> dict[str, Any]:
        """The whole trace as plain data."""
        return asdict(self)

    def lines(self, width: int = 80) -> Iterator[RenderableType]:
        """For a terminal of some width: for each step a heading, scores and weights over the source, the predictions.

        Source tokens for which there is no room in a line follow in the next.
        """
        from regard.figures.terminal import blocks

        for step in self.steps:
            yield Text(harmless(self._heading(step)), style="bold")
            if step.scores:
                widths = [max(5, cell_len(token)) + 2 for token in self.source_tokens]
                for part in blocks(range(len(widths)), widths, width - 12):
                    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
                    table.add_column("  source")
                    for n in part:
                        table.add_column(Text(harmless(self.source_tokens[n])), justify="right", no_wrap=True)
                    table.add_row("  score e", *(f"{step.scores[n]:.2f}" for n in part))
                    table.add_row("  weight α", *(f"{step.weights[n]:.3f}" for n in part), style="bold")
                    yield table
            yield from (Text(harmless(_sentence(p))) for p in step.predictions)
            yield Text()

    @check_arguments
    def plot(self, path: str | Path | None = None, theme: str = "light") -> Any:
        """Draw the weights over the source, step by step, with the predictions beside them.

        Args:
            path: a .png, .svg or .pdf file; None only makes the figure.
            theme: "light" or "dark".

        Returns:
            the matplotlib figure.
        """
        from regard.figures.steps import draw_trace

        return draw_trace(self, path, theme)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        from regard.figures.files import as_png

        return as_png(self.plot())

    def _heading(self, step: TraceStep) -> str:
        query = f"{step.asks} is the query, |{step.asks}| = {step.state_norm:.2f}" if step.asks else "no attention"
        context = f"; |c_t| = {step.context_norm:.2f}" if step.context_norm else ""
        return f"step {step.number}: {step.previous} → {step.token}   ({query}{context})"


def trace(
    bundle: Bundle, source: str, source_ids: list[int], output_ids: list[int], site: str, heads: list[int]
) -> Trace:
    """The decoding of `output_ids` from `source_ids` (both with EOS), worked through on the model itself.

    Args:
        bundle: the model.
        source: the text.
        source_ids, output_ids: tokens, with EOS.
        site, heads: the attention that is shown; "" where the model has none to its source.
    """
    tokens, names = bundle.tokenizer.tokens, bundle.tokenizer.tokens(source_ids)
    if not output_ids:
        return Trace(source, names, site, heads, [])
    steps = []
    with torch.inference_mode(), unwatched():
        model, device = bundle.model, device_of(bundle.model)
        state = model.start(model.encode(torch.tensor([source_ids], device=device)), record=True)
        previous = bundle.tokenizer.bos
        for number, token in enumerate(output_ids, 1):
            calls: list[Call] = []
            with watching(calls.append):
                hidden, state = model.step_hidden(torch.tensor([[previous]], device=device), state)
            seen = _seen(model, site, heads, state, calls)
            steps.append(
                TraceStep(
                    number, tokens([previous])[0], tokens([token])[0], *seen,
                    predictions=_predictions(model, hidden[0, 0], token, bundle),
                )
            )  # fmt: skip
            previous = token
    return Trace(source, names, site, heads, steps)


def _seen(
    model: Any, site: str, heads: list[int], state: Any, calls: list[Call]
) -> tuple[str, float, list[float], list[float], float]:
    """(the query's name, its norm, scores, weights, the context's norm) of the last step at the alignment's site."""
    if not (found := calls_by_site(model, calls).get(site)):
        return "", 0.0, [], [], _context_norm(model, state)
    query = found[0].query[0].flatten(0, -2)  # [heads, d] of a Transformer, [1, d] of a recurrent decoder
    weights = model.maps(state)[site].tile([-1], slice(None))[0, 0, :, 0]
    recurrent = isinstance(model, Recurrent)
    asks = "q_t" if not recurrent else "s_{t-1}" if model.config.asks == "previous" else "s_t"
    chosen = heads or list(range(len(weights)))
    scores = _scores(found[0], chosen)
    return (
        asks, float(query[chosen].norm(dim=-1).mean()), scores.tolist(), weights[chosen].mean(0).tolist(),
        _context_norm(model, state),
    )  # fmt: skip


def _context_norm(model: Any, state: Any) -> float:
    """Of a recurrent step's context."""
    if not isinstance(model, Recurrent):
        return 0.0
    return float(state.context[..., : model.decoder.cross.memory_width].norm())


def _scores(call: Call, heads: list[int]) -> Tensor:
    """The scores e of one step's call, the mean over the chosen heads."""
    key = call.key
    if key.ndim == 4 and key.shape[1] != call.query.shape[1]:
        key = key.repeat_interleave(call.query.shape[1] // key.shape[1], 1)
    scores: Tensor = call.spec.score(call.query.float(), key.float())
    return scores[0, 0] if scores.ndim == 3 else scores[0, heads, 0].mean(0)


def _predictions(model: Any, hidden: Tensor, token: int, bundle: Bundle) -> list[Prediction]:
    logits = model.project(hidden).cpu()
    probability = torch.softmax(logits, -1)
    ids = list(dict.fromkeys([*probability.topk(TOP).indices.tolist(), token]))
    parts = _parts(model, hidden, ids) if isinstance(model, Recurrent) else [(None, None, None)] * len(ids)
    names = bundle.tokenizer.tokens(ids)
    return [
        Prediction(name, float(probability[i]), float(logits[i]), *own)
        for name, i, own in zip(names, ids, parts, strict=True)
    ]


def _parts(model: Recurrent, hidden: Tensor, ids: list[int]) -> list[tuple[float, float, float]]:
    """What state, context and bias give the logits of some tokens."""
    weight, bias = model.readout()
    width = model.config.width
    rows, biases, hidden = weight[ids].cpu(), bias[ids].cpu(), hidden.cpu()
    return [
        (float(row[:width] @ hidden[:width]), float(row[width:] @ hidden[width:]), float(own))
        for row, own in zip(rows, biases, strict=True)
    ]


def _sentence(p: Prediction) -> str:
    whole = f"  {p.token:<14} p = {p.probability:.3f}   logit {p.logit:7.2f}"
    if p.from_state is None or p.from_context is None or p.bias is None:
        return whole
    return f"{whole} = state {p.from_state:6.2f} + context {p.from_context:6.2f} + bias {p.bias:5.2f}"
