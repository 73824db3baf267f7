"""The loaded models and the queue before them: from texts to results, in batches."""

import asyncio
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import islice
from math import ceil, isfinite
from typing import Any

from regard.errors import ConfigError, RegardError, nearest
from regard.pipelines.base import InputError
from regard.pipelines.sentences import cut, join
from regard.serving.engine import Batcher, Compute
from regard.serving.metrics import BatchMetrics
from regard.web.limits import Limits
from regard.web.metrics import RequestMetrics
from regard.web.refusals import Refusal

USUAL_BEAM = 4  # of a completion that is searched: its models have none by default
TASKS = ("translate", "complete", "caption", "transcribe")


class Service:
    """Models by their names, one queue for all of them.

    Args:
        models: what `regard.load` returns.
        limits: of requests and the queue.

    Raises:
        ConfigError: no model, two of one name, or one for a task that is not served.
    """

    def __init__(self, models: Sequence[Any], limits: Limits) -> None:
        self.limits = limits
        self.models: dict[str, Any] = {}
        for one in models:
            if one.task not in TASKS:
                task = f"`regard {one.task}`" if one.task else "no verb of the command line"
                raise ConfigError(f"{one.name} is for {task}: regard serve takes models that {', '.join(TASKS)}")
            if one.name in self.models:
                raise ConfigError(f"two models are called {one.name}: rename a folder")
            self.models[one.name] = one
        if not self.models:
            raise ConfigError("regard serve needs the name of a model")
        self.requests = RequestMetrics()
        self.metrics = BatchMetrics(self.requests.registry)
        self.batcher = Batcher(limits, self.metrics)

    def of(self, task: str) -> list[Any]:
        """The models of a task."""
        return [one for one in self.models.values() if one.task == task]

    def model(self, task: str, name: str | None) -> Any:
        """A model of a task by its name; the first one for None.

        Raises:
            Refusal: there is none of this name.
        """
        names = [one.name for one in self.of(task)]
        if name is None:
            return self.models[names[0]]
        if name not in names:
            known = ", ".join(nearest(name, names))
            raise Refusal(404, f"unknown model {name[:80]!r}: this server can {task} with {known}", "unknown_model")
        return self.models[name]

    def check(self, field: str, texts: Sequence[str]) -> None:
        """Refuse too many texts, and texts that are too long.

        Raises:
            Refusal: with the place of the text.
        """
        most, longest = self.limits.texts, self.limits.characters
        if len(texts) > most:
            raise Refusal(422, f"{field}: expected at most {most:,} texts; got {len(texts):,}")
        for n, text in enumerate(texts):
            if len(text) > longest:
                raise Refusal(422, f"{field}[{n}]: expected at most {longest:,} characters; got {len(text):,}")

    def check_sentences(self, count: int) -> None:
        """Refuse a request that has too many sentences, or texts between tags, to keep account of.

        Raises:
            Refusal: it has more than the limit.
        """
        if count > self.limits.sentences:
            raise Refusal(
                422, f"expected at most {self.limits.sentences:,} sentences in a request; got {count:,}: ask in parts"
            )

    async def translate(self, translator: Any, texts: Sequence[str], details: bool, **settings: Any) -> list[Any]:
        """Futures of the Generations of texts.

        Each sentence of a text waits by itself: a long text takes turns with those of others, needs the memory of a
        batch, and is dropped where its client has gone.

        Args:
            translator: the model.
            texts: to be translated.
            details: compute the words' probabilities, and the alignment where it is recorded.
            settings: of `Translator.run`; those that are None are left out.
        """
        settings = {name: value for name, value in settings.items() if value is not None}
        if (best := settings.get("n_best", 1)) > 1:
            settings["beam"] = max(best, settings.get("beam") or translator.decoding.beam)

        def compute(some: list[str]) -> Sequence[Any]:
            found = translator.each(some, **settings)
            sound = [one for one in found if not isinstance(one, InputError)]
            if details:  # computed here, by the thread that computes, and kept in the results
                translator.read_words(sound)
            for one in sound if details and settings["record"] else ():
                _ = one.alignment
            return list(found)

        key = translator.name, "translate", details, _frozen(settings)
        whole = any(settings.get(name) for name in ("prefix", "force", "protect"))  # of the text, not of its sentences
        pieces = [[text] for text in texts] if whole else await sentences(texts, translator.bundle.languages[0])
        flat = [one for some in pieces for one in some]
        self.check_sentences(len(flat))
        sizes = self._sizes([len(one) for one in flat], settings.get("beam"), translator.decoding.beam)
        waiting = iter(self.batcher.submit(key, compute, flat, sizes))
        futures = [list(islice(waiting, len(some))) for some in pieces]
        best = settings.get("n_best", 1)
        return [
            own[0] if len(own) == 1 else asyncio.ensure_future(_joined(text, own, best))
            for text, own in zip(texts, futures, strict=True)
        ]

    def score(self, translator: Any, sources: Sequence[str], targets: Sequence[str]) -> list[Any]:
        """Futures of the Scored of targets."""

        def compute(pairs: list[tuple[str, str]]) -> Sequence[Any]:
            return list(translator.score([source for source, _ in pairs], [target for _, target in pairs]))

        pairs = list(zip(sources, targets, strict=True))
        sizes = [len(source) + len(target) for source, target in pairs]
        return self.batcher.submit((translator.name, "score"), compute, pairs, sizes)

    def complete(self, completer: Any, texts: Sequence[str], **settings: Any) -> list[Any]:
        """Futures of the Completions of beginnings; what a text draws depends on its place in its own request."""

        def compute(some: list[tuple[int, str]]) -> Sequence[Any]:
            indices = [index for index, _ in some]
            return list(completer.each([text for _, text in some], indices=indices, record=False, **settings))

        key = completer.name, "complete", _frozen(settings)
        lengths = [len(text) + settings.get("length", 0) for text in texts]
        sizes = self._sizes(lengths, settings.get("beam"), USUAL_BEAM)
        return self.batcher.submit(key, compute, list(enumerate(texts)), sizes)

    def _sizes(self, lengths: Sequence[int], beam: int | None, usual: int) -> list[int]:
        """What inputs count in the queue and in a batch: their characters, times the beam over the usual one.

        Args:
            lengths: characters.
            beam: hypotheses that are asked for.
            usual: hypotheses by default.
        """
        times = ceil(max(1, (beam or usual) / usual))
        return [times * max(self.limits.least, length) for length in lengths]

    def submit_one(self, compute: Compute, given: Any, size: int) -> Any:
        """The future of a result that is computed by itself."""
        return self.batcher.submit(object(), compute, [given], [size])[0]

    def describe(self, describer: Any, file: bytes, **settings: Any) -> Any:
        """The future of the Description of a file's bytes."""
        settings = {name: value for name, value in settings.items() if value is not None}
        if describer.task == "transcribe":
            settings["report"] = self._listened

        def compute(some: list[bytes]) -> Sequence[Any]:
            return list(describer.each(some, record=False, **settings))

        (size,) = self._sizes([len(file) // 256], settings.get("beam"), describer.decoding.beam)
        return self.submit_one(compute, file, size)

    def _listened(self, seconds: float) -> None:
        if seconds > self.limits.sound:
            raise InputError(f"the recording is too long: expected at most {self.limits.sound:g} seconds")

    def stream(self, completer: Any, text: str, going: Callable[[], bool], collect: Callable[[str], None],
               **settings: Any) -> Any:  # fmt: skip
        """The future of the end of a completion whose pieces are collected as soon as they are known.

        Args:
            completer: the model.
            text: the beginning.
            going: whether pieces are still wanted; asked before each.
            collect: called with each piece, in the thread that computes.
            settings: of `Completer.stream`.
        """

        def compute(some: list[str]) -> Sequence[Any]:
            pieces: Iterator[str] = completer.stream(some[0], **settings)
            for piece in pieces:
                if not going():
                    break
                collect(piece)
            return [None]

        return self.submit_one(compute, text, len(text) + settings.get("length", 0))

    def count(self, model: str, read: int, written: int) -> None:
        """Count tokens."""
        self.metrics.tokens.labels(model, "source").inc(read)
        self.metrics.tokens.labels(model, "output").inc(written)

    async def close(self) -> None:
        """Compute what waits, and end."""
        self.batcher.close()


async def sentences(texts: Sequence[str], language: str) -> list[list[str]]:
    """The sentences of each text, cut in another thread: long texts take a while, in which others are answered."""

    def work() -> list[list[str]]:
        pieces = [cut(text, language) for text in texts]
        return [some if len(some) > 1 else [text] for some, text in zip(pieces, texts, strict=True)]

    return await asyncio.to_thread(work)


async def _joined(text: str, sentences: "Sequence[asyncio.Future[Any]]", n_best: int) -> Any:
    """The translation of a text from those of its sentences, or what is wrong with one of them."""
    parts = await asyncio.gather(*sentences)
    wrong = next((one for one in parts if isinstance(one, Exception)), None)
    return wrong or join(text, parts, n_best)


def _frozen(settings: dict[str, Any]) -> Hashable:
    """Settings as a key; the order of a glossary counts where two of its terms are the same but for their case."""
    return tuple(
        (
            name,
            tuple(value.items()) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value,
        )
        for name, value in sorted(settings.items())
    )


def good(results: Sequence[Any], field: str, first: int = 0) -> list[Any]:
    """The results, where all are.

    Args:
        results: each one, or an error.
        field: the name of the list of inputs; none for a single one.
        first: the number of the first one in that list.

    Raises:
        Refusal: of the first error that is a refusal of the library.
        Exception: the first of any other kind.
    """
    for n, one in enumerate(results, first):
        if isinstance(one, InputError):
            raise Refusal(422, f"{field}[{n}]: {one}" if field else str(one)) from one
        if isinstance(one, RegardError):
            raise one if isinstance(one, Refusal) else Refusal(422, str(one)) from one
        if isinstance(one, Exception):
            raise one
    return list(results)


def number(value: float) -> float | None:
    """A number as JSON has it: none for infinity."""
    return value if isfinite(value) else None
