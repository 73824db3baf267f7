"""Training steps of encoder-decoders beside the usual ways of writing them, on the same padded batches in turns.

python benchmarks/training.py                 the table, as Markdown, with one thread and with two
python benchmarks/training.py GRU             its lines of the models whose names begin so
python benchmarks/training.py profile         where a step's time goes instead

A turn is the whole of some batches, forward, backward and update. The batches are sentence pairs of Multi30k
($REGARD_DATA/multi30k), cut into 8,000 subwords; where that is not set, random tokens of similar lengths. JoeyNMT is
measured where it is installed (`pip install --no-deps joeynmt==2.3.0 subword-nmt importlib_metadata`).
"""

import gzip
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from measure import Row, compare, joeynmt_model, machine, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from regard.data.batching import Batches, PairBatch
from regard.models.build import build
from regard.models.recurrent import RecurrentConfig
from regard.models.transformer import TransformerConfig
from regard.process import tuned
from regard.text.tokenizer import BOS, EOS, PAD, Tokenizer, TokenizerConfig
from regard.training.config import TrainingConfig
from regard.training.objective import Objective
from regard.training.optimizer import make_optimizer

V, WIDTH, INNER, LAYERS, TOKENS = 8000, 256, 1024, 3, 3000
BATCHES, TURNS = 4, 5
OURS = "regard"
Step = Callable[[PairBatch], object]
AGAINST = [
    "| threads | model | products | peer | its target tokens/s | ours | times faster | its MiB | ours |",
    "|---|---|---|---|---|---|---|---|---|",
]


class TorchTransformer(nn.Module):
    """`torch.nn.Transformer` between a shared embedding and an output layer that is tied to it."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, WIDTH)
        nn.init.normal_(self.embedding.weight, std=WIDTH**-0.5)
        self.places = nn.Embedding(512, WIDTH)
        self.body = nn.Transformer(WIDTH, heads, LAYERS, LAYERS, INNER, 0.1, batch_first=True, norm_first=True)

    def forward(self, batch: PairBatch) -> Tensor:
        """Logits `[B, T, V]`."""
        source, target = (self._embed(tokens) for tokens in (batch.source, batch.previous))
        hidden = batch.source_allowed.logical_not()
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        states = self.body(
            source, target, tgt_mask=causal, src_key_padding_mask=hidden, memory_key_padding_mask=hidden,
            tgt_is_causal=True,
        )  # fmt: skip
        return states @ self.embedding.weight.T

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens) * WIDTH**0.5 + self.places(torch.arange(tokens.shape[1]))


class Marian(nn.Module):
    """`MarianMTModel` of transformers, with its attention by torch's kernel."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        from transformers import MarianConfig, MarianMTModel

        sizes = {
            f"{side}_{name}": size
            for side in ("encoder", "decoder")
            for name, size in (("layers", LAYERS), ("attention_heads", heads), ("ffn_dim", INNER))
        }
        config = MarianConfig(
            vocab_size=V, d_model=WIDTH, dropout=0.1, activation_function="relu", scale_embedding=True,
            max_position_embeddings=512, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=BOS, **sizes,
        )  # fmt: skip
        self.body = MarianMTModel._from_config(config, attn_implementation="sdpa")

    def forward(self, batch: PairBatch) -> Tensor:
        """Logits `[B, T, V]`."""
        return self.body(
            input_ids=batch.source, attention_mask=batch.source_allowed.long(), decoder_input_ids=batch.previous,
            use_cache=False,
        ).logits  # fmt: skip


class Tutorial(nn.Module):
    """A recurrent encoder-decoder as in tutorials: `nn.GRU`, then `nn.GRUCell` and additive attention by steps."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, WIDTH)
        self.encoder = nn.GRU(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)
        self.start = nn.Linear(WIDTH, WIDTH)
        self.asks, self.keys, self.energy = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.cell = nn.GRUCell(2 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)
        self.output = nn.Linear(2 * WIDTH, V)

    def forward(self, batch: PairBatch) -> Tensor:
        """Logits `[B, T, V]`."""
        lengths = batch.source_allowed.sum(1)
        packed = nn.utils.rnn.pack_padded_sequence(
            self.dropout(self.embedding(batch.source)), lengths, batch_first=True, enforce_sorted=False
        )
        states, last = self.encoder(packed)
        memory, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=batch.source.shape[1])
        state, keys, outputs = torch.tanh(self.start(torch.cat([*last], -1))), self.keys(memory), []
        for vector in self.dropout(self.embedding(batch.previous)).unbind(1):
            scores = self.energy(torch.tanh(self.asks(state)[:, None] + keys))[..., 0]
            weights = scores.masked_fill(~batch.source_allowed, -torch.inf).softmax(-1)
            context = torch.bmm(weights[:, None].to(memory.dtype), memory)[:, 0]
            state = self.cell(torch.cat([vector, context], -1), state)
            outputs.append(torch.cat([state, context], -1))
        return self.output(self.dropout(torch.stack(outputs, 1)))


class Joey(nn.Module):
    """JoeyNMT's recurrent model, whose attention vector is the next step's input (input feeding)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = joeynmt_model(V, WIDTH, 0.1)

    def forward(self, batch: PairBatch) -> Tensor:
        """Logits `[B, T, V]`."""
        order = batch.source_allowed.sum(1).sort(descending=True, stable=True)  # its encoder packs sorted sentences
        logits, *_ = self.body._encode_decode(
            src=batch.source[order.indices], trg_input=batch.previous[order.indices],
            src_mask=batch.source_allowed[order.indices, None], src_length=order.values,
            trg_mask=batch.target_allowed[order.indices, None],
        )  # fmt: skip
        return logits[order.indices.argsort()]


def plain_step(model: nn.Module, half: bool) -> Step:
    """The training loop of a tutorial: autocast, cross-entropy over all logits, a clipped gradient, AdamW."""
    optimizer = torch.optim.AdamW(model.train().parameters(), 1e-4, fused=True)

    def step(batch: PairBatch) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            logits = model(batch)
            target = batch.target.masked_fill(~batch.target_allowed, -100)
            loss = cross_entropy(logits.flatten(0, 1).float(), target.flatten(), label_smoothing=0.1)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def our_step(config: Any, half: bool) -> Step:
    """regard's own update, with the same settings."""
    settings = TrainingConfig(precision="bfloat16" if half else "float32", learning_rate=1e-4)
    objective = Objective(build(V, config), settings, PAD).train()
    optimizer = make_optimizer(objective.model, settings)

    def step(batch: PairBatch) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss, _, tokens = objective(batch)
        (loss / tokens).backward()
        nn.utils.clip_grad_norm_(objective.parameters(), settings.clip)
        optimizer.step()

    return step


def models(half: bool, only: str = "") -> Iterator[tuple[str, Mapping[str, Step]]]:
    """Every model whose name begins so, with its ways, one after the other in memory."""
    torch.manual_seed(0)
    for heads in (4, 8) if "Transformer".startswith(only) else ():
        config = TransformerConfig(
            kind="transformer", width=WIDTH, heads=heads, ffn_width=INNER, encoder_layers=LAYERS, decoder_layers=LAYERS
        )
        yield (
            f"Transformer, {heads} heads",
            {
                "torch.nn.Transformer": plain_step(TorchTransformer(heads), half),
                "transformers' Marian": plain_step(Marian(heads), half),
                OURS: our_step(config, half),
            },
        )
    if not "GRU".startswith(only):
        return
    recurrent = RecurrentConfig(kind="recurrent", width=WIDTH, embedding=WIDTH, score_width=WIDTH)
    yield (
        "GRU, additive attention",
        {
            "a loop over nn.GRUCell": plain_step(Tutorial(), half),
            **({"JoeyNMT": plain_step(Joey(), half)} if find_spec("joeynmt") else {}),
            OURS: our_step(recurrent, half),
        },
    )


def batches() -> list[PairBatch]:
    """Some padded batches, of Multi30k where it is there."""
    folder = Path(os.environ.get("REGARD_DATA", "")) / "multi30k"
    if not folder.is_dir():
        return [_random_batch(n, s, t) for n, s, t in ((125, 23, 16), (166, 18, 15), (142, 21, 16), (73, 41, 23))]
    german, english = (
        gzip.decompress((folder / f"train.{side}.gz").read_bytes()).decode().splitlines() for side in ("de", "en")
    )
    tokenizer = Tokenizer.learn([*english, *german], TokenizerConfig(vocabulary=V))
    pairs = list(zip(tokenizer.encode_batch(german), tokenizer.encode_batch(english), strict=True))
    made = Batches(pairs, TOKENS, BOS, EOS, PAD)
    return [made.collate(indices) for indices in made.order(0)[:BATCHES]]


def _random_batch(n: int, s: int, t: int) -> PairBatch:
    torch.manual_seed(n)
    source, target = torch.randint(4, V, (n, s)), torch.randint(4, V, (n, t))
    lengths = [
        torch.randint(most * 3 // 4, most + 1, (n, 1)).index_fill_(0, torch.tensor([0]), most) for most in (s, t)
    ]
    previous = torch.cat([torch.full((n, 1), BOS), target[:, :-1]], 1)
    return PairBatch(source, torch.arange(s) < lengths[0], previous, target, torch.arange(t) < lengths[1])


def rows(threads: int, name: str, half: bool, found: list[Row], tokens: int) -> list[str]:
    """A line for every peer."""
    own = next(row for row in found if row.name == OURS)
    return [
        f"| {threads} | {name} | {'bfloat16' if half else 'float32'} | {row.name} | {tokens / row.seconds:,.0f} "
        f"| {tokens / own.seconds:,.0f} | **{row.seconds / own.seconds:.2f}** | {row.peak:,.0f} | {own.peak:,.0f} |"
        for row in found
        if row.name != OURS
    ]


def measured(data: list[PairBatch], only: str = "") -> Iterator[str]:
    """The table's lines."""
    tokens = sum(int(batch.target_allowed.sum()) for batch in data)
    for threads in range(1, 1 + min(2, os.cpu_count() or 1)):
        torch.set_num_threads(threads)
        for half in (True, False):
            for name, steps in models(half, only):
                ways = {title: lambda step=step: [step(batch) for batch in data] for title, step in steps.items()}
                yield from rows(threads, name, half, compare(ways, TURNS), tokens)


PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "copies and casts": ("aten::copy_",),
    "dropout": ("aten::random_", "aten::ge_"),
    "softmax, logarithms": ("aten::_softmax", "aten::exp_", "aten::log", "aten::amax", "aten::_log_softmax"),
    "norms": ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    "update and clipping": ("aten::_fused_adamw_", "aten::linalg_vector_norm"),
    "attention by torch's kernel": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
}


def profile(data: list[PairBatch]) -> Iterator[str]:
    """Where the time of our steps goes, in per cent."""
    yield f"| model | products | {' | '.join(PARTS)} | everything else |\n|---|---|{'---|' * (len(PARTS) + 1)}"
    for half in (False, True):
        for name, steps in models(half):
            for batch in [*data, *data]:
                steps[OURS](batch)
            with torch.profiler.profile() as taken:
                for batch in data:
                    steps[OURS](batch)
            times = {event.key: event.self_cpu_time_total for event in taken.key_averages()}
            shares = [sum(times.get(key, 0) for key in keys) / sum(times.values()) for keys in PARTS.values()]
            cells = " | ".join(f"{100 * share:.0f}" for share in [*shares, 1 - sum(shares)])
            yield f"| {name} | {'bfloat16' if half else 'float32'} | {cells} |"


def main() -> None:
    """Print the table, or the profile; both go into the documentation."""
    only = next(iter(sys.argv[1:]), "")
    is_profile = only == "profile"
    if is_profile:
        torch.set_num_threads(1)
    data = batches()
    lines = [f"Measured on {machine()} (`python benchmarks/training.py{' profile' * is_profile}`).", ""]
    lines += [] if is_profile else AGAINST
    print("\n".join(lines))
    with tuned():
        for line in profile(data) if is_profile else measured(data, only):
            print(line, flush=True)
            lines.append(line)
    if only and not is_profile:
        return
    write("benchmarks.md", "profile of training" if is_profile else "training", "\n".join(lines))


if __name__ == "__main__":
    main()
