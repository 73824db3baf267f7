"""Several translators as one: the mean of their probabilities, every member's attention, one refusal for the rest."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import regard
from regard.bundle import Bundle, load_bundle, save_bundle
from regard.export.folder import export_bundle
from regard.models.build import build
from regard.models.recurrent import RecurrentConfig
from regard.models.transformer import TransformerConfig
from regard.pipelines.ensemble import EnsembleTranslator
from regard.pipelines.load import load
from regard.pipelines.page import axes_of
from regard.text.tokenizer import BOS, EOS, Tokenizer, TokenizerConfig

WORDS = ["le chat noir mange", "the black cat eats", "un chien blanc dort", "a white dog sleeps"]
SOURCES = ["le chat noir", "un chien blanc dort le chat", "", "le chat"]
CONFIGS: dict[str, Any] = {
    "wide": TransformerConfig(
        kind="transformer", width=22, encoder_layers=1, decoder_layers=2, heads=2, ffn_width=19, positions="rotary",
        head_width=8,
    ),
    "narrow": TransformerConfig(
        kind="transformer", width=15, encoder_layers=2, decoder_layers=1, heads=3, ffn_width=17
    ),
    "recurrent": RecurrentConfig(kind="recurrent", width=13, embedding=11, score_width=7),
    "gated": RecurrentConfig(kind="recurrent", width=17, embedding=5, score_width=3, gate=True),
}  # fmt: skip
DECODING = {"beam": 3, "length_ratio": 1.0, "length_extra": 3}
MIXES = [("wide", "narrow"), ("wide", "recurrent"), ("recurrent", "wide", "narrow")]


def tokenizer() -> Tokenizer:
    return Tokenizer.learn(WORDS * 3, TokenizerConfig(vocabulary=61))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of random models with one tokenizer; they are sure of themselves, and of different things."""
    made = {}
    for number, (name, config) in enumerate(CONFIGS.items()):
        own = tokenizer()
        torch.manual_seed(number)
        model = build(len(own), config).eval()
        for part in model.parameters():
            torch.nn.init.normal_(part, 0.0, 0.4)
        made[name] = tmp_path_factory.mktemp("ensemble") / name
        alignment = {} if name == "narrow" else {"site": site_of(name), "heads": [0]}
        save_bundle(made[name], Bundle("translate", ("fr", "en"), model, config, own, DECODING, alignment))
    return made


def site_of(name: str) -> str:
    return "decoder.layers.0.cross" if name == "wide" else "decoder.cross"


def probabilities(members: list[Any], source: list[int], before: list[int]) -> Tensor:
    """The mean of what the members' own forward passes give the next tokens, in float64."""
    with torch.inference_mode():
        parts = [m.model(torch.tensor([source]), torch.tensor([before]))[0, -1].double().softmax(-1) for m in members]
    return sum(parts, torch.zeros(1, dtype=torch.float64)) / len(parts)


@pytest.mark.parametrize("names", MIXES)
def test_every_token_of_a_greedy_search_has_the_greatest_mean_probability(
    folders: dict[str, Path], names: tuple[str, ...]
) -> None:
    members = [load(folders[name]) for name in names]
    found = load([folders[name] for name in names])(SOURCES[1], beam=1)
    source = [*members[0].tokenizer.encode(SOURCES[1]), EOS]
    before, log_prob = [BOS], 0.0
    for token in found.ids:
        mean = probabilities(members, source, before)
        assert int(mean.argmax()) == token
        log_prob += float(mean[token].log())
        before.append(token)
    assert found.log_prob == pytest.approx(log_prob, abs=1e-4)
    assert any(one(SOURCES[1], beam=1).ids != found.ids for one in members)  # it decides something


@pytest.mark.parametrize("how", [
    {"beam": 4, "n_best": 3}, {"sample": True, "seed": 5}, {"sample": True, "seed": 5, "mbr": 3, "n_best": 2},
    {"prefix": "the dog"}, {"force": ["cat", "dog"]}, {"forbid": ["eats"]}, {"glossary": {"chat": "cat"}},
    {"beam": 6, "groups": 3, "n_best": 3},
])  # fmt: skip
def test_a_model_twice_is_the_model_whatever_is_asked(folders: dict[str, Path], how: dict[str, Any]) -> None:
    for name in ("wide", "recurrent"):
        alone, twice = load(folders[name]), load([folders[name]] * 2)
        for one, two in zip(alone(SOURCES, **how), twice(SOURCES, **how), strict=True):
            outputs = [[one, *one.alternatives], [two, *two.alternatives]]
            assert [each.ids for each in outputs[0]] == [each.ids for each in outputs[1]]
            for left, right in zip(*outputs, strict=True):
                assert right.log_prob == pytest.approx(left.log_prob, abs=1e-5 * max(1, len(left.ids)))
                assert right.alignment.pairs == left.alignment.pairs
                for site, whole in left.attention.items():
                    for number in "01":
                        mine = right.attention[f"{number}.{site}"].full()
                        torch.testing.assert_close(mine, whole.full(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("names", MIXES)
@pytest.mark.parametrize("how", [{"beam": 4, "n_best": 2}, {"sample": True, "seed": 3}, {"prefix": "the dog"}])
def test_the_score_of_an_output_is_its_log_probability(
    folders: dict[str, Path], names: tuple[str, ...], how: dict[str, Any]
) -> None:
    model = load([folders[name] for name in names])
    made = [each for one in model([SOURCES[0], SOURCES[1]], **how) for each in (one, *one.alternatives)]
    scored = model.score([one.source for one in made], made)
    for one, other in zip(made, scored, strict=True):
        assert other.log_prob == pytest.approx(one.log_prob, abs=1e-5 * len(one.ids))
        assert sum(word.log_prob for word in one.words) <= 0


@pytest.mark.parametrize("names", MIXES)
def test_the_maps_are_those_of_each_member_for_the_same_output(
    folders: dict[str, Path], names: tuple[str, ...]
) -> None:
    members = [load(folders[name]) for name in names]
    one = load([folders[name] for name in names])(SOURCES[0], beam=3)
    assert {site.split(".")[0] for site in one.attention} == {str(n) for n in range(len(names))}
    source, target = torch.tensor([one.source_ids]), torch.tensor([[BOS, *one.ids[:-1]]])
    for number, member in enumerate(members):
        with regard.observe(member.model) as seen, torch.inference_mode():
            member.model(source, target)
        mine = {site for site in seen if "encoder" not in site}
        assert {f"{number}.{site}" for site in mine} == {s for s in one.attention if s.startswith(f"{number}.")}
        for site in mine:
            found = one.attention[f"{number}.{site}"]
            assert found.shape[-2] == len(one.tokens)
            torch.testing.assert_close(found.full(), seen[site][0].full().reshape(found.shape), atol=1e-5, rtol=0)


def test_words_are_aligned_by_the_first_member_that_chose_a_site(folders: dict[str, Path]) -> None:
    for names, site in ((("narrow", "wide"), "1.decoder.layers.0.cross"), (("recurrent", "wide"), "0.decoder.cross")):
        model = load([folders[name] for name in names])
        one = model(SOURCES[0])
        assert (one.alignment.site, one.alignment.heads, one.alignment.chosen) == (site, [0], True)
        assert one.trace.site == site
        assert [step.token for step in one.trace.steps] == one.tokens
        weights = one.attention[site].full()[0]
        torch.testing.assert_close(torch.tensor([step.weights for step in one.trace.steps]), weights, atol=1e-5, rtol=0)


@pytest.mark.parametrize("names", MIXES)
def test_neither_asking_to_see_nor_the_texts_beside_it_change_an_output(
    folders: dict[str, Path], names: tuple[str, ...]
) -> None:
    model = load([folders[name] for name in names])
    together, unseen = model(SOURCES), model(SOURCES, record=False)
    for source, one, other in zip(SOURCES, together, unseen, strict=True):
        assert (one.ids, one.log_prob, one.score) == (other.ids, other.log_prob, other.score)
        alone = model(source)
        assert alone.ids == one.ids
        assert alone.log_prob == pytest.approx(one.log_prob, abs=1e-4)


def test_a_member_that_cannot_be_planned_takes_its_own_steps(folders: dict[str, Path]) -> None:
    model = load([folders["gated"], folders["wide"]])
    found = model(SOURCES[0], beam=1)
    source = [*model.tokenizer.encode(SOURCES[0]), EOS]
    assert found.ids[0] == int(probabilities(model.members, source, [BOS]).argmax())
    with pytest.raises(regard.ConfigError, match=r'gated: precision = "int8" is not for this model'):
        load([folders["wide"], folders["gated"]], precision="int8")
    assert load([folders["wide"], folders["recurrent"]], precision="int8")(SOURCES[0]).text is not None


def test_an_ensemble_is_observed_and_changed_as_a_model(folders: dict[str, Path]) -> None:
    model = load([folders["wide"], folders["recurrent"]])
    with regard.observe(model) as seen:
        one = model(SOURCES[0], beam=2)
    assert "0.encoder.layers.0.self" in seen
    assert "1.decoder.cross" in seen
    assert seen["1.decoder.cross"][0].shape == one.attention["1.decoder.cross"].shape
    with regard.intervene(model, "0.decoder.layers.0.cross", lambda weights: torch.zeros_like(weights)):
        changed = model.score([SOURCES[0]], [one])[0]
    assert abs(changed.log_prob - one.log_prob) > 1e-3


def test_its_loss_is_that_of_the_mean_of_the_probabilities(
    folders: dict[str, Path], tmp_path: Path, talk: Callable[..., tuple[int, str, str]]
) -> None:
    members = [load(folders[name]) for name in ("wide", "recurrent")]
    pairs = [("le chat noir", "the black cat"), ("un chien dort", "a dog"), ("le chien", "the white dog sleeps")]
    paths = tmp_path / "a.fr", tmp_path / "a.en"
    for path, lines in zip(paths, zip(*pairs, strict=True), strict=True):
        path.write_text("\n".join(lines) + "\n")
    total, count = 0.0, 0
    for source, target in pairs:
        ids = [*members[0].tokenizer.encode(target), EOS]
        for place, token in enumerate(ids):
            mean = probabilities(members, [*members[0].tokenizer.encode(source), EOS], [BOS, *ids[:place]])
            total, count = total - float(mean[token].log()), count + 1
    name = f"{folders['wide']},{folders['recurrent']}"
    code, out, error = talk("evaluate", name, "--source", paths[0], "--reference", paths[1], "--json")
    assert code == 0, error
    numbers = json.loads(out)
    assert numbers["tokens"] == count
    assert numbers["loss"] == pytest.approx(total / count, abs=1e-5)


def test_a_comma_names_an_ensemble_on_the_command_line(
    folders: dict[str, Path], talk: Callable[..., tuple[int, str, str]]
) -> None:
    wanted = load([folders["wide"], folders["recurrent"]])(SOURCES[1]).text
    code, out, error = talk("translate", SOURCES[1], "--model", f"{folders['wide']},{folders['recurrent']}")
    assert (code, out.strip()) == (0, wanted.strip()), error


def test_a_folder_with_a_comma_in_its_name_is_one_model(folders: dict[str, Path], tmp_path: Path) -> None:
    bundle = load_bundle(folders["narrow"])
    save_bundle(tmp_path / "a,b", bundle)
    assert not isinstance(load(str(tmp_path / "a,b")), EnsembleTranslator)
    assert not isinstance(load([folders["narrow"]]), EnsembleTranslator)


def changed(folder: Path, into: Path, **changes: Any) -> Path:
    save_bundle(into, replace(load_bundle(folder), **changes))
    return into


def test_members_that_do_not_agree_are_refused_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    more = Tokenizer.learn([*WORDS, "zyx"] * 3, TokenizerConfig(vocabulary=61))
    other = changed(folders["narrow"], tmp_path / "other", tokenizer=more)
    with pytest.raises(regard.ConfigError, match=r"share one tokenizer; those of wide and other differ in tokens"):
        load([folders["wide"], other])
    fewer = Tokenizer.learn(WORDS * 3, TokenizerConfig(vocabulary=43))
    model = build(len(fewer), CONFIGS["narrow"]).eval()
    small = changed(folders["narrow"], tmp_path / "small", tokenizer=fewer, model=model)
    with pytest.raises(regard.ConfigError, match=r"those of wide and small differ: \d+ tokens and 43"):
        load([folders["wide"], small])
    back = changed(folders["narrow"], tmp_path / "back", languages=("en", "fr"))
    with pytest.raises(regard.ConfigError, match=r"share their languages; wide has .*, back has \('en', 'fr'\)"):
        load([folders["wide"], back])
    with pytest.raises(regard.ConfigError, match=r"is of translators; shakespeare is for `regard complete`"):
        load([folders["wide"], "shakespeare"])
    for nothing in ([], "wide,", [folders["wide"], ""]):
        with pytest.raises(regard.ChoiceError, match=r"expected the name of a model, or several for an ensemble"):
            load(nothing)


def test_what_needs_one_model_is_refused_in_a_sentence(folders: dict[str, Path], tmp_path: Path) -> None:
    model = load([folders["wide"], folders["narrow"]])
    one = model(SOURCES[0])
    with pytest.raises(regard.ConfigError, match=r"export them one by one"):
        export_bundle(model, tmp_path / "out", "float32")
    for take in (lambda: regard.logit_lens(model, SOURCES[0]), lambda: regard.contributions(one, 0)):
        with pytest.raises(regard.ConfigError, match=r"the layers of several models: look into one of its members"):
            take()
    with pytest.raises(regard.ConfigError, match=r"searches one model: load the ensemble wide,narrow without engine"):
        load([folders["wide"], folders["narrow"]], engine="ctranslate2")


def test_its_page_names_the_axes_of_all_members_maps(folders: dict[str, Path]) -> None:
    model = load([folders["wide"], folders["narrow"]])
    assert len(model.model.encoder_sites()) == 3
    assert {axes_of(site) for site in model.model.encoder_sites()} == {("source", "source")}
    wanted = {"cross": ("output", "source"), "self": ("output", "before")}
    assert all(axes_of(site) == wanted[site.split(".")[-1]] for site in model(SOURCES[0]).attention)
