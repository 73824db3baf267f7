"""The search of many texts: without their goals first, and with them where the best output lacks a phrase.

An output that a search without a goal finds and that has every phrase is what the text would have become anyway, so
most of the terms of a glossary cost nothing. The others are searched again, in batches of their own, from the same
memory.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from regard.attention.maps.map import AttentionMap
from regard.attention.watch import Call, calls_by_site, has_search_listeners, watching
from regard.data.batching import lengths_mask, pad
from regard.decoding.generate import generate, stream
from regard.decoding.phrases import Goal
from regard.decoding.sample import SampleConfig
from regard.decoding.search import Attention, Hypothesis, SearchConfig
from regard.models.seq2seq import Memory
from regard.pipelines.base import length_groups
from regard.pipelines.demands import Demands
from regard.pipelines.reading import reading_site

if TYPE_CHECKING:
    from regard.pipelines.translator import Translator

GOAL_BEAM = 8  # hypotheses kept at least where an output must have a phrase, wherever it stands
PLACED_BEAM = 4  # the same where attention says where each phrase stands


@dataclass(frozen=True, eq=False)
class Lacking:
    """A text whose best output lacks a phrase.

    Attributes:
        number: of the text.
        memory: of its source.
        found: its outputs.
    """

    number: int
    memory: Memory
    found: list[Hypothesis]


@dataclass(frozen=True, eq=False)
class TextSearch:
    """The search of many texts.

    Attributes:
        translator: gives the model, its tokenizer and its limits.
        sources: ids of each text without EOS, at least one.
        indices: of each among all texts of a seed.
        goals: of each.
        demands: on all outputs.
        record: keep the attention.
        n_best: outputs wanted of each text.
        batch_tokens: source tokens searched at a time, hypotheses counted.
        encoder_maps: of each text, {site: map `[heads, S, S]`}, where the model is observed.
    """

    translator: "Translator"
    sources: Sequence[list[int]]
    indices: Sequence[int]
    goals: Sequence[Goal | None]
    demands: Demands
    record: bool
    n_best: int
    batch_tokens: int
    encoder_maps: dict[int, dict[str, AttentionMap]] = field(default_factory=dict)

    @cached_property
    def _searched(self) -> tuple[Any, Any]:
        """What encodes and what takes steps, the same for all texts."""
        return self.translator.searched()

    def run(self, config: SearchConfig | SampleConfig) -> Iterator[tuple[int, list[Hypothesis]]]:
        """The number of each text and its outputs, best first, as they are found."""
        waiting: dict[int, list[Lacking]] = {}  # by number of hypotheses
        beams = config.beam if isinstance(config, SearchConfig) else 1
        groups = list(self._groups(range(len(self.sources)), beams))
        for group in groups:
            memory = self._encode(group)
            for row, (number, found) in enumerate(zip(group, self._outputs(group, memory, config), strict=True)):
                goal = self.goals[number]
                if goal is None or isinstance(config, SampleConfig) or self._meets(goal, found):
                    yield number, found
                    continue
                beam = max(config.beam, PLACED_BEAM if goal.placed else GOAL_BEAM)
                waiting.setdefault(beam, []).append(Lacking(number, memory.one(row), found))
            if isinstance(config, SearchConfig):
                yield from self._again(config, waiting, last=group is groups[-1])

    def follow(self, config: SearchConfig | SampleConfig) -> Generator[list[int], None, list[Hypothesis]]:
        """The outputs of the only text, which has no goal; after each step the tokens that are final."""
        translator = self.translator
        _, stepper = self._searched
        state = stepper.start(self._encode([0]), record=self.record)
        limit, bos = self._limit(0), [translator.tokenizer.bos]
        rules = [*translator.rule_constraints([bos], [limit]), *self.demands.constraints([limit])]
        return (
            yield from stream(
                stepper, state, bos, limit, config, translator.ends(), constraints=rules, index=self.indices[0]
            )
        )

    def _limit(self, number: int) -> int:
        """The most tokens of a text's output, EOS counted; a prefix has room beside them, as a goal has."""
        return self.translator.limit(len(self.sources[number]) + 1) + self.demands.room

    def _groups(self, numbers: Sequence[int], beam: int) -> Iterator[list[int]]:
        """Texts that are searched at a time."""
        lengths = [len(self.sources[n]) + 1 for n in numbers]
        for places in length_groups(lengths, self.batch_tokens // beam):
            yield [numbers[k] for k in places]

    def _again(
        self, config: SearchConfig, waiting: dict[int, list[Lacking]], last: bool
    ) -> Iterator[tuple[int, list[Hypothesis]]]:
        """The outputs of waiting texts, searched with their goals: as many as fill batches, or all."""
        for beam, lacking in waiting.items():
            known = {one.number: one for one in lacking}
            groups = list(self._groups(list(known), beam))
            left = [] if last or not groups else groups.pop()
            waiting[beam] = [known[n] for n in left]
            for group in groups:
                first, *others = (known[n].memory for n in group)
                memory = first.together([first, *others])
                bound = self._outputs(group, memory, replace(config, beam=beam), aimed=True)
                for number, found in zip(group, bound, strict=True):
                    yield number, self._joined(number, known[number].found, found)

    def _encode(self, group: Sequence[int]) -> Memory:
        """The memory of some texts; the encoder's maps are kept while the model is observed."""
        tokenizer, device = self.translator.tokenizer, self.translator.device
        rows = [[*self.sources[n], tokenizer.eos] for n in group]
        calls: list[Call] = []
        with watching(calls.append) if has_search_listeners() else nullcontext():
            encoder, _ = self._searched
            memory: Memory = encoder.encode(pad(rows, tokenizer.pad).to(device), lengths_mask(rows).to(device))
        if not calls:
            self.encoder_maps.update((number, {}) for number in group)
            return memory
        own = calls_by_site(self.translator.model, calls)
        for row, number in enumerate(group):
            tokens = tokenizer.tokens(rows[row])
            n = len(tokens)
            maps = {site: AttentionMap.from_spec(c.query, c.key, c.spec) for site, (c, *_) in own.items()}
            self.encoder_maps[number] = {
                site: whole.select(row).frozen().crop(n, 0, n, tokens, tokens) for site, whole in maps.items()
            }
        return memory

    def _outputs(
        self, group: Sequence[int], memory: Memory, how: SearchConfig | SampleConfig, aimed: bool = False
    ) -> list[list[Hypothesis]]:
        """The outputs of some texts, with their goals if they are aimed.

        Args:
            group: the texts.
            memory: of their sources.
            how: to search.
            aimed: search with their goals.
        """
        translator = self.translator
        _, stepper = self._searched
        goals = [self.goals[n] if aimed else None for n in group]
        # where no site was chosen when the model was trained, it is found among the maps of a recorded state
        unrecorded = stepper.attends_unrecorded and bool(translator.bundle.alignment)
        state = stepper.start(memory, record=self.record or (aimed and not unrecorded))
        limits = [self._limit(n) for n in group]
        before = [[translator.tokenizer.bos]] * len(limits)
        longest = [limit + (goal.room if goal else 0) for limit, goal in zip(limits, goals, strict=True)]
        return generate(
            stepper, state, before, limits, how, translator.ends(),
            constraints=[*translator.rule_constraints(before, longest), *self.demands.constraints(longest)],
            indices=[self.indices[n] for n in group], goals=goals, attention=self._reading(stepper),
        )  # fmt: skip

    def _reading(self, stepper: Any) -> Attention:
        """What gives the last step's weights of the source that alignments are read from; None without attention."""
        alignment = self.translator.bundle.alignment
        chosen = [(str(alignment["site"]), list(alignment["heads"]))] if alignment else []

        def weights(state: Any) -> torch.Tensor | None:
            if not chosen:
                chosen.append(reading_site({}, stepper.maps(state)))
            site, heads = chosen[0]
            found: torch.Tensor | None = stepper.attended(state, site, heads) if site else None
            return found

        return weights

    def _meets(self, goal: Goal, found: Sequence[Hypothesis]) -> bool:
        """Whether outputs of a search without a goal will do: the best one has every phrase, and so have others,
        `n_best` in all that differ."""
        texts = [self.translator.text_of(one) for one in found]
        good = [text for text in texts if goal.met(text)]
        return bool(good) and good[0] == texts[0] and len(set(good)) >= self.n_best

    def _joined(self, number: int, free: Sequence[Hypothesis], bound: Sequence[Hypothesis]) -> list[Hypothesis]:
        """The outputs of a text that have every phrase, best first; the best of the search without a goal stays the
        first where it is one of them, however many are wanted.

        Args:
            number: of the text.
            free: outputs of the search without its goal.
            bound: of that with it.
        """
        goal = self.goals[number]
        assert goal is not None
        good = [one for one in free if goal.met(self.translator.text_of(one))]
        first = (free if good and good[0] is free[0] else bound)[:1]
        own = [*bound, *(one for one in good if all(one.tokens != other.tokens for other in bound))]
        rest = [one for one in own if not first or one.tokens != first[0].tokens]
        return [*first, *sorted(rest, key=lambda one: -one.score)]
