"""Llama (Touvron et al. 2023) and its relatives: SmolLM2, which is one, Mistral, Qwen2, Qwen3."""

from collections.abc import Iterator
from typing import Any

from regard.errors import shown
from regard.models.language import DecoderConfig
from regard.pretrained.family import Family, Keys, Weight, layer, weight

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


def read(keys: Keys) -> DecoderConfig:
    """The settings in a config.json."""
    kind = keys.values.get("model_type")
    keys.size("vocab_size")
    keys.expect("rope_interleaved", False)
    keys.expect("is_llama_config", True)
    heads, width, layers = keys.size("num_attention_heads"), keys.size("hidden_size"), keys.layers("num_hidden_layers")
    bias: tuple[str, ...] = ("query", "key", "value") if kind == "qwen2" else ()
    if kind in ("llama", "qwen3") and keys.flag("attention_bias", False):
        bias = ("query", "key", "value", "output")
    return DecoderConfig(
        kind="decoder", layers=layers, width=width, heads=heads, key_heads=keys.take("num_key_value_heads", heads),
        head_width=keys.take("head_dim", width // heads), ffn_width=keys.take("intermediate_size"),
        activation=keys.choose("hidden_act", ACTIVATIONS, "silu"), gated=True, biases=bias,
        ffn_biases=keys.flag("mlp_bias", False) if kind == "llama" else False,
        normalization="rms", epsilon=keys.take("rms_norm_eps", 1e-6), head_norm=kind == "qwen3",
        positions="rotary", rotary_base=_base(keys), length=keys.take("max_position_embeddings", 2048),
        **_windows(keys, layers), scaled=False, tied=keys.flag("tie_word_embeddings", False), output_bias=False,
        dropout=0.0, attention_dropout=keys.take("attention_dropout", 0.0),
    )  # fmt: skip


def _base(keys: Keys) -> float:
    """The base of the rotary positions, under its old key or its new one; scaling is refused."""
    found = []
    for name in ("rope_parameters", "rope_scaling"):
        given = keys.take(name, {})
        if not isinstance(given, dict):
            raise keys.refusal(name, "expected an object")
        kind = given.get("rope_type", given.get("type", "default"))
        if kind != "default" or set(given) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}:
            raise keys.refusal(name, "only rope_type 'default' is known")
        if given.get("partial_rotary_factor", 1.0) != 1.0:
            raise keys.refusal(name, "a partial_rotary_factor is not known for this family")
        base = given.get("rope_theta")
        if base is not None:
            if not isinstance(base, int | float) or isinstance(base, bool):
                raise keys.refusal(name, "expected a number as rope_theta")
            found.append(base)
    keys.expect("partial_rotary_factor", 1.0)
    if keys.take("rope_theta", None) is not None:
        found.append(keys.number("rope_theta"))
    if len(set(found)) > 1:
        raise keys.refusal("rope_theta", f"rope_parameters and rope_scaling say otherwise: {shown(found)}")
    return float(found[0]) if found else 10000.0


def _windows(keys: Keys, layers: int) -> dict[str, Any]:
    """The sliding window and the layers that have it."""
    kind = keys.values.get("model_type")
    by_layer = kind in ("qwen2", "qwen3")  # the other two have all layers alike, and read none of these settings
    unset = None if "sliding_window" in keys.values else 4096  # null is none
    window = keys.take("sliding_window", unset)
    first = keys.whole("max_window_layers", 28)
    kinds = keys.take("layer_types", None)
    used = keys.flag("use_sliding_window", False)
    if kinds is not None and not (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)):
        raise keys.refusal("layer_types", "expected a list of names")
    if kind == "llama":  # transformers reads none of these there
        return {}
    if by_layer and not used:
        window = None
    if window is None:
        if kinds is not None and set(kinds) != {"full_attention"}:
            raise keys.refusal("layer_types", "some layers have a sliding window and there is no sliding_window")
        return {}
    if kinds is None:
        full = first if by_layer else 0
        kinds = ["sliding_attention" if i >= full else "full_attention" for i in range(layers)]
    if len(kinds) != layers or set(kinds) - {"full_attention", "sliding_attention"}:
        raise keys.refusal("layer_types", f"expected {layers} of 'full_attention', 'sliding_attention'")
    if not by_layer and "full_attention" in kinds:
        raise keys.refusal("layer_types", f"in a {kind} every layer has the sliding window, or none")
    sliding = tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")
    return {"window": window, "window_layers": None if len(sliding) == layers else sliding} if sliding else {}


def weights(config: DecoderConfig) -> Iterator[Weight]:
    """The table."""
    yield weight("embed_tokens.weight", "embedding.weight")
    parts = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
    for i in range(config.layers):
        theirs, ours = f"layers.{i}", f"decoder.layers.{i}"
        for name, part in parts.items():
            yield from layer(f"{theirs}.self_attn.{name}", f"{ours}.self.{part}", bias=part in config.biases)
        if config.head_norm:
            for name, part in (("q_norm", "query_norm"), ("k_norm", "key_norm")):
                yield from layer(f"{theirs}.self_attn.{name}", f"{ours}.self.{part}", bias=False)
        for name, part in (("gate_proj", "gate"), ("up_proj", "inner"), ("down_proj", "outer")):
            yield from layer(f"{theirs}.mlp.{name}", f"{ours}.feed_forward.{part}", bias=config.ffn_biases)
        yield from layer(f"{theirs}.input_layernorm", f"{ours}.around_self.norm", bias=False)
        yield from layer(f"{theirs}.post_attention_layernorm", f"{ours}.around_feed_forward.norm", bias=False)
    yield from layer("norm", "decoder.norm", bias=False)
    if not config.tied:
        yield weight("lm_head.weight", "decoder.output")


def write(config: DecoderConfig, vocabulary: int) -> dict[str, Any]:
    """A config.json of the relative that has just these parts."""
    kind = _relative(config)
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    written: dict[str, Any] = {
        "model_type": kind, "architectures": [f"{kind.capitalize()}ForCausalLM"], "vocab_size": vocabulary,
        "hidden_size": config.width, "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_heads or config.heads, "head_dim": config.own_head_width,
        "intermediate_size": config.ffn_width, "hidden_act": names[config.activation], "rms_norm_eps": config.epsilon,
        "max_position_embeddings": config.length, "tie_word_embeddings": config.tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
        "attention_dropout": config.attention_dropout,
    }  # fmt: skip
    if kind in ("llama", "qwen3"):
        written["attention_bias"] = bool(config.biases)
    if kind == "llama":
        written["mlp_bias"] = config.ffn_biases
    if kind == "mistral":
        written["sliding_window"] = config.window
    elif config.window is not None:
        sliding = range(config.layers) if config.window_layers is None else config.window_layers
        kinds = ["sliding_attention" if i in sliding else "full_attention" for i in range(config.layers)]
        written |= {"use_sliding_window": True, "sliding_window": config.window, "layer_types": kinds}
        written["max_window_layers"] = min(sliding)
    if kind == "qwen2":
        del written["head_dim"]
    return written


def _relative(config: DecoderConfig) -> str:
    if config.head_norm:
        return "qwen3"
    if set(config.biases) == {"query", "key", "value"}:
        return "qwen2"
    return "llama" if config.window is None else "mistral"


LLAMA = Family(
    ("llama", "mistral", "qwen2", "qwen3"), DecoderConfig, read, weights, write, "model.", ("lm_head.",),
    ((r"lm_head\.weight", "embedding.weight"),), r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
)  # fmt: skip
