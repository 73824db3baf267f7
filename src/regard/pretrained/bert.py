"""BERT (Devlin et al. 2019), MiniLM, which is one, and RoBERTa (Liu et al. 2019)."""

from collections.abc import Iterator
from typing import Any

from regard.models.language import EncoderConfig
from regard.pretrained.family import Family, Keys, Weight, layer, weight

ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "gelu_new": "gelu_tanh", "silu": "silu", "swish": "silu"}


def read(keys: Keys) -> EncoderConfig:
    """The settings in a config.json."""
    roberta = keys.values.get("model_type") == "roberta"
    keys.expect("position_embedding_type", "absolute")
    keys.expect("is_decoder", False)
    keys.expect("add_cross_attention", False)
    keys.size("vocab_size")
    tied = keys.flag("tie_word_embeddings", True)
    if roberta and keys.has("lm_head.") and keys.take("hidden_act", "gelu") != "gelu":
        raise keys.refusal("hidden_act", "the head takes gelu, whatever the layers take: expected gelu for both")
    first = keys.whole("pad_token_id", 1) + 1 if roberta else 0
    positions = keys.size("max_position_embeddings")
    return EncoderConfig(
        kind="encoder",
        layers=keys.layers("num_hidden_layers"), width=keys.take("hidden_size"), heads=keys.take("num_attention_heads"),
        ffn_width=keys.take("intermediate_size"), activation=keys.choose("hidden_act", ACTIVATIONS, "gelu"),
        norm="after", epsilon=keys.take("layer_norm_eps", 1e-12), positions="learned",
        length=positions - first, first_position=first, kinds=keys.size("type_vocab_size"),
        scaled=False, embedding_norm=True, tied=tied,
        head="words" if keys.has("lm_head." if roberta else "cls.predictions.") else "none",
        pooler=keys.has("pooler.") or keys.has(f"{keys.values.get('model_type')}.pooler."),
        dropout=keys.take("hidden_dropout_prob", 0.1), attention_dropout=keys.take("attention_probs_dropout_prob", 0.1),
    )  # fmt: skip


def bert_weights(config: EncoderConfig) -> Iterator[Weight]:
    """A BERT's weights."""
    yield from _body(config)
    yield from _head(config, "cls.predictions.", "transform.dense", "transform.LayerNorm")


def roberta_weights(config: EncoderConfig) -> Iterator[Weight]:
    """A RoBERTa's weights."""
    yield from _body(config)
    yield from _head(config, "lm_head.", "dense", "layer_norm")


def _head(config: EncoderConfig, head: str, inner: str, norm: str) -> Iterator[Weight]:
    if config.head != "words":
        return
    yield from layer(head + inner, "head.inner")
    yield from layer(head + norm, "head.norm")
    yield Weight(f"{head}bias", ("head.bias",), unread=not config.tied)
    if not config.tied:
        yield weight(f"{head}decoder.weight", "head.output")
        yield weight(f"{head}decoder.bias", "head.bias")


def _body(config: EncoderConfig) -> Iterator[Weight]:
    yield weight("embeddings.word_embeddings.weight", "embedding.weight")
    yield weight("embeddings.position_embeddings.weight", "positions.weight")
    yield weight("embeddings.token_type_embeddings.weight", "kinds")
    yield from layer("embeddings.LayerNorm", "embedding_norm")
    for i in range(config.layers):
        theirs, ours = f"encoder.layer.{i}", f"encoder.layers.{i}"
        for part in ("query", "key", "value"):
            yield from layer(f"{theirs}.attention.self.{part}", f"{ours}.self.{part}")
        yield from layer(f"{theirs}.attention.output.dense", f"{ours}.self.output")
        yield from layer(f"{theirs}.attention.output.LayerNorm", f"{ours}.around_self.norm")
        yield from layer(f"{theirs}.intermediate.dense", f"{ours}.feed_forward.inner")
        yield from layer(f"{theirs}.output.dense", f"{ours}.feed_forward.outer")
        yield from layer(f"{theirs}.output.LayerNorm", f"{ours}.around_feed_forward.norm")
    if config.pooler:
        yield from layer("pooler.dense", "pooler")


def _write(kind: str, architecture: str) -> Any:
    def write(config: EncoderConfig, vocabulary: int) -> dict[str, Any]:
        names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
        return {
            "model_type": kind,
            "architectures": [architecture + ("ForMaskedLM" if config.head == "words" else "Model")],
            "vocab_size": vocabulary, "hidden_size": config.width, "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads, "intermediate_size": config.ffn_width,
            "hidden_act": names[config.activation], "layer_norm_eps": config.epsilon,
            "max_position_embeddings": config.length + config.first_position, "type_vocab_size": config.kinds,
            "hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.attention_dropout,
            "tie_word_embeddings": config.tied,
        } | ({"pad_token_id": config.first_position - 1} if kind == "roberta" else {})  # fmt: skip

    return write


BERT = Family(
    ("bert",), EncoderConfig, read, bert_weights, _write("bert", "Bert"), "bert.", ("cls.",),
    ((r"cls\.predictions\.decoder\.weight", "embedding.weight"), (r"cls\.predictions\.decoder\.bias", "head.bias")),
    r"embeddings\.position_ids|cls\.seq_relationship\..*",
)  # fmt: skip
ROBERTA = Family(
    ("roberta",), EncoderConfig, read, roberta_weights, _write("roberta", "Roberta"), "roberta.", ("lm_head.",),
    ((r"lm_head\.decoder\.weight", "embedding.weight"), (r"lm_head\.decoder\.bias", "head.bias")),
    r"embeddings\.position_ids",
)  # fmt: skip
