"""Outputs of random models for tests of findings: translations and completions, without training."""

import torch

from regard.bundle import Bundle
from regard.models.build import build
from regard.models.language import DecoderConfig
from regard.models.recurrent import RecurrentConfig
from regard.models.transformer import TransformerConfig
from regard.pipelines.completer import Completer
from regard.pipelines.translator import Translator
from regard.text.tokenizer import Tokenizer, TokenizerConfig

SOURCE = "le chat noir dort"
TEXTS = [SOURCE, "the black cat sleeps", "la vache"]
SIZES = {"width": 12, "heads": 3, "ffn_width": 7}

BLOCKS = {  # settings of Transformers, each with what it shows
    "pre": {},
    "post": {"norm": "after"},
    "post-rms": {"norm": "after", "normalization": "rms", "embedding_norm": True},
    "llama": {
        "normalization": "rms", "gated": True, "activation": "silu", "positions": "rotary", "key_heads": 1,
        "biases": (), "ffn_biases": False, "tied": False, "output_bias": False, "head_norm": True, "scaled": False,
    },
    "learned": {"positions": "learned", "embedding_norm": True, "head_width": 5, "biases": ("query", "value")},
    "relative": {"positions": "relative", "normalizer": "softmax1", "score": "dot"},
    "alibi": {"positions": "alibi", "normalizer": "sparsemax", "score": "cosine"},
    "general": {"norm": "after", "positions": "none", "score": "general", "tied": False, "heads": 4, "key_heads": 2},
}  # fmt: skip


def bundle(config, task, seed=3):
    """A random model far from uniform attention, with a tokenizer of a few pieces."""
    tokenizer = Tokenizer.learn(TEXTS * 2, TokenizerConfig(kind="bpe", vocabulary=40))
    torch.manual_seed(seed)
    model = build(len(tokenizer), config).eval()
    for parameter in model.parameters():  # biases and norms' offsets are not 0, weights are not small
        parameter.data = 2 * parameter.data + 0.1 * torch.randn_like(parameter)
    short = {"length_ratio": 0.2, "length_extra": 4} if task == "translate" else {}
    return Bundle(task, ("fr", "en"), model, config, tokenizer, short)


def translator(dtype=torch.float32, **changes):
    """A random Transformer translator of 2 + 2 blocks."""
    config = TransformerConfig(kind="transformer", encoder_layers=2, decoder_layers=2, **{**SIZES, **changes})
    found = Translator(bundle(config, "translate"), "random")
    found.model.to(dtype)
    return found


def completer(dtype=torch.float32, **changes):
    """A random decoder of 2 blocks."""
    found = Completer(bundle(DecoderConfig(kind="decoder", layers=2, **{**SIZES, **changes}), "complete"), "random")
    found.model.to(dtype)
    return found


def recurrent(dtype=torch.float32, **changes):
    """A random recurrent translator."""
    usual = {"width": 10, "embedding": 6, "score_width": 5}
    found = Translator(bundle(RecurrentConfig(kind="recurrent", **{**usual, **changes}), "translate"), "random")
    found.model.to(dtype)
    return found
