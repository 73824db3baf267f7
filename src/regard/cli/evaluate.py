"""`regard evaluate`: a model's measures on files."""

import json
from pathlib import Path
from typing import Annotated

import typer

from regard.cli.lines import check_output, writing
from regard.cli.options import Beam, ModelName, load, load_for
from regard.errors import ConfigError


def evaluate(
    model: ModelName,
    source: Annotated[Path, typer.Option(help="A translator's source sentences, one a line; else a text (.gz too).")],
    reference: Annotated[Path | None, typer.Option(help="A translator's references, one a line.")] = None,
    beam: Beam = None,
    output: Annotated[Path | None, typer.Option(help="Write the translations to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure a model: loss and perplexity; a translator's BLEU and chrF with signature."""
    from regard.tasks.language import TASKS, evaluate_texts
    from regard.tasks.translation import evaluate_files

    check_output(output, [source, *([reference] if reference else [])])
    ready = load(model)
    if ready.bundle.task in TASKS:
        numbers = evaluate_texts(ready.bundle, source)
        typer.echo(json.dumps(numbers) if as_json else "\n".join(f"{name:<20} {n:.6g}" for name, n in numbers.items()))
        return
    translator = load_for("translate", model)
    if reference is None:
        raise ConfigError("a translator is measured against --reference, one line for each of --source")
    numbers, outputs = evaluate_files(translator, source, reference, beam)
    if output:
        with writing(output) as write:
            for line in outputs:
                write(line)
    if as_json:
        typer.echo(json.dumps(numbers))
        return
    typer.echo(f"BLEU        {numbers['bleu']:.2f}   {numbers['bleu_signature']}")
    typer.echo(f"chrF        {numbers['chrf']:.2f}   {numbers['chrf_signature']}")
    typer.echo(f"loss        {numbers['loss']:.4f} nats a token, {numbers['tokens']} tokens")
    typer.echo(f"perplexity  {numbers['perplexity']:.2f}")
