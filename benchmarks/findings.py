"""What a sweep of patches costs: every head of a GPT-2-shaped model, against one forward a cell.

python benchmarks/findings.py            12 layers of 12 heads at 128 and 512 tokens, as Markdown
python benchmarks/findings.py 64 4       64 tokens, 4 layers

The peer is TransformerLens' way, written by hand on the same model of transformers: eager attention, whose weights are
whole matrices, and one forward for each cell with a hook that puts the clean head in. Each way has a process of its
own, for its memory.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measure import machine
from torch import Tensor, nn

import regard

HEADS, WIDTH, VOCABULARY = 12, 768, 50257
WAYS = (
    "one forward a cell, eager",
    "one forward a cell, sdpa",
    "one forward a cell, sdpa, the last logits alone",
    "regard.patch",
    "regard.patch, the last logits alone",
    "regard.attribute_patches",
)


def make(layers: int, positions: int, implementation: str) -> nn.Module:
    """A GPT-2 of these sizes with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=WIDTH, n_layer=layers, n_head=HEADS, vocab_size=VOCABULARY, n_positions=positions, use_cache=False,
        attn_implementation=implementation,
    )  # fmt: skip
    model: nn.Module = GPT2LMHeadModel(config).eval()
    return model


def inputs(positions: int) -> tuple[Tensor, Tensor]:
    """Token ids of a clean and a corrupted text that differ in one token."""
    clean = torch.randint(VOCABULARY, (1, positions), generator=torch.Generator().manual_seed(1))
    corrupted = clean.clone()
    corrupted[0, positions // 2] = 7
    return clean, corrupted


def metric(output: Any) -> Tensor:
    """The difference of two logits at the last position."""
    logits: Tensor = output.logits[0, -1]
    return logits[3] - logits[4]


@torch.no_grad()
def one_by_one(model: Any, clean: Tensor, corrupted: Tensor, **more: Any) -> Tensor:
    """The sweep with one forward a cell, by hooks on the projection that follows the heads."""
    kept: dict[int, Tensor] = {}
    projections = [block.attn.c_proj for block in model.transformer.h]
    hooks = [
        one.register_forward_pre_hook(lambda _, args, n=n: kept.__setitem__(n, args[0].clone()))
        for n, one in enumerate(projections)
    ]
    model(clean)
    for hook in hooks:
        hook.remove()
    table = torch.zeros(len(projections), HEADS)
    for n, projection in enumerate(projections):
        for head in range(HEADS):
            chosen = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)

            def put(_: nn.Module, args: tuple[Tensor], n: int = n, chosen: slice = chosen) -> tuple[Tensor]:
                states = args[0].clone()
                states[..., chosen] = kept[n][..., chosen]
                return (states,)

            hook = projection.register_forward_pre_hook(put)
            table[n, head] = metric(model(corrupted, **more))
            hook.remove()
    return table


def run(way: str, positions: int, layers: int) -> dict[str, Any]:
    """Seconds, the highest memory above the model's in MiB, and the table of one way."""
    model = make(layers, positions, "eager" if "eager" in way else "sdpa")
    clean, corrupted = inputs(positions)
    with torch.no_grad():
        model(clean)
    before = _resident()
    start = time.perf_counter()
    more = {"logits_to_keep": 1} if "last" in way else {}
    if way.startswith("regard.patch"):
        table = regard.patch(model, {"input_ids": clean} | more, {"input_ids": corrupted} | more, metric).table
    elif way == "regard.attribute_patches":
        table = regard.attribute_patches(model, {"input_ids": clean}, {"input_ids": corrupted}, metric, check=0).table
    else:
        table = one_by_one(model, clean, corrupted, **more)
    return {
        "seconds": time.perf_counter() - start, "peak": _resident("VmHWM") - before, "table": table.tolist(),
    }  # fmt: skip


def _resident(name: str = "VmRSS") -> float:
    if name == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident size begins anew
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Print one table for each length."""
    lengths = [int(sys.argv[1])] if len(sys.argv) > 1 else [128, 512]
    layers = int(sys.argv[2]) if len(sys.argv) > 2 else 12
    print(f"Measured on {machine()}: `python benchmarks/findings.py {' '.join(sys.argv[1:])}`".strip())
    for positions in lengths:
        print(f"\n**Every head of {layers} layers of {HEADS}, {positions} tokens**\n")
        print("| way | seconds | times faster | peak memory above the model | largest difference |")
        print("|---|---|---|---|---|")
        first: dict[str, Any] = {}
        for way in WAYS:
            command = [sys.executable, __file__, "way", way, str(positions), str(layers)]
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(answer.stdout.splitlines()[-1])
            first = first or found
            apart = float((torch.tensor(found["table"]) - torch.tensor(first["table"])).abs().max())
            print(
                f"| {way} | {found['seconds']:.1f} | {first['seconds'] / found['seconds']:.2f} "
                f"| {found['peak']:,.0f} MiB | {apart:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["way"]:
        print(json.dumps(run(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()
