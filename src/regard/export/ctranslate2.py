"""CTranslate2's layout: `model.bin`, vocabulary and settings, which the library ctranslate2 (extra "ctranslate2") runs.

The tokenizer lies beside them as `tokenizer.json`: CTranslate2 takes tokens, not texts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regard.bundle import Bundle
from regard.errors import ConfigError
from regard.models.transformer import Transformer, TransformerConfig
from regard.nn.blocks import FeedForward
from regard.nn.multihead import MultiHead
from regard.nn.products import joined
from regard.storage import new_folder
from regard.text.pretrained import Pieces

POSITIONS, MOST = 1024, 16_384  # tokens that a table of sinusoids is written for, at least and at most
ACTIVATIONS = {"relu": "RELU", "gelu": "GELU", "gelu_tanh": "GELUTanh", "silu": "SWISH"}
ADDED = ("sinusoidal", "sinusoidal_halves", "learned")
EPSILON = {"layer": 1e-5, "rms": 1e-6}  # of CTranslate2's norms
PRECISIONS = {"float32": "float32", "float16": "float16", "int8": "int8_float32"}


def rows_for(tokens: int) -> int:
    """The rows of a table of sinusoids for texts of so many tokens; at most `MOST`, whatever a model's settings say."""
    return min(max(POSITIONS, tokens), MOST)


def refusal(bundle: Bundle) -> str:
    """What CTranslate2 cannot express of a model; empty where it can express all of it."""
    config = bundle.model_config
    if not isinstance(config, TransformerConfig):
        return f'model.kind = "{config.kind}"'
    if config.source_encoder is not None:
        return "model.source_encoder: its source is no text"
    for name, fine in (
        ("convolution", config.convolution == 0),
        ("score", config.score == "scaled_dot" and config.cross_score in (None, "scaled_dot")),
        ("normalizer", config.normalizer == "softmax"),
        ("context", config.context == "none"),
        ("positions", config.positions in ADDED),
        ("window", config.window is None),
        ("head_norm", not config.head_norm),
        ("head_width", config.head_width in (None, config.width // config.heads)),
        ("key_heads", config.key_heads in (None, config.heads)),
    ):
        if not fine:
            return f"model.{name} = {getattr(config, name)!r}"
    if config.epsilon != EPSILON[config.normalization]:
        return f"model.epsilon = {config.epsilon}"
    return ""


def write(bundle: Bundle, into: Path, precision: str = "float32", positions: int = POSITIONS) -> None:
    """Write a Transformer in this layout.

    Args:
        bundle: the model.
        into: the folder.
        precision: of the weights: "float32", "float16" or "int8".
        positions: tokens of a text, at least, that it takes and gives.

    Raises:
        ConfigError: ctranslate2 is not installed; the model has something that it cannot express.
    """
    try:
        from ctranslate2 import specs
        from ctranslate2.specs.common_spec import Activation
    except ImportError as error:
        raise ConfigError("CTranslate2's models need the package ctranslate2: pip install ctranslate2") from error
    if why := refusal(bundle):
        raise ConfigError(f"--layout ctranslate2: CTranslate2 cannot express {why}")
    model, config = bundle.model, bundle.model_config
    assert isinstance(model, Transformer)
    assert isinstance(config, TransformerConfig)
    common = {
        "pre_norm": config.norm == "before", "activation": Activation[ACTIVATIONS[config.activation]],
        "layernorm_embedding": config.embedding_norm, "ffn_glu": config.gated,
        "rms_norm": config.normalization == "rms",
    }  # fmt: skip
    site, heads = bundle.alignment.get("site", ""), bundle.alignment.get("heads", [0])
    crossing = [f"decoder.layers.{n}.cross" for n in range(config.decoder_layers)]
    layer = crossing.index(site) if site in crossing else -1
    spec = specs.TransformerSpec(
        specs.TransformerEncoderSpec(config.encoder_layers, config.heads, **common),
        specs.TransformerDecoderSpec(
            config.decoder_layers, config.heads, **common, alignment_layer=layer, alignment_heads=len(heads)
        ),
    )
    _fill(spec, model, config, (layer, heads), rows_for(max(positions, 1 + bundle.decoding.get("longest_source", 0))))
    tokens = bundle.tokenizer.tokens(range(len(bundle.tokenizer)))
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    bos, eos = (bundle.tokenizer.tokens([number])[0] for number in (bundle.tokenizer.bos, bundle.tokenizer.eos))
    spec.config.bos_token, spec.config.eos_token, spec.config.decoder_start_token = bos, eos, bos
    spec.config.add_source_eos = True
    spec.validate()
    spec.optimize(quantization=PRECISIONS[precision])
    with new_folder(into) as folder:
        spec.save(str(folder))
        if not isinstance(bundle.tokenizer, Pieces):  # the engine of a loaded model asks the model's own
            bundle.tokenizer.save(folder / "tokenizer.json")


def _fill(spec: Any, model: Transformer, config: TransformerConfig, reading: tuple[int, list[int]], most: int) -> None:
    """Put the model's weights into CTranslate2's names.

    Args:
        spec: what is filled.
        model, config: the model.
        most: tokens of a source or an output.
        reading: a decoder layer, and its heads that alignments are read from: CTranslate2 reads the first ones.
    """
    count = min(most, config.length) if config.positions == "learned" else most
    positions = torch.arange(config.first_position, config.first_position + count)
    table = model.positions(torch.zeros(count, config.width), positions)
    encoder, decoder = spec.encoder, spec.decoder
    for part, stack, embeddings in (
        (encoder, model.encoder, encoder.embeddings[0]),
        (decoder, model.decoder, decoder.embeddings),
    ):
        embeddings.weight = _array(model.embedding.weight)
        part.scale_embeddings = config.scaled
        part.position_encodings.encodings = _array(table)
        if config.norm == "before":
            _norm(part.layer_norm, stack.norm)
        if model.embedding_norm is not None:
            _norm(part.layernorm_embedding, model.embedding_norm)
        for there, layer in zip(part.layer, stack.layers, strict=True):
            _attention(there.self_attention, layer.self, across=False)
            _norm(there.self_attention.layer_norm, layer.around_self.norm)
            if part is decoder:
                first = reading[1] if layer is stack.layers[reading[0]] else []
                _attention(there.attention, layer.cross, across=True, first=first)
                _norm(there.attention.layer_norm, layer.around_cross.norm)
            _feed_forward(there.ffn, layer.feed_forward)
            _norm(there.ffn.layer_norm, layer.around_feed_forward.norm)
    weight, bias = model.readout()
    decoder.projection.weight, decoder.projection.bias = _array(weight), _array(bias)
    if config.scaled_output:
        decoder.scale_outputs = _array(torch.tensor(config.width**-0.5))


def _attention(there: Any, own: MultiHead, across: bool, first: Sequence[int] = ()) -> None:
    """The projections of an attention, some heads before the others; the order of heads changes no output."""
    order = [*first, *(head for head in range(own.heads) if head not in first)]
    rows = torch.arange(own.heads * own.head_width).unflatten(0, (own.heads, -1))[order].flatten()
    groups = [[own.query], [own.key, own.value]] if across else [[own.query, own.key, own.value]]
    for linear, layers in zip(there.linear, groups, strict=False):
        weight, bias = joined(layers)
        every = torch.cat([rows + n * len(rows) for n in range(len(layers))])
        _linear(linear, weight[every], None if bias is None else bias[every])
    _linear(there.linear[-1], own.output.weight[:, rows], own.output.bias)


def _feed_forward(there: Any, own: FeedForward) -> None:
    if own.gate is None:
        _linear(there.linear_0, own.inner.weight, own.inner.bias)
    else:
        _linear(there.linear_0, own.gate.weight, own.gate.bias)
        _linear(there.linear_0_noact, own.inner.weight, own.inner.bias)
    _linear(there.linear_1, own.outer.weight, own.outer.bias)


def _linear(there: Any, weight: Tensor, bias: Tensor | None) -> None:
    there.weight = _array(weight)
    if bias is not None:
        there.bias = _array(bias)


def _norm(there: Any, norm: nn.Module) -> None:
    there.gamma = _array(norm.weight)
    if isinstance(norm, nn.LayerNorm):
        there.beta = _array(norm.bias)


def _array(tensor: Any) -> Any:
    return tensor.detach().float().cpu().clone().numpy()  # its own: weights are quantized in place
