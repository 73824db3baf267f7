"""AdamW, and Muon beside it for the blocks' matrices."""

from typing import Any

import torch
from torch import nn

from regard.training.config import TrainingConfig


class CombinedOptimizer:
    """Several optimizers behind the interface of one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset every gradient."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        """One step of each."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of all parameters, numbered across the parts, and the groups of each part."""
        state: dict[int, Any] = {}
        groups, first = [], 0
        for part in self.parts:
            own = part.state_dict()
            state |= {first + i: values for i, values in own["state"].items()}
            groups.append(own["param_groups"])
            first += sum(len(group["params"]) for group in own["param_groups"])
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, given: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        first = 0
        for part, groups in zip(self.parts, given["param_groups"], strict=True):
            count = sum(len(group["params"]) for group in groups)
            own = {i - first: values for i, values in given["state"].items() if first <= i < first + count}
            part.load_state_dict({"state": own, "param_groups": groups})
            first += count


Optimizer = torch.optim.Optimizer | CombinedOptimizer


def make_optimizer(model: nn.Module, config: TrainingConfig) -> Optimizer:
    """AdamW with decoupled decay of matrices only (Loshchilov and Hutter 2019), or Muon for the blocks' matrices and
    AdamW for all other parameters."""
    named = list(model.named_parameters())
    matrices = {n for n, p in named if config.optimizer == "muon" and ".layers." in n and p.ndim == 2}
    rest = [p for n, p in named if n not in matrices]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=1e-9, fused=True)
    if not matrices:
        return adamw
    muon = torch.optim.Muon(
        [p for n, p in named if n in matrices],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return CombinedOptimizer(muon, adamw)
