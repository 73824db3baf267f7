"""Reasons: each word's sources and heads are sums of contributions, and the verdict is over all words."""

import json
from dataclasses import replace

import pytest
import torch
from matplotlib.colors import to_hex

import regard
from random_outputs import SOURCE, completer, recurrent, translator
from regard.analysis import explanations
from regard.analysis.faithfulness import Curves, Faithfulness, faithfulness
from regard.analysis.reasons import Reasons, Verdict, reasons
from regard.errors import ConfigError
from regard.figures.style import THEMES


@pytest.fixture(scope="module", autouse=True)
def _short_path():
    """Two steps of integrated gradients are enough here, and no maximum flow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explanations, "STEPS", 2)
        patch.setattr(explanations, "LONGEST_FLOW", 0)
        yield


@pytest.fixture(scope="module")
def of_translator():
    made, told = translator()(SOURCE, beam=1), []
    found = reasons(made, draws=20, done=lambda *counted: told.append(counted))
    assert told == [(number, len(found.words)) for number in range(len(found.words))]
    return made, found


def test_a_word_s_sources_and_heads_are_the_sums_of_its_tokens_contributions(of_translator):
    made, found = of_translator
    assert [one.word for one in found.words] == made.text.split()
    assert [step for one in found.words for step in one.steps] == list(range(len(made.ids)))[: len(made.ids)]
    one = max(found.words, key=lambda word: len(word.steps))
    taken = [regard.contributions(made, step) for step in one.steps]
    for place, (word, given) in enumerate(one.sources):
        assert word == SOURCE.split()[place]
        assert given == pytest.approx(sum(each.by_word()[place][1] for each in taken), abs=1e-4)
    for (site, head), given in one.heads.items():
        assert site.endswith("cross")
        assert given == pytest.approx(sum(float(each.parts[site, head].sum()) for each in taken), abs=1e-4)
    shares = one.shares()
    assert sum(shares) == pytest.approx(1)
    assert all((share == 0) == (given <= 0) for share, (_, given) in zip(shares, one.sources, strict=True))
    assert sum(one.head_shares().values()) == pytest.approx(1)
    assert sum(found.heads.values()) == pytest.approx(1)


def test_each_word_is_measured_and_the_verdict_is_their_mean(of_translator):
    made, found = of_translator
    alone = faithfulness(made, found.words[0].steps, draws=20)
    assert found.words[0].found.as_json() == alone.as_json()
    mean = sum(one.found.curves["contributions"].gain for one in found.words) / len(found.words)
    assert found.verdicts["contributions"].gain == pytest.approx(mean)
    low, high = found.verdicts["contributions"].interval
    assert low < 0 < high
    for one in found.verdicts.values():
        assert (one.p <= 0.025) == (one.gain > high) or one.gain == pytest.approx(high, abs=0.02)


def test_lines_json_and_picture(of_translator, tmp_path):
    _, found = of_translator
    lines = found.lines()
    assert len(lines) == len(found.words) + 2
    assert all(one.word in line and " ← " in line for one, line in zip(found.words, lines, strict=False))
    assert lines[-1] == found.sentence
    assert str(found).startswith(found.text + "\n")
    written = json.loads(json.dumps(found.as_json()))
    assert [one["word"] for one in written["words"]] == [one.word for one in found.words]
    assert written["sentence"] == found.sentence
    for theme in THEMES:
        figure = found.plot(tmp_path / f"{theme}.svg", theme=theme)
        assert "leave one out" in (tmp_path / f"{theme}.svg").read_text()
        assert to_hex(figure.get_facecolor()) == THEMES[theme].paper
        filled = [to_hex(bar.get_facecolor()) != THEMES[theme].paper for bar in figure.axes[1].patches[1:]]
        assert filled == [one.p <= 0.05 for one in found.verdicts.values()]


@pytest.mark.parametrize("p", [0.01, 0.2])
def test_the_sentence_says_whether_contributions_and_attention_may_be_believed(of_translator, p):
    _, found = of_translator
    verdicts = {"contributions": Verdict(0.5, (-0.2, 0.2), p), "attention": Verdict(0.1, (-0.2, 0.2), 0.3)}
    sentence = Reasons("the cat", SOURCE, found.words, verdicts).sentence
    said = "may be believed" if p == 0.01 else "did no better than a random order"
    assert sentence.startswith(f"contributions {said} (gain 0.50 over {len(found.words)} word")
    assert "attention did no better than a random order (0.10; p = 0.3); no explanation does better." in sentence


@pytest.mark.parametrize(("size", "told"), [(1, False), (2, False), (3, True)])
def test_a_few_words_are_too_few_to_tell(of_translator, size, told):
    """Two words out: of one word in they have one order, of two four, of three thirty-six."""
    _, whole = of_translator
    curves = Curves([0.0, 1.0], [1.0, 0.0], [0.0, 1.0])
    parts = [*"abc"[:size]]
    both = ("attention", "contributions")
    explained = {name: torch.arange(float(size)) for name in both}
    measured = Faithfulness("x", parts, 1.0, explained, dict.fromkeys(both, curves), [0.0], exhaustive=True)
    words = [replace(whole.words[0], found=measured)] * 2
    verdicts = {name: Verdict(0.3, (-0.2, 0.2), 0.01) for name in both}
    found = Reasons("x y", " ".join(parts), words, verdicts)
    assert found.decidable == told
    assert found.as_json()["verdicts"]["attention"]["believed"] == told
    # of two explanations with the same gain neither does better
    assert found.sentence.endswith(
        "no explanation does better." if told else "too few words to tell (gain 0.30 and 0.30)."
    )


def test_of_a_recurrent_model_a_decoder_and_several_sentences():
    found = reasons(recurrent()(SOURCE, beam=1), draws=20)
    assert set(found.words[0].heads) == {("decoder.cross", 0)}
    made = completer()("le chat", length=2, seed=1)
    found = reasons(made)
    assert [step for one in found.words for step in one.steps] == list(range(2))
    assert all(len(one.sources) <= len(found.words) + 2 for one in found.words)
    both = translator()("le. la vache", beam=1)
    words = reasons(both, draws=20).words
    assert len(words) == sum(len(part.word_tokens()) for part in both.parts)
    assert {word for word, _ in words[-1].sources} <= {"la", "vache"}


def test_an_empty_output_has_no_reasons_and_others_are_refused():
    assert reasons(translator()("")).lines() == []
    with pytest.raises(regard.ConfigError, match="this Recurrent has no attention whose contributions"):
        reasons(recurrent(score="none")(SOURCE, beam=1))


def test_faithfulness_needs_no_attention():
    found = faithfulness(recurrent(score="none")(SOURCE, beam=1), 0, draws=20)
    assert set(found.curves) == {"gradient × input", "integrated gradients", "leave one out"}


def test_white_space_belongs_to_the_word_that_follows():
    from regard.text.tokenizer import tokens_of_words

    assert tokens_of_words([None, 0, None, 1, 1, None]) == {0: [0, 1], 1: [2, 3, 4, 5]}
    assert tokens_of_words([None, None]) == {}
    torch.manual_seed(0)
    made = completer()("le chat", length=5, seed=2)
    own = made.word_tokens()
    assert "".join(word for word, _ in own).replace(" ", "") in made.source.replace(" ", "") + made.text.replace(
        " ", ""
    )


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(ConfigError, match="draws must be at least 20"):
        reasons(regard.load("fr-en")("le chat"), draws=5)
