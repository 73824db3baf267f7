"""ViT (Dosovitskiy et al. 2021): an encoder of pictures."""

from collections.abc import Iterator
from typing import Any

from regard.models.vision import VisionConfig
from regard.pretrained.bert import ACTIVATIONS
from regard.pretrained.family import Family, Keys, Weight, layer


def read(keys: Keys) -> VisionConfig:
    """The settings in a config.json."""
    keys.take("encoder_stride", None)  # of another task's head
    keys.expect("pooler_act", "tanh")
    width = keys.take("hidden_size")
    keys.expect("pooler_output_size", width)
    names = keys.take("id2label", {})
    if not isinstance(names, dict):
        raise keys.refusal("id2label", "expected a name for each class")
    classes = (len(names) or keys.take("num_labels", 2)) if keys.has("classifier.") else 0
    biases = ("query", "key", "value", "output") if keys.flag("qkv_bias", True) else ("output",)
    return VisionConfig(
        kind="picture", layers=keys.layers("num_hidden_layers"), width=width, heads=keys.take("num_attention_heads"),
        biases=biases, ffn_width=keys.take("intermediate_size"),
        activation=keys.choose("hidden_act", ACTIVATIONS, "gelu"),
        epsilon=keys.take("layer_norm_eps", 1e-12), positions="none", size=keys.take("image_size", 224),
        patch=keys.take("patch_size", 16), channels=keys.take("num_channels", 3), classes=classes,
        pooler=keys.has("pooler.") or keys.has("vit.pooler."), dropout=keys.take("hidden_dropout_prob", 0.0),
        attention_dropout=keys.take("attention_probs_dropout_prob", 0.0),
    )  # fmt: skip


def weights(config: VisionConfig) -> Iterator[Weight]:
    """The table."""
    yield Weight("embeddings.cls_token", ("first",), row=True)
    yield Weight("embeddings.position_embeddings", ("positions",), row=True)
    yield from layer("embeddings.patch_embeddings.projection", "patches")
    for i in range(config.layers):
        theirs, ours = f"encoder.layer.{i}", f"encoder.layers.{i}"
        yield from layer(f"{theirs}.layernorm_before", f"{ours}.around_self.norm")
        for part in ("query", "key", "value"):
            yield from layer(f"{theirs}.attention.attention.{part}", f"{ours}.self.{part}", bias=part in config.biases)
        yield from layer(f"{theirs}.attention.output.dense", f"{ours}.self.output")
        yield from layer(f"{theirs}.layernorm_after", f"{ours}.around_feed_forward.norm")
        yield from layer(f"{theirs}.intermediate.dense", f"{ours}.feed_forward.inner")
        yield from layer(f"{theirs}.output.dense", f"{ours}.feed_forward.outer")
    yield from layer("layernorm", "encoder.norm")
    if config.pooler:
        yield from layer("pooler.dense", "pooler")
    if config.classes:
        yield from layer("classifier", "head")


def write(config: VisionConfig, vocabulary: int) -> dict[str, Any]:  # noqa: ARG001
    """A config.json."""
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    written = {
        "model_type": "vit", "architectures": ["ViTForImageClassification" if config.classes else "ViTModel"],
        "hidden_size": config.width, "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
        "intermediate_size": config.ffn_width, "hidden_act": names[config.activation], "layer_norm_eps": config.epsilon,
        "image_size": config.size, "patch_size": config.patch, "num_channels": config.channels,
        "qkv_bias": "query" in config.biases, "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout, "pooler_output_size": config.width,
    }  # fmt: skip
    if config.classes:
        written["id2label"] = {str(n): f"LABEL_{n}" for n in range(config.classes)}
        written["label2id"] = {f"LABEL_{n}": n for n in range(config.classes)}
    return written


VIT = Family(("vit",), VisionConfig, read, weights, write, "vit.", ("classifier.",))
