"""How well attention aligns words, against a silver standard made by eflomal (Östling and Tiedemann 2016).

    pip install eflomal                                   # needs a compiler; a development tool, not a dependency
    python benchmarks/alignment.py silver fr-en           # writes benchmarks/silver/fr-en.json: links, no text
    python benchmarks/alignment.py score fr-en fr-en-rnn  # writes benchmarks/silver/scores-*.json, prints a table

Silver: eflomal in both directions over training and development pairs; links of both directions are sure (S), links
of either are possible (P). Precision |A∩P|/|A|, recall |A∩S|/|S|, AER 1 - (|A∩S| + |A∩P|)/(|A| + |S|) (Och and Ney
2003). A is each output word's best source word, the true output given, on the development pairs.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from regard.analysis.alignment import links_of, teacher_forced
from regard.data.align import Link, model_one, scores
from regard.data.pairs import Pairs
from regard.experiment import read_config
from regard.pipelines.load import load
from regard.tasks.translation import read_data

HERE = Path(__file__).parent
SENTENCES = 1000
Silver = list[tuple[set[Link], set[Link]]]


def parts(name: str) -> tuple[Pairs, Pairs]:
    """Training pairs, and 1,000 development pairs, evenly spaced."""
    train, dev, _ = read_data(read_config(name))
    return train, dev.sample(SENTENCES)


def digest(source: str, target: str) -> str:
    """What stands in the silver file instead of the sentences."""
    return hashlib.sha256(f"{source}\t{target}".encode()).hexdigest()[:16]


def make_silver(name: str) -> None:
    """Align with eflomal and write the links."""
    train, dev = parts(name)
    both = [*train, *dev]
    with tempfile.TemporaryDirectory() as folder:
        files = {key: Path(folder) / key for key in ("source", "target", "forward", "reverse")}
        for side in (0, 1):
            lines = [" ".join(pair[side].lower().split()) for pair in both]
            files["source" if side == 0 else "target"].write_text("\n".join(lines) + "\n", "utf-8")
        subprocess.run(
            ["eflomal-align", "-s", files["source"], "-t", files["target"],
             "-f", files["forward"], "-r", files["reverse"]], check=True,
        )  # fmt: skip
        there, back = (
            files[key].read_text("utf-8").split("\n")[len(train) : len(both)] for key in ("forward", "reverse")
        )
    record = {}
    for (source, target), a, b in zip(dev, there, back, strict=True):
        forward, reverse = (
            {(int(t), int(s)) for s, t in (link.split("-") for link in line.split())} for line in (a, b)
        )
        record[digest(source, target)] = [sorted(forward & reverse), sorted(forward | reverse)]
    (HERE / "silver" / f"{name}.json").write_text(json.dumps(record) + "\n", "utf-8")


def rate(found: list[set[Link]], silver: Silver) -> dict[str, float]:
    """Precision, recall and alignment error rate."""
    sure, possible = zip(*silver, strict=True)
    return scores(found, sure, possible)


def score(name: str, silver_name: str) -> dict[str, dict[str, float]]:
    """The rates of a model's rules: what regard chose, what other toolkits show, every site's mean, and baselines."""
    train, dev = parts(silver_name)
    record = json.loads((HERE / "silver" / f"{silver_name}.json").read_text("utf-8"))
    silver: Silver = []
    for source, target in dev:
        sure, possible = record[digest(source, target)]
        silver.append(({tuple(link) for link in sure}, {tuple(link) for link in possible}))
    model = load(name)
    with torch.inference_mode():
        maps = dict(teacher_forced(model.model, model.tokenizer, dev))
    chosen, sites = model.bundle.alignment, list(maps[0])
    rules = {f"chosen: {chosen['site']}, heads {chosen['heads']}": (chosen["site"], chosen["heads"])}
    for site in sites:
        heads = list(range(maps[0][site].shape[0]))
        rules[f"mean of all heads of {site}"] = (site, heads)
    rules[f"head 0 of {sites[-1]}"] = (sites[-1], [0])
    results = {}
    for rule, (site, heads) in rules.items():
        weights = (maps[i][site][heads].mean(0) for i in range(len(dev)))
        found = [links_of(w, model.tokenizer, s, t) for w, (s, t) in zip(weights, dev, strict=True)]
        results[rule] = rate(found, silver)
    diagonal = [
        {(i, min(len(s.split()) - 1, i * len(s.split()) // len(t.split()))) for i in range(len(t.split()))}
        for s, t in dev
    ]
    results["baseline: the diagonal"] = rate(diagonal, silver)
    results["baseline: IBM Model 1"] = rate(model_one(list(train), list(dev)), silver)
    return results


def main() -> None:
    """`silver NAME` or `score NAME …`."""
    verb, *names = sys.argv[1:]
    for name in names:
        if verb == "silver":
            make_silver(name)
            continue
        results = score(name, name.removesuffix("-rnn").removesuffix("-fast"))
        (HERE / "silver" / f"scores-{name}.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        print(f"\n{name}\n\n| rule | precision | recall | AER |\n|---|---|---|---|")
        for rule, r in results.items():
            print(f"| {rule} | {r['precision']:.3f} | {r['recall']:.3f} | {r['aer']:.3f} |")


if __name__ == "__main__":
    main()
