"""A training run on a billion sentence pairs, on paper: bytes, tokens a second, machines, hours.

    python benchmarks/plan.py [--pairs 1e9] [--parameters 200e6] [--machines 8] [--devices 8]

Every line is arithmetic on the numbers above it; those that are assumed are options with a reason. Nothing is measured
here: replace what you have measured.
"""

import argparse
from dataclasses import dataclass

SECONDS = 3600


@dataclass(frozen=True)
class Plan:
    """What is assumed.

    Attributes:
        pairs: sentence pairs.
        words: of a sentence, on each side.
        pieces: tokens a word.
        epochs: times that every pair is seen.
        parameters: of the model, embeddings included.
        machines, devices: how many machines, and accelerators in each.
        flops: floating-point operations a second of an accelerator in bfloat16, at best.
        used: share of them that training reaches.
        batch_tokens: target tokens of a global batch.
        bandwidth: bytes a second between machines.
        prepared: pairs a second that one core prepares.
        cores: cores of a machine that prepare.
    """

    pairs: float = 1e9
    words: float = 20
    pieces: float = 1.3
    epochs: float = 3
    parameters: float = 200e6
    machines: int = 8
    devices: int = 8
    flops: float = 990e12
    used: float = 0.35
    batch_tokens: float = 400_000
    bandwidth: float = 50e9
    prepared: float = 5_000
    cores: int = 64


def lines(plan: Plan) -> list[tuple[str, str, str]]:
    """(quantity, value, arithmetic)."""
    tokens = plan.pairs * plan.words * plan.pieces  # of one side
    text = 2 * plan.pairs * plan.words * 6
    ids = 2 * (4 * tokens + 8 * plan.pairs)
    processes = plan.machines * plan.devices
    work = 6 * plan.parameters * tokens * plan.epochs  # both sides pass about half of the parameters each
    speed = processes * plan.flops * plan.used
    steps = tokens * plan.epochs / plan.batch_tokens
    hours = work / speed / SECONDS
    exchanged = 2 * 2 * plan.parameters * (processes - 1) / processes
    step = hours * SECONDS / steps
    prepare = plan.pairs / (plan.prepared * plan.cores * plan.machines) / SECONDS
    return [
        ("target tokens of an epoch", f"{tokens / 1e9:,.1f} billion", "pairs × words × tokens a word"),
        ("text on disk", f"{text / 2**30:,.0f} GiB", "2 × pairs × words × 6 bytes"),
        ("prepared corpus on disk", f"{ids / 2**30:,.0f} GiB", "2 × (4 bytes a token + 8 a pair)"),
        (
            "memory for the order of the examples", f"{3 * 8 * 2**19 / 2**20:,.0f} MiB",
            "2¹⁹ examples, which are shuffled together (a pool), 3 × 8 bytes",
        ),
        ("preparation", f"{prepare:,.1f} hours", "pairs / (pairs a second of a core × cores × machines)"),
        ("weights, gradients, moments", f"{16 * plan.parameters / 2**30:,.1f} GiB", "16 bytes a parameter, with ddp"),
        ("the same with fsdp", f"{16 * plan.parameters / processes / 2**30:,.2f} GiB", "divided by the processes"),
        ("floating-point operations", f"{work:.1e}", "6 × parameters × target tokens × epochs"),
        ("target tokens a second", f"{speed / 6 / plan.parameters:,.0f}", "devices × FLOP/s × share / 6 / parameters"),
        ("updates", f"{steps:,.0f}", "target tokens × epochs / batch"),
        ("an update", f"{step:.2f} s", "time / updates"),
        ("exchanging gradients", f"{exchanged / plan.bandwidth:.3f} s an update", "4 bytes a parameter / bandwidth"),
        ("training", f"{hours:,.1f} hours on {processes} devices", "operations / (devices × FLOP/s × share)"),
        ("device hours", f"{hours * processes:,.0f}", "hours × devices"),
        ("checkpoints", f"{12 * plan.parameters / 2**30:,.1f} GiB each", "weights and two moments, 4 bytes each"),
    ]  # fmt: skip


def main() -> None:
    """Print the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in vars(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    print("| quantity | value | arithmetic |\n|---|---|---|")
    for row in lines(Plan(**vars(parser.parse_args()))):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
