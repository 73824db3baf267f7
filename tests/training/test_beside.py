"""What stands beside the tokens' loss: coverage and CTC, each against its formula; and runs that resume with them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import regard
from made import made_glyphs
from regard import experiment
from regard.data.sensed import sensed_batch
from regard.errors import ConfigError
from regard.models.build import build
from regard.models.encoders import GridConfig, SoundConfig
from regard.models.recurrent import RecurrentConfig
from regard.training.checkpoint import load_checkpoint
from regard.training.loop import LAST, Interrupted, TrainingConfig, batch_loss

ENDS = (1, 2, 0)


def sight(**changes: object) -> Tensor:
    torch.manual_seed(0)
    reads = GridConfig(kind="grid", size=16, first=8, channels=(16,), width=16)
    config = RecurrentConfig(kind="recurrent", width=12, embedding=8, score_width=6, reads=reads, **changes)
    return build(9, config).eval()


@torch.no_grad()
def test_coverage_is_the_doubly_stochastic_term() -> None:
    """λ Σ_i (1 - Σ_t α_ti)² over the real steps alone, by hand from repeated steps."""
    model = sight()
    batch = sensed_batch([torch.rand(3, 16, 16) for _ in range(2)], [[4, 5, 6], [7]], ENDS)
    config = TrainingConfig(label_smoothing=0.0)
    plain, nll, _ = batch_loss(model, batch, config, 0)
    covered, same, _ = batch_loss(model, batch, config.model_copy(update={"cover": 0.3}), 0)
    assert torch.equal(nll, same)
    memory, expected = model.encode(batch.source), 0.0
    state = model.start(memory, record=True)
    for t in range(4):
        _, state = model.step(batch.previous[:, t : t + 1], state)
    weights = model.maps(state)["decoder.cross"].full()[:, 0, 0]
    for n, length in enumerate((4, 2)):
        expected += float((1 - weights[n, :length].sum(0)).square().sum())
    assert float(covered - plain) == pytest.approx(0.3 * expected, rel=1e-4)


@torch.no_grad()
def test_ctc_is_torch_s_over_the_memory() -> None:
    torch.manual_seed(0)
    reads = SoundConfig(kind="sound", bands=8, channels=4, width=16)
    config = RecurrentConfig(kind="recurrent", width=12, embedding=8, score_width=6, reads=reads, aligned=True)
    model = build(9, config).eval()
    batch = sensed_batch([torch.randn(8, 40), torch.randn(8, 31)], [[4, 5, 5], [7]], ENDS)
    settings = TrainingConfig(label_smoothing=0.0)
    plain, _, _ = batch_loss(model, batch, settings, 0)
    mixed, _, _ = batch_loss(model, batch, settings.model_copy(update={"ctc": 0.4}), 0)
    memory = model.encode(batch.source, batch.source_allowed)
    log_p = model.aligned(memory.states).log_softmax(-1)
    expected = 0.0
    for n, target in enumerate(([4, 5, 5], [7])):
        length = int(memory.allowed[n].sum())
        expected += float(
            torch.nn.functional.ctc_loss(
                log_p[n, :length, None], torch.tensor([target]), torch.tensor([length]), torch.tensor([len(target)]),
                reduction="sum",
            )
        )  # fmt: skip
    assert float(mixed) == pytest.approx(0.6 * float(plain) + 0.4 * expected, rel=1e-4)


def test_hard_attention_has_no_coverage() -> None:
    batch = sensed_batch([torch.rand(3, 16, 16)], [[4, 5]], ENDS)
    with pytest.raises(ConfigError, match="cover"):
        batch_loss(sight(normalizer="hard"), batch, TrainingConfig(cover=0.1), 0)


def test_reinforce_resumes_with_its_baseline(tmp_path: Path) -> None:
    config = {
        "task": "caption", "dev_sentences": 4,
        "scenes": {
            "pictures": str(made_glyphs(tmp_path / "glyphs")), "size": 32, "scenes": 12, "dev_scenes": 4,
            "dev_share": 0.3, "alone": 1,
        },
        "tokenizer": {"kind": "words", "vocabulary": 60},
        "model": {
            "kind": "recurrent", "width": 16, "embedding": 8, "score_width": 6, "normalizer": "hard",
            "reads": {"kind": "grid", "size": 32, "first": 8, "channels": [16], "width": 16},
        },
        "training": {
            "max_steps": 6, "evaluate_every": 3, "batch_tokens": 256, "hard": "reinforce", "metric": "exact",
            "warmup": 2,
        },
    }  # fmt: skip
    experiment.train(config, run=tmp_path / "whole")
    stops = iter(range(99))
    original = experiment._asked_to_stop

    class Stop:
        def __enter__(self):  # type: ignore[no-untyped-def]
            return lambda: next(stops) == 3

        def __exit__(self, *_: object) -> None:
            return None

    experiment._asked_to_stop = Stop  # type: ignore[assignment]
    try:
        with pytest.raises(Interrupted):
            experiment.train(config, run=tmp_path / "halved")
    finally:
        experiment._asked_to_stop = original
    experiment.train(config, run=tmp_path / "halved", resume=True)
    whole, halved = (load_checkpoint(tmp_path / name / LAST)[0] for name in ("whole", "halved"))
    assert all(torch.equal(whole[name], halved[name]) for name in whole)
    assert float(whole["model.baseline"]) < 0
    assert regard.load(tmp_path / "halved").bundle.task == "caption"
