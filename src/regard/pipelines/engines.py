"""A translator over another engine: CTranslate2 searches, and what comes back is the same `Generation`.

What the engine does not show is refused by name: maps of every head and layer, traces, draws, interventions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from regard.arguments import check_settings, check_whole
from regard.attention.watch import has_search_listeners, is_changing
from regard.bundle import Bundle
from regard.decoding.generate import check_wanted, may_be_unwanted
from regard.decoding.search import SearchConfig
from regard.errors import ConfigError, unknown
from regard.export import ctranslate2 as export
from regard.models.ensemble import Ensemble
from regard.pipelines.base import BATCH_TOKENS, Encoded, InputError, Pipeline
from regard.pipelines.generation import Alignment, Generation
from regard.pipelines.onnx_engine import OnnxRuntime
from regard.pipelines.translator import Translator

UNWANTED_TOKENS = 8_192  # of all hypotheses that may be searched for clients that have gone; one text may have more
ENGINES = ("regard", "ctranslate2", "onnx")
PRECISIONS = {
    "ctranslate2": {"float32": "float32", "int8": "int8", "auto": "int8"},
    "onnx": {"float32": "float32", "auto": "float32"},
}


def with_engine(found: Pipeline[Any, Any], engine: str, precision: str) -> Pipeline[Any, Any]:
    """A loaded model over another engine.

    Args:
        found: the model.
        engine: "regard", "ctranslate2" or "onnx".
        precision: of the engine's products: "float32", "auto" or, in CTranslate2, "int8", which "auto" is there.

    Raises:
        ChoiceError: an unknown engine.
        ConfigError: the engine is not installed, or cannot express the model.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine == "regard":
        return found
    if found.task != "translate":
        raise ConfigError(f'engine = "{engine}" is for translators; {found.name} is for `regard {found.task}`')
    if isinstance(found.model, Ensemble):
        raise ConfigError(f'engine = "{engine}" searches one model: load the ensemble {found.name} without engine')
    known = PRECISIONS[engine]
    if precision not in known:
        raise ConfigError(f'engine = "{engine}": precision must be one of {", ".join(known)}; got {precision!r}')
    if engine == "onnx":
        return OnnxRuntime(found.bundle, found.name)
    return CTranslate2(found.bundle, found.name, known[precision])


@dataclass(frozen=True, eq=False, kw_only=True)
class Searched(Generation):
    """A translation that another engine found.

    Attributes:
        weights: `[T, S]`, the attention that alignments are read from, averaged over its heads; EOS left out.
    """

    weights: list[list[float]] = field(default_factory=list, repr=False)

    @cached_property
    def alignment(self) -> Alignment:
        """Word alignment, from the engine's own attention at the site and heads chosen when the model was trained.

        Raises:
            ConfigError: the attention was not kept.
        """
        from regard.analysis.alignment import join_words

        chosen = self.translator.bundle.alignment
        source, target = self.read.split(), self.text.split()
        if not self.recorded and self.ids:
            raise ConfigError("the attention of this translation was not kept: translate with record=True")
        site, heads = str(chosen.get("site", "")), list(chosen.get("heads", []))
        if not self.weights or not site:
            return Alignment(torch.zeros(len(target), len(source)), source, target, "", [])
        tokenizer = self.translator.tokenizer
        spans = tokenizer.target_spans(self.ids), tokenizer.source_spans(self.read)
        matrix = join_words(torch.tensor(self.weights), spans[0], self.text, spans[1], self.read)
        return Alignment(matrix, source, target, site, heads, self.title, "heads" in chosen)

    @cached_property
    def trace(self) -> Any:
        """Refused.

        Raises:
            ConfigError: always.
        """
        raise ConfigError('engine = "ctranslate2" shows no steps: load the model without engine for a trace')


class CTranslate2(Translator):
    """A translator whose search runs in CTranslate2; scores of given targets are regard's own.

    A hypothesis is ranked by CTranslate2's length penalty, log p / length^α, EOS counted.

    Args:
        bundle: the model.
        name: what it was loaded by.
        compute: "float32" or "int8".

    Raises:
        ConfigError: CTranslate2 cannot express the model, or a rule of its folder on tokens.
    """

    protects = False
    follows = False

    def __init__(self, bundle: Bundle, name: str, compute: str) -> None:
        super().__init__(bundle, name)
        rules = bundle.rules
        if rules.forced_first is not None or rules.suppressed_first or len(rules.ends) > 1:
            raise ConfigError(
                f'engine = "ctranslate2": the folder of {name} forces or suppresses the first token, or names several '
                "tokens that end a text, which CTranslate2's search cannot follow: load the model without engine"
            )
        with TemporaryDirectory() as folder:
            self.positions = export.rows_for(1 + self.limit(self.decoding.longest_source))
            export.write(bundle, Path(folder), compute, self.positions)
            import ctranslate2

            threads = torch.get_num_threads()
            self.engine = ctranslate2.Translator(folder, compute_type=compute, intra_threads=threads, inter_threads=1)
        self.names = self.tokenizer.tokens(range(len(self.tokenizer)))
        self.ids = {name: number for number, name in enumerate(self.names)}

    def each(
        self, sources: Iterable[str], *, split: bool = True, protect: bool = False, **settings: Any
    ) -> list[Generation | InputError]:
        """As `Translator.each`.

        Raises:
            ConfigError: protect, for which the engine has no search.
        """
        check_settings({"split": split, "protect": protect, **settings})
        if protect:
            raise ConfigError('engine = "ctranslate2" takes no protect here: load the model without engine')
        return super().each(sources, split=split, **settings)

    def prepare(self, source: str) -> Encoded:
        found = super().prepare(source)
        if len(found.ids) >= self.positions:
            raise InputError(
                f'a text of {len(found.ids)} tokens is too long: engine = "ctranslate2" takes {self.positions - 1}; '
                "load the model without engine"
            )
        return found

    def run(
        self, prepared: Sequence[Encoded], *, beam: int | None = None, length_penalty: float | None = None,
        n_best: int = 1, record: bool = True, batch_tokens: int = BATCH_TOKENS, sample: bool = False,
        first_index: int = 0, indices: Sequence[int] | None = None, prefix: str = "", force: Sequence[str] = (),
        forbid: Sequence[str] = (), glossary: Mapping[str, str] | None = None, mbr: int = 1, groups: int = 1,
        diversity: float | None = None, **drawing: Any,
    ) -> list[Generation]:  # fmt: skip
        """Translate texts; arguments as in `Translator.run`.

        Raises:
            ConfigError: a setting outside its range, or one that the engine does not have; a model that is observed
                or changed.
        """
        del first_index, indices
        if sample or mbr != 1 or drawing:
            raise ConfigError('engine = "ctranslate2" does not sample: load the model without engine to sample')
        for setting, value in (("prefix", prefix), ("force", force), ("forbid", forbid), ("glossary", glossary),
                               ("groups", groups != 1), ("diversity", diversity is not None)):  # fmt: skip
            if value:
                raise ConfigError(f'engine = "ctranslate2" takes no {setting} here: load the model without engine')
        if has_search_listeners() or is_changing():
            raise ConfigError('engine = "ctranslate2" cannot be observed or changed: load the model without engine')
        check_whole("batch_tokens", batch_tokens)
        if batch_tokens < 1:
            raise ConfigError(f"batch_tokens must be at least 1; got {batch_tokens}")
        config = SearchConfig(
            self.decoding.beam if beam is None else beam,
            self.decoding.length_penalty if length_penalty is None else length_penalty, n_best,
        )  # fmt: skip
        filled = [one for one in prepared if one.ids]
        made = iter(self._translate(filled, config, record, batch_tokens))
        empty = (Searched(text="", source=one.text, translator=self, recorded=record) for one in prepared)
        return [next(made) if one.ids else nothing for one, nothing in zip(prepared, empty, strict=True)]

    def _translate(
        self, texts: Sequence[Encoded], config: SearchConfig, record: bool, batch_tokens: int
    ) -> list[Generation]:
        rules = self.bundle.rules
        # a token that is forced at the limit is added to what is found before it
        forced = rules.forced_last is not None
        limits = [max(1, min(self.limit(len(one.ids) + 1), self.positions - 1)) - forced for one in texts]
        unwanted = [[self.names[i] for i in ids] for ids in [*zip(rules.suppressed, strict=True), *rules.bad_words]]
        found: dict[int, tuple[Any, int]] = {}
        left = list(range(len(texts)))
        while left:  # the engine takes one limit for a batch: the few that are longer than their own are searched again
            limit = max(limits[n] for n in left) if not found else limits[left[0]]
            some = left if not found else [n for n in left if limits[n] == limit]
            # a call cannot be ended: where what it finds may become unwanted, it is for a few texts
            most = max(1, UNWANTED_TOKENS // (max(1, limit) * config.beam)) if may_be_unwanted() else len(some)
            for first in range(0, len(some), most):
                part = some[first : first + most]
                check_wanted()
                outputs = self.engine.translate_batch(
                    [[self.names[i] for i in texts[n].ids] for n in part], beam_size=config.beam,
                    num_hypotheses=config.n_best, length_penalty=config.length_penalty,
                    max_decoding_length=max(1, limit), return_scores=True, return_attention=record,
                    max_input_length=0, suppress_sequences=unwanted,
                    max_batch_size=max(1, batch_tokens // config.beam), batch_type="tokens",
                )  # fmt: skip
                found |= {n: (one, limit) for n, one in zip(part, outputs, strict=True)}
            longest = {n: max(map(len, found[n][0].hypotheses)) for n in left}
            left = [n for n in left if limits[n] < found[n][1] and longest[n] >= limits[n]]
        results = []
        for n, text in enumerate(texts):
            one, limit = found[n]
            best, *others = [
                self._made(text, one, k, config, record, limit) for k in range(len(one.scores) if limit else 1)
            ]
            best.alternatives.extend(others)
            results.append(best)
        return results

    def _made(self, source: Encoded, found: Any, k: int, config: SearchConfig, record: bool, limit: int) -> Generation:
        tokenizer = self.tokenizer
        ids = [self.ids[name] for name in found.hypotheses[k]]
        score = found.scores[k]
        if not limit:  # there is room for the forced token alone, which is certain
            ids, score = [], 0.0
        ended = len(ids) < limit
        length = len(ids) + ended  # what the engine has divided by
        last = tokenizer.eos if ended else self.bundle.rules.forced_last
        if last is not None:
            ids.append(last)
        source_ids = [*source.ids, tokenizer.eos]
        return Searched(
            text=str(tokenizer.decode(ids)).strip(), source=source.text, tokens=tokenizer.tokens(ids), ids=ids,
            score=score, log_prob=score * max(1, length) ** config.length_penalty,
            source_tokens=tokenizer.tokens(source_ids), source_ids=source_ids, read=source.read, recorded=record,
            translator=self, weights=found.attention[k] if record else [],
        )  # fmt: skip
