"""Whisper (Radford et al. 2022): an encoder of sound, a decoder of text."""

from collections.abc import Iterator
from typing import Any

from regard.models.speech import SpeechConfig
from regard.pretrained.family import Family, Keys, Weight, layer, weight
from regard.pretrained.marian import ACTIVATIONS, decoder_and_encoder, same_on_both_sides


def read(keys: Keys) -> SpeechConfig:
    """The settings in a config.json."""
    for name, value in (
        ("is_encoder_decoder", True), ("is_decoder", False), ("tie_word_embeddings", True),
        ("apply_spec_augment", False), ("use_weighted_layer_sum", False), ("scale_embedding", False),
        ("num_hidden_layers", keys.values.get("encoder_layers")),
    ):  # fmt: skip
        keys.expect(name, value)
    same_on_both_sides(keys)
    for name in (
        "activation_dropout",
        "median_filter_width",
        "forced_decoder_ids",
        *(n for n in keys.values if n.startswith("mask_")),
    ):
        keys.take(name, None)  # of training with noise, and of reading times off the maps
    keys.size("vocab_size")
    return SpeechConfig(
        kind="speech", encoder_layers=keys.layers("encoder_layers"), decoder_layers=keys.layers("decoder_layers"),
        width=keys.take("d_model"), heads=keys.take("encoder_attention_heads"), ffn_width=keys.take("encoder_ffn_dim"),
        biases=("query", "value", "output"), activation=keys.choose("activation_function", ACTIVATIONS, "gelu"),
        positions="learned", length=keys.take("max_target_positions", 448), scaled=False,
        output_bias=False, bands=keys.take("num_mel_bins"), moments=keys.take("max_source_positions", 1500),
        dropout=keys.take("dropout", 0.0), attention_dropout=keys.take("attention_dropout", 0.0),
    )  # fmt: skip


def weights(config: SpeechConfig) -> Iterator[Weight]:
    """The table."""
    yield from layer("encoder.conv1", "first")
    yield from layer("encoder.conv2", "second")
    yield weight("encoder.embed_positions.weight", "moments")
    yield weight("decoder.embed_tokens.weight", "embedding.weight")
    yield weight("decoder.embed_positions.weight", "positions.weight")
    yield from decoder_and_encoder(config)
    for side in ("encoder", "decoder"):
        yield from layer(f"{side}.layer_norm", f"{side}.norm")


def write(config: SpeechConfig, vocabulary: int) -> dict[str, Any]:
    """A config.json."""
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "vocab_size": vocabulary,
        "d_model": config.width, "encoder_layers": config.encoder_layers, "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.heads, "decoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.ffn_width, "decoder_ffn_dim": config.ffn_width,
        "activation_function": names[config.activation], "max_target_positions": config.length,
        "max_source_positions": config.moments, "num_mel_bins": config.bands, "scale_embedding": False,
        "dropout": config.dropout, "attention_dropout": config.attention_dropout, "activation_dropout": config.dropout,
        "is_encoder_decoder": True, "tie_word_embeddings": True,
    }  # fmt: skip


WHISPER = Family(
    ("whisper",), SpeechConfig, read, weights, write, "model.", ("proj_out.",),
    ((r"proj_out\.weight", "embedding.weight"),),
)  # fmt: skip
