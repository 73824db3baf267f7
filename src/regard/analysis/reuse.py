"""What the rows of a batch share with its first row is computed once.

In a sweep of patches most positions of most rows hold what the unpatched row holds: those before the patched position
in a causal model, and all of them below the patched layer. A module that treats every position by itself (a
feed-forward, a projection) is run on the first row and on the positions that differ from it; where an input is equal
bit for bit, the output is copied.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LEAST = 2**14  # weights of a module that is worth a comparison of its inputs


class Reuse:
    """Runs modules that treat every position by itself on the positions that differ from the first row's.

    Whether a module does is tested once, on an input of its own in which all positions differ.

    Args:
        model: whose modules.
        attending: modules that attend; they and what contains them mix positions.
    """

    def __init__(self, model: nn.Module, attending: set[nn.Module]) -> None:
        mixing = {one for one in model.modules() if any(part in attending for part in one.modules())}
        self._modules = [one for one in model.modules() if one not in mixing and _is_candidate(one)]
        self._by_position: dict[nn.Module, bool] = {}

    @contextmanager
    def sharing(self, rows: int) -> Iterator[None]:
        """Share inside the block, for inputs `[rows, T, d]` whose first row is the unpatched one."""
        inside = False

        def shared(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                nonlocal inside
                alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
                whole = not alone or args[0].ndim != 3 or args[0].shape[0] != rows or args[0].shape[1] < 2
                if inside or whole or self._by_position.get(module) is False:
                    return forward(*args, **kwargs)
                inside = True
                try:
                    return self._shared(module, forward, args[0])
                finally:
                    inside = False

            return run

        changed = [one for one in self._modules if "forward" not in vars(one)]
        for one in changed:
            vars(one)["forward"] = shared(one, one.forward)
        try:
            yield
        finally:
            for one in changed:
                del vars(one)["forward"]

    def _shared(self, module: nn.Module, forward: Callable[..., Any], x: Tensor) -> Any:
        if module not in self._by_position:
            self._by_position[module] = _treats_positions_alone(forward, x)
            return forward(x)
        if not self._by_position[module]:
            return forward(x)
        first, differs = forward(x[:1]), (x[1:] != x[:1]).any(-1)
        if bool(differs.all()):
            return torch.cat([first, forward(x[1:])])
        output = first.repeat(len(x), *[1] * (first.ndim - 1))
        if bool(differs.any()):
            output[1:][differs] = forward(x[1:][differs][None])[0]
        return output


def _is_candidate(module: nn.Module) -> bool:
    """Whether its products are worth it, and no hook of the user's would see other rows than it is used to."""
    weights = [one for one in module.parameters() if one.ndim > 1]
    if sum(one.numel() for one in weights) < LEAST or isinstance(module, nn.Embedding | nn.ModuleList | nn.RNNBase):
        return False
    return not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def _treats_positions_alone(forward: Callable[..., Any], x: Tensor) -> bool:
    """Whether some positions of one row, in another order, give the outputs of those positions.

    Tried on two rows in which no two positions are equal: on equal ones a mean over positions would pass.
    """
    if not x.is_floating_point():
        return False
    scale = x.abs().nan_to_num(posinf=0.0).amax().clamp_min(1e-6)
    waves = torch.outer(
        torch.arange(1.0, 2 * x.shape[1] + 1, device=x.device), torch.arange(1.0, x.shape[2] + 1, device=x.device)
    )  # in float32: half precision has no whole numbers of this size
    rows = scale * waves.cos().view(2, x.shape[1], x.shape[2]).to(x.dtype)
    with torch.no_grad():
        output = forward(rows)
    chosen = torch.arange(x.shape[1] - 1, -1, -2, device=x.device)  # every other, from the last
    if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[:2] != rows.shape[:2]:
        return False
    with torch.no_grad():
        own, wanted = forward(rows[:1, chosen]), output[:1, chosen]
    if not isinstance(own, Tensor) or own.shape != wanted.shape:
        return False
    return torch.allclose(own, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().amax()))
