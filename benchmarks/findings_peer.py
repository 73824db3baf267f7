"""TransformerLens' own sweep over every head, for `findings.py`; needs `pip install transformer-lens` (another torch may come).

python benchmarks/findings_peer.py 512 3        512 tokens, 3 layers: seconds, and MiB above the model
"""

import sys
import time
from pathlib import Path

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig, patching


def main() -> None:
    """Print one line."""
    positions, layers = int(sys.argv[1]), int(sys.argv[2])
    torch.manual_seed(0)
    config = HookedTransformerConfig(
        n_layers=layers, d_model=768, n_ctx=positions, d_head=64, n_heads=12, d_mlp=3072, d_vocab=50257,
        act_fn="gelu_new", normalization_type="LNPre", seed=0, device="cpu",
    )  # fmt: skip
    model = HookedTransformer(config)
    clean = torch.randint(50257, (1, positions), generator=torch.Generator().manual_seed(1))
    corrupted = clean.clone()
    corrupted[0, positions // 2] = 7
    with torch.no_grad():
        model(clean)
        Path("/proc/self/clear_refs").write_text("5")
        before, start = resident("VmRSS"), time.perf_counter()
        _, cache = model.run_with_cache(clean)
        patching.get_act_patch_attn_head_out_all_pos(
            model, corrupted, cache, lambda logits: logits[0, -1, 3] - logits[0, -1, 4]
        )
    print(f"TransformerLens: {time.perf_counter() - start:.1f} s, {resident('VmHWM') - before:,.0f} MiB")


def resident(name: str) -> float:
    """A line of /proc/self/status, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
