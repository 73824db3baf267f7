"""Lines a second of `regard translate` on a file of 10,000 lines, beside CTranslate2 on the same weights.

    python benchmarks/file.py [--lines 10000] [--model fr-en] [--beam 4] [--threads 2]

Whole commands, start and loading included, each in a process of its own with its peak memory; the lines are the French
side of Tatoeba ($REGARD_DATA), spread over the file. Every command writes one line for each line. CTranslate2's own row
gives its translator batches of the tokens that regard's tokenizer makes, without alignment: the least that a program
around it does.
"""

import argparse
import gzip
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CTRANSLATE2 = """
import sys, ctranslate2, regard
model = regard.load({name!r})
engine = ctranslate2.Translator({folder!r}, compute_type="int8", intra_threads={threads}, inter_threads=1)
names = model.tokenizer.tokens(range(len(model.tokenizer)))
ids = {{name: n for n, name in enumerate(names)}}
lines = [line.rstrip("\\n") for line in sys.stdin]
rows = [model.tokenizer.tokens(model.tokenizer.encode(line)) for line in lines]
how = dict(beam_size={beam}, max_batch_size=1024, batch_type="tokens", max_decoding_length=200)
found = engine.translate_batch(rows, **how)
for one in found:
    print(model.tokenizer.decode([ids[name] for name in one.hypotheses[0]]).strip())
"""


def lines_of(count: int, language: str = "fr") -> list[str]:
    """Some sentences of one side of the corpus, evenly spaced."""
    path = Path(os.environ["REGARD_DATA"]) / "tatoeba-fra-eng" / "pairs.en-fr.tsv.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        every = [line.rstrip("\n").split("\t")[language == "fr"] for line in file]
    return [every[n * len(every) // count] for n in range(count)]


def run(command: list[str], text: str, threads: int) -> tuple[float, float, int]:
    """Seconds, peak MiB, and lines of output of a command."""
    before = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    made = subprocess.run(command, input=text, capture_output=True, text=True, check=True, env=environment)
    spent = time.perf_counter() - before
    return spent, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, made.stdout.count("\n")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--model", default="fr-en")
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    lines = lines_of(given.lines)
    text = "".join(f"{line}\n" for line in lines)
    own = [sys.executable, "-m", "regard", "translate", "--model", given.model, "--beam", str(given.beam),
           "--threads", str(given.threads)]  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        folder = str(Path(place) / "model")
        export = [sys.executable, "-m", "regard", "export", given.model, folder, "--layout", "ctranslate2"]
        subprocess.run([*export, "--precision", "int8"], check=True, capture_output=True)
        bare = CTRANSLATE2.format(name=given.model, folder=folder, threads=given.threads, beam=given.beam)
        commands = {
            "`regard translate`": own,
            "`regard translate --precision int8`": [*own, "--precision", "int8"],
            "`regard translate --engine ctranslate2 --precision int8`": [*own, "--engine", "ctranslate2",
                                                                         "--precision", "int8"],
            "CTranslate2 int8, a program around it": [sys.executable, "-c", bare],
        }  # fmt: skip
        print(f"{given.lines:,} lines, {given.model}, beam {given.beam}, {given.threads} threads\n")
        print("| command | seconds | lines/s | peak MiB of any so far |\n|---|---|---|---|")
        for name, command in commands.items():
            seconds, peak, count = run(command, text, given.threads)
            assert count == len(lines), (name, count)
            print(f"| {name} | {seconds:.1f} | {len(lines) / seconds:,.0f} | {peak:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
