"""Translators of Multi30k (Elliott et al. 2016) as the papers score them, as rows of a Markdown table.

    python benchmarks/multi30k.py RUN [RUN …] [--part val|test] [--beam 5] [--length-penalty 1.0] [--output FOLDER]

    python benchmarks/multi30k.py --train RUNS

The second line trains the ladder, German to English with attention or without, one budget for all: RUNS/none, RUNS/dot,
RUNS/general, RUNS/additive and RUNS/transformer; what is finished is left, what was stopped goes on.

RUN is the folder of a run on $REGARD_DATA/multi30k, in any direction. Without --part: val, 1,014 pairs, on
which everything is chosen; `--part test` is test_2016_flickr, to be run once.

Tokenized BLEU is what papers on this task report (multi-bleu.perl): outputs and references in lower case, punctuation
normalized and tokenized by Moses' scripts (sacremoses), n-grams of all sentences counted together, without smoothing;
where the data set has its own tokenized references (de and en of the test part), against those. Beside it, BLEU and
chrF of sacreBLEU on the untokenized lower-cased texts, with their signatures.
"""

import argparse
import gzip
import json
import os
from pathlib import Path
from typing import Any

import sacrebleu
from sacremoses import MosesPunctNormalizer, MosesTokenizer

import regard

BUDGET = {
    "dev_sentences": 500,
    "training.max_steps": 1200,
    "training.warmup": 150,
    "training.evaluate_every": 200,
    "training.keep_best": 1,
}
RUNGS: dict[str, dict[str, Any]] = {
    "none": {"model.score": "none"},
    "dot": {"model.score": "dot"},
    "general": {"model.score": "general"},
    "additive": {},
    "transformer": {
        "model": {
            "kind": "transformer",
            "width": 256,
            "encoder_layers": 3,
            "decoder_layers": 3,
            "heads": 4,
            "ffn_width": 1024,
            "dropout": 0.3,
        },
        "training.optimizer": "muon",
    },
}
PARTS = {"val": "val", "test": "test_2016_flickr"}


def lines(name: str) -> list[str]:
    """The lines of a file of the data set."""
    path = Path(os.environ["REGARD_DATA"]) / "multi30k" / f"{name}.gz"
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def tokenized(texts: list[str], language: str) -> list[str]:
    """Texts in lower case, normalized and tokenized by Moses' rules."""
    normal, tokens = MosesPunctNormalizer(lang=language), MosesTokenizer(lang=language)
    return [tokens.tokenize(normal.normalize(text.lower()), return_str=True) for text in texts]


def references(part: str, language: str) -> list[str]:
    """The tokenized references: the data set's own, where there are any."""
    own = f"{PARTS[part]}.lc.norm.tok.{language}"
    if (Path(os.environ["REGARD_DATA"]) / "multi30k" / f"{own}.gz").exists():
        return lines(own)
    return tokenized(lines(f"{PARTS[part]}.{language}"), language)


def minutes(run: Path) -> float:
    """Of training, as the journal has them."""
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return max(event.get("seconds", 0.0) for event in events) / 60


def row(run: Path, part: str, searched: dict[str, Any], output: Path | None) -> tuple[str, list[str]]:
    """A run's line of the table, and the signatures of its figures."""
    model: Any = regard.load(run.resolve())
    source, target = model.bundle.languages
    texts = [
        found.text for found in model.many(lines(f"{PARTS[part]}.{source}"), record=False, split=False, **searched)
    ]
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / f"{run.name}.{part}.{target}").write_text("\n".join(texts) + "\n", "utf-8")
    papers = sacrebleu.BLEU(tokenize="none", smooth_method="none", force=True)
    plain, characters = sacrebleu.BLEU(lowercase=True), sacrebleu.CHRF()
    whole = lines(f"{PARTS[part]}.{target}")
    figures = (
        papers.corpus_score(tokenized(texts, target), [references(part, target)]).score,
        plain.corpus_score(texts, [whole]).score,
        characters.corpus_score([text.lower() for text in texts], [[text.lower() for text in whole]]).score,
    )
    parameters = sum(parameter.numel() for parameter in model.model.parameters()) / 1e6
    cells = [f"{source}→{target}", f"`{run.name}`", f"{parameters:.1f} M", *(f"{figure:.2f}" for figure in figures)]
    return f"| {' | '.join(cells)} | {minutes(run):.0f} |", [
        str(measure.get_signature()) for measure in (papers, plain, characters)
    ]


def train(runs: Path) -> None:
    """Train the rungs that are not there yet; a run that was stopped goes on."""
    for rung, differs in RUNGS.items():
        where = runs / rung
        if not (where / "bundle.json").exists():
            resume = (where / "last.safetensors").exists()
            regard.train("multi30k-de-en-rnn", BUDGET | differs, run=where, resume=resume)


def main() -> None:
    """Print the table of the runs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--train", type=Path, metavar="RUNS", help="train the ladder into this folder")
    parser.add_argument("--part", choices=PARTS, default="val")
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--length-penalty", type=float)
    parser.add_argument("--output", type=Path, help="a folder for the outputs, one file a run")
    given = parser.parse_args()
    if given.train is not None:
        train(given.train)
    searched = {"beam": given.beam}
    if given.length_penalty is not None:
        searched["length_penalty"] = given.length_penalty
    if not given.runs:
        return
    print(f"| {PARTS[given.part]} | run | parameters | tokenized BLEU | sacreBLEU | chrF | minutes |")
    print("|---" * 7 + "|")
    signatures: list[str] = []
    for run in given.runs:
        line, signatures = row(run, given.part, searched, given.output)
        print(line, flush=True)
    print("\n" + ", ".join(signatures))


if __name__ == "__main__":
    main()
