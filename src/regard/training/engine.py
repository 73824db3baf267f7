"""A model in training with its optimizer, on one process or on several: what is updated, evaluated, saved and restored.

| `training.parallel` | weights of a process | checkpoint |
|---|---|---|
| "ddp" | all of them (DistributedDataParallel) | `last.safetensors` |
| "fsdp" | a share of them (FSDP2, `fully_shard`) | the folder `last`, of torch.distributed.checkpoint |

Either can be resumed on another number of processes.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regard.bundle import current_weight
from regard.data.batching import Batch, move
from regard.device import device_of, random_states, restore_random_states, seed_generators
from regard.errors import BundleError, ConfigError
from regard.storage import parse_json, remove, replace_folder, write_text
from regard.training.checkpoint import (
    LAST,
    Tensors,
    flatten_optimizer,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from regard.training.config import TrainingConfig
from regard.training.distributed import Processes
from regard.training.objective import Objective
from regard.training.optimizer import Optimizer, make_optimizer
from regard.untrusted import first_line, read_text

SHARDED = "last"  # a folder
NOTE = "progress.json"


class Engine:
    """A model in training.

    Args:
        model: with fresh weights, on its device.
        config: the settings.
        pad: the id of PAD.
        group: the processes that train it together.

    Attributes:
        module: the objective, whose forward is the loss; wrapped where there are several processes.
        optimizer: of the model's parameters.
        pieces: a process computes its rows of a batch in as many parts, one after the other.
    """

    def __init__(self, model: Any, config: TrainingConfig, pad: int, group: Processes) -> None:
        self.config, self.group, self.pieces = config, group, config.accumulate
        self.sharded = config.parallel == "fsdp"
        if self.sharded and config.optimizer == "muon":
            raise ConfigError(
                'training.optimizer = "muon" needs whole matrices: set training.parallel = "ddp", or '
                'training.optimizer = "adamw"'
            )
        self.model = model
        self.twin = deepcopy(model) if config.ema or (self.sharded and group.count > 1) else None
        self.module: Any = Objective(model, config, pad)
        if group.count > 1:
            self.module = _sharded(self.module) if self.sharded else _replicated(self.module)
        self.optimizer = make_optimizer(model, config)
        self.ema: Tensors = {}
        if config.ema:
            self.ema = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def gradients(self, batch: Batch, tokens: int) -> Tensor:
        """Add the gradient of a global batch's mean loss to every parameter; the loss and likelihood of own rows.

        Args:
            batch: the global batch.
            tokens: its number of target tokens.
        """
        parts = self.group.pieces(batch, self.pieces)
        numbers = torch.zeros(2, device=device_of(self.model))
        for number, (part, weight) in enumerate(parts):
            with self._exchange(number == len(parts) - 1):
                loss, nll, _ = self.module(move(part, device_of(self.model)))
                # a mean over processes is taken of the gradients; the sum is what is meant
                (loss * (weight * self.group.count / tokens)).backward()
                numbers += weight * torch.stack([loss.detach(), nll.detach()]).float()
        return numbers

    def clip(self) -> Tensor:
        """Scale the gradient down to `config.clip`; its norm before."""
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def step(self) -> None:
        """One update of the weights, and of their moving average."""
        self.optimizer.step()
        if self.ema:
            with torch.no_grad():
                for name, value in self.model.state_dict().items():
                    mean = self.ema[name]
                    mean.lerp_(value, 1 - self.config.ema) if mean.is_floating_point() else mean.copy_(value)

    def whole(self) -> Any:
        """The model with all its weights, for evaluation: of their moving average, where there is one."""
        if self.twin is None:
            return self.model
        weights = self.ema or dict(self.model.state_dict())
        self.twin.load_state_dict({name: _full(value) for name, value in weights.items()})
        return self.twin

    @contextmanager
    def _exchange(self, last: bool) -> Iterator[None]:
        """Exchange gradients after the last part of a batch only."""
        if self.group.count == 1 or last:
            yield
        elif self.sharded:
            self.module.set_requires_gradient_sync(False)
            yield
            self.module.set_requires_gradient_sync(True)
        else:
            with self.module.no_sync():
                yield

    def store(self, folder: Path, progress: dict[str, Any]) -> None:
        """Write everything that a resumed run needs; all processes take part, the first one writes what is whole."""
        states = self.group.of_each(random_states(device_of(self.model)))
        if self.sharded:
            self._store_sharded(folder, progress, states)
        elif self.group.first:
            tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
            tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.items()}
            note = progress | {"processes": self.group.count}
            save_checkpoint(folder / LAST, tensors | flatten_optimizer(self.optimizer) | _named(states), note)

    def restore(self, folder: Path) -> dict[str, Any]:
        """Read what `store` wrote, on any device and any number of processes."""
        if self.sharded:
            return self._restore_sharded(folder)
        tensors, state = load_checkpoint(folder / LAST)
        parts = {kind: _part(tensors, kind) for kind in ("model", "ema")}
        if not parts["model"]:
            raise BundleError(f"{folder / LAST}: weights alone, and not all that a resumed run needs: restore the file")
        try:
            self.model.load_state_dict({current_weight(name): t for name, t in parts["model"].items()})
            restore_optimizer(self.optimizer, tensors)
            for name, mean in self.ema.items():
                mean.copy_(parts["ema"][name])
            self._restore_random(tensors, state.pop("processes", 1), int(state["step"]))
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{folder / LAST}: not a checkpoint of this run: {first_line(error)}") from error
        return state

    def _restore_random(self, tensors: Tensors, count: int, step: int) -> None:
        """The random states of this process; on another number of processes, new ones that the step decides."""
        if count != self.group.count:
            seed_generators(self.config.seed + 1_000_003 * step + self.group.rank, device_of(self.model))
            return
        prefix = "random" if self.group.first else f"random{self.group.rank}"
        kept = _part(tensors, prefix)
        restore_random_states(kept | {"cpu": tensors[prefix]}, device_of(self.model))

    def _store_sharded(self, folder: Path, progress: dict[str, Any], states: list[Tensors]) -> None:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException

        aside, there = folder / f"{SHARDED}.aside", folder / SHARDED
        if self.group.first:
            remove(aside)
        self.group.wait(self.config.timeout)
        try:
            with _without_warnings():
                dcp.save(  # type: ignore[attr-defined]
                    self._shards(), checkpoint_id=str(aside), no_dist=self.group.count == 1
                )
        except CheckpointException as error:
            reasons = [str(one).splitlines()[0] for one, *_ in error.failures.values() if str(one)]
            raise BundleError(f"{there}: could not be written: {next(iter(reasons), 'no reason is known')}") from error
        if self.group.first:
            save_checkpoint(aside / "random.safetensors", _named(states), {"processes": self.group.count})
            write_text(aside / NOTE, json.dumps(progress))
            if there.is_symlink():  # what it leads to may not be the run's
                there.unlink()
            replace_folder(aside, there)
        self.group.wait(self.config.timeout)

    def _restore_sharded(self, folder: Path) -> dict[str, Any]:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict import set_state_dict

        from regard.training.sharded import SafePlanner, check_shards

        there = folder / SHARDED
        try:
            state: dict[str, Any] = parse_json(read_text(there / NOTE))
            check_shards(there)
            shards = self._shards()
            with _without_warnings():
                dcp.load(  # type: ignore[attr-defined]
                    shards, checkpoint_id=str(there), planner=SafePlanner(), no_dist=self.group.count == 1
                )
            set_state_dict(
                self.model, self._optimizers(), model_state_dict=shards["model"], optim_state_dict=shards["optimizer"]
            )
            tensors, note = load_checkpoint(there / "random.safetensors")
            self._restore_random(tensors, int(note["processes"]), int(state["step"]))
        except BundleError:
            raise
        except (Exception, CheckpointException) as error:  # torch's own is no Exception
            raise BundleError(
                f"{there}: damaged or cut short ({first_line(error)}): use an earlier checkpoint"
            ) from error
        return state

    def _shards(self) -> dict[str, Any]:
        """This process's part of weights, moments and moving averages, under names that do not depend on the number of
        processes."""
        from torch.distributed.checkpoint.state_dict import get_state_dict

        weights, optimizer = get_state_dict(self.model, self._optimizers())
        shards: dict[str, Any] = {"model": weights, "optimizer": optimizer}
        return shards | ({"ema": self.ema} if self.ema else {})

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        found: Optimizer = self.optimizer
        assert isinstance(found, torch.optim.Optimizer)  # Muon and its partner are refused
        return [found]


def _replicated(objective: Objective) -> Any:
    # parts that the settings leave unused, a CTC layer say, get no gradient
    return nn.parallel.DistributedDataParallel(objective, find_unused_parameters=True)


def _sharded(objective: Objective) -> Any:
    from torch.distributed.fsdp import fully_shard

    for module in objective.modules():
        if isinstance(module, nn.ModuleList) and len(module) > 0:
            for layer in module:
                fully_shard(layer)
    return fully_shard(objective)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Without torch's warning that one process saves and loads alone, which is what is meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _full(value: Tensor) -> Tensor:
    """A tensor with all its rows, also where every process holds some."""
    found: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return found


def _named(states: list[Tensors]) -> Tensors:
    """The random states of all processes; those of the first under the names that a run of one process has."""
    found: Tensors = {}
    for rank, of in enumerate(states):
        prefix = f"random{rank}" if rank else "random"
        found |= {prefix if kind == "cpu" else f"{prefix}.{kind}": state for kind, state in of.items()}
    return found


def _part(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors under `prefix.`, without it."""
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
