"""The process is left as it was found: by importing, loading, observing, training, and by every public function."""

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn

import regard
from conftest import tiny
from regard import process

LENGTH, WIDTH = 5, 8


def state() -> dict[str, Any]:
    """Everything of a process that a library could leave changed."""
    return {
        "torch's random numbers": torch.get_rng_state().tolist(),
        # Python's own are drawn by the run-time type checks of tests; a process without them is looked at below
        "NumPy's random numbers": [str(part) for part in np.random.get_state()],
        "denormals": process._flushes_denormals(),
        "threads": torch.get_num_threads(),
        "default type": torch.get_default_dtype(),
        "default device": str(torch.get_default_device()),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision of products": torch.get_float32_matmul_precision(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "filters of warnings": list(warnings.filters),
        "format of warnings": warnings.formatwarning,
        "backend": dict.__getitem__(matplotlib.rcParams, "backend"),
        "fonts": list(matplotlib.rcParams["font.family"]),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "hooks": [len(hooks) for hooks in (
            torch.nn.modules.module._global_forward_hooks, torch.nn.modules.module._global_forward_pre_hooks,
        )],
        "profile": (torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.enabled),
    }  # fmt: skip


@contextmanager
def as_found() -> Iterator[None]:
    """A block that leaves the process as it was."""
    before = state()
    yield
    after = state()
    assert [name for name in before if before[name] != after[name]] == []


def tensors(generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(1, 2, LENGTH, WIDTH, generator=generator) for _ in range(3))


class Probe(nn.Module):
    """A torch model with one attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x)[0]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[], object]]:
    """A call of every public function that is no class, by name."""
    q, k, v = tensors(torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("state")
    probe, translator = Probe(), regard.load("fr-en")
    x = torch.zeros(1, LENGTH, WIDTH)
    ids = torch.tensor([[0, 0, 1, 1, 1]])
    seen = regard.attention_map(q, k)
    text = "le chat noir"

    def observed() -> None:
        with regard.observe(probe) as maps:
            probe(x)
        maps["attention"][0].full()

    def intervened() -> None:
        with regard.intervene(probe, "attention", lambda weights: weights):
            probe(x)

    def swapped() -> None:
        with regard.swap(probe, normalizer="softmax1"):
            probe(x)

    def saved() -> None:
        seen.save(folder / "map.safetensors")
        regard.AttentionMap.load(folder / "map.safetensors").plot(folder / "map.svg")

    generation = translator(text, beam=2)
    return {
        "attend": lambda: regard.attend(q, k, v, mask=regard.causal()), "attention_map": saved,
        "plan": lambda: regard.plan(q, k, v), "observe": observed, "intervene": intervened, "swap": swapped,
        "load": lambda: regard.load("fr-en-rnn")(text), "causal": regard.causal, "window": lambda: regard.window(2),
        "padding": lambda: regard.padding(torch.tensor([3])), "documents": lambda: regard.documents(ids),
        "prefix": lambda: regard.prefix(2), "blocks": lambda: regard.blocks(torch.ones(1, 1, dtype=torch.bool), LENGTH),
        "allow": lambda: regard.allow(torch.ones(LENGTH, LENGTH, dtype=torch.bool)), "alibi": lambda: regard.alibi(2),
        "sinusoidal": lambda: regard.sinusoidal(LENGTH, WIDTH), "flow": lambda: regard.flow([seen.select(0)]),
        "logit_lens": lambda: regard.logit_lens(regard.load("english"), "the [MASK] of the river").top(1),
        "contributions": lambda: regard.contributions(generation, 0),
        "why": lambda: regard.why(generation.attention["decoder.layers.0.cross"].select(0), 0, 0),
    }  # fmt: skip


NOT_CALLED = {  # tested below, or in need of many inputs: what they call is called here
    "train", "patch", "attribute_patches", "roles", "ablations", "faithfulness", "big_bird", "strided", "combine",
    "chosen", "neighbourhood", "export", "as_dot",
}  # fmt: skip


def test_every_public_function_has_a_call(calls: dict[str, Callable[[], object]]) -> None:
    functions = {
        name for name in regard.__all__
        if name[0].islower() and callable(getattr(regard, name)) and not isinstance(getattr(regard, name), type)
    }  # fmt: skip
    assert functions - set(calls) - NOT_CALLED == set()


def test_every_public_function_leaves_the_process_as_it_was(calls: dict[str, Callable[[], object]]) -> None:
    held = 0
    for name, call in calls.items():
        try:
            with as_found():
                call()
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
        held += 1
    print(f"public functions: {len(calls)} called, {held} left the process as it was")


def test_the_comparison_sees_a_change() -> None:
    with pytest.raises(AssertionError, match="torch's random numbers"), as_found():
        torch.rand(1)


def test_training_leaves_the_process_as_it_was(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    monkeypatch.setattr(process, "keep_freed_memory", lambda: pytest.fail("the allocator is the process's own"))
    torch.set_flush_denormal(True)
    try:
        with as_found():
            regard.train(tiny("recurrent", max_steps=1, evaluate_every=1), run=tmp_path / "run")
    finally:
        torch.set_flush_denormal(False)


def test_the_command_leaves_the_process_as_it_was(talk: Any) -> None:
    with as_found():
        talk("translate", "--model", "nonsense", "x")


@pytest.mark.slow
def test_importing_and_loading_leaves_the_process_as_it_was() -> None:
    import subprocess
    import sys

    code = (
        "import os, warnings, signal, random\n"
        "import torch, numpy, matplotlib, pydantic, sympy, transformers\n"  # what others set is theirs
        "before = dict(os.environ), signal.getsignal(2), random.getstate(), "
        "torch.get_rng_state().tolist(), torch.get_num_threads(), dict.__getitem__(matplotlib.rcParams, 'backend')\n"
        "import regard\n"
        "[getattr(regard, name) for name in regard.__all__]\n"
        "regard.load('fr-en-rnn')('le chat noir').attention\n"
        "after = dict(os.environ), signal.getsignal(2), random.getstate(), "
        "torch.get_rng_state().tolist(), torch.get_num_threads(), dict.__getitem__(matplotlib.rcParams, 'backend')\n"
        "print([n for n, (a, b) in enumerate(zip(before, after)) if a != b])\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.stdout == "[]\n"
