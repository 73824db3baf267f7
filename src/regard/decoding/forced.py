"""Log-probabilities of outputs that are given: the step of a search, told which token comes next."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from regard.decoding.constraints import Constraint
from regard.decoding.generate import StepModel, constrained
from regard.device import device_of


@dataclass(frozen=True)
class Forced:
    """One output that was given.

    Attributes:
        log_probs: of each token, in nats.
        entropies: of the distribution that each token was taken from, in nats.
    """

    log_probs: list[float]
    entropies: list[float]


def forced(
    model: StepModel, state: Any, before: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]],
    constraints: Sequence[Constraint] = (),
) -> list[Forced]:  # fmt: skip
    """The log-probability of every token of N outputs, as a search that found them adds them up.

    Args:
        model: gives `step`.
        state: of N sentences with one hypothesis each, before the last token of `before`.
        before: the tokens that each output follows; BOS alone for an encoder–decoder.
        outputs: the tokens of each output.
        constraints: changes of the step, the first innermost.
    """
    step, state = constrained(model, state, constraints, len(outputs))
    scored = any(constraint.scored for constraint in constraints)
    device = device_of(model)
    found = [Forced([], []) for _ in outputs]
    rows = [n for n, tokens in enumerate(outputs) if tokens]
    if len(rows) < len(outputs):
        state = state.keep(torch.tensor(rows, dtype=torch.long, device=device))
    last = torch.tensor([[before[n][-1]] for n in rows], device=device)
    place = 0
    while rows:
        logits, state = step(last, state)
        wide = logits[:, 0].to(torch.promote_types(logits.dtype, torch.float32))
        log_p = wide if scored else wide.log_softmax(-1)
        last = torch.tensor([[outputs[n][place]] for n in rows], device=device)
        entropy = torch.special.entr(log_p.exp()).sum(-1, keepdim=True)
        numbers = torch.cat([log_p.gather(-1, last), entropy], -1).tolist()  # one transfer a step
        for n, (log_prob, spread) in zip(rows, numbers, strict=True):
            found[n].log_probs.append(log_prob)
            found[n].entropies.append(spread)
        place += 1
        going = [i for i, n in enumerate(rows) if len(outputs[n]) > place]
        if len(going) < len(rows):
            rows = [rows[i] for i in going]
            kept = torch.tensor(going, dtype=torch.long, device=device)
            state, last = state.keep(kept), last[kept]
    return found
