"""What attention adds: runs that differ in nothing else, on their development pairs, as a Markdown table.

    regard train fr-en-rnn --run runs/none --set model.score=none --set training.guided_alignment=0
    regard train fr-en-rnn --run runs/luong --set model.score=dot --set model.asks=new \\
        --set model.feed=previous
    regard train fr-en-rnn --run runs/bahdanau
    python benchmarks/ladder.py runs/none runs/luong runs/bahdanau

Beam 4, full precision; also sentences of up to 6, 7 to 12, and more source words, where a fixed vector must hold
more and more. Needs $REGARD_DATA.
"""

import sys
from pathlib import Path

import sacrebleu

from regard.experiment import read_config
from regard.pipelines.load import load
from regard.tasks.translation import read_data

LENGTHS = {"up to 6 words": (0, 6), "7 to 12": (7, 12), "13 and more": (13, 10**6)}


def row(run: Path) -> str:
    """One run's line of the table."""
    dev = read_data(read_config(run / "config.toml"))[1]
    outputs = [g.text for g in load(run.resolve()).many(dev.source, beam=4, record=False)]
    cells = [
        f"{sacrebleu.corpus_bleu(outputs, [dev.target]).score:.2f}",
        f"{sacrebleu.corpus_chrf(outputs, [dev.target]).score:.2f}",
    ]
    for least, most in LENGTHS.values():
        chosen = [n for n, source in enumerate(dev.source) if least <= len(source.split()) <= most]
        part = sacrebleu.corpus_bleu([outputs[n] for n in chosen], [[dev.target[n] for n in chosen]]).score
        cells.append(f"{part:.2f} ({len(chosen)})")
    return f"| {run.name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table of the runs that the command line names."""
    print(f"| run | BLEU | chrF | {' | '.join(f'BLEU, {name}' for name in LENGTHS)} |")
    print("|---" * (3 + len(LENGTHS)) + "|")
    for run in sys.argv[1:]:
        print(row(Path(run)), flush=True)


if __name__ == "__main__":
    main()
