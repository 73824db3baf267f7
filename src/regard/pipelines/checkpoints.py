"""The checkpoints that a run keeps, as models: how its attention came about."""

from pathlib import Path
from typing import Any

import torch

from regard.errors import BundleError, ConfigError
from regard.pipelines.load import load
from regard.storage import check_possible
from regard.training.checkpoint import load_checkpoint
from regard.untrusted import first_line

KEPT = "best-*.safetensors"


def checkpoints_of(folder: str | Path, device: str | torch.device = "cpu") -> dict[int, Any]:
    """The kept checkpoints of a finished run: {step: what `load` returns, with the weights of that step}.

    A run keeps the best `training.keep_best` ones.

    Args:
        folder: of the run.
        device: where the models compute.

    Raises:
        ConfigError: no folder.
        DataError: a path that no folder can have.
        BundleError: a folder without checkpoints, or whose training is not finished; a damaged checkpoint.
    """
    place = Path(folder)
    check_possible(place)
    if not place.is_dir():
        raise ConfigError(f"{folder} is no run's folder: only a run has checkpoints, in {KEPT}")
    paths = sorted(place.glob(KEPT))
    if not paths:
        raise BundleError(f"{place}: there is no {KEPT}: the run keeps the best training.keep_best checkpoints there")
    found: dict[int, Any] = {}
    for path in paths:
        weights, note = load_checkpoint(path)
        made = load(place, device)
        try:
            made.model.load_state_dict(weights)
        except RuntimeError as error:
            raise BundleError(f"{path}: weights of another model than the run's: {first_line(error)}") from error
        made.name = str(folder)  # which the page's Python asks for them with
        found[int(note["step"])] = made
    return dict(sorted(found.items()))
