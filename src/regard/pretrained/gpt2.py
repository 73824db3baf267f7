"""GPT-2 (Radford et al. 2019)."""

from collections.abc import Iterator
from typing import Any

from regard.models.language import DecoderConfig
from regard.pretrained.family import Family, Keys, Weight, layer, weight

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}


def read(keys: Keys) -> DecoderConfig:
    """The settings in a config.json."""
    keys.expect("scale_attn_weights", True)
    keys.expect("scale_attn_by_inverse_layer_idx", False)
    keys.expect("reorder_and_upcast_attn", False, True)  # the same scores, in another order
    keys.expect("add_cross_attention", False)
    keys.size("vocab_size")
    keys.take("n_ctx", None)  # an old name of n_positions
    width = keys.size("n_embd")
    return DecoderConfig(
        kind="decoder", layers=keys.layers("n_layer"), width=width, heads=keys.take("n_head"),
        ffn_width=keys.take("n_inner", 4 * width),
        activation=keys.choose("activation_function", ACTIVATIONS, "gelu_new"),
        epsilon=keys.take("layer_norm_epsilon", 1e-5), positions="learned", length=keys.take("n_positions"),
        scaled=False, tied=keys.flag("tie_word_embeddings", True), output_bias=False,
        dropout=max(keys.number("resid_pdrop", 0.1), keys.number("embd_pdrop", 0.1)),
        attention_dropout=keys.take("attn_pdrop", 0.1),
    )  # fmt: skip


def weights(config: DecoderConfig) -> Iterator[Weight]:
    """The table; GPT-2 stores its matrices `[in, out]`, and query, key and value as one."""
    yield weight("wte.weight", "embedding.weight")
    yield weight("wpe.weight", "positions.weight")
    for i in range(config.layers):
        theirs, ours = f"h.{i}", f"decoder.layers.{i}"
        yield from layer(f"{theirs}.ln_1", f"{ours}.around_self.norm")
        own = (f"{ours}.self.{part}" for part in ("query", "key", "value"))
        yield from layer(f"{theirs}.attn.c_attn", *own, transposed=True)
        yield from layer(f"{theirs}.attn.c_proj", f"{ours}.self.output", transposed=True)
        yield from layer(f"{theirs}.ln_2", f"{ours}.around_feed_forward.norm")
        yield from layer(f"{theirs}.mlp.c_fc", f"{ours}.feed_forward.inner", transposed=True)
        yield from layer(f"{theirs}.mlp.c_proj", f"{ours}.feed_forward.outer", transposed=True)
    yield from layer("ln_f", "decoder.norm")
    if not config.tied:
        yield weight("lm_head.weight", "decoder.output")


def write(config: DecoderConfig, vocabulary: int) -> dict[str, Any]:
    """A config.json."""
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": vocabulary,
        "n_embd": config.width, "n_layer": config.layers, "n_head": config.heads, "n_inner": config.ffn_width,
        "n_positions": config.length, "activation_function": names[config.activation],
        "layer_norm_epsilon": config.epsilon, "tie_word_embeddings": config.tied,
        "resid_pdrop": config.dropout, "embd_pdrop": config.dropout, "attn_pdrop": config.attention_dropout,
    }  # fmt: skip


GPT2 = Family(
    ("gpt2",), DecoderConfig, read, weights, write, "transformer.", ("lm_head.",),
    ((r"lm_head\.weight", "embedding.weight"),), r"h\.\d+\.attn\.(bias|masked_bias)",
)  # fmt: skip
