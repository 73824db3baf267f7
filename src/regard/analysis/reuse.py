"""What the rows of a batch share with its first row is computed once, and what is not read is not computed.

In a sweep of patches most positions of most rows hold what the unpatched row holds: those before the patched position
in a causal model, and all of them below the patched layer. A module that treats every position by itself (a
feed-forward, a projection) is run on the first row and on the positions that differ from it; where an input is equal
bit for bit, the output is copied. It is run when its output is read (`Deferred`): above the last attention at the
positions that the metric reads.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from regard.analysis.deferred import Deferred, Stale
from regard.attention.plain import Equal, has_hooks
from regard.attention.tracing import is_autocast

Found = TypeVar("Found")

LEAST = 2**14  # weights of a module that is worth a comparison of its inputs
CHUNK = 512
TRIED = 64  # positions of the input on which a module is tried


def deferring(model: nn.Module, rows: int, run: Callable[[AbstractContextManager[None]], Found]) -> Found:
    """What `run` gives with the model's linear layers deferred; as they are, where it changes their inputs in place.

    Args:
        model: whose layers.
        rows: of the inputs.
        run: enters the context around the forward, and reads the output behind it.
    """
    try:
        return run(Reuse(model).sharing(rows))
    except Stale:
        return run(nullcontext())


class Reuse:
    """Runs modules that treat every position by itself where their output is read and differs from the first row's.

    Whether a module does is tested once, on an input of its own in which all positions differ.

    Args:
        model: whose modules.
        attending: modules that attend; they and what contains them mix positions. Where they are not known yet, only
            linear layers are deferred.
    """

    def __init__(self, model: nn.Module, attending: set[nn.Module] | None = None) -> None:
        if attending is None:
            known: list[nn.Module] = [one for one in model.modules() if type(one) is nn.Linear]
        else:
            mixing = {one for one in model.modules() if any(part in attending for part in one.modules())}
            known = [one for one in model.modules() if one not in mixing]
        self._modules = [one for one in known if _is_candidate(one)]
        self._outputs: dict[nn.Module, tuple[int, torch.dtype] | None] = {}  # width and dtype; None: positions mix

    @contextmanager
    def sharing(self, rows: int) -> Iterator[None]:
        """Share inside the block, for inputs `[rows, T, d]` whose first row is the unpatched one."""
        inside = False

        def shared(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                nonlocal inside
                x = args[0] if len(args) == 1 and not kwargs else None
                if inside or not isinstance(x, Tensor) or not _is_by_position(x, rows):
                    return forward(*args, **kwargs)
                inside = True
                try:
                    if module not in self._outputs:
                        self._outputs[module] = _output_of_positions(module, forward, x.shape, x.dtype, x.device)
                finally:
                    inside = False
                output = self._outputs[module]
                if output is None:
                    return forward(x)
                large = sum(one.numel() for one in module.parameters() if one.ndim > 1) >= LEAST
                large &= not torch.is_grad_enabled()  # the rows are put together in place
                return Deferred(
                    (*x.shape[:2], output[0]),
                    output[1],
                    [x],
                    unshared(forward),
                    unshared(_whole(forward) if large else forward),
                )

            def unshared(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
                """The function with the modules inside it run as they are: nothing there waits again."""

                def run(x: Tensor) -> Tensor:
                    nonlocal inside
                    before, inside = inside, True
                    try:
                        return function(x)
                    finally:
                        inside = before

                return run

            return run

        changed = [one for one in self._modules if "forward" not in vars(one)]
        for one in changed:
            vars(one)["forward"] = Equal(shared(one, one.forward))
        try:
            yield
        finally:
            for one in changed:
                del vars(one)["forward"]


def _is_by_position(x: Tensor, rows: int) -> bool:
    if not isinstance(x, Deferred) and x.is_inference():
        return False
    return x.ndim == 3 and x.shape[0] in (1, rows) and x.shape[1] > 1 and x.is_floating_point()


def _whole(forward: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    """The module's output of all positions: the first row's, copied to the others where their input is equal."""

    def run(x: Tensor) -> Tensor:
        parts = [forward(part) for part in x[:1].split(CHUNK, 1)]
        first = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        if len(x) == 1:
            return first
        output = first.repeat(len(x), 1, 1)
        for row, position in zip(*_chunks((x[1:] != x[:1]).any(-1)), strict=True):
            output[row + 1, position] = forward(x[row + 1, position][None])[0]
        return output

    return run


def _chunks(differs: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    rows, positions = differs.nonzero(as_tuple=True)
    return rows.split(CHUNK), positions.split(CHUNK)


def _is_candidate(module: nn.Module) -> bool:
    """Whether no hook of the user's would see other rows than it is used to."""
    if isinstance(module, nn.Embedding | nn.ModuleList | nn.ModuleDict | nn.RNNBase):
        return False
    return not any(has_hooks(part) for part in module.modules())


@torch.no_grad()
def _output_of_positions(
    module: nn.Module, forward: Callable[..., Any], shape: torch.Size, dtype: torch.dtype, device: torch.device
) -> tuple[int, torch.dtype] | None:
    """Width and dtype of the output of a module that treats every position by itself; None where it does not.

    A linear layer does by its definition. Of others, some positions of either of two rows, in another order, must give
    the outputs of those positions. No two positions of the rows are equal: on equal ones a mean over them would pass.
    """
    if type(module) is nn.Linear and not is_autocast(device.type):
        return module.out_features, module.weight.dtype
    count = min(shape[1], TRIED)
    waves = torch.outer(torch.arange(1.0, 2 * count + 1, device=device), torch.arange(1.0, shape[2] + 1, device=device))
    rows = waves.cos().view(2, count, shape[2]).to(dtype)  # half precision has no whole numbers of this size
    version = rows._version
    chosen = torch.arange(count - 1, -1, -2, device=device)  # every other, from the last
    try:
        output = forward(rows)
        if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[:2] != rows.shape[:2]:
            return None
        if rows._version != version:  # it works in place
            return None
        own = torch.cat([forward(row[None, chosen]) for row in rows])
    except (RuntimeError, ValueError, TypeError, IndexError):  # a size of its own
        return None
    wanted = output[:, chosen]
    if own.shape != wanted.shape or own.dtype != wanted.dtype:
        return None
    close = torch.allclose(own, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().amax()))
    return (output.shape[2], output.dtype) if close else None
