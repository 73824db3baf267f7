"""Which checkpoints are best, and which are no candidates at all."""

import warnings
from math import inf, nan
from pathlib import Path

import pytest
import torch

from regard.training.best import best_path, best_weights, keep_if_best, rank, remove_later
from regard.training.config import TrainingConfig
from regard.training.journal import Journal


@pytest.mark.parametrize(
    ("metric", "numbers", "expected"),
    [
        ("bleu", {"dev_loss": 2.0, "dev_bleu": 30.0}, 30.0),
        ("bleu", {"dev_bleu": 30.0}, 30.0),
        ("loss", {"dev_loss": 2.0}, -2.0),
        ("wer", {"dev_loss": 2.0, "dev_wer": 40.0}, -40.0),
        ("loss", {"dev_loss": nan}, -inf),
        ("bleu", {"dev_loss": inf, "dev_bleu": 30.0}, -inf),
        ("bleu", {"dev_loss": nan}, -inf),  # decoding is left out where the loss is not finite
        ("exact", {"dev_loss": 1.0, "dev_exact": nan}, -inf),
        ("bleu", {"dev_loss": 1e30, "dev_perplexity": inf, "dev_bleu": 0.0}, -inf),  # after a learning rate of 1e30
    ],
)
def test_rank(metric: str, numbers: dict[str, float], expected: float) -> None:
    assert rank(numbers, TrainingConfig(metric=metric)) == expected


def test_a_best_checkpoint_that_is_lost_is_named_and_left_out(tmp_path: Path) -> None:
    config, model = TrainingConfig(keep_best=3, metric="loss"), torch.nn.Linear(2, 3)
    best: list[tuple[float, int]] = []
    for step in (1, 2, 3):
        with torch.no_grad():
            model.weight.fill_(float(step))
        best = keep_if_best(best, -float(step), step, model, config, tmp_path)
    best_path(tmp_path, 1).write_bytes(b"damaged")
    best_path(tmp_path, 3).unlink()
    journal = Journal(tmp_path / "journal.jsonl")

    def weights() -> dict[str, torch.Tensor]:
        return best_weights(model, lambda _: {"loss": 9.0}, best, 3, config, tmp_path, journal)

    with pytest.warns(UserWarning, match="without it") as caught:
        found = weights()
    assert [Path(str(one.message).split(":")[0]).name for one in caught] == [
        "best-000001.safetensors", "best-000003.safetensors",
    ]  # fmt: skip
    assert found["weight"].unique().tolist() == [2.0]
    best_path(tmp_path, 2).unlink()
    with warnings.catch_warnings(record=True) as lost:
        warnings.simplefilter("always")
        found = weights()
    assert "no best checkpoint can be read: the model of the last update is kept" in str(lost[-1].message)
    assert torch.equal(found["weight"], model.weight)


def test_the_best_are_kept(tmp_path: Path) -> None:
    config, model = TrainingConfig(keep_best=2), torch.nn.Linear(2, 3)
    best: list[tuple[float, int]] = []
    for step, score in enumerate((1.0, 5.0, -inf, 3.0, 2.0), 1):
        best = keep_if_best(best, score, step, model, config, tmp_path)
    assert best == [(5.0, 2), (3.0, 4)]
    assert sorted(tmp_path.iterdir()) == [best_path(tmp_path, 2), best_path(tmp_path, 4)]
    remove_later(tmp_path, best[:1])
    assert sorted(tmp_path.iterdir()) == [best_path(tmp_path, 2)]
