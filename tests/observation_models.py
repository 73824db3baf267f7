"""Models from transformers with random weights, small enough for a test."""

from typing import Any

import torch
from torch import Tensor, nn

B, S, T = 2, 11, 5
BASE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "vocab_size": 101, "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = BASE | {"num_key_value_heads": 2}
PAIR = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 101,
}  # fmt: skip
MOE = {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size": 32}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {  # name: settings
    "Albert": BASE | {"embedding_size": 16},
    "Bart": PAIR | {"max_position_embeddings": 64},
    "Bert": BASE,
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 101},
    "Electra": BASE | {"embedding_size": 16},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 101, "n_positions": 64},
    "GPTNeoX": BASE,
    "Gemma2": GROUPED | {"head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 2.0},
    "Gemma3Text": GROUPED | {"head_dim": 8, "sliding_window": 4},
    "GptOss": GROUPED | MOE | {"head_dim": 8, "sliding_window": 4},
    "Llama": GROUPED,
    "Marian": PAIR | {"max_position_embeddings": 64, "pad_token_id": 0, "decoder_start_token_id": 0},
    "Mistral": GROUPED | {"sliding_window": 4},
    "ModernBert": BASE | ENDS | {"local_attention": 4, "cls_token_id": 1, "sep_token_id": 2},
    "Phi3": GROUPED | {"pad_token_id": 0},
    "Qwen2": GROUPED,
    "Qwen3": GROUPED | {"head_dim": 8},
    "Roberta": BASE | {"pad_token_id": 0},
    "T5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 101},
    "ViT": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "image_size": 16, "patch_size": 4,
    },
    "Whisper": PAIR | ENDS | {"max_source_positions": 8, "num_mel_bins": 8, "decoder_start_token_id": 1},
}  # fmt: skip
PAIRS = ("Bart", "Marian", "T5", "Whisper")


def make(name: str, implementation: str = "eager") -> nn.Module:
    torch.manual_seed(0)
    import transformers

    config = getattr(transformers, f"{name}Config")(**ARCHITECTURES[name])
    model: nn.Module = transformers.AutoModel.from_config(config, attn_implementation=implementation)
    return model.eval()


def inputs(name: str, padded: bool = True) -> dict[str, Tensor]:
    torch.manual_seed(1)
    if name == "ViT":
        return {"pixel_values": torch.randn(B, 3, 16, 16)}
    given = {"input_ids": torch.randint(3, 100, (B, S))}
    if padded:
        given["attention_mask"] = torch.ones(B, S, dtype=torch.long)
        given["attention_mask"][1, :3] = 0  # on the left
    if name == "Whisper":
        given = {"input_features": torch.randn(B, 8, 16)}
    if name in PAIRS:
        given["decoder_input_ids"] = torch.randint(3, 100, (B, T))
    return given
