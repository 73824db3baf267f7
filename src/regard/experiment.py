"""The one place that joins everything: what `load` returns, `Generation`, and `train`."""

import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import exp
from pathlib import Path
from typing import Any, get_args, overload

import sacrebleu
import torch
from pydantic import BaseModel, ConfigDict, Field

from regard.attention.map import AttentionMap
from regard.bundle import INFO, Bundle, Precision, load_bundle, save_bundle
from regard.config import apply, read_toml, to_toml, validate
from regard.data.align import Link, phrase_links
from regard.data.batching import Batches, lengths_mask, pad
from regard.data.corpus import DataConfig, Pairs, augment, read_lines, read_pairs, split
from regard.decoding.search import Hypothesis, SearchConfig, search
from regard.errors import BundleError, ChoiceError, ConfigError, DataError, RegardError, nearest, unknown
from regard.models.build import ModelConfig, build
from regard.models.seq2seq import Seq2Seq
from regard.text.tokenizer import BOS, EOS, PAD, Tokenizer, TokenizerConfig, word_of_each
from regard.training.checkpoint import average, load_checkpoint
from regard.training.journal import Journal
from regard.training.loop import LAST, Report, TrainingConfig, batch_loss
from regard.training.loop import train as run_loop

SHIPPED = Path(__file__).parent / "shipped"
SEARCH_TOKENS = 4096  # source tokens searched at a time


class DecodingConfig(BaseModel):
    """Default settings of the search."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    beam: int = Field(4, gt=0, le=100)
    """Hypotheses kept per sentence; 1 is greedy."""
    length_penalty: float = 0.6
    """α of the length penalty (Wu et al. 2016, equation 14)."""
    length_ratio: float = Field(2.0, gt=0)
    """An output has at most length_ratio · source tokens + length_extra tokens."""
    length_extra: int = Field(10, ge=0)
    """See length_ratio."""
    longest_source: int = Field(300, gt=0)
    """A source with more tokens is refused."""


class ExperimentConfig(BaseModel):
    """A training run: data, tokeniser, model, training, decoding."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    task: str = "translate"
    """What the model learns to do."""
    languages: tuple[str, str] = ("fr", "en")
    """Of source and target, for figures and the model card."""
    dev_sentences: int = Field(500, gt=0)
    """Development sentences translated (greedily) at each evaluation during training."""
    data: DataConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig
    training: TrainingConfig = TrainingConfig()
    decoding: DecodingConfig = DecodingConfig()


@dataclass(frozen=True, eq=False)
class Alignment:
    """Words with words: where each output word looked.

    Sub-words are joined (sum over the source pieces, mean over the output pieces), the row and column
    of EOS are dropped, and rows are divided by their sum.

    Attributes:
        matrix: `[output words, source words]`.
        source, target: the words, as `str.split()` gives them.
        site, heads: whose attention this is; the heads' mean is read.
    """

    matrix: torch.Tensor
    source: list[str]
    target: list[str]
    site: str
    heads: list[int]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(output word, source word), 0-based: every output word with the source word it looked at most."""
        if not self.matrix.numel():
            return []
        return [(i, int(row.argmax())) for i, row in enumerate(self.matrix) if float(row.sum()) > 0]

    def plot(self, path: str | Path) -> None:
        """Draw the heatmap; the ending of `path` (.png, .svg, .pdf) says how."""
        from regard.explore.plots import save_heatmap

        save_heatmap(
            self.matrix.tolist(), self.target, self.source, path, title=f"{self.site}, {name_heads(self.heads)}"
        )


@dataclass(frozen=True, eq=False)
class Generation:
    """What a model made of one source.

    Attributes:
        text: the output.
        source: the input.
        tokens: the output's tokens, without BOS, with EOS if it was produced.
        ids: their ids.
        score: what ranked the beam.
        log_prob: the sum of the tokens' log-probabilities, in nats.
        source_tokens: the input's tokens, with EOS.
        alternatives: the other hypotheses asked for with n_best, best first.
        attention: {site: map `[heads, T, S]`}, rows are output tokens.
    """

    text: str
    source: str
    tokens: list[str]
    ids: list[int]
    score: float
    log_prob: float
    source_tokens: list[str]
    source_ids: list[int]
    alternatives: "list[Generation]"
    attention: dict[str, AttentionMap]
    translator: "Translator"

    @cached_property
    def alignment(self) -> Alignment:
        """Words with words, read from the site and heads that were chosen when the model was trained."""
        from regard.explore.alignment import join_words

        chosen = self.translator.bundle.alignment
        site, heads = chosen.get("site", ""), list(chosen.get("heads", []))
        source, target = self.source.split(), self.text.split()
        if site not in self.attention:
            return Alignment(torch.zeros(len(target), len(source)), source, target, site, heads)
        weights = self.attention[site].full()[heads].mean(0)
        tokenizer = self.translator.tokenizer
        matrix = join_words(
            weights, tokenizer.target_spans(self.ids), self.text, tokenizer.source_spans(self.source), self.source
        )
        return Alignment(matrix, source, target, site, heads)

    @cached_property
    def trace(self) -> "Any":
        """The decoding worked through, step by step (`regard.explore.trace.Trace`)."""
        from regard.explore.trace import trace

        return trace(self.translator.bundle, self.source, self.source_ids, self.ids)

    def as_json(self) -> dict[str, Any]:
        """Everything that `--json` prints."""
        alignment = self.alignment
        return {
            "source": self.source, "text": self.text, "tokens": self.tokens, "source_tokens": self.source_tokens,
            "score": self.score, "log_prob": self.log_prob,
            "alternatives": [{"text": a.text, "score": a.score, "log_prob": a.log_prob} for a in self.alternatives],
            "alignment": {
                "source": alignment.source, "target": alignment.target, "pairs": alignment.pairs,
                "matrix": [[round(float(x), 6) for x in row] for row in alignment.matrix],
                "site": alignment.site, "heads": alignment.heads,
            },
        }  # fmt: skip


def name_heads(heads: Sequence[int]) -> str:
    """“head 3”, or “mean of heads 0, 2”."""
    return f"head {heads[0]}" if len(heads) == 1 else f"mean of heads {', '.join(map(str, heads))}"


class Refused(RegardError, ValueError):
    """One input of many that cannot be worked on; the message says why."""


class Translator:
    """A trained model that is ready to use: what `regard.load` returns.

    Attributes:
        model: the nn.Module inside.
        tokenizer: text to ids and back.
        bundle: all of it, with the settings.
    """

    def __init__(self, bundle: Bundle, name: str) -> None:
        self.bundle, self.name = bundle, name
        self.model, self.tokenizer = bundle.model, bundle.tokenizer
        self.decoding = DecodingConfig(**bundle.decoding)

    @overload
    def __call__(self, source: str, **settings: Any) -> Generation: ...
    @overload
    def __call__(self, source: Sequence[str], **settings: Any) -> list[Generation]: ...
    def __call__(self, source: str | Sequence[str], **settings: Any) -> Generation | list[Generation]:
        """Translate one text, or many: a list in, a list out, same order, same length.

        Args:
            source: a text or a list of texts.
            settings: beam (default: the model's), length_penalty, n_best (alternatives; default 1),
                record (keep the attention; default True).

        Raises:
            ConfigError: a setting that makes no sense.
            Refused: a text longer than the model takes.
        """
        if isinstance(source, str):
            return self.translate([source], **settings)[0]
        return self.translate(list(source), **settings)

    def translate(
        self,
        sources: list[str],
        *,
        beam: int | None = None,
        length_penalty: float | None = None,
        n_best: int = 1,
        record: bool = True,
    ) -> list[Generation]:
        """`__call__` for a list; see there."""
        beam = self.decoding.beam if beam is None else beam
        if beam < 1 or not 1 <= n_best <= beam:
            raise ConfigError(
                f"beam must be at least 1 and n_best between 1 and beam; got beam = {beam}, n_best = {n_best}"
            )
        penalty = self.decoding.length_penalty if length_penalty is None else length_penalty
        config = SearchConfig(beam, penalty, n_best)
        encoded = [self.encode(source) for source in sources]
        results: dict[int, Generation] = {i: self._nothing(sources[i]) for i, ids in enumerate(encoded) if not ids}
        with torch.inference_mode():
            for group in _groups([len(ids) for ids in encoded], SEARCH_TOKENS // beam):
                found = self._search([encoded[i] for i in group], config, record)
                results |= {i: self._generation(sources[i], encoded[i], h) for i, h in zip(group, found, strict=True)}
        return [results[i] for i in range(len(sources))]

    def encode(self, source: str) -> list[int]:
        """The source's ids without EOS; none for an empty text.

        Raises:
            Refused: it has more tokens than the model takes.
        """
        limit = self.decoding.longest_source
        if len(source) > 50 * limit:
            raise Refused(
                f"a text of {len(source):,} characters is too long: this model takes {limit:,} tokens; "
                "cut it into sentences"
            )
        ids = self.tokenizer.encode(source) if source.strip() else []
        if len(ids) > limit:
            raise Refused(
                f"a text of {len(ids):,} tokens is too long: this model takes {limit:,}; cut it into sentences"
            )
        return ids

    def limit(self, source_tokens: int) -> int:
        """The most tokens of an output; it depends on this source alone."""
        return int(self.decoding.length_ratio * source_tokens) + self.decoding.length_extra

    def _search(self, sources: list[list[int]], config: SearchConfig, record: bool) -> list[list[Hypothesis]]:
        rows = [[*ids, EOS] for ids in sources]
        memory = self.model.encode(pad(rows, PAD), lengths_mask(rows))
        state = self.model.start(memory, record=record)
        return search(self.model.step, state, [self.limit(len(row)) for row in rows], config, BOS, EOS)

    def _generation(self, source: str, ids: list[int], found: list[Hypothesis]) -> Generation:
        best, *others = found
        return self._one(source, ids, best, [self._one(source, ids, other, []) for other in others])

    def _one(self, source: str, ids: list[int], found: Hypothesis, alternatives: list[Generation]) -> Generation:
        source_tokens = self.tokenizer.tokens([*ids, EOS])
        tokens = self.tokenizer.tokens(found.tokens)
        maps = {}
        for site, whole in self.model.maps(found.state).items():  # type: ignore[arg-type]
            own = site.endswith(".self")
            width = whole.shape[-1] if own else len(source_tokens)
            weights = whole.select(0, 0).full()[..., :width]
            keys = ["<s>", *tokens[:-1]] if own else source_tokens
            maps[site] = AttentionMap.from_weights(weights, query_tokens=tokens, key_tokens=keys)
        return Generation(
            self.tokenizer.decode(found.tokens).strip(), source, tokens, found.tokens, found.score, found.log_prob,
            source_tokens, [*ids, EOS], alternatives, maps, self,
        )  # fmt: skip

    def _nothing(self, source: str) -> Generation:
        return Generation("", source, [], [], 0.0, 0.0, [], [], [], {}, self)


def _groups(lengths: list[int], tokens: int) -> Iterator[list[int]]:
    """Indices of non-empty sentences in groups of about equal length and at most `tokens` places."""
    group: list[int] = []
    for i in sorted((i for i, n in enumerate(lengths) if n), key=lambda i: lengths[i]):
        if group and (lengths[i] + 1) * (len(group) + 1) > tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def shipped() -> list[str]:
    """Names of the models that come with regard."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{INFO}"))


def load(name: str | Path) -> Translator:
    """A model ready to use: a shipped one by name, or a run or bundle folder ("./name" is always a folder).

    Raises:
        ChoiceError: neither a shipped model nor a folder; lists the known names, nearest spelling first.
        BundleError: the folder is damaged, or its training is not finished.
    """
    text = str(name)
    if text in shipped():
        return Translator(load_bundle(SHIPPED / text), text)
    folder = Path(name)
    if folder.is_dir():
        return Translator(load_bundle(folder), folder.name)
    if "/" in text:
        raise BundleError(f"{text}: no such folder")
    known = ", ".join(map(repr, nearest(text, shipped())))
    raise ChoiceError(f"unknown model {text!r}: expected one of {known}, or the folder of a run")


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        path: its folder; `regard.load(path)` loads it.
        model: the trained model, ready to use.
        journal: every evaluation.
    """

    path: Path
    model: Translator
    journal: list[dict[str, Any]]


def read_config(config: str | Path | dict[str, Any], overrides: dict[str, Any] | None = None) -> ExperimentConfig:
    """An experiment's settings from a TOML file (or its contents as a dict), some of them replaced.

    Raises:
        ConfigError: an unknown or senseless setting, nearest spelling first.
    """
    settings = config if isinstance(config, dict) else read_toml(Path(config))
    where = "config" if isinstance(config, dict) else str(config)
    return validate(ExperimentConfig, apply(settings, overrides or {}), where)


def train(
    config: str | Path | dict[str, Any],
    overrides: dict[str, Any] | None = None,
    *,
    run: str | Path | None = None,
    resume: bool = False,
    report: Report = lambda _: None,
) -> Run:
    """Train what a config describes; what `regard train` does.

    Args:
        config: a TOML file, or the same as a dict.
        overrides: dotted settings to replace, {"model.width": 192}.
        run: the run's folder; runs/NAME-OF-THE-CONFIG by default.
        resume: go on with the run in that folder.
        report: told of every step and evaluation.

    Raises:
        ConfigError: a bad setting; a folder that holds a run already (without resume), or none (with it).
        DataError: the data cannot be read, by file and line.
        Interrupted: stopped by Ctrl-C, and saved.
    """
    settings = read_config(config, overrides)
    folder = Path(run) if run else Path("runs") / (Path(config).stem if not isinstance(config, dict) else "run")
    _prepare_folder(folder, settings, resume)
    parts = read_data(settings)
    tokenizer = _tokenizer(folder, parts[0], settings)
    batches = _training_batches(parts[0], tokenizer, settings)
    report(
        {
            "event": "start",
            "training_pairs": len(batches.pairs),
            "dev_pairs": len(parts[1]),
            "vocabulary": len(tokenizer),
            "padding": batches.padding_share(),
            "run": str(folder),
            "max_steps": settings.training.max_steps,
            "step": 0,
        }
    )
    torch.manual_seed(settings.training.seed)
    model = build(len(tokenizer), settings.model)
    with tuned(), _asked_to_stop() as should_stop:
        weights = run_loop(
            model, batches, settings.training, folder,
            evaluate=make_evaluate(parts[1], tokenizer, settings), report=report,
            should_stop=should_stop, resume=resume,
        )  # fmt: skip
        model.load_state_dict(weights)
        finish(folder, settings, model.eval(), tokenizer, parts)
    return Run(folder, load(folder.resolve()), Journal(folder / "journal.jsonl").entries())


def finish(
    folder: Path, settings: ExperimentConfig, model: Seq2Seq, tokenizer: Tokenizer, parts: tuple[Pairs, Pairs, Pairs]
) -> Bundle:
    """Choose the alignment's site and heads on development data, and write the bundle."""
    from regard.explore.alignment import choose_heads

    bundle = Bundle(settings.task, settings.languages, model, settings.model, tokenizer, settings.decoding.model_dump())
    dev = parts[1] if len(parts[1]) else parts[0]
    bundle.alignment = choose_heads(model, tokenizer, parts[0], dev)
    save_bundle(folder, bundle)
    return bundle


def read_data(settings: ExperimentConfig) -> tuple[Pairs, Pairs, Pairs]:
    """Training, development and test pairs of an experiment.

    Raises:
        DataError: a file is missing or crooked.
        ConfigError: nothing is left to train on.
    """
    data = settings.data
    pairs = read_pairs(data.train, data)
    train_part, dev, test = split(pairs, data if data.dev is None else data.model_copy(update={"dev_share": 0.0}))
    if data.dev is not None:
        dev = read_pairs(data.dev, data)
    if not len(train_part):
        raise ConfigError("there are no training pairs: check data.train and the shares that are split off")
    return train_part, dev, test


def make_evaluate(
    dev: Pairs, tokenizer: Tokenizer, settings: ExperimentConfig
) -> Callable[[Seq2Seq], dict[str, float]]:
    """From a model to its numbers on development data: loss and perplexity of all pairs, BLEU and chrF of some."""
    batches = _batches(dev, tokenizer, settings)
    some = dev.sample(settings.dev_sentences)

    def evaluate(model: Seq2Seq) -> dict[str, float]:
        if not len(dev):
            return {"loss": float("inf"), "perplexity": float("inf"), "bleu": 0.0, "chrf": 0.0}
        loss, _ = mean_loss(model, batches, settings.training)
        translator = Translator(
            Bundle("translate", settings.languages, model, settings.model, tokenizer, settings.decoding.model_dump()),
            "run",
        )
        outputs = [g.text for g in translator.translate(some.source, beam=1, record=False)]
        return {"loss": loss, "perplexity": exp(min(loss, 700)), **scores(outputs, some.target)}

    return evaluate


def mean_loss(model: Seq2Seq, batches: Batches, training: TrainingConfig) -> tuple[float, int]:
    """Negative log-likelihood per target token in nats, EOS counted; and the number of tokens."""
    total, tokens = 0.0, 0
    for batch in batches.epoch(0):
        _, nll, n = batch_loss(model, batch, training, PAD)
        total, tokens = total + float(nll), tokens + n
    return total / max(1, tokens), tokens


def scores(outputs: list[str], references: list[str]) -> dict[str, float]:
    """BLEU and chrF of outputs against references (sacreBLEU's defaults)."""
    return {
        "bleu": sacrebleu.corpus_bleu(outputs, [references]).score,
        "chrf": sacrebleu.corpus_chrf(outputs, [references]).score,
    }


def evaluate_files(
    translator: Translator, source: Path, reference: Path, beam: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """BLEU and chrF with signatures, loss and perplexity of a model on two parallel files; and the translations.

    Raises:
        DataError: a file is missing or crooked, or the files differ in length.
    """
    sides = read_lines(source), read_lines(reference)
    if len(sides[0]) != len(sides[1]):
        raise DataError(
            f"{source} has {len(sides[0])} lines and {reference} has {len(sides[1])}: "
            "every source line needs one reference"
        )
    if not sides[0]:
        raise DataError(f"{source}: there is nothing to translate: the file is empty")
    for number, line in enumerate(sides[0], 1):
        try:
            translator.encode(line)
        except Refused as error:
            raise DataError(f"{source}:{number}: {error}") from error
    outputs = [g.text for g in translator.translate(sides[0], beam=beam, record=False)]
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    measured = bleu.corpus_score(outputs, [sides[1]]).score, chrf.corpus_score(outputs, [sides[1]]).score
    tokenizer = translator.tokenizer
    filled = [(s, t) for s, t in zip(*sides, strict=True) if s.strip() and t.strip()]
    encoded = [(tokenizer.encode(s), tokenizer.encode(t)) for s, t in filled]
    with torch.inference_mode():
        loss, tokens = mean_loss(translator.model, Batches(encoded, SEARCH_TOKENS, BOS, EOS, PAD), TrainingConfig())
    numbers = {
        "bleu": measured[0], "bleu_signature": str(bleu.get_signature()),
        "chrf": measured[1], "chrf_signature": str(chrf.get_signature()),
        "loss": loss, "perplexity": exp(min(loss, 700)), "tokens": tokens, "sentences": len(outputs),
        "beam": translator.decoding.beam if beam is None else beam,
    }  # fmt: skip
    return numbers, outputs


def average_run(folder: Path, into: Path) -> Path:
    """Average a run's best checkpoints into a new bundle in `into`.

    Raises:
        BundleError: the folder holds no finished run, or a checkpoint is damaged.
    """
    bundle = load_bundle(folder)
    best = sorted(folder.glob("best-*.safetensors"))
    if not best:
        raise BundleError(f"{folder}: no best-*.safetensors to average")
    bundle.model.load_state_dict(average([load_checkpoint(path)[0] for path in best]))
    save_bundle(into, bundle)
    return into


def export_bundle(translator: Translator, into: Path, precision: str) -> None:
    """Write a model as a folder of its own, its weights in float32, float16 or int8.

    Raises:
        ChoiceError: an unknown precision.
        ConfigError: the folder holds something already.
    """
    if precision not in get_args(Precision):
        raise unknown("precision", precision, get_args(Precision))
    if into.exists() and any(into.iterdir()):
        raise ConfigError(f"{into} is not empty: choose another folder")
    save_bundle(into, translator.bundle, precision)  # type: ignore[arg-type]


def _prepare_folder(folder: Path, settings: ExperimentConfig, resume: bool) -> None:
    started = (folder / LAST).exists()
    if resume and not started:
        raise ConfigError(f"{folder}: there is nothing to resume: no {LAST}")
    if not resume and (started or (folder / INFO).exists()):
        raise ConfigError(f"{folder} holds a run already: go on with --resume, or choose another folder with --run")
    if resume and (folder / "config.toml").read_text("utf-8") != to_toml(settings):
        raise ConfigError(
            f"{folder}: its run had other settings (config.toml): resume with the same ones, or choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:  # what a run left that ended before its first checkpoint
        for path in (folder / "journal.jsonl", *folder.glob("best-*.safetensors")):
            path.unlink(missing_ok=True)
    (folder / "config.toml").write_text(to_toml(settings), "utf-8")


def _tokenizer(folder: Path, pairs: Pairs, settings: ExperimentConfig) -> Tokenizer:
    """The run's tokeniser, learned on the training side only; a resumed run reads its own back."""
    path = folder / "tokenizer.json"
    if (folder / LAST).exists() and path.exists():
        return Tokenizer.load(path, settings.tokenizer)
    tokenizer = Tokenizer.learn((text for pair in pairs for text in pair), settings.tokenizer)
    tokenizer.save(path)
    return tokenizer


def _training_batches(pairs: Pairs, tokenizer: Tokenizer, settings: ExperimentConfig) -> Batches:
    """The augmented training pairs as batches, with links where alignment is guided."""
    shown = augment(pairs, settings.data, settings.training.seed)
    sides = (tokenizer.encode_batch(shown.source), tokenizer.encode_batch(shown.target))
    kept = [n for n, pair in enumerate(zip(*sides, strict=True)) if max(map(len, pair)) <= settings.data.longest]
    links = token_links(tokenizer, shown) if settings.training.guide else None
    training = settings.training
    return Batches(
        [(sides[0][n], sides[1][n]) for n in kept], training.batch_tokens, BOS, EOS, PAD, training.seed,
        None if links is None else [links[n] for n in kept],
    )  # fmt: skip


def token_links(tokenizer: Tokenizer, pairs: Pairs) -> list[list[Link]]:
    """(target token, source token) links of every pair: the tokens of words that translate each other one by one."""
    spans = zip(tokenizer.encode_spans(pairs.source), tokenizer.encode_spans(pairs.target), strict=True)
    result = []
    for (source, target), (there, here), links in zip(pairs, spans, phrase_links(list(pairs)), strict=True):
        words = word_of_each(there, source), word_of_each(here, target)
        places: dict[int | None, list[int]] = {}
        for place, word in enumerate(words[0]):
            places.setdefault(word, []).append(place)
        partner = dict(links)
        result.append([(t, s) for t, w in enumerate(words[1]) if w in partner for s in places.get(partner[w], [])])
    return result


def _batches(pairs: Pairs, tokenizer: Tokenizer, settings: ExperimentConfig) -> Batches:
    sides = (tokenizer.encode_batch(pairs.source), tokenizer.encode_batch(pairs.target))
    return Batches(
        list(zip(*sides, strict=True)), settings.training.batch_tokens, BOS, EOS, PAD, settings.training.seed
    )


@contextmanager
def tuned() -> Iterator[None]:
    """The process made fit for training: no denormal numbers, and freed memory kept for the next step."""
    torch.set_flush_denormal(True)
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(
        libc, "mallopt"
    ):  # glibc: give nothing back below 1 GiB; page faults cost a fifth of a step
        libc.mallopt(-3, 1 << 30)
        libc.mallopt(-1, (1 << 31) - 1)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a question that the loop asks between steps; the second one interrupts at once."""
    asked = threading.Event()

    def ask(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
