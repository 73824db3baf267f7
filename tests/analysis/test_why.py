"""Why a weight: the parts of a score sum to the score that the model computed."""

import pytest
import torch
from matplotlib.text import Text

import regard
from random_outputs import BLOCKS, SOURCE, completer, recurrent, translator
from regard.errors import ConfigError
from regard.figures.style import visible

EXACT = {torch.float32: 1e-4, torch.float64: 1e-9}


def scores_of(generation, site, head):
    """The scores `[T, S]` of a map, from its own queries and keys."""
    one = generation.attention[site]
    source = one.select(head).source
    rows = torch.arange(one.shape[-2])
    return source.spec.scores(source.query, source.key, rows, source.shape)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_the_parts_sum_to_the_score_of_the_recorded_queries_and_keys(name, dtype):
    generation = translator(dtype, **BLOCKS[name])(SOURCE, beam=1)
    for site in ("decoder.layers.1.self", "decoder.layers.1.cross", "decoder.layers.0.self"):
        seen = generation.attention[site]
        i, j, head = seen.shape[-2] - 1, 1 % seen.shape[-1], seen.shape[-3] - 1
        found = regard.why(seen.select(head), i, j)
        assert found.total == pytest.approx(sum(found.parts.values()), abs=1e-12)
        assert found.total == pytest.approx(found.score, abs=EXACT[dtype])
        (weight,) = seen.tile([i], [j])[head].detach().flatten().tolist()
        assert found.weight == pytest.approx(weight, abs=1e-6)
        if name not in ("relative", "alibi"):  # whose recorded rows are not whole
            expected = scores_of(generation, site, head)[..., i, j]
            assert found.score == pytest.approx(float(expected.flatten()[0]), abs=max(EXACT[dtype], 1e-5))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [*BLOCKS, "window"])
def test_of_a_completion_a_row_is_the_position_that_predicted(name):
    generation = completer(torch.float64, **BLOCKS.get(name, {"window": 2}))("le chat", length=4, seed=1)
    seen = generation.attention["decoder.layers.1.self"].select(1)
    rows = [[regard.why(seen, i, j).score for j in range(seen.shape[-1])] for i in range(2)]
    for i, row in enumerate(rows):
        allowed = seen.tile([i], slice(None))[0] > 0
        if name not in ("relative", "alibi"):
            expected = torch.tensor(row, dtype=torch.float64)[allowed].softmax(-1)
            torch.testing.assert_close(expected, seen.tile([i], slice(None))[0][allowed], atol=1e-9, rtol=1e-7)


def test_parts_are_named_after_what_wrote_query_and_key():
    generation = translator()(SOURCE, beam=1)
    found = regard.why(generation.attention["decoder.layers.1.cross"].select(0), 0, 2)
    query, key = ({pair[side] for pair in found.parts} for side in (0, 1))
    assert {"embedding", "position", "decoder.layers.0.self, head 2", "decoder.layers.0.feed_forward"} <= query
    assert {"decoder.layers.1.self, head 0", "decoder.layers.1.cross.norm.bias", "query.bias"} <= query
    assert not any("layers.1.cross, head" in name or "layers.1.feed" in name for name in query)
    assert {"embedding", "position", "encoder.layers.1.feed_forward", "encoder.norm.bias", "key.bias"} <= key
    assert len(found.parts) == len(query) * len(key)
    assert [abs(number) for _, number in found.top(3)] == sorted(map(abs, found.parts.values()), reverse=True)[:3]


def test_the_figure_names_the_pair():
    generation = translator()(SOURCE, beam=1)
    one = generation.attention["decoder.layers.1.cross"].select(0)
    found = regard.why(one, 0, -1)
    assert (found.query, found.key) == (generation.tokens[0], "</s>")
    drawn = " ".join(text.get_text() for text in found.plot().findobj(Text))
    shown = [visible(name) for name in (found.query, found.key)]
    assert f"The score of query {shown[0]} and key {shown[1]}, part by part" in " ".join(drawn.split())
    one.query_tokens = one.key_tokens = None
    assert (regard.why(one, 0, -1).query, regard.why(one, 0, -1).key) == ("0", str(one.shape[-1] - 1))


def test_one_part_is_a_product_by_hand():
    model = translator(torch.float64, positions="sinusoidal")
    generation = model(SOURCE, beam=1)
    found = regard.why(generation.attention["decoder.layers.0.self"].select(1), 0, 0)
    module, given = model.model, generation.forward_pass().arguments
    layer, own = module.decoder.layers[0], module.decoder.layers[0].self
    with torch.no_grad():
        token = module.embedding(given["target"])[0, 0]
        whole = module.embed(given["target"], torch.arange(given["target"].shape[1])[None])[0, 0]
        norm = layer.around_self.norm
        size = ((whole - whole.mean()).square().mean() + norm.eps).sqrt()
        term = (token - token.mean()) / size * norm.weight
        rows = slice(own.head_width, 2 * own.head_width)
        expected = (own.query.weight[rows] @ term) @ (own.key.weight[rows] @ term) / own.head_width**0.5
    assert found.parts["embedding", "embedding"] == pytest.approx(float(expected), abs=1e-9)


def test_observed_encoder_maps_of_a_translation_know_their_model_too():
    model = translator(torch.float64, convolution=1)
    with regard.observe(model) as seen:
        model(SOURCE, beam=1)
    one = seen["encoder.layers.1.self"][0].select(2)
    found = regard.why(one, 2, -1)
    assert found.total == pytest.approx(found.score, abs=1e-9)
    assert any("encoder.layers.0.convolution" in pair for pair in found.parts)


def test_maps_that_know_no_model_and_scores_that_are_no_sum_are_refused():
    generation = translator()(SOURCE, beam=1)
    seen = generation.attention["decoder.layers.1.self"]
    with pytest.raises(ConfigError, match="does not know the model"):
        regard.why(regard.AttentionMap.from_weights(torch.eye(3)), 0, 0)
    with pytest.raises(ConfigError, match="does not know the model"):
        regard.why(seen.mean_heads(), 0, 0)
    with pytest.raises(ConfigError, match="3 heads: choose one"):
        regard.why(seen, 0, 0)
    assert regard.why(seen.select(slice(1, 2)), 0, 0).score == regard.why(seen.select(1), 0, 0).score
    for i, j in ((99, 0), (0, -99)):
        with pytest.raises(ConfigError, match="outside the map"):
            regard.why(seen.select(0), i, j)
    for changes, why in (({"score": "additive"}, "is no product"), ({"context": "running_mean"}, "with a context")):
        other = translator(**changes)(SOURCE, beam=1)
        with pytest.raises(ConfigError, match=why):
            regard.why(other.attention["decoder.layers.0.self"].select(0), 0, 0)
    with pytest.raises(ConfigError, match="no attention of a Transformer's block"):
        regard.why(recurrent()(SOURCE, beam=1).attention["decoder.cross"].select(0), 0, 0)


def test_the_picture_is_drawn(tmp_path):
    seen = translator()(SOURCE, beam=1).attention["decoder.layers.0.cross"].select(0)
    regard.why(seen, 0, 0).plot(tmp_path / "why.svg")
    assert "decoder.layers.0.self, head 0" in (tmp_path / "why.svg").read_text()
