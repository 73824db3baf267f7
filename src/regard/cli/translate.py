"""`regard translate`: one line in, one line out."""

import json
import os
from dataclasses import dataclass
from functools import partial
from math import inf, log
from pathlib import Path
from typing import Annotated, Any

import typer

from regard.cli.lines import (
    FAILED,
    OF_A_FILE,
    are_many,
    check_apart,
    check_looks,
    check_output,
    complain,
    draw_all,
    run_lines,
    targets_of,
    writing,
)
from regard.cli.options import (
    BatchTokens,
    Beam,
    Device,
    Json,
    Look,
    MinP,
    Output,
    Precision,
    Seed,
    Temperature,
    Texts,
    Threads,
    TopK,
    TopP,
    Translators,
    TypicalP,
    load_for,
)
from regard.cli.progress import err
from regard.cli.subtitles import ENDINGS, read_subtitles
from regard.data.files import read_small
from regard.errors import ConfigError, DataError, not_utf8


def translate(
    texts: Texts = None,
    model: Translators = "fr-en",
    beam: Beam = None,
    n_best: Annotated[
        int, typer.Option(min=1, max=100, help="Outputs that --json and a page list; the beam is at least as wide.")
    ] = 1,
    groups: Annotated[
        int, typer.Option(min=1, help="Split the beam into groups that avoid each other's words (diverse beam search).")
    ] = 1,
    diversity: Annotated[
        float | None, typer.Option(min=0.0, help="Penalty for repeating another group's words. Default: 0.5.")
    ] = None,
    look: Look = None,
    as_json: Json = False,
    grid: Annotated[
        bool, typer.Option("--grid", help="Show the alignment as a colored grid on standard error.")
    ] = False,
    pharaoh: Annotated[
        bool, typer.Option("--pharaoh", help='Print word links "i-j" (source word, output word) instead of the text.')
    ] = False,
    unsure: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Mark words below this probability with (?).")
    ] = None,
    prefix: Annotated[str, typer.Option(help="The words that every output begins with.")] = "",
    force: Annotated[
        list[str] | None, typer.Option(help="A word or phrase that every output must contain; may be repeated.")
    ] = None,
    forbid: Annotated[
        list[str] | None, typer.Option(help="A word or phrase that no output may contain; may be repeated.")
    ] = None,
    glossary: Annotated[Path | None, typer.Option(help="A file of terms: term, tab, translation on each line.")] = None,
    split: Annotated[
        bool, typer.Option("--split/--no-split", help="Translate a text of several sentences one by one.")
    ] = True,
    protect: Annotated[
        bool, typer.Option("--protect", help="Keep numbers, addresses, placeholders and markup unchanged.")
    ] = False,
    sample: Annotated[bool, typer.Option("--sample", help="Draw the output's words instead of searching.")] = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    typical_p: TypicalP = None,
    mbr: Annotated[
        int,
        typer.Option(
            min=1, max=1000, help="Draw this many outputs and print the one nearest to the others; with --sample."
        ),
    ] = 1,
    seed: Seed = None,
    output: Output = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            "--from", help="One file: subtitles (.srt, .vtt), or a corpus (.parquet, .jsonl, .csv, …) for --to."
        ),
    ] = None,
    into: Annotated[
        Path | None, typer.Option("--to", help="The output folder for --from; an interrupted run is continued.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="The column or key of the texts in the corpus of --from. Default: text.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes of --engine ray. Default: 2.")] = None,
    batch_tokens: BatchTokens = None,
    threads: Threads = None,
    device: Device = "cpu",
    precision: Precision = "float32",
    engine: Annotated[
        str,
        typer.Option(
            help="What runs the search: regard; ctranslate2 or onnx (extras); ray (extra): many processes, for --from."
        ),
    ] = "regard",
) -> None:
    """Translate texts: one line in, one line out."""
    check_looks(look or [], texts, page=True)
    check_output(output, [path for path in (glossary, corpus) if path is not None])
    check_apart(output, look or [])
    if corpus is not None:
        check_one_file(corpus)
    subtitles = corpus is not None and corpus.suffix.lower() in ENDINGS
    if column is not None and (corpus is None or subtitles):
        raise ConfigError(
            f"--column {column} names the texts of a corpus: give the corpus with --from FILE --to FOLDER, or leave "
            "out --column"
        )
    if workers is not None and engine != "ray":
        raise ConfigError(
            f"--workers {workers} is the number of processes of --engine ray: add --engine ray, or leave out --workers"
        )
    in_parts = not subtitles and (corpus is not None or into is not None or engine == "ray")
    forms = [
        name for name, given in (("--json", as_json), ("--pharaoh", pharaoh), ("--unsure", unsure is not None)) if given
    ]
    if len(forms) > 1:
        raise ConfigError(
            f"{' and '.join(forms)} each decide what an output line holds: give one of them (--json has the alignment)"
        )
    if in_parts and (corpus is None or into is None or texts or output or look or grid or forms):
        raise ConfigError(
            "a corpus is translated from one file into a folder of Parquet files: give both --from FILE and --to "
            "FOLDER (--engine ray needs both, too), and no texts, further files, --output, --json, --look, --grid, "
            "--pharaoh or --unsure"
        )
    if subtitles and (into or texts or look or grid or forms):
        raise ConfigError(
            "subtitles are translated with --from FILE --output FILE: give no texts, --to, --json, --look, --grid, "
            "--pharaoh or --unsure"
        )
    loading = LoadConfig(model, threads, device, precision, "regard" if engine == "ray" else engine)
    translator = loading()
    if n_best > 1 and not sample:
        beam = max(n_best, beam or translator.decoding.beam)
    settings: dict[str, Any] = {"beam": beam, "n_best": n_best, "record": bool(as_json or grid or look or pharaoh)}
    given = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p,
        "seed": seed, "prefix": prefix or None, "force": force or None, "forbid": forbid or None,
        "glossary": read_glossary(glossary) if glossary else None, "split": None if split else False,
        "protect": protect or None, "sample": sample or None, "mbr": mbr if mbr > 1 else None,
        "batch_tokens": batch_tokens, "groups": groups if groups > 1 else None, "diversity": diversity,
    }  # fmt: skip
    settings |= {name: value for name, value in given.items() if value is not None}
    if subtitles and corpus is not None:
        settings.setdefault("protect", (translator.protects and not sample) or None)
        translate_subtitles(
            corpus, output, translator, {name: one for name, one in settings.items() if one is not None}
        )
        return
    if corpus is not None and into is not None:
        translate_parts(corpus, into, column or "text", loading, settings, (workers or 2) if engine == "ray" else 0)
        return
    many = are_many(texts)
    for text in texts or []:
        if text != "-" and text.endswith((".txt", ".tsv", ".csv")) and os.path.isfile(text):
            complain(f"{text!r} is translated as a text; to translate the file: regard translate < {text}")

    least = log(unsure) if unsure else -inf

    def show(generation: Any, _: int) -> str:
        if grid:
            from regard.figures.terminal import grid as coloured

            alignment = generation.alignment
            if alignment.target and not alignment.site:
                raise ConfigError(f"{model} does not attend to its source: there is no alignment to show")
            err.print(coloured(alignment.matrix.tolist(), alignment.target, alignment.source, err.width))
        if unsure is not None:
            return " ".join(f"{one.text}(?)" if one.log_prob < least else one.text for one in generation.words)
        if pharaoh:
            return " ".join(f"{j}-{i}" for i, j in generation.alignment.pairs)
        return json.dumps(generation.as_json(), ensure_ascii=False) if as_json else generation.text

    def draw(generation: Any, number: int) -> bool:
        def plot(path: Path) -> None:
            generation.alignment.plot(path, note=generation.tested)

        return draw_all(generation, targets_of(look or [], "", number, many), plot)

    work = partial(_each, translator, settings)
    run_lines(texts, work, show, output=output, of_a_file=OF_A_FILE, draw=draw)


def _each(translator: Any, settings: dict[str, Any], some: list[str], first: int) -> Any:
    return translator.each(some, first_index=first, **settings)


def translate_subtitles(path: Path, output: Path | None, translator: Any, settings: dict[str, Any]) -> None:
    """Translate the cues of a file; their times stay.

    Args:
        path: of the subtitles.
        output: where they go; standard output if None.
        translator: the model.
        settings: of the translation.

    Raises:
        typer.Exit: with code 1 where a cue could not be translated, which then stays as it is.
    """
    subtitles = read_subtitles(path)
    texts, made = subtitles.texts, translator.each(subtitles.texts, **settings)
    wrong = [n for n, one in enumerate(made) if isinstance(one, Exception)]
    for n in wrong:
        complain(f"{path}:{subtitles.cues[n][0] + 1}: {made[n]}")
    shown = [text if isinstance(one, Exception) else one.text for text, one in zip(texts, made, strict=True)]
    with writing(output) as write:
        write(subtitles.with_texts(shown).removesuffix("\n"))
    if wrong:
        raise typer.Exit(FAILED)


def check_one_file(path: Path) -> None:
    """Refuse a --from that names several files.

    Raises:
        ConfigError: it is a folder, or a pattern that no file has as its name.
    """
    kind = "folder" if path.is_dir() else "pattern" if set("*?") & set(str(path)) and not path.exists() else None
    if kind is not None:
        raise ConfigError(
            f"--from {path}: expected one file, got a {kind}: join the files into one, or run the command once per file"
        )


@dataclass(frozen=True)
class LoadConfig:
    """How a translator is loaded, here or by a worker."""

    model: str
    threads: int | None
    device: str
    precision: str
    engine: str

    def __call__(self, _: str = "") -> Any:
        """The translator."""
        return load_for("translate", self.model, None, self.threads, self.device, self.precision, self.engine)


def translate_parts(
    corpus: Path, into: Path, column: str, loading: LoadConfig, settings: dict[str, Any], workers: int
) -> None:
    """Translate a corpus in parts.

    Args:
        corpus: its file.
        into: the folder.
        column: of its texts.
        loading: of the model.
        settings: of the translation.
        workers: of Ray; 0 for this process alone.

    Raises:
        typer.Exit: with code 1 where a row could not be translated.
        ConfigError: there is no such corpus; a package is missing.
    """
    from regard.cli.progress import lines_bar
    from regard.serving.bulk import BulkConfig, Here, OnRay, PartDone, PartWriter, translate_corpus

    if not corpus.is_file():
        raise ConfigError(f"--from {corpus}: no such file")
    computing = " ".join(one for one in (loading.precision, loading.engine) if one not in ("float32", "regard"))
    config = BulkConfig.of(corpus, column, loading.model, settings, computing)
    maker = OnRay(config, into, loading, workers) if workers else Here(PartWriter(config, into, loading))
    refused = 0
    try:
        with lines_bar(None, 1, quiet=False) as advance:

            def done(part: PartDone) -> None:
                nonlocal refused
                refused += part.refused
                advance(part.rows)

            translate_corpus(config, into, maker, 2 * max(1, workers), done)
    finally:
        maker.close()
    if refused:
        complain(f"{refused:,} rows could not be translated: the column 'error' of the parts in {into} says why")
        raise typer.Exit(FAILED)


def read_glossary(path: Path) -> dict[str, str]:
    """Terms and their translations from a file: a term, a tab and its translation on each line; empty lines are left
    out.

    Raises:
        ConfigError: there is no such file, or it is not UTF-8; a line is not a term, a tab and a translation; a term
            stands there twice with different translations.
    """
    try:
        text = read_small(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--glossary {path}: {not_utf8(error)}") from error
    except DataError as error:
        raise ConfigError(f"--glossary {error}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        fields = [field.strip() for field in line.split("\t")]
        if not any(fields):
            continue
        if len(fields) != 2 or not all(fields):
            raise ConfigError(
                f"--glossary {path}: line {number}: expected a term, a tab and its translation; got {line.strip()!r}"
            )
        term, translation = fields
        if found.setdefault(term, translation) != translation:
            raise ConfigError(f"--glossary {path}: line {number}: {term!r} is there twice, with two translations")
    return found
