"""Hidden words of the English side of Tatoeba: our encoder beside a bidirectional GRU and the words' own frequencies.

python benchmarks/masked.py RUN        (RUN: a finished run of `regard train english`; REGARD_DATA must be set)

The same tokenizer, the same hidden tokens of the development sentences. The GRU has one layer of 384 each way and is
trained on as many updates of the same batches with AdamW (1e-3, cosine).
"""

import sys
from math import cos, exp, pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import regard
from regard.data.texts import read_texts
from regard.experiment import read_config
from regard.tasks import language

WIDTH, HIDDEN = 256, 384


class BiGRU(nn.Module):
    """Embedding, one bidirectional GRU, logits by the embedding's weights."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.gru = nn.GRU(WIDTH, HIDDEN, bidirectional=True, batch_first=True)
        self.join = nn.Linear(2 * HIDDEN, WIDTH)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        nn.init.normal_(self.tokens.weight, std=WIDTH**-0.5)

    def forward(self, batch: Any) -> Tensor:
        """Logits of the hidden tokens."""
        packed = nn.utils.rnn.pack_padded_sequence(
            self.tokens(batch.tokens), batch.allowed.sum(1), batch_first=True, enforce_sorted=False
        )
        states, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return self.join(states[batch.target != 0]) @ self.tokens.weight.T + self.bias


def loss_of(model: nn.Module, batches: Any) -> float:
    """Nats per hidden token."""
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for batch in batches.epoch(0):
            wanted = batch.target[batch.target != 0]
            total += float(cross_entropy(model(batch), wanted, reduction="sum"))
            tokens += len(wanted)
    return total / tokens


def main() -> None:
    """Print the three as Markdown."""
    run = Path(sys.argv[1])
    settings = read_config(run / "config.toml")
    assert settings.texts is not None  # a run that fills gaps has them
    texts, bundle = read_texts(settings.texts), regard.load(run.resolve()).bundle
    tokenizer, training = bundle.tokenizer, settings.training
    train, dev = (
        language.examples(part, "fill", tokenizer, settings.texts, training, moves)
        for part, moves in ((texts.train, True), (texts.dev, False))
    )
    counts = torch.ones(len(tokenizer))
    for ids in tokenizer.encode_batch(texts.train):
        counts += torch.bincount(torch.tensor(ids), minlength=len(tokenizer))
    share = (counts / counts.sum()).log()
    hidden = torch.cat([batch.target[batch.target != 0] for batch in dev.epoch(0)])
    unigram = -float(share[hidden].mean())
    with torch.inference_mode():
        ours, tokens = language.mean_loss(bundle.model, dev)
    torch.manual_seed(0)
    gru = BiGRU(len(tokenizer))
    optimizer = torch.optim.AdamW(gru.parameters(), 1e-3, fused=True)
    step, epoch = 0, 0
    while step < training.max_steps:
        for batch in train.epoch(epoch):
            rate = min(1.0, step / 100) * 0.5 * (1 + cos(pi * step / training.max_steps))
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * rate
            loss = cross_entropy(gru(batch), batch.target[batch.target != 0])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(gru.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step == training.max_steps:
                break
        epoch += 1
    recurrent = loss_of(gru.eval(), dev)
    print(f"{len(texts.dev):,} development sentences, {tokens:,} hidden tokens: `python benchmarks/masked.py RUN`\n")
    print("| model | parameters | loss, nats a hidden token | perplexity |\n|---|---|---|---|")
    for name, parameters, value in (
        ("the tokens' frequencies in the training text", len(tokenizer), unigram),
        ("bidirectional GRU", sum(p.numel() for p in gru.parameters()), recurrent),
        ("ours", sum(p.numel() for p in bundle.model.parameters()), ours),
    ):
        print(f"| {name} | {parameters:,} | {value:.3f} | {exp(value):.1f} |")


if __name__ == "__main__":
    main()
