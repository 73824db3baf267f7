"""Vision–language models from transformers under sdpa: where each word looks in the picture is what eager returns."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regard

transformers = pytest.importorskip("transformers")
IMAGE, CELLS = 5, 16  # the token that stands for a patch; patches of a picture
WORDS = [11, 12, 13]
TEXT = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 8,
    "patch_size": 2,
}  # fmt: skip


def llava(implementation: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """CLIP's encoder of pictures in front of a Llama."""
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**TEXT, num_key_value_heads=2, max_position_embeddings=64),
        image_token_index=IMAGE, image_seq_length=CELLS, vision_feature_layer=-1,
    )  # fmt: skip
    model = transformers.LlavaForConditionalGeneration._from_config(config, attn_implementation=implementation)
    ids = torch.tensor([[9, *[IMAGE] * CELLS, *WORDS], [9, *[IMAGE] * CELLS, *reversed(WORDS)]])
    return model, {"input_ids": ids, "pixel_values": pixels(2, 3, 8, 8)}


def qwen(implementation: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Qwen2-VL: positions in three dimensions, patches between two marks."""
    torch.manual_seed(0)
    text = TEXT | {
        "num_key_value_heads": 2, "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {
        "depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 2,
        "spatial_merge_size": 1, "temporal_patch_size": 1, "in_channels": 3,
    }  # fmt: skip
    special = {"image_token_id": IMAGE, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **special)
    model = transformers.Qwen2VLForConditionalGeneration._from_config(config, attn_implementation=implementation)
    ids = torch.tensor([[9, 7, *[IMAGE] * CELLS, 8, *WORDS]])
    grid = torch.tensor([[1, 4, 4]])
    given = {"input_ids": ids, "pixel_values": pixels(CELLS, 12), "image_grid_thw": grid}
    return model, given | {"mm_token_type_ids": (ids == IMAGE).int()}


def clip(implementation: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Two encoders side by side: no word attends to a patch."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config=TEXT | {"max_position_embeddings": 16}, vision_config=VISION, projection_dim=16
    )
    model = transformers.CLIPModel._from_config(config, attn_implementation=implementation)
    return model, {"input_ids": torch.tensor([[9, *WORDS, 2]]), "pixel_values": pixels(1, 3, 8, 8)}


def pixels(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


Make = Callable[[str], tuple[nn.Module, dict[str, Tensor]]]


def both(make: Make) -> tuple[Mapping[str, list[regard.AttentionMap]], Any, Tensor]:
    """What is seen under sdpa, what eager returns, and the inputs' ids."""
    model, given = make("sdpa")
    with torch.no_grad(), regard.observe(model.eval()) as seen:
        model(**given)
    eager, given = make("eager")
    with torch.no_grad():
        return seen, eager.eval()(**given, output_attentions=True), given["input_ids"]


@pytest.mark.parametrize("make", [llava, qwen])
def test_where_each_word_looks_in_the_picture_equals_eager(make: Make) -> None:
    seen, returned, ids = both(make)
    patches, words = (ids[0] == IMAGE).nonzero()[:, 0], torch.arange(ids.shape[1])[-len(WORDS) :]
    assert len(patches) == CELLS
    for layer, weights in enumerate(returned.attentions):
        (found,) = seen[f"model.language_model.layers.{layer}.self_attn"]
        overlay = found.tile(words, patches)
        assert overlay.shape == (len(ids), 4, len(WORDS), CELLS)
        torch.testing.assert_close(overlay, weights[:, :, words][..., patches], atol=1e-5, rtol=0)
        assert float(overlay.sum(-1).min()) > 0.1  # every word attends to the picture
        assert float(overlay.std()) > 1e-3


def test_clip_s_two_encoders_equal_eager() -> None:
    seen, returned, _ = both(clip)
    for tower, output in (("vision_model", returned.vision_model_output), ("text_model", returned.text_model_output)):
        for layer, weights in enumerate(output.attentions):
            (found,) = seen[f"{tower}.encoder.layers.{layer}.self_attn"]
            torch.testing.assert_close(found.full(), weights, atol=1e-5, rtol=0)
    assert {site.split(".")[0] for site in seen} == {"vision_model", "text_model"}  # none crosses


LONG = """
import resource, torch, transformers, regard
torch.set_num_threads(1)
torch.manual_seed(0)
side, size = 32, 16384
vision = transformers.CLIPVisionConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=2 * side, patch_size=2
)
text = transformers.LlamaConfig(
    vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=size,
)
config = transformers.LlavaConfig(
    vision_config=vision, text_config=text, image_token_index=5, image_seq_length=side**2, vision_feature_layer=-1
)
model = transformers.LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
def run(size, side):
    ids = torch.randint(9, 99, (1, size))
    ids[0, 1 : 1 + side**2] = 5
    with torch.no_grad(), regard.observe(model, sites=["*language_model*"]) as seen:
        model(input_ids=ids, pixel_values=torch.randn(1, 3, 2 * side, 2 * side))
    return seen["model.language_model.layers.1.self_attn"][0]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = run(size, side)
overlay = found.tile(torch.arange(size - 64, size), torch.arange(1, 1 + side**2))
assert overlay.shape == (1, 2, 64, side**2) and bool((overlay > 0).all())
found.entropy(), found.pool(128, 128), found.top(4)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_memory_of_sixteen_thousand_tokens() -> None:
    done = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 500, f"{done.stdout.strip()} MiB"
