"""`regard data`: data to train on, made from what is free to use."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regard.cli.lines import check_output, complain, writing
from regard.cli.options import Output

if TYPE_CHECKING:
    from regard.data.datasets.downloads import Download

app = typer.Typer(
    help="Make data to train on.\n\nPublic data sets where the configs look for them, and sentence pairs as TSV files.",
    no_args_is_help=True,
)
File = Annotated[Path | None, typer.Argument(help="The publisher's file, if you have it; otherwise it is downloaded.")]
Folder = Annotated[Path, typer.Option(envvar="REGARD_DATA", help="Where the configs look for data.")]


@app.command()
def tatoeba(
    file: File = None,
    languages: Annotated[str, typer.Option(help="The publisher's name of the pair: fra-eng, deu-eng, …")] = "fra-eng",
    folder: Folder = Path("data"),
) -> None:
    """Sentence pairs of tatoeba.org (CC BY 2.0).

    Published by manythings.org/anki. The configs fr-en, en-fr and english train on them.
    """
    from regard.data.datasets import downloads

    _download(downloads.tatoeba(languages), file, folder)


@app.command()
def shakespeare(file: File = None, folder: Folder = Path("data")) -> None:
    """Tiny Shakespeare (public domain).

    From the repository char-rnn. The config shakespeare trains on it.
    """
    from regard.data.datasets import downloads

    _download(downloads.shakespeare(), file, folder)


@app.command()
def fsdd(file: File = None, folder: Folder = Path("data")) -> None:
    """The Free Spoken Digit Dataset (CC BY-SA 4.0).

    From its repository's .zip. The config fsdd trains on it.
    """
    from regard.data.datasets import downloads

    _download(downloads.fsdd(), file, folder)


@app.command()
def an4(file: File = None, folder: Folder = Path("data")) -> None:
    """CMU's AN4, its training half (free for any use).

    From its repository's .zip. The config an4 trains on it.
    """
    from regard.data.datasets import downloads

    _download(downloads.an4(), file, folder)


@app.command()
def multi30k(file: File = None, folder: Folder = Path("data")) -> None:
    """Multi30k: captions in three languages (for research).

    From its repository's .zip. The configs multi30k-de-en-rnn, multi30k-en-de and multi30k-en-fr train on it.
    """
    from regard.data.datasets import downloads

    _download(downloads.multi30k(), file, folder)


@app.command()
def expressions(
    source: Annotated[str, typer.Argument(help="The source language: fr or en.")],
    target: Annotated[str, typer.Argument(help="The target language: en or fr.")],
    count: Annotated[int, typer.Option(min=1, help="How many pairs.")] = 60_000,
    seed: Annotated[int, typer.Option(help="The same seed makes the same pairs.")] = 0,
    output: Output = None,
) -> None:
    """Sentences with numbers, times, dates and names.

    They have prices and places too, all in the forms that Unicode's CLDR gives for both languages.
    """
    from regard.data.expressions import expressions as pairs

    _write(pairs(source, target, count, seed), output)


@app.command()
def debian(
    source: Annotated[Path, typer.Argument(help="Translation-LANGUAGE of the source language, from a Debian mirror.")],
    target: Annotated[Path, typer.Argument(help="Translation-LANGUAGE of the target language, likewise.")],
    output: Output = None,
) -> None:
    """Debian's package descriptions, in two languages."""
    from regard.data.datasets.debian import descriptions

    _write(descriptions(source, target), output, [source, target])


@app.command()
def messages(
    catalogues: Annotated[list[Path], typer.Argument(help="Files .po or .mo of one language, or folders of them.")],
    output: Output = None,
) -> None:
    """Sentences of programs' message catalogs (gettext).

    Each line has the original, a tab and the translation; each catalog has the license of its program.
    """
    from regard.data.datasets.catalogues import find_catalogues
    from regard.data.datasets.messages import messages as pairs

    files = list(find_catalogues(catalogues))  # those in folders too: the output may replace none of them
    _write(pairs(files), output, files)


def _write(pairs: Iterable[tuple[str, str]], output: Path | None, sources: Sequence[Path] = ()) -> None:
    check_output(output, sources)
    count = 0
    with writing(output) as write:
        for here, there in pairs:
            write(f"{here}\t{there}")
            count += 1
    complain(f"{count:,} pairs")


def _download(data: "Download", file: Path | None, folder: Path) -> None:
    path, count = data.write(folder, file)
    complain(f"{path}: {count:,} {data.unit}. {data.licence} To train on it: export REGARD_DATA={folder}")
