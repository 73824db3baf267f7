"""`regard translate`: one line in, one line out."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from regard.cli.lines import are_many, check_targets, complain, run_lines, targets_of
from regard.cli.options import (
    BatchTokens,
    Beam,
    Device,
    Engine,
    Json,
    Look,
    MinP,
    Model,
    Output,
    Precision,
    Seed,
    Temperature,
    Texts,
    Threads,
    TopK,
    TopP,
    load_for,
)
from regard.cli.progress import err
from regard.errors import ConfigError


def translate(
    texts: Texts = None,
    model: Model = "fr-en",
    beam: Beam = None,
    n_best: Annotated[int, typer.Option(min=1, help="How many outputs --json lists, at most the beam.")] = 1,
    look: Look = None,
    as_json: Json = False,
    grid: Annotated[
        bool, typer.Option("--grid", help="Show the alignment as a coloured grid on standard error.")
    ] = False,
    pharaoh: Annotated[
        bool, typer.Option("--pharaoh", help='Print the alignment instead, as "i-j" (source word, output word) a link.')
    ] = False,
    prefix: Annotated[str, typer.Option(help="What every output begins with.")] = "",
    split: Annotated[
        bool, typer.Option("--split/--no-split", help="Translate a text of several sentences one by one.")
    ] = True,
    sample: Annotated[bool, typer.Option("--sample", help="Draw the output's words instead of searching.")] = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Seed = None,
    output: Output = None,
    batch_tokens: BatchTokens = None,
    threads: Threads = None,
    device: Device = "cpu",
    precision: Precision = "float32",
    engine: Engine = "regard",
) -> None:
    """Translate texts: one line in, one line out."""
    check_targets(look or [])
    translator = load_for("translate", model, texts, threads, device, precision, engine)
    if n_best > 1:
        beam = max(n_best, beam or translator.decoding.beam)
    settings: dict[str, Any] = {"beam": beam, "n_best": n_best, "record": bool(as_json or grid or look or pharaoh)}
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    settings |= {name: value for name, value in given.items() if value is not None}
    if prefix:
        settings["prefix"] = prefix
    if not split:
        settings["split"] = False
    if sample:
        settings["sample"] = True
    if batch_tokens is not None:
        settings["batch_tokens"] = batch_tokens
    many = are_many(texts)
    for text in texts or []:
        if text != "-" and text.endswith((".txt", ".tsv", ".csv")) and Path(text).is_file():
            complain(f"{text!r} is translated as a text; to translate the file: regard translate < {text}")

    def show(generation: Any, number: int) -> str:
        if grid:
            from regard.figures.terminal import grid as coloured

            alignment = generation.alignment
            if alignment.target and not alignment.site:
                raise ConfigError(f"{model} does not attend to its source: there is no alignment to show")
            err.print(coloured(alignment.matrix.tolist(), alignment.target, alignment.source))
        for path in targets_of(look or [], "", number, many):
            generation.alignment.plot(path)
        if pharaoh:
            return " ".join(f"{j}-{i}" for i, j in generation.alignment.pairs)
        return json.dumps(generation.as_json(), ensure_ascii=False) if as_json else generation.text

    run_lines(texts, lambda some, first: translator.each(some, first_index=first, **settings), show, output=output)
