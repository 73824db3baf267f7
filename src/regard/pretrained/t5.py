"""T5 (Raffel et al. 2020), 1.0 and 1.1."""

from collections.abc import Iterator
from typing import Any

from regard.models.transformer import TransformerConfig
from regard.pretrained.family import Family, Keys, Weight, weight

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "silu": "silu"}


def read(keys: Keys) -> TransformerConfig:
    """The settings in a config.json."""
    keys.size("vocab_size")
    keys.expect("is_decoder", False)
    keys.expect("is_encoder_decoder", True)
    keys.take("n_positions", None)  # distances are buckets: there is no longest text
    gated, name = _activation(keys)
    layers = keys.layers("num_layers")
    tied = keys.flag("tie_word_embeddings", True)
    keys.expect("output_past", True)
    return TransformerConfig(
        kind="transformer", encoder_layers=layers, decoder_layers=keys.layers("num_decoder_layers", layers),
        width=keys.take("d_model"), heads=keys.take("num_heads"), head_width=keys.take("d_kv"),
        ffn_width=keys.take("d_ff"), activation=name, gated=gated, biases=(), ffn_biases=False,
        normalization="rms", epsilon=keys.take("layer_norm_epsilon", 1e-6), positions="relative",
        buckets=keys.take("relative_attention_num_buckets", 32),
        max_distance=keys.take("relative_attention_max_distance", 128),
        scaled=False, score="dot", tied=tied, output_bias=False,
        scaled_output=keys.take("scale_decoder_outputs", tied), dropout=keys.take("dropout_rate", 0.1),
    )  # fmt: skip


def _activation(keys: Keys) -> tuple[bool, str]:
    """Whether there is a gate, and the activation: feed_forward_proj says both, the other two must agree."""
    given = keys.take("feed_forward_proj", "relu")
    if not isinstance(given, str):
        raise keys.refusal("feed_forward_proj", "expected a name")
    gated, name = given.startswith("gated-"), given.removeprefix("gated-")
    name = "gelu_new" if given == "gated-gelu" else name
    if name not in ACTIVATIONS:
        raise keys.refusal(
            "feed_forward_proj", f"known are {', '.join(map(repr, ACTIVATIONS))}, and gated- before them"
        )
    keys.expect("is_gated_act", gated)
    keys.expect("dense_act_fn", name)
    return gated, ACTIVATIONS[name]


def weights(config: TransformerConfig) -> Iterator[Weight]:
    """The table."""
    yield weight("shared.weight", "embedding.weight")
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        bias = "layer.0.SelfAttention.relative_attention_bias.weight"
        yield weight(f"{side}.block.0.{bias}", f"{side}.relative.weight")
        for i in range(layers):
            yield from _layer(f"{side}.block.{i}.layer", f"{side}.layers.{i}", side == "decoder", config.gated)
        yield weight(f"{side}.final_layer_norm.weight", f"{side}.norm.weight")
    if not config.tied:
        yield weight("lm_head.weight", "decoder.output")


def _layer(theirs: str, ours: str, cross: bool, gated: bool) -> Iterator[Weight]:
    parts = {"q": "query", "k": "key", "v": "value", "o": "output"}
    for n, (name, own) in enumerate((("SelfAttention", "self"), ("EncDecAttention", "cross"))[: 1 + cross]):
        for projection, part in parts.items():
            yield weight(f"{theirs}.{n}.{name}.{projection}.weight", f"{ours}.{own}.{part}.weight")
        yield weight(f"{theirs}.{n}.layer_norm.weight", f"{ours}.around_{own}.norm.weight")
    last = 1 + cross
    inner = {"wi_0": "gate", "wi_1": "inner"} if gated else {"wi": "inner"}
    for projection, part in (inner | {"wo": "outer"}).items():
        yield weight(f"{theirs}.{last}.DenseReluDense.{projection}.weight", f"{ours}.feed_forward.{part}.weight")
    yield weight(f"{theirs}.{last}.layer_norm.weight", f"{ours}.around_feed_forward.norm.weight")


def write(config: TransformerConfig, vocabulary: int) -> dict[str, Any]:
    """A config.json."""
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    name = names[config.activation]
    proj = ("gated-gelu" if name == "gelu_new" else f"gated-{name}") if config.gated else name
    return {
        "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": vocabulary,
        "d_model": config.width, "num_layers": config.encoder_layers, "num_decoder_layers": config.decoder_layers,
        "num_heads": config.heads, "d_kv": config.own_head_width, "d_ff": config.ffn_width, "feed_forward_proj": proj,
        "layer_norm_epsilon": config.epsilon, "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance, "dropout_rate": config.dropout,
        "tie_word_embeddings": config.tied, "scale_decoder_outputs": config.scaled_output, "is_encoder_decoder": True,
    }  # fmt: skip


T5 = Family(
    ("t5",), TransformerConfig, read, weights, write, "", (),
    ((r"(encoder|decoder)\.embed_tokens\.weight|lm_head\.weight", "embedding.weight"),),
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)  # fmt: skip
