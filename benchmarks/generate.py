"""Speed of generating, beside transformers' `generate`, CTranslate2 and JoeyNMT: random weights, 30 output tokens each.

    python benchmarks/generate.py [THREADS]
    python benchmarks/generate.py profile

Three models (a small Transformer, one of opus-mt's size, and a recurrent one with additive attention), several batches
and beams. No model ends an output, so all write the same number of tokens. Each cell is the best of three; memory is
the resident size at the end of a process of its own. Needs transformers and ctranslate2 (`pip install -e ".[bench]"`);
the recurrent model has a peer where JoeyNMT is installed
(`pip install --no-deps joeynmt==2.3.0 subword-nmt importlib_metadata`). The second line prints where a step of the
small Transformer goes, in int8 on one thread.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

LENGTH, SOURCE = 30, 20
MODELS = {
    "256, 3+3, V 8,001": (
        {"width": 256, "encoder_layers": 3, "decoder_layers": 3, "heads": 4, "ffn_width": 1024},
        8001,
    ),
    "512, 6+6, V 58,101": (
        {"width": 512, "encoder_layers": 6, "decoder_layers": 6, "heads": 8, "ffn_width": 2048},
        58101,
    ),
    "GRU 256, V 8,001": ({"width": 256, "embedding": 256, "score_width": 256}, 8001),
}
CELLS = {
    "256, 3+3, V 8,001": [(1, 1), (8, 1), (32, 1), (32, 4)],
    "512, 6+6, V 58,101": [(1, 1), (8, 1), (32, 1)],
    "GRU 256, V 8,001": [(1, 1), (8, 1), (32, 1), (32, 4)],
}
OURS = ("regard float32", "regard int8", "regard int8 with maps")
PEERS = {
    "256, 3+3, V 8,001": ("transformers", "CTranslate2 float32", "CTranslate2 int8"),
    "512, 6+6, V 58,101": ("transformers", "CTranslate2 float32", "CTranslate2 int8"),
    "GRU 256, V 8,001": ("JoeyNMT",) if find_spec("joeynmt") else (),
}

WORK = {  # torch's operations, by what they are for
    "products": ("_int_mm", "onednn::qlinear_pointwise", "addmm", "linear"),
    "rounding to 8 bits and back": ("abs", "amax", "reciprocal", "round_", "_to_copy", "to", "addcmul", "mul", "copy_"),
    "attention": ("bmm", "baddbmm", "_softmax", "softmax"),
    "norms": ("native_layer_norm", "layer_norm"),
}


def regard_model(name: str) -> tuple[Any, Any]:
    """A model with random weights, and a tokenizer that has names for its tokens."""
    from regard.models.build import build
    from regard.models.recurrent import RecurrentConfig
    from regard.models.transformer import TransformerConfig

    sizes, vocabulary = MODELS[name]
    torch.manual_seed(0)
    recurrent = name.startswith("GRU")
    config: Any = (RecurrentConfig if recurrent else TransformerConfig)(
        kind="recurrent" if recurrent else "transformer", **sizes
    )
    return build(vocabulary, config).eval(), config


class Names:
    """A vocabulary of numbers."""

    pad, bos, eos = 0, 1, 2

    def __init__(self, count: int) -> None:
        self.names = ["<pad>", "<s>", "</s>", "<unk>", *(f"t{n}" for n in range(4, count))]

    def __len__(self) -> int:
        return len(self.names)

    def tokens(self, ids: Any) -> list[str]:
        """The tokens' names."""
        return [self.names[i] for i in ids]

    def save(self, path: Path) -> None:
        """Nothing is saved."""


def sources(count: int, vocabulary: int) -> list[list[int]]:
    """Random sentences of SOURCE tokens, EOS counted."""
    generator = torch.Generator().manual_seed(1)
    return [[*torch.randint(4, vocabulary, (SOURCE - 1,), generator=generator).tolist(), 2] for _ in range(count)]


def way(name: str, kind: str, threads: int) -> Callable[[int, int], Any]:
    """(batch, beam) -> the outputs of one way."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    vocabulary = MODELS[name][1]
    if kind.startswith("regard"):
        return _regard(name, kind)
    if kind == "transformers":
        return _transformers(name)
    if kind == "JoeyNMT":
        return _joeynmt(name)
    import ctranslate2

    from regard.bundle import Bundle
    from regard.export.ctranslate2 import write

    model, config = regard_model(name)
    precision = kind.split()[-1]
    with tempfile.TemporaryDirectory() as folder:
        write(Bundle("translate", ("", ""), model, config, Names(vocabulary)), Path(folder), precision)
        translator = ctranslate2.Translator(folder, compute_type=precision, intra_threads=threads, inter_threads=1)
    names = Names(vocabulary)

    def run(batch: int, beam: int) -> Any:
        tokens = [names.tokens(row[:-1]) for row in sources(batch, vocabulary)]
        return translator.translate_batch(
            tokens, beam_size=beam, min_decoding_length=LENGTH, max_decoding_length=LENGTH, max_batch_size=batch
        )

    return run


def _regard(name: str, kind: str) -> Callable[[int, int], Any]:
    from regard.data.batching import lengths_mask, pad
    from regard.decoding.generate import generate, maps_of
    from regard.decoding.search import SearchConfig
    from regard.models.planned import Plans
    from regard.process import keep_freed_memory, leave_out_what_is_loaded

    keep_freed_memory()  # as `regard translate` does, and what follows
    leave_out_what_is_loaded()
    model, _ = regard_model(name)
    plans, record = Plans("int8" if "int8" in kind else "float32"), "maps" in kind

    def run(batch: int, beam: int) -> Any:
        with torch.inference_mode():
            rows = sources(batch, MODELS[name][1])
            encoder, decoder = plans.of(model)
            state = decoder.start(encoder.encode(pad(rows, 0), lengths_mask(rows)), record=record)
            before = [[1]] * batch
            found = generate(decoder, state, before, [LENGTH] * batch, SearchConfig(beam, 0.6, 1), [])
            assert all(len(one[0].tokens) == LENGTH for one in found)
            return [maps_of(decoder, one[0]) for one in found] if record else found

    return run


def _transformers(name: str) -> Callable[[int, int], Any]:
    from transformers import MarianConfig, MarianMTModel

    sizes, vocabulary = MODELS[name]
    config = MarianConfig(
        vocab_size=vocabulary, d_model=sizes["width"], encoder_layers=sizes["encoder_layers"],
        decoder_layers=sizes["decoder_layers"], encoder_attention_heads=sizes["heads"],
        decoder_attention_heads=sizes["heads"], encoder_ffn_dim=sizes["ffn_width"], decoder_ffn_dim=sizes["ffn_width"],
        pad_token_id=0, decoder_start_token_id=1, eos_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    model = MarianMTModel(config).eval()

    def run(batch: int, beam: int) -> Any:
        ids = torch.tensor(sources(batch, vocabulary))
        found = model.generate(
            ids, num_beams=beam, do_sample=False, min_new_tokens=LENGTH, max_new_tokens=LENGTH,
            attention_mask=torch.ones_like(ids),
        )  # fmt: skip
        assert found.shape[1] == LENGTH + 1
        return found

    return run


def _joeynmt(name: str) -> Callable[[int, int], Any]:
    from joeynmt.search import beam_search, greedy
    from measure import joeynmt_model

    sizes, vocabulary = MODELS[name]
    model = joeynmt_model(vocabulary, sizes["width"]).eval()

    def run(batch: int, beam: int) -> Any:
        source = torch.tensor(sources(batch, vocabulary))
        mask = torch.ones(batch, 1, SOURCE, dtype=torch.bool)
        states, last, _, _ = model(
            return_type="encode", src=source, src_length=torch.full((batch,), SOURCE), src_mask=mask
        )
        how = {
            "src_mask": mask, "max_output_length": LENGTH, "min_output_length": LENGTH, "model": model,
            "encoder_output": states, "encoder_hidden": last,
        }  # fmt: skip
        found = greedy(**how) if beam == 1 else beam_search(beam_size=beam, alpha=0.6, **how)
        assert found[0].shape == (batch, LENGTH)
        return found

    return run


def measure(name: str, kind: str, threads: int) -> dict[str, Any]:
    """Tokens a second of every cell, and the process's largest resident size in MiB."""
    run = way(name, kind, threads)
    found: dict[str, Any] = {}
    for batch, beam in CELLS[name]:
        run(batch, beam)
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            run(batch, beam)
            best = min(best, time.perf_counter() - start)
        found[f"{batch} × {beam}"] = batch * LENGTH / best
    status = Path("/proc/self/status").read_text("utf-8")
    found["peak"] = int(status.split("VmHWM:")[1].split()[0]) / 1024
    return found


def profile() -> None:
    """Where a step goes: operations and microseconds of each kind, by torch's profiler, as rows of a table."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    name = "256, 3+3, V 8,001"
    run = way(name, "regard int8", 1)
    print("| batch × beam | work | operations of a step | µs of a step |\n|---|---|---|---|")
    for batch, beam in CELLS[name]:
        run(batch, beam)
        with profiled(activities=[ProfilerActivity.CPU]) as found:
            run(batch, beam)
        total: dict[str, list[float]] = {}
        for one in found.key_averages():
            kind = next((kind for kind, names in WORK.items() if one.key.removeprefix("aten::") in names), "the rest")
            row = total.setdefault(kind, [0.0, 0.0])
            row[0] += one.count / LENGTH
            row[1] += one.self_cpu_time_total / LENGTH
        for kind in (*WORK, "the rest"):
            count, spent = total[kind]
            print(f"| {batch} × {beam} | {kind} | {count:,.0f} | {spent:,.0f} |")


def main(threads: int) -> None:
    """The table."""
    print(f"tokens a second, {threads} thread(s), {LENGTH} output tokens for {SOURCE} source tokens\n")
    for name, peers in PEERS.items():
        ways = [*OURS, *peers]
        rivals = [peer for peer in peers if peer != "CTranslate2 float32"]
        head = ["model", "batch × beam", *ways, *(f"regard int8 / {peer}" for peer in rivals)]
        print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
        found = {}
        for kind in ways:
            command = [sys.executable, __file__, "--one", name, kind, str(threads)]
            found[kind] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for cell in [f"{batch} × {beam}" for batch, beam in CELLS[name]]:
            numbers = {kind: found[kind][cell] for kind in ways}
            ratios = [f"{numbers['regard int8'] / numbers[peer]:.2f}" for peer in rivals]
            print(f"| {' | '.join([name, cell, *(f'{n:,.0f}' for n in numbers.values()), *ratios])} |")
        peaks = [f"{found[kind]['peak']:,.0f}" for kind in ways]
        print(f"| {' | '.join([name, 'peak memory, MiB', *peaks, *([''] * len(rivals))])} |\n", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
    elif sys.argv[1:2] == ["profile"]:
        profile()
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
