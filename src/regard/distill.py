"""Sequence-level distillation (Kim and Rush 2016): a student learns the outputs of a teacher instead of the references.

RUN/distilled/corpus.jsonl    the training side of the config's data, and further texts without translations
RUN/distilled/corpus.sha256   digest of what it was made from
RUN/distilled/parts/          the teacher's outputs, part by part (`regard.serving.bulk`)
RUN/distilled/pairs.jsonl     what the student is trained on
RUN/distilled/dev.jsonl       the development pairs, as they were; test.jsonl the test pairs
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from regard import experiment
from regard.arguments import check_arguments
from regard.data.augment import AugmentConfig
from regard.data.files import stream_lines
from regard.data.pairs import Pairs
from regard.data.parallel import DataConfig, files_of, found, read_pairs, stream_parts
from regard.data.prepared import key_of
from regard.errors import ConfigError
from regard.serving.bulk import BulkConfig, Here, PartDone, PartWriter, rows_of, translate_corpus
from regard.storage import claim, exclusive, refuse_link, replacing, write_bytes, write_text
from regard.untrusted import read_text

SETTINGS = {"data.source": "source", "data.target": "target", "data.test_share": 0.0, "data.dev_share": 0.0}


@dataclass(frozen=True)
class Distilled:
    """What a student is trained on.

    Attributes:
        pairs: number of pairs.
        refused: sources that the teacher did not take, or gave nothing for.
        overrides: settings of the student's config that name the files.
    """

    pairs: int
    refused: int
    overrides: dict[str, Any]


@check_arguments
def distill(
    teacher: str, config: Path, overrides: Mapping[str, Any], folder: Path, load: Callable[[str], Any], *,
    texts: Sequence[str] = (), beam: int | None = None, n_best: int = 1, report: Callable[[int], None] = lambda _: None,
) -> Distilled:  # fmt: skip
    """Translate the training side of a config's data by a teacher; interrupted, the same call continues.

    Args:
        teacher: its name.
        config: of the student.
        overrides: settings that replace those of the config.
        folder: of the run.
        load: gives the teacher.
        texts: files of further sources without translations, a line each; patterns too. Development and test sources
            among them are left out.
        beam: of the teacher's search; by default its own, and with several outputs 4, or as many as there are outputs.
        n_best: outputs of each source that the student learns.
        report: called with the number of rows that were translated.

    Raises:
        ConfigError: the config is not of a translator, or the teacher is none of the same direction; the folder's
            corpus was made from other data or texts, or its parts with other settings.
        DataError: the data cannot be read.
    """
    settings = experiment.read_config(config, dict(overrides))
    data = settings.data
    if not isinstance(data, DataConfig):
        raise ConfigError(f"{config}: a teacher's outputs are distilled into a translator; this is another task")
    if n_best < 1:
        raise ConfigError(f"n_best must be 1 or more; got {n_best}")
    taught = load(teacher)  # what it cannot teach is said before there is a folder
    if getattr(taught, "task", None) != "translate":
        raise ConfigError(f"{teacher} is no translator: a teacher's outputs are translations")
    if taught.bundle.languages != tuple(settings.languages) and all(taught.bundle.languages):
        raise ConfigError(
            f"{teacher} translates from {' to '.join(taught.bundle.languages)}, and the student's languages are "
            f"{' to '.join(settings.languages)}: name a teacher of the same direction"
        )
    where = folder.resolve() / "distilled"
    claim(folder, "a run", experiment.KNOWN)
    for place in (where, where / "parts"):
        refuse_link(place)
    where.mkdir(exist_ok=True)
    corpus = where / "corpus.jsonl"
    with exclusive(where):
        made_from = where / "corpus.sha256"
        key = _key(data, texts)
        if not corpus.exists():
            write_text(made_from, key)
            _write_corpus(data, texts, where)
        elif not made_from.exists() or read_text(made_from) != key:
            raise ConfigError(
                f"{corpus}: made from other data, or from other --text, than are given now: name another --folder, or "
                f"remove {where}"
            )
    own = {"beam": max(beam or 4, n_best) if n_best > 1 else beam, "n_best": n_best, "split": False}
    bulk = BulkConfig.of(corpus, "source", teacher, own)
    parts = where / "parts"

    def done(part: PartDone) -> None:
        report(part.rows)

    translate_corpus(bulk, parts, Here(PartWriter(bulk, parts, lambda _: taught)), 1, done)
    count, refused = _write_pairs(parts, where / "pairs.jsonl")
    named = {name: str(where / f"dev-{name}.jsonl") for name in data.dev_sets}
    files: dict[str, Any] = {
        "data.train": str(where / "pairs.jsonl"),
        "data.dev": str(where / "dev.jsonl"),
        "data.dev_sets": named,
    }
    if (where / "test.jsonl").stat().st_size:
        files["data.test"] = str(where / "test.jsonl")
    return Distilled(count, refused, {**SETTINGS, **files})


def _key(data: DataConfig, texts: Sequence[str]) -> str:
    """Digest of what the corpus is made from; how a student's data are varied is no part of it."""
    named = [side for where in (data.test, *data.dev_sets.values()) if where for side in _sides(where)]
    further = [path for name in (*named, *texts) for path in found(name)]
    settings = data.model_dump(mode="json", exclude=set(AugmentConfig.model_fields) | {"longest"})
    return key_of([*files_of(data), *further], [settings, *texts])


def _sides(where: str | tuple[str, str]) -> tuple[str, ...]:
    return where if isinstance(where, tuple) else (where,)


def _write_corpus(data: DataConfig, texts: Sequence[str], where: Path) -> None:
    """The sources that the teacher is given, and the pairs that are kept apart from them; the corpus last."""
    dev: list[Pairs] = [] if data.dev is None else [read_pairs(data.dev, data)]
    test: list[Pairs] = [] if data.test is None else [read_pairs(data.test, data)]
    with replacing(where / "corpus.jsonl") as file:
        for train, own_dev, own_test in stream_parts(data):
            file.writelines(_json(source, target) for source, target in zip(train.source, train.target, strict=True))
            dev += [own_dev] if data.dev is None else []
            test += [own_test] if data.test is None else []
        further = {f"dev-{name}": [read_pairs(from_, data)] for name, from_ in data.dev_sets.items()}
        apart = {source.strip() for pairs in (*dev, *test, *chain(*further.values())) for source in pairs.source}
        for path in (path for name in texts for path in found(name)):
            lines = (line for line in stream_lines(path) if line.strip() and line.strip() not in apart)
            file.writelines(_json(line, "") for line in lines)
        for name, pairs in {"dev": dev, "test": test, **further}.items():
            whole = Pairs.together(pairs)
            rows = (_json(source, target) for source, target in zip(whole.source, whole.target, strict=True))
            write_bytes(where / f"{name}.jsonl", b"".join(rows))


def _json(source: str, target: str) -> bytes:
    return json.dumps({"source": source, "target": target}, ensure_ascii=False).encode() + b"\n"


def _write_pairs(parts: Path, path: Path) -> tuple[int, int]:
    """The teacher's outputs as pairs, every output of a source; the numbers of pairs, and of sources without one."""
    count = refused = 0
    with replacing(path) as file:
        for row in rows_of(parts):
            outputs = [one for one in (row["text"], *(row["alternatives"] or ())) if one.strip()]
            file.writelines(_json(row["source"], one) for one in outputs)
            count += len(outputs)
            refused += not outputs
    return count, refused
