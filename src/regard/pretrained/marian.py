"""Marian (Junczys-Dowmunt et al. 2018): the translators of opus-mt."""

from collections.abc import Iterator
from typing import Any

from regard.models.transformer import PairConfig, TransformerConfig
from regard.pretrained.family import Family, Keys, Weight, layer, weight

ACTIVATIONS = {"swish": "silu", "silu": "silu", "gelu": "gelu", "relu": "relu", "gelu_new": "gelu_tanh"}


def read(keys: Keys) -> TransformerConfig:
    """The settings in a config.json."""
    for name, value in (
        ("static_position_embeddings", True), ("normalize_before", False), ("normalize_embedding", False),
        ("add_final_layer_norm", False), ("add_bias_logits", False), ("extra_pos_embeddings", 0),
        ("is_decoder", False), ("is_encoder_decoder", True), ("share_encoder_decoder_embeddings", True),
        ("tie_word_embeddings", True), ("num_hidden_layers", keys.values.get("encoder_layers")),
    ):  # fmt: skip
        keys.expect(name, value)
    same_on_both_sides(keys)
    keys.expect("decoder_vocab_size", keys.size("vocab_size"))
    keys.take("activation_dropout", 0.0)  # ours is one for all
    return TransformerConfig(
        kind="transformer", encoder_layers=keys.layers("encoder_layers"), decoder_layers=keys.layers("decoder_layers"),
        width=keys.take("d_model"), heads=keys.take("encoder_attention_heads"), ffn_width=keys.take("encoder_ffn_dim"),
        activation=keys.choose("activation_function", ACTIVATIONS, "gelu"), norm="after",
        positions="sinusoidal_halves", length=keys.take("max_position_embeddings", 1024),
        scaled=keys.take("scale_embedding", False),
        dropout=keys.take("dropout", 0.1), attention_dropout=keys.take("attention_dropout", 0.0),
    )  # fmt: skip


def same_on_both_sides(keys: Keys) -> None:
    """Refuse an encoder and a decoder of different sizes: ours have one for both."""
    for name in ("attention_heads", "ffn_dim"):
        if keys.take(f"encoder_{name}") != keys.take(f"decoder_{name}"):
            raise keys.refusal(f"decoder_{name}", f"the encoder has {keys.values[f'encoder_{name}']}")


def weights(config: TransformerConfig) -> Iterator[Weight]:
    """The table."""
    yield weight("shared.weight", "embedding.weight")
    yield from decoder_and_encoder(config)
    yield Weight("final_logits_bias", ("decoder.bias",), row=True)


def decoder_and_encoder(config: PairConfig) -> Iterator[Weight]:
    """The layers of both, as BART named them."""
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        for i in range(layers):
            yield from _layer(f"{side}.layers.{i}", side == "decoder", config.biases)


def _layer(name: str, cross: bool, biases: tuple[str, ...]) -> Iterator[Weight]:
    parts = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
    for theirs, ours in (("self_attn", "self"), ("encoder_attn", "cross"))[: 1 + cross]:
        for projection, part in parts.items():
            yield from layer(f"{name}.{theirs}.{projection}", f"{name}.{ours}.{part}", bias=part in biases)
        yield from layer(f"{name}.{theirs}_layer_norm", f"{name}.around_{ours}.norm")
    yield from layer(f"{name}.fc1", f"{name}.feed_forward.inner")
    yield from layer(f"{name}.fc2", f"{name}.feed_forward.outer")
    yield from layer(f"{name}.final_layer_norm", f"{name}.around_feed_forward.norm")


def write(config: TransformerConfig, vocabulary: int) -> dict[str, Any]:
    """A config.json."""
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "model_type": "marian", "architectures": ["MarianMTModel"], "vocab_size": vocabulary,
        "decoder_vocab_size": vocabulary, "d_model": config.width,
        "encoder_layers": config.encoder_layers, "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.heads, "decoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.ffn_width, "decoder_ffn_dim": config.ffn_width,
        "activation_function": names[config.activation], "max_position_embeddings": config.length,
        "scale_embedding": config.scaled, "dropout": config.dropout, "attention_dropout": config.attention_dropout,
        "activation_dropout": config.dropout, "is_encoder_decoder": True, "tie_word_embeddings": True,
    }  # fmt: skip


MARIAN = Family(
    ("marian",), TransformerConfig, read, weights, write, "model.", ("final_logits_bias", "lm_head."),
    ((r"(encoder|decoder)\.embed_tokens\.weight|lm_head\.weight", "embedding.weight"),),
    r"(encoder|decoder)\.embed_positions\.weight",
)  # fmt: skip
