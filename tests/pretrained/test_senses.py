"""ViT and Whisper in our blocks: transformers' own model is the witness, as in test_families.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import regard
from regard.pretrained.folder import load_pretrained, save_pretrained

V, B, T = 97, 3, 7


def close(ours: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-5 * max(1.0, float(want.abs().max())))


WHISPER = {
    "vocab_size": V, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "begin_suppress_tokens": None, "suppress_tokens": None,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTModel", {
        "hidden_size": 30, "num_hidden_layers": 3, "num_attention_heads": 5, "intermediate_size": 44,
        "image_size": 24, "patch_size": 6,
    }),
    "vit with classes": ("ViTForImageClassification", {
        "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 7, "image_size": 8,
        "patch_size": 4, "num_channels": 1, "qkv_bias": False, "hidden_act": "relu", "layer_norm_eps": 1e-3,
        "num_labels": 5,
    }),
    "whisper": ("WhisperForConditionalGeneration", WHISPER | {
        "d_model": 30, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 5,
        "decoder_attention_heads": 5, "encoder_ffn_dim": 44, "decoder_ffn_dim": 44, "num_mel_bins": 9,
        "max_source_positions": 11, "max_target_positions": 23,
    }),
    "whisper small": ("WhisperForConditionalGeneration", WHISPER | {
        "d_model": 12, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 7, "decoder_ffn_dim": 7, "num_mel_bins": 4,
        "max_source_positions": 8, "max_target_positions": 9, "activation_function": "relu",
    }),
}  # fmt: skip
on_every_case = pytest.mark.parametrize("case", CASES)


def theirs(case: str) -> Any:
    name, settings = CASES[case]
    kind = getattr(transformers, name)
    config = kind.config_class(**settings)
    config._attn_implementation = "eager"
    torch.manual_seed(len(case))
    model = kind(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor), alpha=0.1)
    return model


def seen(case: str) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    config = theirs(case).config
    if "vit" in case:
        return torch.randn(B, config.num_channels, config.image_size, config.image_size, generator=draw)
    return torch.randn(B, config.num_mel_bins, 2 * config.max_source_positions, generator=draw)


def target() -> Tensor:
    return torch.randint(3, V, (B, T), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def folder(case: str, tmp_path: Path) -> Path:
    theirs(case).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


@torch.no_grad()
@on_every_case
def test_every_layer_and_the_logits_are_theirs(case: str, folder: Path) -> None:
    their, found, states = theirs(case), load_pretrained(folder), []
    memory = found.model.encode(seen(case), collect=states)
    if "vit" in case:
        want = their(seen(case), output_hidden_states=True)
        hidden = list(want.hidden_states[: len(states) - 1])
        if hasattr(want, "last_hidden_state"):
            close(memory.summary, want.pooler_output)
            hidden.append(want.last_hidden_state)
        else:
            close(found.model(seen(case)), want.logits)
        for one, other in zip(states, hidden, strict=False):
            close(one, other)
        return
    want = their(seen(case), decoder_input_ids=target(), output_hidden_states=True)
    back: list[Tensor] = []
    found.model.hidden(memory, target(), collect=back)
    for one, other in zip([*states, *back], [*want.encoder_hidden_states, *want.decoder_hidden_states], strict=True):
        close(one, other)
    close(found.model(seen(case), target()), want.logits)
    state = found.model.start(memory)
    for t in range(T):
        logits, state = found.model.step(target()[:, t : t + 1], state)
        close(logits[:, 0], want.logits[:, t])


@torch.no_grad()
@on_every_case
def test_observe_sees_what_their_eager_attention_says(case: str, folder: Path) -> None:
    their, found = theirs(case), load_pretrained(folder)
    with regard.observe(found.model) as observed:
        if "vit" in case:
            found.model.encode(seen(case))
            maps = list(their(seen(case), output_attentions=True).attentions)
        else:
            found.model(seen(case), target())
            want = their(seen(case), decoder_input_ids=target(), output_attentions=True)
            maps = [*want.encoder_attentions, *want.decoder_attentions, *want.cross_attentions]
    assert len(observed) == len(maps)
    for one in maps:
        assert min(float((s.full() - one).abs().max()) for (s,) in observed.values() if s.shape == one.shape) < 1e-5


@torch.no_grad()
@on_every_case
def test_exported_back_transformers_loads_the_same(case: str, folder: Path, tmp_path: Path) -> None:
    found = load_pretrained(folder)
    assert save_pretrained(tmp_path / "ours", found.model, found.config, found.ids) == found.family
    model, report = type(theirs(case)).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    more = {} if "vit" in case else {"decoder_input_ids": target()}
    close(model.eval()(seen(case), **more)[0], theirs(case)(seen(case), **more)[0])


@pytest.mark.parametrize("case", ["vit", "whisper"])
def test_sizes_that_do_not_fit(case: str, folder: Path) -> None:
    model = load_pretrained(folder).model
    given = torch.cat([seen(case), seen(case)], -1)
    wanted = "pictures need shape" if case == "vit" else "sound of 44 frames is too long: this model reads 22"
    with pytest.raises(regard.ShapeError, match=wanted):
        model.encode(given)
    if case == "vit":
        with pytest.raises(regard.ChoiceError, match="no classifier"):
            model(seen(case))
        with pytest.raises(regard.ChoiceError, match="`regard see`, which is not there yet"):
            regard.load(folder)(seen(case))
    assert regard.load(folder).model.config == model.config
