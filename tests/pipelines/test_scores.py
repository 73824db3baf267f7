"""Scores of given targets, words with their log-probabilities, draws, and other precisions of a translator."""

import pickle

import pytest
import torch

import regard
from regard.errors import ConfigError
from regard.pipelines.base import InputError
from regard.pipelines.load import load
from regard.pipelines.translator import Translator
from regard.text.tokenizer import BOS, EOS

TEXTS = ["le chat noir dort", "Le chien rouge mange.", "la maison", "le cheval blanc " * 6]


@pytest.fixture
def translator(tiny_run) -> Translator:
    found = load(tiny_run)
    assert isinstance(found, Translator)
    return found


def test_a_score_is_the_sum_over_a_forward_pass(translator: Translator) -> None:
    targets = ["the black cat sleeps", "x", "the house", "the white horse the white horse"]
    tokenizer, model = translator.tokenizer, translator.model
    for source, target, found in zip(TEXTS, targets, translator.score(TEXTS, targets), strict=True):
        ids = [*tokenizer.encode(target), EOS]
        assert found.tokens == tokenizer.tokens(ids)
        with torch.no_grad():
            logits = model(torch.tensor([[*translator.prepare(source).ids, EOS]]), torch.tensor([[BOS, *ids[:-1]]]))
        log_p = logits[0].log_softmax(-1)[range(len(ids)), ids]
        assert found.token_log_probs == pytest.approx(log_p.tolist(), abs=1e-5)
        assert found.log_prob == pytest.approx(float(log_p.sum()), abs=1e-5)


@pytest.mark.parametrize("settings", [{"beam": 1}, {"beam": 4, "n_best": 3}, {"sample": True, "seed": 2}])
def test_the_score_of_a_generation_is_its_log_prob(translator: Translator, settings: dict) -> None:
    found = translator(TEXTS, **settings)
    pairs = [(one.source, made) for one in found for made in (one, *one.alternatives) if made.ids]
    assert len(pairs) >= 4
    for (_, made), scored in zip(pairs, translator.score(*zip(*pairs, strict=True)), strict=True):
        assert scored.log_prob == pytest.approx(made.log_prob, abs=1e-5 * max(1, len(made.ids)))
        assert scored.tokens == made.tokens


def test_words_divide_the_log_prob(translator: Translator) -> None:
    for made in translator(TEXTS, beam=2):
        assert [word.text for word in made.words] == made.text.split()
        assert [made.text[slice(*word.span)] for word in made.words] == made.text.split()
        (scored,) = translator.score([made.source], [made])
        end = scored.token_log_probs[-1] if made.ids[-1] == EOS else 0.0
        assert sum(word.log_prob for word in made.words) == pytest.approx(made.log_prob - end, abs=1e-4)
        assert all(word.log_prob <= 0 <= word.entropy for word in made.words)
    assert translator("").words == []


def test_words_read_together_are_those_read_one_by_one(translator: Translator) -> None:
    texts = [*TEXTS, "", "Le chien mange. Le chat dort."]
    alone, together = translator(texts), translator(texts)
    translator.read_words(together)
    for one, other in zip(alone, together, strict=True):
        assert [word.text for word in one.words] == [word.text for word in other.words]
        for word, same in zip(one.words, other.words, strict=True):
            assert (same.log_prob, same.entropy) == pytest.approx((word.log_prob, word.entropy), abs=1e-4)


def test_entropies_are_those_of_the_steps(translator: Translator) -> None:
    (made,) = translator(TEXTS[:1], beam=1)
    source = torch.tensor([made.source_ids])
    with torch.no_grad():
        log_p = translator.model(source, torch.tensor([[BOS, *made.ids[:-1]]]))[0].log_softmax(-1)
    (found,) = translator.forced([made.source_ids], [made.ids])
    assert found.entropies == pytest.approx((-(log_p.exp() * log_p).sum(-1)).tolist(), abs=1e-4)


def test_a_sample_depends_on_seed_and_index_alone(translator: Translator) -> None:
    settings = {"sample": True, "seed": 5, "temperature": 1.5}
    together = translator(TEXTS, **settings)
    alone = [translator([text], first_index=n, **settings)[0] for n, text in enumerate(TEXTS)]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    with_a_bad_one = translator.each(["x " * 20_000, *TEXTS[1:]], **settings)
    assert isinstance(with_a_bad_one[0], InputError)
    assert [one.tokens for one in with_a_bad_one[1:]] == [one.tokens for one in together[1:]]
    other = translator(TEXTS, **settings | {"seed": 6})
    assert [one.tokens for one in together] != [one.tokens for one in other]
    greedy = translator(TEXTS, sample=True, temperature=0)
    assert [one.tokens for one in greedy] == [one.tokens for one in translator(TEXTS, beam=1)]
    assert all(one.score == one.log_prob for one in together)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample": True, "beam": 2}, r"sample draws one output a text: leave out beam"),
        ({"sample": True, "n_best": 2}, r"sample draws one output a text"),
        ({"sample": True, "mbr": 3, "beam": 2}, r"mbr draws its outputs and searches for none: leave out beam"),
        ({"mbr": 0}, r"mbr must be at least 1; got mbr = 0"),
        ({"top_k": 3}, r"sampling settings \(top_k\) need sample=True \(--sample\): set it"),
        ({"sample": True, "top_p": 3}, r"top_p must be above 0 and at most 1; got 3"),
        ({"sample": True, "tpo_k": 3}, r"unknown setting 'tpo_k': known are beam, .*top_k"),
        ({"tpo_k": 3}, r"unknown setting 'tpo_k'"),
    ],
)
def test_refused_settings(translator: Translator, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        translator(TEXTS, **settings)


def test_refused_pairs(translator: Translator) -> None:
    with pytest.raises(ConfigError, match=r"score: 2 sources and 1 targets"):
        translator.score(TEXTS[:2], ["a"])
    with pytest.raises(InputError, match=r"score: pair 2: the source is empty"):
        translator.score(["a", " "], ["b", "c"])
    with pytest.raises(InputError, match=r"score: pair 1: the target is empty"):
        translator.score(["a"], [""])
    long = "a " * 2 * translator.decoding.longest_source
    with pytest.raises(InputError, match=r"score: pair 3: the target cannot be scored: .*tokens"):
        translator.score(["a", "a", "a"], ["a", "a", long])
    made = translator("a b.", n_best=2, beam=2)  # a result counts as one pair, whatever it was made of
    with pytest.raises(InputError, match=r"score: pair 2: the source cannot be scored: .*tokens") as refused:
        translator.score(["a b.", long], [made, "a"])
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


def test_precisions(tiny_run) -> None:
    plain = load(tiny_run)
    exact = plain(TEXTS, beam=2)
    for precision in ("int8", "bfloat16"):
        found = load(tiny_run, precision=precision)
        for one, other in zip(found.score(TEXTS, exact), exact, strict=True):
            assert one.log_prob != other.log_prob
            assert one.log_prob == pytest.approx(other.log_prob, abs=0.05 * len(other.ids))
        (made,) = found(TEXTS[:1], beam=1)
        assert found.score([made.source], [made])[0].log_prob == pytest.approx(made.log_prob, abs=1e-5 * len(made.ids))
    assert load(tiny_run, precision="auto").plans.precision in ("int8", "float32")
    with pytest.raises(ConfigError, match=r'shakespeare: precision = "int8" is not for this model: only encoder-dec'):
        load("shakespeare", precision="int8")
    assert load("shakespeare", precision="auto").plans.precision == "float32"
    with pytest.raises(ConfigError, match=r"precision must be one of float32, bfloat16, int8, auto; got 'int4'"):
        regard.load(str(tiny_run), precision="int4")


def test_a_sentence_does_not_depend_on_its_batch_mates_in_int8(tiny_run) -> None:
    found = load(tiny_run)
    found.use("int8")
    together = found(TEXTS, beam=3)
    for one, text in zip(together, TEXTS, strict=True):
        assert found(text, beam=3).tokens == one.tokens
        assert found(text, beam=3).log_prob == pytest.approx(one.log_prob, abs=1e-4)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("settings", [{"beam": 1}, {"beam": 4, "n_best": 4}, {"sample": True, "seed": 1}])
def test_outputs_begin_with_a_prefix_that_ends_at_a_words_end(translator: Translator, settings: dict) -> None:
    for prefix in ("the", "The black", "the."):
        for one in translator(TEXTS, prefix=prefix, **settings):
            for made in (one, *one.alternatives):
                assert made.text.startswith(prefix)
                following = made.text[len(prefix) :][:1]
                assert not (prefix[-1].isalnum() and following.isalnum())
                (scored,) = translator.score([made.source], [made])
                assert scored.log_prob == pytest.approx(made.log_prob, abs=1e-5 * len(made.ids))
    with pytest.raises(ConfigError, match=r"prefix: this model's vocabulary spells '猫' as"):
        translator("le chat", prefix="猫")
    assert translator("le chat", prefix=" ").text == translator("le chat").text


def test_alternatives_have_texts_of_their_own(translator: Translator) -> None:
    for one in translator(TEXTS, beam=6, n_best=6):
        texts = [made.text for made in (one, *one.alternatives)]
        assert len(set(texts)) == len(texts) <= 6
        assert one.text == translator(one.source, beam=6).text
        few = translator(one.source, beam=6, n_best=2)
        assert [made.text for made in (few, *few.alternatives)] == texts[:2]


def test_pharaoh_links_go_from_source_to_output(tiny_run, talk) -> None:
    made = load(tiny_run)("le chat noir dort")
    code, out, _ = talk("translate", "--model", tiny_run, "--pharaoh", "le chat noir dort", "")
    assert code == 0
    links = " ".join(f"{source}-{output}" for output, source in made.alignment.pairs)
    assert out.split("\n")[:2] == [links, ""]
