"""Greedy, beam and diverse beam search over any step function.

A hypothesis that ends keeps its own slice of the state, so what was recorded there (the queries of
every attention) has followed it through every reordering of the beam.
"""

from collections import Counter
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile, zip_longest
from math import inf
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from regard.arguments import check_number, check_whole
from regard.decoding.constraints import StepFunction, innermost
from regard.decoding.phrases import Goal, GoalProgress
from regard.errors import ConfigError
from regard.nn.state import State

Attention = Callable[[Any], Tensor | None]


@runtime_checkable
class Followed(Protocol):
    """What search needs of a state: hypotheses can be selected, sentences kept."""

    def select(self, parents: Int[Tensor, "N K"]) -> "Followed": ...
    def keep(self, sentences: Int[Tensor, "M"]) -> "Followed": ...


ASTRAY = 5.0  # nats that a phrase of a goal costs in the ranking of outputs where none of it is in its place
BLOCK = 64  # numbers whose maximum is taken first, where the largest of many are looked for
DIVERSITY = 0.5  # λ; 0.2 to 0.8 is good for most tasks (Vijayakumar et al. 2018, section 5.1)
WIDEST = 10_000  # hypotheses of a beam: more would take minutes a step
STEEPEST = 10  # α: the scores of long outputs stay finite
LENGTH_PENALTY = 0.6  # α of Wu et al. 2016, equation 14, unless a model has its own


@dataclass(frozen=True)
class SearchConfig:
    """How to search.

    Attributes:
        beam: hypotheses kept per sentence; 1 is greedy.
        length_penalty: α of score = log p / ((5 + length) / 6)^α (Wu et al. 2016, equation 14); 0 ranks by log p.
        n_best: hypotheses returned per sentence, at most `beam`.
        groups: of hypotheses, `beam` / `groups` each, that are to differ (diverse beam search, Vijayakumar et al. 2018,
            algorithm 1); 1 is an ordinary beam.
        diversity: λ in nats. A group ranks its continuations by log p - λ · (how often earlier groups took the same
            token at this step), the paper's Hamming diversity; scores and log-probabilities do not hold it.

    Raises:
        ConfigError: numbers that make no sense.
    """

    beam: int = 4
    length_penalty: float = LENGTH_PENALTY
    n_best: int = 1
    groups: int = 1
    diversity: float = DIVERSITY

    def __post_init__(self) -> None:
        for name in ("beam", "n_best", "groups"):
            check_whole(name, getattr(self, name), WIDEST)
        for name in ("length_penalty", "diversity"):
            check_number(name, getattr(self, name))
        if self.beam < 1 or not 1 <= self.n_best <= self.beam:
            raise ConfigError(
                f"beam must be at least 1 and n_best between 1 and beam; got beam = {self.beam}, n_best = {self.n_best}"
            )
        if self.groups < 1 or self.beam % self.groups:
            raise ConfigError(
                f"groups must divide the beam into equal parts; got groups = {self.groups}, beam = {self.beam}: choose "
                "a beam that is a multiple of groups"
            )
        if not -STEEPEST <= self.length_penalty <= STEEPEST:
            raise ConfigError(f"length_penalty must be between {-STEEPEST} and {STEEPEST}; got {self.length_penalty}")
        if not 0 <= self.diversity < inf:
            raise ConfigError(f"diversity must be a finite number of nats, 0 or more; got {self.diversity}")

    @property
    def width(self) -> int:
        """Hypotheses of a group."""
        return self.beam // self.groups

    def score(self, log_prob: float, length: int) -> float:
        """What ranks a finished hypothesis of `length` tokens, EOS counted."""
        return float(log_prob / ((5 + length) / 6) ** self.length_penalty)


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """One output: token ids without BOS, with EOS if it was produced; its score, log-probability, and state."""

    tokens: list[int]
    score: float
    log_prob: float
    state: Followed


@dataclass
class Beam:
    """The bookkeeping of one sentence.

    Attributes:
        number: its index among all sentences.
        limit: output tokens at most.
        finished: hypotheses that have ended.
        goal: what its outputs must have, if anything.
        progress: of each hypothesis toward the goal.
        totals: log-probability of each hypothesis, where there is a goal.
        attended: of each hypothesis, the attention that the place of each phrase gets.
        ranks: of each finished hypothesis, its score, less for phrases that are not in their places.
        reached: progress of this step's continuations that concern a phrase, by hypothesis and token.
        ended: hypotheses of each group that have ended.
        results: the outputs, best first, once the sentence is done.
    """

    number: int
    limit: int
    goal: Goal | None = None
    finished: list[Hypothesis] = field(default_factory=list)
    progress: list[GoalProgress] = field(default_factory=list)
    totals: list[float] = field(default_factory=lambda: [0.0])
    attended: list[list[float]] = field(default_factory=lambda: [[]])
    ranks: list[float] = field(default_factory=list)
    reached: dict[tuple[int, int], GoalProgress] = field(default_factory=dict)
    ended: list[int] = field(default_factory=lambda: [0])
    results: list[Hypothesis] | None = None

    def ranked(self) -> list[int]:
        """The numbers of the finished hypotheses, best first."""
        return sorted(range(len(self.finished)), key=lambda n: -self.ranks[n])

    def furthest(self, length: int) -> int:
        """The length at which a living hypothesis is still expected to end with a better score; the limit, but the
        next one where every phrase of the goal has a place, beyond which little is won."""
        return length + 1 if self.goal and self.goal.placed else self.limit


@dataclass(frozen=True, eq=False)
class SearchStep:
    """What a search has come to after a step.

    Attributes:
        beams: the bookkeeping of the N sentences that were searched.
        paths: the tokens so far of each hypothesis, without BOS.
        log_probs: of the hypotheses; -∞ for those that cannot become outputs.
    """

    beams: list[Beam]
    paths: Int[Tensor, "N K t"]
    log_probs: Float[Tensor, "N K"]

    def settled(self, sentence: int) -> list[int]:
        """The tokens that a sentence's best output begins with, whatever is still found.

        They are what the living hypotheses and the best finished one have in common: one of these, or a continuation,
        becomes the output.
        """
        beam = self.beams[sentence]
        if beam.results is not None:
            return beam.results[0].tokens if beam.results else []
        living = self.paths[sentence][self.log_probs[sentence] > -inf].tolist()
        rivals = [*living, *(beam.finished[k].tokens for k in beam.ranked()[:1])]
        common = takewhile(lambda column: len(set(column)) == 1, zip(*rivals, strict=False))
        return [column[0] for column in common]


class _Candidate(NamedTuple):
    """A continuation: its log-probability, the hypothesis that it continues, its token, and what its rank is less than
    its score for phrases that are not in their places."""

    log_prob: float
    parent: int
    token: int
    cost: float = 0.0


class _Step(NamedTuple):
    """What a step has in common for all sentences.

    Attributes:
        paths: the tokens so far of all sentences' hypotheses, `[N, K, t]`.
        state: after the step.
        config: how to search.
        ends: tokens that end an output.
        length: tokens of the outputs with the continuation.
    """

    paths: Int[Tensor, "N K t"]
    state: Followed
    config: SearchConfig
    ends: Collection[int]
    length: int


def search(
    step: StepFunction, state: Followed, limits: Sequence[int], config: SearchConfig, bos: int | Sequence[int] | Tensor,
    ends: int | Collection[int], scored: bool = False, device: torch.device | None = None,
    goals: Sequence[Goal | None] = (), attention: Attention | None = None,
) -> list[list[Hypothesis]]:  # fmt: skip
    """The best hypotheses of every sentence, best first: the end of `search_steps`, which has the arguments."""
    steps = search_steps(
        step, state, limits, config, bos, ends, scored=scored, device=device, goals=goals, attention=attention
    )
    while True:
        try:
            next(steps)
        except StopIteration as end:
            results: list[list[Hypothesis]] = end.value
            return results


def search_steps(
    step: StepFunction, state: Followed, limits: Sequence[int], config: SearchConfig, bos: int | Sequence[int] | Tensor,
    ends: int | Collection[int], scored: bool = False, device: torch.device | None = None,
    goals: Sequence[Goal | None] = (), attention: Attention | None = None,
) -> Generator[SearchStep, None, list[list[Hypothesis]]]:  # fmt: skip
    """Search step by step: yield what each step has come to, return the hypotheses of every sentence.

    At each step a sentence's `beam` best continuations stay; those among them that end in one of `ends` are
    finished, and the sentence is done when it has `beam` finished ones, or when no living one can come to a better
    score than those that are returned. With `groups`, each group keeps its own `beam` / `groups` hypotheses so and
    takes no more tokens once as many have ended; the outputs of all are ranked together, equal ones once. What a
    sentence gets does not depend on its batch mates: each has its own limit and leaves the batch when it is done.

    The continuations of all sentences come to the host in one transfer a step; states stay on their device. As long as
    nothing of a sentence can end, its continuations are chosen together with those of the others.

    Args:
        step: (tokens `[N, K]`, state) -> (logits `[N, K, V]`, state).
        state: of N sentences with one hypothesis each, before the first token.
        limits: the most tokens of each sentence's output, EOS counted; one that reaches it is cut.
        config: how to search.
        bos: the token to begin with, or one for each sentence `[N]`.
        ends: the tokens that end an output.
        scored: what `step` gives are scores that add up as they are, not logits; `log_prob` is then their sum.
        device: of the tokens that `step` is given; the CPU by default.
        goals: what each sentence's outputs must have, None for nothing; its limit is longer by the goal's tokens. An
            output that comes to its limit without all of it is the best of those that come furthest.
        attention: state -> the last step's weights of the source, `[N, K, S]`; by it phrases come to their places.
            Without it they may stand anywhere.

    Raises:
        ConfigError: goals with groups.
    """
    closing = {ends} if isinstance(ends, int) else set(ends)
    closers = torch.tensor(sorted(closing), dtype=torch.int64)
    results: list[list[Hypothesis]] = [[] for _ in limits]
    aims = list(goals) or [None] * len(limits)
    if config.groups > 1 and any(aims):
        raise ConfigError("a diverse beam search cannot enforce phrases: search with groups = 1")
    beams = [
        Beam(n, limit + goal.room, goal, progress=[goal.start()]) if goal
        else Beam(n, limit, ended=[0] * config.groups)
        for n, (limit, goal) in enumerate(zip(limits, aims, strict=True))
    ]  # fmt: skip
    last = torch.as_tensor(bos, device=device).reshape(-1, 1).expand(len(limits), 1)
    totals = torch.zeros(len(limits), 1, device=device)
    furthest = torch.tensor([beam.limit for beam in beams])
    # sentences whose every step is looked at one by one: with a goal, in groups, or with an output that may be the best
    alone = torch.tensor([beam.goal is not None or config.groups > 1 for beam in beams])
    paths = torch.zeros(len(beams), 1, 0, dtype=torch.int64)
    length = 0
    while beams:
        logits, state = step(last, state)
        length += 1
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_p = wide if scored else torch.log_softmax(wide, -1)
        aimed = any(beam.goal for beam in beams)
        count = 2 * config.beam if config.beam > 1 or aimed else 1
        some, names = largest(log_p, count)
        if aimed:
            _attend(beams, None if attention is None else attention(state))
            pairs = _pairs(beams, log_p, some, names, config.beam + 1, closing)
        options = _options(totals, some, names) if config.groups > 1 else []
        best, parents, tokens = _continue(totals, some, names, count)
        width = config.beam if config.groups > 1 else min(config.beam, best.shape[1])
        ending = (torch.isin(tokens, closers) | ~(best > -inf))[:, :width].any(1)
        watched = (alone | ending | (furthest <= length)).nonzero().flatten().tolist()
        every = zip(best[watched].tolist(), parents[watched].tolist(), tokens[watched].tolist(), strict=True)
        now = _Step(paths, state, config, closing, length)
        kept: dict[int, list[_Candidate]] = {}
        for n, row in zip(watched, every, strict=True):
            beam = beams[n]
            if config.groups > 1:
                living, chosen = _by_groups(now, beam, n, options[n])
            else:
                candidates = _towards(now, beam, pairs[n]) if beam.goal else list(map(_Candidate, *row))
                living, others = _finish(now, beam, n, candidates)
                chosen = [*living, *others][:width]
            if _settled(now, beam, living):
                results[beam.number] = beam.results = [beam.finished[k] for k in beam.ranked()[: config.n_best]]
                continue
            if beam.finished:
                alone[n] = True
            kept[n] = [*chosen, *[chosen[-1]._replace(log_prob=-inf)] * (width - len(chosen))]
            _follow(beam, kept[n])
        best, parents, tokens = (
            pad(part[:, :width], (0, max(0, width - part.shape[1]))) for part in (best, parents, tokens)
        )
        if kept:
            rest = list(kept)
            chosen_numbers = torch.tensor(list(kept.values()), dtype=torch.float64)
            best[rest] = chosen_numbers[..., 0].to(best.dtype)
            parents[rest], tokens[rest] = chosen_numbers[..., 1].long(), chosen_numbers[..., 2].long()
        if config.beam > 1:  # else every hypothesis continues itself
            paths = paths.gather(1, parents[..., None].expand(-1, -1, length - 1))
        paths = torch.cat([paths, tokens[..., None]], -1)
        yield SearchStep(beams, paths, best)
        if len(kept) < len(watched):
            left = torch.tensor([n for n, beam in enumerate(beams) if beam.results is None], dtype=torch.int64)
            beams = [beam for beam in beams if beam.results is None]
            if not beams:
                break
            state = state.keep(left.to(logits.device))
            best, parents, tokens, paths, furthest, alone = (
                part[left] for part in (best, parents, tokens, paths, furthest, alone)
            )
        last, totals = tokens.to(logits.device), best.to(logits.device)
        if config.beam > 1:
            state = state.select(parents.to(logits.device))
    return results


def _settled(now: _Step, beam: Beam, living: Sequence[_Candidate]) -> bool:
    """Whether a sentence is done: its hypotheses have ended, or no living one can come to a better rank than those that
    are returned, since its log-probability never rises nor its cost falls."""
    config, length = now.config, now.length
    if min(beam.ended) >= config.width or length >= beam.limit or not living:
        return True
    ranked = beam.ranked()[: config.n_best]
    if len(ranked) < config.n_best:
        return False
    lengths = (length + 1, beam.furthest(length))
    bound = max(config.score(one.log_prob, end) - one.cost for one in living for end in lengths)
    return beam.ranks[ranked[-1]] >= bound


def _follow(beam: Beam, kept: Sequence[_Candidate]) -> None:
    """Bring the progress of a sentence that has a goal to its new hypotheses."""
    goal = beam.goal
    if goal is None:
        return
    beam.totals = [one.log_prob for one in kept]
    beam.progress = [
        beam.reached.get((one.parent, one.token))
        or goal.after(beam.progress[one.parent], one.token, beam.attended[one.parent])
        for one in kept
    ]


def _continue(
    totals: Float[Tensor, "N K"], some: Float[Tensor, "N K M"], names: Int[Tensor, "N K M"], count: int
) -> tuple[Float[Tensor, "N C"], Int[Tensor, "N C"], Int[Tensor, "N C"]]:
    """The `count` best continuations of each sentence, best first: log-probabilities, the hypotheses that they continue
    and their tokens, on the host.

    Args:
        totals: log-probabilities of the hypotheses.
        some: the greatest log-probabilities of their next tokens.
        names: these tokens.
        count: how many.
    """
    sums = (totals[..., None].to(some.dtype) + some).flatten(1)
    best, where = sums.topk(min(count, sums.shape[1]), dim=1)
    parents, tokens = where // some.shape[-1], names.flatten(1).gather(1, where)
    # one transfer: a float32 holds every integer below 2**24
    numbers = torch.stack([best, parents.to(best.dtype), tokens.to(best.dtype)], -1).detach().cpu()
    return numbers[..., 0], numbers[..., 1].long(), numbers[..., 2].long()


def _options(
    totals: Float[Tensor, "N K"], some: Float[Tensor, "N K M"], names: Int[Tensor, "N K M"]
) -> list[list[_Candidate]]:
    """The M best continuations of each hypothesis of each sentence; arguments as in `_continue`."""
    sums = totals[..., None].to(some.dtype) + some
    # one transfer: a float32 holds every integer below 2**24
    numbers = torch.stack([sums, names.to(sums.dtype)], -1).tolist()
    return [
        [_Candidate(log_prob, k, int(token)) for k, row in enumerate(rows) for log_prob, token in row]
        for rows in numbers
    ]


def _by_groups(
    now: _Step, beam: Beam, n: int, options: Sequence[_Candidate]
) -> tuple[list[_Candidate], list[_Candidate]]:
    """The living continuations of a sentence, and the `beam` ones that it goes on with, group by group.

    Args:
        now: the step.
        beam: the sentence's bookkeeping.
        n: its place in the batch.
        options: of `_options`, enough of them: at most `beam` - `width` tokens of each hypothesis cost anything, so a
            group's 2 · `width` best ones are among the 2 · `beam` most probable ones of each.
    """
    config, ends = now.config, now.ends
    taken: Counter[int] = Counter()
    living: list[_Candidate] = []
    chosen: list[_Candidate] = []
    for group in range(config.groups):
        first = group * config.width
        own = range(first, first + config.width) if now.paths.shape[1] > 1 else range(1)  # all begin as one hypothesis
        ranked = sorted(
            (one for one in options if one.parent in own),
            key=lambda one: config.diversity * taken[one.token] - one.log_prob,
        )[: 2 * config.width]
        here: list[_Candidate] = []
        others = ranked
        if beam.ended[group] < config.width:
            here, others = _finish(now, beam, n, ranked, group)
            possible = [one for one in ranked if one.log_prob > -inf]
            taken.update(one.token for one in possible[: config.width] if one.token in ends)
            taken.update([one.token for one in possible if one.token not in ends][: config.width])
        if beam.ended[group] >= config.width:
            here, others = [], ranked
        living += here
        dead = [one._replace(log_prob=-inf) for one in others] or [_Candidate(-inf, own[0], min(ends, default=0))]
        filled = [*here, *dead, *[dead[-1]] * config.width]
        chosen += filled[: config.width]
    return living, chosen


def _attend(beams: Sequence[Beam], weights: Float[Tensor, "N K S"] | None) -> None:
    """Find how much attention each hypothesis pays the places of its goal's phrases; all of it where none is known.

    Args:
        beams: of the sentences.
        weights: of the source.
    """
    for beam in beams:
        beam.attended = [[1.0] * len(beam.goal.phrases) if beam.goal else []] * len(beam.progress)
    places = [(n, p, s) for n, beam in enumerate(beams) if beam.goal
              for p, place in enumerate(beam.goal.positions) for s in place]  # fmt: skip
    if weights is None or not places:
        return
    n, p, s = torch.tensor(places, device=weights.device).unbind(1)
    chosen = weights.new_zeros(len(beams), int(p.max()) + 1, weights.shape[-1])
    chosen[n, p, s] = 1.0
    for beam, rows in zip(beams, torch.bmm(weights, chosen.mT).tolist(), strict=True):
        if beam.goal:
            beam.attended = [[*row, *[0.0] * len(beam.goal.phrases)][: len(beam.goal.phrases)] for row in rows]


def _pairs(
    beams: Sequence[Beam], log_p: Float[Tensor, "N K V"], some: Float[Tensor, "N K M"], names: Int[Tensor, "N K M"],
    size: int, ends: Collection[int],
) -> list[dict[tuple[int, int], float]]:  # fmt: skip
    """{(hypothesis, token): log-probability} of each sentence: the `size` best tokens of each hypothesis, and those
    that its goal wants; nothing for a sentence without a goal.

    Args:
        beams: of the sentences.
        log_p: log-probabilities of the next tokens.
        some: the greatest of them.
        names: these tokens.
        size: how many of them.
        ends: tokens that end an output.
    """
    found: list[dict[tuple[int, int], float]] = [{} for _ in beams]
    best, tokens = (part[..., :size].tolist() for part in (some, names))
    wanted: list[tuple[int, int, int]] = []
    for n, beam in enumerate(beams):
        if beam.goal is None:
            continue
        for k, before in enumerate(beam.progress):
            found[n] |= {(k, t): v for t, v in zip(tokens[n][k], best[n][k], strict=True)}
            more = beam.goal.wanted(before, beam.attended[k], tokens[n][k][0] in ends)
            wanted += [(n, k, t) for t in more if (k, t) not in found[n]]
    if wanted:
        index = torch.tensor(wanted, device=log_p.device).unbind(1)
        for (n, k, t), value in zip(wanted, log_p[index].tolist(), strict=True):
            found[n][k, t] = value
    return found


def _towards(now: _Step, beam: Beam, pairs: dict[tuple[int, int], float]) -> list[_Candidate]:
    """The continuations of a sentence that has a goal, in the order in which they are to be kept.

    They are divided by how far they have come; the groups take turns, the one that has come furthest first. Within a
    group, a phrase that is not in its place costs. An output ends only where it has everything.

    Args:
        now: the step.
        beam: the sentence's bookkeeping.
        pairs: of `_pairs`.
    """
    goal, reached = beam.goal, beam.reached
    assert goal is not None
    reached.clear()
    slots = beam.limit - now.length  # tokens that may still follow
    groups: dict[int, list[tuple[float, _Candidate]]] = {}
    dropped: list[_Candidate] = []
    passing = [goal.passing(before, some) for before, some in zip(beam.progress, beam.attended, strict=True)]
    for (k, token), value in pairs.items():
        before, closes = beam.progress[k], token in now.ends
        made, astray = before.whole, passing[k]
        if closes:
            made, astray = before.made, before.astray
        elif goal.concerns(before, token):
            after = reached[k, token] = goal.after(before, token, beam.attended[k])
            made, astray = after.made, after.astray
        late = made <= before.made and goal.room - made > slots
        if value == -inf or late or (closes and before.left):
            dropped.append(_Candidate(-inf, k, token))
        else:
            one = _Candidate(beam.totals[k] + value, k, token, ASTRAY * sum(astray))
            groups.setdefault(made, []).append((one.log_prob - one.cost, one))
    ordered = [sorted(groups[made], reverse=True) for made in sorted(groups, reverse=True)]
    if now.length >= beam.limit:
        ordered = ordered[:1]
    turns = [pair[1] for row in zip_longest(*ordered) for pair in row if pair is not None]
    return [*turns, *dropped]


def largest(numbers: Float[Tensor, "*n V"], count: int) -> tuple[Float[Tensor, "*n k"], Int[Tensor, "*n k"]]:
    """The `count` largest numbers of each row, or all, and their places; largest first.

    A row's k largest numbers lie in the k blocks with the largest maxima. Finding these takes one pass over the row
    that does nothing else, several times faster on a CPU than `torch.topk` of whole rows.
    """
    size = numbers.shape[-1]
    if count * BLOCK * 4 > size:
        return numbers.topk(min(count, size))
    whole = size // BLOCK * BLOCK
    maxima = numbers[..., :whole].unflatten(-1, (-1, BLOCK)).amax(-1)
    if whole < size:
        maxima = torch.cat([maxima, numbers[..., whole:].amax(-1, keepdim=True)], -1)
    blocks = maxima.topk(count).indices[..., None] * BLOCK
    places = (blocks + torch.arange(BLOCK, device=numbers.device)).flatten(-2)
    some = numbers.gather(-1, places.clamp(max=size - 1)).masked_fill(places >= size, -inf)
    found, at = some.topk(count)
    # a row with fewer finite numbers than wanted has -inf beside them: at any place, but a place of the row
    return found, places.gather(-1, at).clamp(max=size - 1)


def own_state(state: Any, sentence: int, hypothesis: int) -> Any:
    """The decoder's own state of one hypothesis, for its maps."""
    inner = innermost(state)
    if isinstance(inner, State):
        return inner.one(sentence, hypothesis)
    return inner.keep(torch.tensor([sentence])).select(torch.tensor([[hypothesis]]))


def _finish(
    now: _Step, beam: Beam, n: int, candidates: Sequence[_Candidate], group: int = 0
) -> tuple[list[_Candidate], list[_Candidate]]:
    """Move continuations that end here out of a group, at the limit all of them; the living ones and the others."""
    config = now.config
    room, living, others = config.width, [], []
    for place, one in enumerate(candidates):
        closes = one.token in now.ends
        # an ending counts only among the first `width`: later ones are there to replace endings
        if not one.log_prob > -inf or (closes and place >= config.width):
            others.append(one._replace(log_prob=-inf))
            continue
        if closes or (now.length >= beam.limit and room > 0):
            own = own_state(now.state, n, one.parent)
            tokens = [*now.paths[n, one.parent].tolist(), one.token]
            score = config.score(one.log_prob, now.length)
            beam.ended[group] += 1
            if not group or all(tokens != found.tokens for found in beam.finished):  # as an earlier group has it
                beam.finished.append(Hypothesis(tokens, score, one.log_prob, own))
                beam.ranks.append(score - one.cost)
            others.append(one._replace(log_prob=-inf))
        else:
            living.append(one)
        room -= not closes
    return living, others
