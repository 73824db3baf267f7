"""Encoders of pictures and sounds: sizes, places, padding, batch mates; and the decoders behind them."""

import pytest
import torch
from torch import Tensor

from regard.errors import ShapeError
from regard.models.build import build
from regard.models.encoders import (
    FeaturesConfig,
    GridConfig,
    PatchesConfig,
    PyramidConfig,
    SoundConfig,
    make_encoder,
)
from regard.models.recurrent import RecurrentConfig
from regard.models.transformer import TransformerConfig

SIGHT = {
    "grid": GridConfig(kind="grid", size=40, first=8, channels=(16,), width=24),
    "patches": PatchesConfig(kind="patches", size=40, patch=8, width=24),
    "features": FeaturesConfig(kind="features", size=96, width=24),
}
HEARING = {
    "sound": SoundConfig(kind="sound", bands=11, channels=3, width=24),
    "pyramid": PyramidConfig(kind="pyramid", bands=11, layers=2, width=24),
}


def source(name: str, batch: int = 3, frames: int = 29) -> Tensor:
    torch.manual_seed(5)
    if name in HEARING:
        return torch.randn(batch, 11, frames)
    return torch.rand(batch, 320, 3, 3) if name == "features" else torch.rand(batch, 3, 40, 40)


def models(name: str):  # type: ignore[no-untyped-def]
    """Every decoder behind an encoder."""
    reads = SIGHT.get(name) or HEARING[name]
    torch.manual_seed(2)
    recurrent = RecurrentConfig(
        kind="recurrent",
        width=16,
        embedding=8,
        score_width=5,
        source_encoder=reads,
        gate=True,
        cell="lstm",
        ctc_head=True,
    )
    hard = recurrent.model_copy(update={"normalizer": "hard", "cell": "gru"})
    transformer = TransformerConfig(
        kind="transformer", width=24, heads=2, ffn_width=32, encoder_layers=1, decoder_layers=2, source_encoder=reads,
        positions="rotary", ctc_head=True,
    )  # fmt: skip
    return [build(13, config).eval() for config in (recurrent, hard, transformer)]


def test_a_grid_s_cells_stand_where_they_look() -> None:
    memory = make_encoder(SIGHT["patches"])(source("patches"))
    assert memory.states.shape == (3, 25, 24)
    assert memory.positions[1, 0].tolist() == pytest.approx([0.1, 0.1])
    assert memory.positions[1, 9].tolist() == pytest.approx([0.3, 0.9])
    assert make_encoder(SIGHT["grid"])(source("grid")).states.shape == (3, 100, 24)
    assert make_encoder(SIGHT["features"])(source("features")).states.shape == (3, 9, 24)


def test_a_patch_s_state_depends_on_its_patch_alone() -> None:
    encoder, pictures = make_encoder(SIGHT["patches"]), source("patches")
    changed = pictures.clone()
    changed[0, :, 8:16, 16:24] = 0.0  # row 1, column 2
    moved = (encoder(pictures).states - encoder(changed).states)[0].abs().sum(-1) > 1e-6
    assert moved.nonzero().flatten().tolist() == [5 + 2]


@pytest.mark.parametrize(("name", "share"), [("sound", 4), ("pyramid", 4)])
def test_sound_s_states_stand_where_they_were_heard(name: str, share: int) -> None:
    torch.manual_seed(0)
    encoder = make_encoder(HEARING[name]).eval()
    memory = encoder(source(name))
    assert memory.states.shape[:2] == (3, (29 + share - 1) // share)
    assert memory.positions[0, 2].item() == share * 2.5


@pytest.mark.parametrize("name", [*SIGHT, *HEARING])
def test_forward_equals_repeated_steps(name: str) -> None:
    target = torch.tensor([[1, 5, 7, 4], [1, 9, 3, 12], [1, 6, 6, 2]])
    for model in models(name):
        memory = model.encode(source(name))
        whole = model(source(name), target)
        state, steps = model.start(memory, record=True), []
        for t in range(target.shape[1]):
            logits, state = model.step(target[:, t : t + 1], state)
            steps.append(logits)
        assert torch.allclose(whole, torch.cat(steps, 1), atol=1e-5)
        for site, seen in model.maps(state).items():
            if site.endswith("cross"):
                assert seen.shape[-2:] == (4, memory.states.shape[1])
                assert torch.allclose(seen.full().sum(-1), torch.ones(seen.shape[:-1]), atol=1e-5)


@pytest.mark.parametrize("name", HEARING)
def test_padding_and_batch_mates_change_nothing(name: str) -> None:
    frames = [29, 17, 22]
    one = source(name)
    allowed = torch.arange(29) < torch.tensor(frames)[:, None]
    noisy = torch.where(allowed[:, None], one, torch.full_like(one, 7.0))
    target = torch.tensor([[1, 5, 7, 4]])
    for model in models(name):
        together = model(noisy, target.expand(3, -1), allowed)
        for n, length in enumerate(frames):
            alone = model(one[n : n + 1, :, :length], target)
            assert torch.allclose(together[n : n + 1], alone, atol=2e-5), (name, n)
        memory = model.encode(noisy, allowed)
        short = model.encode(one[1:2, :, :17])
        assert memory.allowed[1].sum() == short.states.shape[1]


@pytest.mark.parametrize("name", HEARING)
@torch.no_grad()
def test_nothing_heard_is_a_dead_row_and_padding_may_be_nan(name: str) -> None:
    """A recording without frames, NaN wherever nothing is real: no NaN anywhere, and its batch mate is as alone."""
    one = source(name, 2)
    allowed = torch.ones(2, 29, dtype=torch.bool)
    allowed[1], allowed[0, 17:] = False, False
    spoiled = torch.where(allowed[:, None], one, torch.nan)
    target = torch.tensor([[1, 5, 7, 4]])
    for model in models(name):
        together = model(spoiled, target.expand(2, -1), allowed)
        assert together.isfinite().all()
        assert torch.allclose(together[:1], model(one[:1, :, :17], target), atol=2e-5)
        state = model.start(model.encode(spoiled, allowed), record=True)
        _, state = model.step(torch.ones(2, 1, dtype=torch.long), state)
        for site, seen in model.maps(state).items():
            if site.endswith("cross"):
                assert float(seen.full()[1].abs().sum()) == 0


@pytest.mark.parametrize("name", SIGHT)
def test_batch_mates_of_pictures_change_nothing(name: str) -> None:
    pictures, target = source(name), torch.tensor([[1, 5, 7, 4]])
    for model in models(name):
        together = model(pictures, target.expand(3, -1))
        assert torch.allclose(together[1:2], model(pictures[1:2], target), atol=1e-5)


def test_hard_attention_looks_at_one_place() -> None:
    hard = models("grid")[1]
    state = hard.start(hard.encode(source("grid")), record=True)
    _, state = hard.step(torch.ones(3, 1, dtype=torch.long), state)
    weights = hard.maps(state)["decoder.cross"].full()
    assert sorted(set(weights.unique().tolist())) == [0.0, 1.0]
    soft = models("grid")[0]
    assert not hasattr(soft, "baseline")


def test_a_closed_gate_sees_nothing() -> None:
    """With β = 0 a picture reaches the decoder by its first state alone."""
    model = models("grid")[0]
    model.decoder.start.weight.data.zero_()
    target = torch.tensor([[1, 5]])
    with torch.no_grad():
        model.decoder.cross.gate.weight.zero_()
        model.decoder.cross.gate.bias.fill_(-1e9)
        a, b = (model(p[None], target) for p in source("grid", 2))
        assert torch.allclose(a, b, atol=1e-6)
        model.decoder.cross.gate.bias.fill_(1e9)
        a, b = (model(p[None], target) for p in source("grid", 2))
        assert not torch.allclose(a, b, atol=1e-4)


def test_refusals() -> None:
    with pytest.raises(ShapeError, match="patch must divide size; got 7 and 40"):
        make_encoder(PatchesConfig(kind="patches", size=40, patch=7))
    with pytest.raises(ShapeError, match=r"pictures need shape \[B, 3, 40, 40\]"):
        make_encoder(SIGHT["grid"])(torch.rand(1, 3, 32, 40))
    with pytest.raises(ShapeError, match=r"features need shape \[B, 320, 3, 3\]"):
        make_encoder(SIGHT["features"])(torch.rand(1, 320, 4, 4))
    with pytest.raises(ShapeError, match="cell must divide size; got 16 and 40"):
        make_encoder(FeaturesConfig(kind="features", size=40, cell=16))
    for config in HEARING.values():
        with pytest.raises(ShapeError, match=r"spectrograms need shape \[B, 11, frames\]"):
            make_encoder(config)(torch.rand(1, 12, 20))
