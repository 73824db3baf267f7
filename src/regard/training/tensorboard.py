"""Curves for TensorBoard, written beside the journal."""

from pathlib import Path
from typing import Any

from regard.errors import ConfigError
from regard.storage import own_folder

FOLDER = "tensorboard"
STEP = ("loss", "gradient_norm", "learning_rate")  # of every update


class TensorBoard:
    """A function that writes the events of a run as scalars, and passes them on.

    Args:
        folder: the run's.
        report: the next function.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, folder: Path, report: Any) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError("training.tensorboard needs its package: pip install 'regard[tensorboard]'") from error
        self.report = report
        own_folder(folder / FOLDER)
        self.writer: Any = SummaryWriter(str(folder / FOLDER))

    def __call__(self, event: dict[str, Any]) -> None:
        step = event.get("step", 0)
        if event["event"] == "step":
            for name in STEP:
                self.writer.add_scalar(f"training/{name}", event[name], step)
        elif event["event"] == "evaluation":
            for name, value in event.items():
                if name.startswith("dev_"):
                    self.writer.add_scalar(f"development/{name.removeprefix('dev_')}", value, step)
            self.writer.flush()
        self.report(event)
