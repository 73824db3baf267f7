"""What findings on a GPT-2-shaped model cost, beside TransformerLens on the same random weights.

python benchmarks/findings.py                      every work at 512, 2,048 and 8,192 tokens, as Markdown
python benchmarks/findings.py 512                  one length
python benchmarks/findings.py 512 patching         one length and one work

Three works: the metric with each head patched, the same by attribution, and the weight of each head on the cells of
three roles. From `LONG` tokens on, the heads of the middle block alone are patched. TransformerLens runs its own
functions: `patching.get_act_patch_attn_head_out_all_pos`, a gradient hook on every `hook_z`, and the scores of
`head_detector`; it caches only what each needs. regard runs the model of transformers as it is. Every figure is of a
process of its own, on one thread: processor time of the work alone, and the highest memory above the loaded model's.
Where TransformerLens is not installed (`pip install "transformer-lens>=4.3"`), its rows are left out.
"""

import importlib.util
import json
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measure import machine
from torch import Tensor, nn

import regard
from regard.analysis.roles import CELLS

LAYERS, HEADS, WIDTH, VOCABULARY = 6, 12, 768, 50257
LENGTHS, LONG = (512, 2048, 8192), 2048
LIMIT = 14 * 2**30  # bytes of address space of one process: the machine is shared
ROLES = {"previous_token": "previous token", "duplicate_token": "duplicate token", "induction": "induction"}
PEER = "TransformerLens"


def make(positions: int, implementation: str) -> nn.Module:
    """A GPT-2 of these sizes with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, vocab_size=VOCABULARY, n_positions=positions, use_cache=False,
        attn_implementation=implementation,
    )  # fmt: skip
    model: nn.Module = GPT2LMHeadModel(config).eval()
    return model


def lens(positions: int) -> Any:
    """The same model in TransformerLens."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = make(positions, "eager")
    return build_bridge_from_module(model, "GPT2LMHeadModel", hf_config=model.config)


def inputs(positions: int) -> tuple[Tensor, Tensor]:
    """Token ids of a clean and a corrupted text that differ in one token."""
    clean = torch.randint(VOCABULARY, (1, positions), generator=torch.Generator().manual_seed(1))
    corrupted = clean.clone()
    corrupted[0, positions // 2] = 7
    return clean, corrupted


def metric(logits: Tensor) -> Tensor:
    """The difference of two logits at the last position."""
    return logits[0, -1, 3] - logits[0, -1, 4]


def blocks(positions: int) -> list[int]:
    """The blocks whose heads are patched."""
    return [LAYERS // 2] if positions >= LONG else list(range(LAYERS))


@torch.no_grad()
def lens_patching(model: Any, clean: Tensor, corrupted: Tensor) -> Tensor:
    """One forward for each cell."""
    import pandas
    from transformer_lens import patching

    chosen = blocks(clean.shape[1])
    names = {f"blocks.{block}.attn.hook_z" for block in chosen}
    _, cache = model.run_with_cache(clean, names_filter=lambda name: name in names)
    cells = pandas.DataFrame([(block, head) for block in chosen for head in range(HEADS)], columns=["layer", "head"])
    found: Tensor = patching.generic_activation_patch(
        model, corrupted, cache, metric, patching.layer_head_vector_patch_setter, "z", index_df=cells
    )
    return found.view(len(chosen), HEADS)


def lens_attribution(model: Any, clean: Tensor, corrupted: Tensor) -> Tensor:
    """(z_clean - z_corrupted) · ∂metric/∂z, by hooks in both directions (Nanda 2023)."""
    kept: dict[str, Tensor] = {}
    slopes: dict[str, Tensor] = {}
    names = [f"blocks.{block}.attn.hook_z" for block in blocks(clean.shape[1])]
    with torch.no_grad():
        _, cache = model.run_with_cache(clean, names_filter=lambda name: name in set(names))

    def keep(where: dict[str, Tensor], name: str) -> Any:
        return lambda z, **_: where.__setitem__(name, z.detach())

    with model.hooks([(name, keep(kept, name)) for name in names], [(name, keep(slopes, name)) for name in names]):
        value = metric(model(corrupted))
        value.backward()
    changes = [((cache[name] - kept[name]) * slopes[name]).sum((0, 1, 3)) for name in names]
    return float(value.detach()) + torch.stack(changes)


@torch.no_grad()
def lens_roles(model: Any, clean: Tensor, _: Tensor) -> Tensor:
    """The scores of every head for three roles, by `head_detector`'s own functions."""
    from transformer_lens import head_detector

    wanted = [getattr(head_detector, f"get_{role}_head_detection_pattern")(clean) for role in ROLES]
    _, cache = model.run_with_cache(clean, names_filter=lambda name: name.endswith("hook_pattern"))
    score = head_detector.compute_head_attention_similarity_score
    options: Any = {"exclude_bos": False, "exclude_current_token": False, "error_measure": "mul"}
    return torch.tensor(
        [
            [
                [score(cache["pattern", block][0, head], cells, **options) for cells in wanted]
                for head in range(HEADS)
            ]
            for block in range(LAYERS)
        ]
    )  # fmt: skip


def _given(tokens: Tensor) -> dict[str, Tensor]:
    return {"input_ids": tokens}


def _of_output(output: Any) -> Tensor:
    return metric(output.logits)


def _sites(positions: int) -> list[str]:
    return [f"transformer.h.{block}.attn" for block in blocks(positions)]


def regard_patching(model: Any, clean: Tensor, corrupted: Tensor) -> Tensor:
    """`regard.patch`."""
    sites = _sites(clean.shape[1])
    return regard.patch(model, _given(clean), _given(corrupted), _of_output, sites=sites).table


def regard_attribution(model: Any, clean: Tensor, corrupted: Tensor) -> Tensor:
    """`regard.attribute_patches`, no cell patched as well."""
    sites = _sites(clean.shape[1])
    return regard.attribute_patches(model, _given(clean), _given(corrupted), _of_output, sites=sites, check=0).table


@torch.no_grad()
def regard_roles(model: Any, clean: Tensor, _: Tensor) -> Tensor:
    """`regard.roles` on one input; at level 1 and with no least effect, so that every share is returned."""
    chosen = {role: CELLS[role] for role in ROLES.values()}
    found = regard.roles(model, [_given(clean)], cells=chosen, level=1.0, least=-10.0)
    table = torch.zeros(LAYERS, HEADS, len(ROLES))
    for one in found:
        table[int(one.site.split(".")[2]), one.head, list(chosen).index(one.role)] = one.share
    return table


WORKS = {
    "patching": (lens_patching, regard_patching),
    "attribution": (lens_attribution, regard_attribution),
    "roles": (lens_roles, regard_roles),
}
TITLES = {
    "patching": "the metric with each head patched",
    "attribution": "the same by attribution",
    "roles": "each head's weight on the cells of three roles",
}


def run(work: str, peer: bool, positions: int) -> dict[str, Any]:
    """Processor time in seconds, the highest memory above the model's in MiB, and the numbers of one way."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    model = lens(positions) if peer else make(positions, "sdpa")
    way = WORKS[work][0 if peer else 1]
    with torch.no_grad():
        model(torch.arange(8)[None])  # what is imported and built at the first run
    before = _resident()
    start = time.process_time()
    found = way(model, *inputs(positions))
    return {"seconds": time.process_time() - start, "peak": _resident("VmHWM") - before, "found": found.tolist()}


def _resident(name: str = "VmRSS") -> float:
    if name == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident size begins anew
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def _in_own_process(work: str, peer: bool, positions: int) -> dict[str, Any] | None:
    """The figures of one way; None where it does not fit into `LIMIT`."""
    command = [sys.executable, __file__, "way", work, str(int(peer)), str(positions)]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode == 0:
        found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
        return found
    if "allocate memory" not in answer.stderr and "MemoryError" not in answer.stderr:
        raise RuntimeError(answer.stderr)
    return None


def main(lengths: list[int], works: list[str]) -> None:
    """Print one table."""
    there = importlib.util.find_spec("transformer_lens") is not None
    beside = f"{PEER} {version('transformer-lens')}" if there else f"{PEER} is not installed"
    print(f"Measured on {machine()}, one thread used; {beside}: `python benchmarks/findings.py`.\n")
    print(f"| work | tokens | {PEER}: seconds, MiB | regard: seconds, MiB | times faster | times less memory | apart |")
    print("|---|---|---|---|---|---|---|")
    for work in works:
        for positions in lengths:
            title = TITLES[work] + (", one block" if work != "roles" and positions >= LONG else "")
            own = _in_own_process(work, False, positions)
            assert own is not None, f"regard itself does not fit: {work} at {positions}"
            peer = _in_own_process(work, True, positions) if there else None
            cells = [title, f"{positions:,}"]
            if peer is None:
                cells += [f"does not fit in {LIMIT >> 30} GiB" if there else "", _figures(own), "", "", ""]
            else:
                numbers = [torch.tensor(one["found"], dtype=torch.float64) for one in (peer, own)]
                cells += [
                    _figures(peer), _figures(own), f"**{peer['seconds'] / own['seconds']:.2f}**",
                    f"**{peer['peak'] / own['peak']:.2f}**", _apart(work, numbers[0], numbers[1]),
                ]  # fmt: skip
            print("| " + " | ".join(cells) + " |", flush=True)


def _figures(one: dict[str, Any]) -> str:
    return f"{one['seconds']:.1f}, {one['peak']:,.0f}"


def _apart(work: str, peer: Tensor, own: Tensor) -> str:
    """The largest difference; of roles, which the two normalize over other queries, nothing is compared."""
    return "" if work == "roles" else f"{float((peer - own).abs().max()):.1e}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["way"]:
        print(json.dumps(run(sys.argv[2], sys.argv[3] == "1", int(sys.argv[4]))))
    else:
        main([int(one) for one in sys.argv[1:2]] or list(LENGTHS), sys.argv[2:] or list(WORKS))
