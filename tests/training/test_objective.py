"""What stands beside the tokens' loss: coverage and CTC, each against its formula; and runs that resume with them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import regard
from made import made_glyphs
from regard import experiment
from regard.data.media import media_batch
from regard.data.texts import TextBatch
from regard.errors import ConfigError
from regard.models.build import build
from regard.models.encoders import GridConfig, SoundConfig
from regard.models.language import DecoderConfig
from regard.models.recurrent import RecurrentConfig
from regard.models.transformer import TransformerConfig
from regard.training.checkpoint import load_checkpoint
from regard.training.config import TrainingConfig
from regard.training.distributed import Processes
from regard.training.engine import LAST, Engine
from regard.training.loop import Interrupted, update
from regard.training.objective import batch_loss

ENDS = (1, 2, 0)


def sight(**changes: object) -> Tensor:
    torch.manual_seed(0)
    reads = GridConfig(kind="grid", size=16, first=8, channels=(16,), width=16)
    config = RecurrentConfig(kind="recurrent", width=12, embedding=8, score_width=6, source_encoder=reads, **changes)
    return build(9, config).eval()


@torch.no_grad()
def test_coverage_is_the_doubly_stochastic_term() -> None:
    """λ Σ_i (1 - Σ_t α_ti)² over the real steps alone, by hand from repeated steps."""
    model = sight()
    batch = media_batch([torch.rand(3, 16, 16) for _ in range(2)], [[4, 5, 6], [7]], ENDS)
    config = TrainingConfig(label_smoothing=0.0)
    plain, nll, _ = batch_loss(model, batch, config, 0)
    covered, same, _ = batch_loss(model, batch, config.model_copy(update={"coverage_loss": 0.3}), 0)
    assert torch.equal(nll, same)
    memory, expected = model.encode(batch.source), 0.0
    state = model.start(memory, record=True)
    for t in range(4):
        _, state = model.step(batch.previous[:, t : t + 1], state)
    weights = model.maps(state)["decoder.cross"].full()[:, 0, 0]
    for n, length in enumerate((4, 2)):
        expected += float((1 - weights[n, :length].sum(0)).square().sum())
    assert float(covered - plain) == pytest.approx(0.3 * expected, rel=1e-4)


DRAWN = torch.Generator().manual_seed(0)  # the same sounds whatever was drawn before the module was imported
SOUNDS = media_batch([torch.randn(8, 40, generator=DRAWN), torch.randn(8, 31, generator=DRAWN)], [[4, 5, 5], [7]], ENDS)


def torch_ctc(log_p: Tensor, allowed: Tensor) -> float:
    """CTC of `SOUNDS`, a sound at a time."""
    found = 0.0
    for n, target in enumerate(([4, 5, 5], [7])):
        length = int(allowed[n].sum())
        found += float(
            torch.nn.functional.ctc_loss(
                log_p[n, :length, None], torch.tensor([target]), torch.tensor([length]), torch.tensor([len(target)]),
                reduction="sum",
            )
        )  # fmt: skip
    return found


@torch.no_grad()
def test_ctc_is_torch_s_over_the_memory() -> None:
    torch.manual_seed(0)
    reads = SoundConfig(kind="sound", bands=8, channels=4, width=16)
    config = RecurrentConfig(
        kind="recurrent", width=12, embedding=8, score_width=6, source_encoder=reads, ctc_head=True
    )
    model = build(9, config).eval()
    settings = TrainingConfig(label_smoothing=0.0)
    plain, _, _ = batch_loss(model, SOUNDS, settings, 0)
    mixed, _, _ = batch_loss(model, SOUNDS, settings.model_copy(update={"ctc": 0.4}), 0)
    memory = model.encode(SOUNDS.source, SOUNDS.source_allowed)
    expected = torch_ctc(model.ctc_head(memory.states).log_softmax(-1), memory.allowed)
    assert float(mixed) == pytest.approx(0.6 * float(plain) + 0.4 * expected, rel=1e-4)
    with pytest.raises(ConfigError, match="ctc_halfway needs"):
        batch_loss(model, SOUNDS, settings.model_copy(update={"ctc": 0.4, "ctc_halfway": 0.3}), 0)


@torch.no_grad()
def test_ctc_halfway_reads_the_states_behind_half_of_the_blocks() -> None:
    torch.manual_seed(0)
    reads = SoundConfig(kind="sound", bands=8, channels=4, width=16)
    config = TransformerConfig(
        kind="transformer",
        width=16,
        heads=2,
        ffn_width=24,
        encoder_layers=4,
        decoder_layers=1,
        source_encoder=reads,
        ctc_head=True,
    )
    model = build(9, config).eval()
    settings = TrainingConfig(label_smoothing=0.0, ctc=0.4)
    plain, nll, _ = batch_loss(model, SOUNDS, settings, 0)
    mixed, same, _ = batch_loss(model, SOUNDS, settings.model_copy(update={"ctc_halfway": 0.25}), 0)
    assert torch.equal(nll, same)
    behind: list[Tensor] = []
    hook = model.encoder.layers[1].register_forward_hook(lambda _module, _given, states: behind.append(states))
    memory = model.encode(SOUNDS.source, SOUNDS.source_allowed)
    hook.remove()
    first, last = (
        torch_ctc(model.ctc_head(states).log_softmax(-1), memory.allowed)
        for states in (model.encoder.norm(behind[0]), memory.states)
    )
    assert abs(first - last) > 0.1
    assert float(mixed - plain) == pytest.approx(0.4 * 0.25 * (first - last), rel=1e-3)


def test_a_forgetful_batch_hides_previous_tokens_alone() -> None:
    torch.manual_seed(0)
    batch = media_batch([torch.randn(8, 40)] * 50, [[4, 5, 6, 7] * 10] * 50, ENDS)
    hidden = batch.with_word_dropout(0.3, 0)
    gone = hidden.previous != batch.previous
    assert (hidden.previous[gone] == 0).all()
    assert (hidden.previous[:, 0] == ENDS[0]).all()
    assert float(gone[:, 1:].float().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(hidden.target, batch.target)
    assert torch.equal(hidden.source, batch.source)


def test_what_has_no_source_cannot_forget() -> None:
    model, settings = torch.nn.Linear(1, 1), TrainingConfig(word_dropout=0.2)
    batch = TextBatch(torch.tensor([[1, 4, 5]]), torch.tensor([[4, 5, 2]]), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"training\.word_dropout needs"):
        update(Engine(model, settings, 0, Processes()), batch)


@pytest.mark.parametrize("term", ["coverage_loss", "ctc"])
def test_a_decoder_alone_has_no_source_to_cover_or_to_align(term: str) -> None:
    model = build(9, DecoderConfig(kind="decoder", width=8, heads=2, layers=1, ffn_width=8))
    batch = TextBatch(torch.tensor([[1, 4, 5]]), torch.tensor([[4, 5, 2]]), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ConfigError, match=rf"training\.{term} needs"):
        batch_loss(model, batch, TrainingConfig(**{term: 0.5}), 0)


def test_hard_attention_has_no_coverage() -> None:
    batch = media_batch([torch.rand(3, 16, 16)], [[4, 5]], ENDS)
    with pytest.raises(ConfigError, match="coverage_loss"):
        batch_loss(sight(normalizer="hard"), batch, TrainingConfig(coverage_loss=0.1), 0)


def test_reinforce_resumes_with_its_baseline(tmp_path: Path) -> None:
    config = {
        "task": "caption", "dev_sentences": 4,
        "scenes": {
            "pictures": str(made_glyphs(tmp_path / "glyphs")), "size": 32, "scenes": 12, "dev_scenes": 4,
            "dev_share": 0.3, "single_epochs": 1,
        },
        "tokenizer": {"kind": "words", "vocabulary": 60},
        "model": {
            "kind": "recurrent", "width": 16, "embedding": 8, "score_width": 6, "normalizer": "hard",
            "source_encoder": {"kind": "grid", "size": 32, "first": 8, "channels": [16], "width": 16},
        },
        "training": {
            "max_steps": 6, "evaluate_every": 3, "batch_tokens": 256, "hard": "reinforce", "metric": "exact",
            "warmup": 2,
        },
    }  # fmt: skip
    experiment.train(config, run=tmp_path / "whole")
    stops = iter(range(99))
    original = experiment.stop_on_signal

    class Stop:
        def __enter__(self):  # type: ignore[no-untyped-def]
            return lambda: next(stops) == 3

        def __exit__(self, *_: object) -> None:
            return None

    experiment.stop_on_signal = Stop  # type: ignore[assignment]
    try:
        with pytest.raises(Interrupted):
            experiment.train(config, run=tmp_path / "halved")
    finally:
        experiment.stop_on_signal = original
    experiment.train(config, run=tmp_path / "halved", resume=True)
    whole, halved = (load_checkpoint(tmp_path / name / LAST)[0] for name in ("whole", "halved"))
    assert all(torch.equal(whole[name], halved[name]) for name in whole)
    assert float(whole["model.baseline"]) < 0
    assert regard.load(tmp_path / "halved").bundle.task == "caption"
