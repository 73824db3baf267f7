"""Phrases that outputs must or must not have, against every output of a small model, one by one."""

import itertools
import re

import pytest
import torch
from torch import Tensor

from regard.decoding.phrases import Forbidden, Glossary, Goal, Phrase, Spelling, has_phrase
from regard.decoding.sample import SampleConfig, sample, sampled
from regard.decoding.search import SearchConfig, search

PIECES = ["", "", " cat", "s", " black", "."]
BOS, EOS, CAT, S, BLACK, STOP = range(6)
LIMIT = 5


@pytest.fixture(params=["pieces", "bytes"])
def spelling(request) -> Spelling:
    """Of tokens whose texts make the text; and with one that is half a character, so that texts are decoded whole."""
    pieces = PIECES if request.param == "pieces" else [*PIECES, "\ufffd"]
    return Spelling(lambda ids: "".join(pieces[i] for i in ids).strip(), len(pieces), [EOS])


def log_p(path: tuple[int, ...], size: int) -> Tensor:
    seed = sum(7**n * (token + 3) for n, token in enumerate(path)) % 100_003
    logits = 2.0 * torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    logits[BOS] = -torch.inf
    if size > len(PIECES):
        logits[-1] = -torch.inf
    return logits.log_softmax(-1)


class Path:
    """A state that is the paths of tokens that led to it."""

    def __init__(self, paths: list[list[tuple[int, ...]]]) -> None:
        self.paths = paths

    def select(self, parents: Tensor) -> "Path":
        return Path([[row[p] for p in some] for row, some in zip(self.paths, parents.tolist(), strict=True)])

    def keep(self, sentences: Tensor) -> "Path":
        return Path([self.paths[n] for n in sentences.tolist()])


def stepper(spelling: Spelling):
    size = len(spelling.pieces)

    def step(token: Tensor, state: Path) -> tuple[Tensor, Path]:
        paths = [
            [(*path, one) for path, one in zip(row, new, strict=True)]
            for row, new in zip(state.paths, token.tolist(), strict=True)
        ]
        return torch.stack([torch.stack([log_p(one, size) for one in row]) for row in paths]), Path(paths)

    return step


def outputs(size: int) -> dict[tuple[int, ...], float]:
    """Every output with its log-probability: one that has ended, or is cut at the limit."""
    found = {}
    for length in range(1, LIMIT + 1):
        ends = [EOS] if length < LIMIT else [EOS, CAT, S, BLACK, STOP]
        for body in itertools.product(*[[CAT, S, BLACK, STOP]] * (length - 1), ends):
            tokens, total = body, 0.0
            for n, token in enumerate(tokens):
                total += float(log_p((BOS, *tokens[:n]), size)[token])
            found[tokens] = total
    return found


def text(tokens: tuple[int, ...]) -> str:
    return "".join(PIECES[token] for token in tokens)


@pytest.mark.parametrize("words", [["cat"], ["Cats"], ["black cat"], ["cat", "black"], ["."], ["zebra"]])
def test_the_best_output_without_a_phrase(spelling: Spelling, words: list[str], monkeypatch) -> None:
    monkeypatch.setattr("regard.decoding.phrases.GOES_ON", 0.0)  # every word that goes on is searched
    constraint = Forbidden(words, spelling, [LIMIT])
    state, step = constraint.begin(Path([[()]]), 1), constraint.around(stepper(spelling))
    config = SearchConfig(beam=300, length_penalty=0.0)
    ((best, *_),) = search(step, state, [LIMIT], config, BOS, EOS, scored=True)
    fine = {
        tokens: total
        for tokens, total in outputs(len(spelling.pieces)).items()
        if not any(re.search(rf"(?<!\w){re.escape(w)}(?!\w)" if w != "." else r"\.", text(tokens), re.I) for w in words)
    }
    assert tuple(best.tokens) == max(fine, key=fine.__getitem__)
    assert best.log_prob == pytest.approx(max(fine.values()), abs=1e-5)


def test_a_word_is_written_only_where_it_is_expected_to_go_on(spelling: Spelling) -> None:
    constraint = Forbidden(["cat"], spelling, [9])
    step = stepper(spelling)
    for path in itertools.product([S, BLACK, STOP], repeat=2):
        state = Path([[(BOS, *path[:-1])]])
        begun = constraint.begin(state, 1)
        scores, _ = constraint.around(step)(torch.tensor([[path[-1]]]), begun)
        goes_on = float(log_p((BOS, *path, CAT), len(spelling.pieces)).exp()[S])
        assert bool(scores[0, 0, CAT] > -torch.inf) is (goes_on >= 0.5)


def test_draws_have_no_forbidden_word(spelling: Spelling) -> None:
    constraint = Forbidden(["cat"], spelling, [30] * 40)
    state, step = constraint.begin(Path([[()]] * 40), 40), constraint.around(stepper(spelling))
    drawn = sampled(sample(step, state, [[BOS]] * 40, [30] * 40, SampleConfig(seed=1), [EOS], scored=True), 40)
    texts = [text(tuple(one.tokens)) for (one,) in drawn]
    assert not any(re.search(r"\bcat\b", one) for one in texts)
    assert any("black" in one for one in texts)


def phrase(words: str) -> Phrase:
    tokens = tuple(PIECES.index(f" {word}") for word in words.split())
    return Phrase(words, tokens, tokens)


@pytest.mark.parametrize("wanted", [["cat"], ["black cat"], ["cat", "black"], ["cat", "cat"]])
def test_the_best_output_with_phrases(spelling: Spelling, wanted: list[str]) -> None:
    goal = Goal(tuple(map(phrase, wanted)), spelling)
    limit = LIMIT - goal.room  # the goal's tokens are added to it
    config = SearchConfig(beam=300, length_penalty=0.0)
    ((best, *_),) = search(stepper(spelling), Path([[()]]), [limit], config, BOS, EOS, scored=True, goals=[goal])
    fine = {
        tokens: total
        for tokens, total in outputs(len(spelling.pieces)).items()
        if all(len(re.findall(rf"\b{w}\b", text(tokens))) >= wanted.count(w) for w in wanted)
    }
    assert tuple(best.tokens) == max(fine, key=fine.__getitem__)
    assert best.log_prob == pytest.approx(max(fine.values()), abs=1e-5)


@pytest.mark.parametrize("beam", [1, 2, 4])
def test_every_output_has_its_phrases_and_batch_mates_do_not_matter(spelling: Spelling, beam: int) -> None:
    goals = [Goal((phrase("black cat"), phrase("cat")), spelling), None, Goal((phrase("black"),), spelling)]
    config = SearchConfig(beam=beam)
    run = lambda some: search(  # noqa: E731
        stepper(spelling), Path([[()]] * len(some)), [6] * len(some), config, BOS, EOS, scored=True, goals=some
    )
    together = run(goals)
    assert [run([goal])[0][0].tokens for goal in goals] == [one[0].tokens for one in together]
    plain = search(stepper(spelling), Path([[()]]), [6], config, BOS, EOS, scored=True)
    assert together[1][0].tokens == plain[0][0].tokens
    first, _, third = (text(tuple(one[0].tokens)) for one in together)
    assert len(re.findall(r"\bcat\b", first)) >= 2
    assert re.search(r"\bblack cat\b", first)
    assert re.search(r"\bblack\b", third)


def test_a_phrase_comes_to_its_place(spelling: Spelling) -> None:
    """Attention reads the source in order, one position a token: the phrase belongs where its own position is read."""
    size, body = len(spelling.pieces), 9

    def attention(state: Path) -> Tensor:
        return torch.stack([torch.stack([torch.eye(body)[len(path) - 1] for path in row]) for row in state.paths])

    for place in range(4):
        goal = Goal((phrase("black"),), spelling, ((place,),))
        ((best, *_),) = search(
            stepper(spelling), Path([[()]]), [5], SearchConfig(4), BOS, EOS, scored=True, goals=[goal],
            attention=attention,
        )  # fmt: skip
        assert best.tokens[place] == BLACK
        total = sum(float(log_p((BOS, *best.tokens[:n]), size)[token]) for n, token in enumerate(best.tokens))
        assert best.log_prob == pytest.approx(total, abs=1e-5)
    never = Goal((phrase("black"),), spelling, ((8,),))
    ((best, *_),) = search(
        stepper(spelling), Path([[()]]), [5], SearchConfig(4), BOS, EOS, scored=True, goals=[never],
        attention=attention,
    )  # fmt: skip
    assert BLACK in best.tokens


def test_what_is_not_in_its_place_adds_up(spelling: Spelling) -> None:
    goal = Goal((phrase("black cat"), phrase("cat")), spelling, ((0, 1), ()))
    state = goal.start()
    for token, attended, astray in ((STOP, 0.25, 0.25), (BLACK, 0.75, 0.5), (CAT, 0.1, 0.5), (STOP, 0.5, 1.0)):
        state = goal.after(state, token, (attended, 0.9))
        assert state.astray == pytest.approx((astray, 0.0))
    broken = goal.after(goal.after(goal.start(), BLACK, (1.0, 1.0)), STOP, (0.0, 0.0))
    assert broken.astray == (1.0, 0.0)


def test_a_text_meets_a_goal(spelling: Spelling) -> None:
    goal = Goal((phrase("cat"), phrase("cat"), phrase("black")), spelling)
    assert goal.met("A Cat, a black cat.")
    assert not goal.met("A black cat.")
    assert not goal.met("cats cat black")


def test_progress_counts_tokens(spelling: Spelling) -> None:
    goal = Goal((phrase("black cat"), phrase("cat")), spelling)
    state, made = goal.start(), []
    for token in (BLACK, CAT, S, BLACK, CAT, CAT):
        if not goal.concerns(state, token):
            assert goal.after(state, token).made == state.whole
        state = goal.after(state, token)
        made.append(state.made)
    # "cats" is neither phrase: what was written is taken back
    assert made == [1, 3, 0, 1, 3, 3]
    assert goal.after(state, STOP).left == ()


def test_terms_of_a_glossary() -> None:
    glossary = Glossary({"chat": "cat", "chat noir": "black cat", "Le": "the", "qu'il": "that he", "noir": "black"})
    assert glossary.of("Le CHAT noir, le chat.") == ["the", "black cat", "cat"]
    assert glossary.of("les chats noirs") == []
    assert glossary.of("je crois qu'il dort") == ["that he"]


def test_whole_words() -> None:
    assert has_phrase("The Cat.", "cat")
    assert has_phrase("the black\tcat", "Black cat")
    assert has_phrase("c++!", "C++")
    assert not has_phrase("cats", "cat")
    assert not has_phrase("concat", "cat")
    assert has_phrase("caf\u0065\u0301", "CAF\u00c9")
