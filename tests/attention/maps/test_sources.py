"""Where rows come from: every way of computing them gives what the reference formula gives."""

from functools import partial
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regard
from regard.attention.maps import map as map_module
from regard.attention.maps import sources
from regard.attention.maps.map import AttentionMap
from regard.attention.maps.sources import ComputedWeights
from regard.attention.masks import Allow, Causal, Window
from regard.attention.spec import make_spec
from regard.errors import ShapeError

B, H, T, S, D = 2, 4, 9, 600, 8


def inputs(key_heads: int = H, dtype: torch.dtype = torch.float32, scale: float = 1) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(B, H, T, D, generator=draw, dtype=dtype) * scale
    return query, torch.randn(B, key_heads, S, D, generator=draw, dtype=dtype)


def holes() -> Tensor:
    """A bias that forbids: -inf in places, and everywhere in one row."""
    draw = torch.Generator().manual_seed(1)
    bias = torch.randn(T, S, generator=draw).masked_fill(torch.rand(T, S, generator=draw) < 0.3, -torch.inf)
    bias[4] = -torch.inf
    return bias


CASES = {
    "plain": {},
    "causal": {"mask": regard.causal(0)},
    "padding": {"mask": regard.padding(torch.tensor([0, 70]))},
    "window": {"mask": regard.window(20, 0) & regard.causal()},
    "two windows": {"mask": regard.window(9, 2, offset=torch.tensor([591, 30]))},
    "nothing": {"mask": torch.zeros(T, S, dtype=torch.bool)},
    "bias": {"bias": holes()},
    "both": {"mask": regard.causal(), "bias": holes()},
    "cosine": {"score": regard.Cosine(scale=9.0)},
}


@pytest.fixture(params=[1, 2**14, 2**23])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of one head at a time; some rows; everything at once."""
    monkeypatch.setattr(map_module, "BLOCK", request.param)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scale", [1, 60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_in_two_buffers_is_the_reference(case: str, scale: float, dtype: torch.dtype, block: None) -> None:
    query, key = inputs(2, dtype, scale)
    seen = regard.attention_map(query, key, **CASES[case])
    assert seen.source._product() is not None
    found = seen.summary((3, 100), 5)
    wide = regard.attention_map(query.double(), key.double(), **CASES[case])
    want = AttentionMap.from_weights(wide.full()).summary((3, 100), 5)
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-12}
    for name in ("entropy", "received", "total", "pooled"):
        torch.testing.assert_close(getattr(found, name).double(), getattr(want, name), **close)
    torch.testing.assert_close(seen.distance().double(), AttentionMap.from_weights(wide.full()).distance(), **close)
    torch.testing.assert_close(found.top[0].double(), want.top[0], **close)
    assert torch.equal(found.argmax == -1, want.argmax == -1)
    torch.testing.assert_close(seen.full(), torch.cat([seen.tile([i], slice(None)) for i in range(T)], -2), **close)


@pytest.mark.parametrize(
    "choices",
    [
        *({"normalizer": name} for name in ("softmax1", "uniform", "sparsemax", "sigmoid", regard.Entmax(1.0))),
        {"score": regard.Distance()},
        *CASES.values(),
    ],
    ids=str,
)
def test_row_numbers_give_any_tile_again(choices) -> None:
    query, key = inputs(2)
    seen = regard.attention_map(query, key, **choices)
    rows, columns = torch.tensor([8, 0, 4]), torch.tensor([599, 3, 64, 65])
    want = seen.full()[..., rows, :][..., columns]
    torch.testing.assert_close(seen.tile(rows, columns), want)
    seen.entropy()
    calls = []
    seen.source.__dict__["weigh"] = calls.append  # whole rows are not computed again
    torch.testing.assert_close(seen.tile(rows, columns), want, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(seen.column(64), seen.tile(slice(None), [64])[..., 0])
    assert calls == []


def test_what_has_no_row_numbers_computes_whole_rows() -> None:
    query, key = inputs()
    seen = regard.attention_map(query, key, normalizer=lambda e, allowed: e.relu() * allowed)
    seen.entropy()
    torch.testing.assert_close(seen.tile([2], [5]), seen.full()[..., 2:3, 5:6])


@pytest.mark.parametrize("index", [(1,), (1, 3), (0, -1), (slice(None), slice(1, 3)), (slice(0, 1),)], ids=str)
def test_grouped_heads_are_selected(index) -> None:
    query, key = inputs(2)
    seen = regard.attention_map(query, key)
    torch.testing.assert_close(seen.select(*index).full(), seen.full()[index])


def test_a_poisoned_key_that_nobody_sees_takes_the_careful_way(block: None) -> None:
    query, key = inputs()
    mask = regard.padding(torch.tensor([S, 70]))
    want = regard.attention_map(query, key, mask=mask).summary(top=3)
    key[1, :, 80] = torch.nan
    seen = regard.attention_map(query, key, mask=mask)
    assert seen.source._product() is None
    found = seen.summary(top=3)
    for name in ("entropy", "received", "argmax"):
        torch.testing.assert_close(getattr(found, name), getattr(want, name))


def test_a_poisoned_row_is_poisoned_and_no_other() -> None:
    query, key = inputs()
    query[0, 1, 2] = torch.nan
    query[0, 1, 3] = torch.inf
    query[1, 0, 0] = 3e38  # products overflow to both infinities
    entropy = regard.attention_map(query, key).entropy()
    poisoned = torch.zeros(B, H, T, dtype=torch.bool)
    poisoned[0, 1, 2] = poisoned[0, 1, 3] = poisoned[1, 0, 0] = True
    assert torch.equal(entropy.isnan(), poisoned)


def test_a_score_of_minus_infinity_by_overflow_is_a_weight_of_zero() -> None:
    query, key = torch.full((1, 1), 1e38), torch.tensor([[0.0], [0.0], [-9.0]])
    seen = regard.attention_map(query, key, score="dot")
    assert seen.full().tolist() == [[0.5, 0.5, 0.0]]
    assert float(seen.entropy()) == pytest.approx(0.693147, abs=1e-5)


def test_a_row_whose_scores_all_overflow_downwards_is_dead() -> None:
    query, key = torch.tensor([[1e38], [1.0], [torch.nan]]), torch.tensor([[-9.0], [-9.0]])
    seen = regard.attention_map(query, key, score="dot")
    found = seen.summary(top=1)
    torch.testing.assert_close(seen.full(), torch.tensor([[0.0] * 2, [0.5] * 2, [torch.nan] * 2]), equal_nan=True)
    assert found.argmax[:2].tolist() == [-1, 0]
    assert found.total[:2].tolist() == [0, 1]
    torch.testing.assert_close(found.entropy, torch.tensor([0.0, 0.693147, torch.nan]), equal_nan=True)


def test_derived_maps_answer_entry_by_entry(block: None) -> None:
    query, key = inputs()
    seen = regard.attention_map(query, key)
    norms = seen.norms(torch.randn(B, H, S, 3), torch.randn(H, 3, D))
    torch.testing.assert_close(norms.received(), norms.full().sum(-2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.mean_heads().received(), seen.full().mean(1).sum(-2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norms.select(1, 2).full(), norms.full()[1, 2])


def test_gradients_take_the_plain_way() -> None:
    query, key = inputs()
    assert regard.attention_map(query.requires_grad_(), key).source._product() is None
    with torch.no_grad():
        assert regard.attention_map(query, key).source._product() is not None
    learned = regard.attention_map(query.detach(), key, bias=torch.zeros(T, S, requires_grad=True))
    assert learned.source._product() is None


def test_entries_are_taken_one_at_a_time_where_a_block_would_have_few_rows() -> None:
    query, key = torch.zeros(3, 2, 500, 4), torch.zeros(3, 1, 70_000, 4)
    seen = regard.attention_map(query, key)
    assert seen._outer() == (3, 2)
    small = regard.attention_map(query[..., :10, :], key[..., :10, :])
    assert small._outer() == ()
    assert isinstance(small._entries()[0], ComputedWeights)


def test_the_overview_is_kept_with_the_first_statistic() -> None:
    query, key = inputs()
    seen = regard.attention_map(query, key)
    seen.entropy()
    kept = seen.pool(256, 256)
    assert kept is seen.pool(256, 256)
    torch.testing.assert_close(kept, AttentionMap.from_weights(seen.full()).pool(256, 256))
    assert seen.summary().pooled is None


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bias_of_the_lowest_number_on_every_key_leaves_equal_weights(masked: bool, dtype: torch.dtype) -> None:
    """What transformers' masks give for padding on the left; -inf on every key is a dead row."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 3, dtype=dtype), torch.randn(2, 5, 3, dtype=dtype)
    bias = torch.zeros(4, 5, dtype=dtype)
    bias[0], bias[1], bias[2, :3] = torch.finfo(dtype).min, -torch.inf, torch.finfo(dtype).min
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[:, 4] = not masked
    seen = regard.attention_map(query, key, bias=bias, mask=mask)
    weights = seen.full()
    assert torch.equal(weights[0, 0], mask[0].to(dtype) / mask[0].sum())
    assert not weights[:, 1].any()
    given = AttentionMap.from_weights(weights)
    for name in ("entropy", "received", "argmax"):
        torch.testing.assert_close(getattr(seen, name)(), getattr(given, name)())
    torch.testing.assert_close(seen.top(2), given.top(2))
    torch.testing.assert_close(seen.tile([0, 2], [0, 3]), weights[:, [0, 2]][..., [0, 3]])  # now from row numbers
    torch.testing.assert_close(seen.column(1), weights[..., 1])


def test_a_crop_has_its_own_rows() -> None:
    torch.manual_seed(0)
    seen = regard.attention_map(torch.randn(2, 6, 4), torch.randn(2, 6, 4))
    for cropped in (seen.crop(3, 0, 6), AttentionMap.from_weights(seen.full()).crop(3, 0, 6)):
        torch.testing.assert_close(cropped.full(), seen.full()[:, :3])
        assert cropped.entropy().shape == (2, 3)
        torch.testing.assert_close(cropped.received(), seen.full()[:, :3].sum(-2))
        torch.testing.assert_close(cropped.pull(torch.ones(3)), seen.full()[:, :3].sum(-2))
        torch.testing.assert_close(cropped.select(0).full(), seen.full()[0, :3])


def test_a_frozen_map_has_no_gradient() -> None:
    query, key = torch.randn(2, 4, 3, requires_grad=True), torch.randn(2, 4, 3)
    seen = regard.attention_map(query, key)
    value, output = torch.randn(2, 4, 3, requires_grad=True), torch.randn(2, 3, 5)
    matrix = torch.randn(4, 3, requires_grad=True)
    for one in (
        seen, AttentionMap.from_weights(seen.full()), seen.mean_heads(), seen.norms(value, output),
        seen.through(matrix), seen.crop(2, 0, 3),
    ):  # fmt: skip
        assert one.full().requires_grad
        assert not one.frozen().full().requires_grad
        assert torch.equal(one.frozen().full(), one.full())


def test_what_does_not_fit_a_map_is_refused() -> None:
    seen = regard.attention_map(torch.randn(4, 3), torch.randn(5, 3))
    with pytest.raises(ShapeError, match=r"matrix has batch axes \[2\] and the map has \[\]"):
        seen.through(torch.randn(2, 5, 3))
    with pytest.raises(ShapeError, match="expected 5 rows"):
        seen.through(torch.randn(5))
    heads = regard.attention_map(torch.randn(2, 4, 3), torch.randn(2, 5, 3))
    with pytest.raises(ShapeError, match="value has shape"):
        heads.with_value(torch.randn(3, 5, 3))
    with pytest.raises(ShapeError, match="a slice that goes forward"):
        heads.select(slice(None, None, -1))
    norms = heads.norms(torch.randn(2, 5, 3), torch.randn(2, 3, 4, dtype=torch.float64))
    assert norms.full().dtype == torch.float32


def test_autocast_does_not_come_through() -> None:
    torch.manual_seed(0)
    maps = [regard.attention_map(torch.randn(2, 4, 3), torch.randn(2, 4, 3)) for _ in range(3)]
    value, output = torch.randn(2, 4, 3), torch.randn(2, 3, 4)
    made = [lambda: AttentionMap.rollout(maps).full(), lambda: maps[0].norms(value, output).full()]
    made += [lambda: regard.flow(maps), lambda: regard.flow(maps, target=1)]
    for one in made:
        wanted = one()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(one(), wanted)


def test_statistics_follow_what_is_learned() -> None:
    torch.manual_seed(0)
    scale = torch.nn.Parameter(torch.tensor(1.0))
    query, key = torch.randn(2, 4, 3), torch.randn(2, 5, 3)
    seen = regard.attention_map(query, key, score=regard.Cosine(scale=scale))
    with torch.no_grad():
        before = seen.entropy()
        scale.mul_(20)
        assert not torch.equal(seen.entropy(), before)
        torch.testing.assert_close(seen.tile([0], slice(None)), seen.full()[:, :1])
        torch.testing.assert_close(seen.pool(2, 2, "sum").sum(), seen.full().sum())


def test_rollout_of_two_precisions() -> None:
    maps = [regard.attention_map(*torch.randn(2, 2, 4, 3, dtype=dtype)) for dtype in (torch.float32, torch.float64)]
    assert AttentionMap.rollout(maps).full().dtype == torch.float64


def test_statistics_follow_a_mask_that_is_written_to() -> None:
    mask = torch.ones(4, 5, dtype=torch.bool)
    seen = regard.attention_map(torch.randn(2, 4, 3), torch.randn(2, 5, 3), mask=mask)
    assert bool((seen.argmax() >= 0).all())
    mask[1] = False
    assert seen.argmax()[:, 1].tolist() == [-1, -1]


@pytest.mark.parametrize(
    "join", [lambda m: Causal() & m, lambda m: ~(~Allow(m)), lambda m: (Causal() & m) | Window(1, 0)]
)
def test_statistics_follow_a_mask_within_another_one(join: Any) -> None:
    query, key, table = torch.randn(4, 3), torch.randn(4, 3), torch.ones(4, 4, dtype=torch.bool)
    seen = AttentionMap.from_spec(query, key, make_spec("scaled_dot", "softmax", join(table), None))
    before = seen.entropy()
    table[2:, 0] = False
    fresh = AttentionMap.from_spec(query, key, make_spec("scaled_dot", "softmax", join(table), None)).entropy()
    assert not torch.equal(before, seen.entropy())
    assert torch.equal(seen.entropy(), fresh)


@pytest.mark.parametrize(
    ("score", "change"),
    [
        (regard.ScaledDot(torch.tensor(0.3)), lambda score: score.scale.fill_(3)),
        (regard.ScaledDot(0.3), lambda score: setattr(score, "scale", 3.0)),
        (regard.Cosine(torch.tensor(0.5)), lambda score: score.power.fill_(0)),
        (regard.RandomFeatures(4, 16), lambda score: score.redraw(7)),
        (regard.ScaledDot(softcap=nn.Parameter(torch.tensor(0.5))), lambda score: score.softcap.data.fill_(9)),
    ],
)
def test_a_frozen_map_does_not_follow_its_score_and_statistics_do(score: Any, change: Any) -> None:
    query, key = torch.randn(5, 4), torch.randn(6, 4)
    seen = regard.attention_map(query, key, score=score, normalizer="softmax")
    kept, before = seen.frozen(), seen.full().detach()
    seen.entropy()
    change(score)
    torch.testing.assert_close(kept.full(), before)
    assert not kept.full().requires_grad
    if isinstance(score.scale if hasattr(score, "scale") else None, Tensor):
        torch.testing.assert_close(seen.received(), seen.full().sum(-2))


@pytest.mark.parametrize("bias", [lambda: regard.RelativeBias(2, 8, 16), lambda: nn.Parameter(torch.randn(2, 5, 6))])
def test_a_part_of_a_map_is_frozen_with_its_bias(bias: Any) -> None:
    own = bias()
    if isinstance(own, regard.RelativeBias):
        nn.init.normal_(own.weight)
    seen = regard.attention_map(torch.randn(3, 2, 5, 4), torch.randn(3, 2, 6, 4), bias=own)
    kept = seen.select(0).frozen()
    before = kept.full()
    assert not before.requires_grad
    with torch.no_grad():
        (own.weight if isinstance(own, regard.RelativeBias) else own).add_(torch.randn(()) + 1).mul_(2)
    torch.testing.assert_close(kept.full(), before)


def test_what_a_map_gives_may_be_changed() -> None:
    seen = regard.attention_map(torch.randn(5, 4), torch.randn(6, 4))
    for name in ("entropy", "received", "argmax"):
        found = getattr(seen, name)()
        found.fill_(7)
        assert not torch.equal(getattr(seen, name)(), found)


def test_a_row_beyond_all_numbers_attends_to_no_masked_key() -> None:
    query, key = torch.ones(512, 1), torch.full((512, 1), 1e20)
    query[400] = -1e20
    seen = regard.attention_map(query, key, mask=regard.causal())
    torch.testing.assert_close(seen.received(), seen.full().sum(-2))


def test_a_residual_is_a_share() -> None:
    maps = [regard.attention_map(torch.randn(2, 4, 3), torch.randn(2, 4, 3))]
    for residual in (1.7, -0.1, float("nan")):
        with pytest.raises(ShapeError, match="from 0 to 1"):
            AttentionMap.rollout(maps, residual=residual)
        with pytest.raises(ShapeError, match="from 0 to 1"):
            regard.flow(maps, residual=residual)


def test_statistics_follow_the_numbers_of_a_score() -> None:
    query, key = inputs()
    score = regard.ScaledDot(0.1)
    seen = regard.attention_map(query, key, score=score)
    seen.entropy()
    score.scale = 5.0
    torch.testing.assert_close(seen.entropy(), regard.attention_map(query, key, score=score).entropy())
    torch.testing.assert_close(seen.tile(slice(0, 2), slice(0, 3)), seen.full()[..., :2, :3])


def test_what_a_summary_gives_may_be_written_to() -> None:
    seen = regard.attention_map(*inputs())
    want, found = seen.entropy(), seen.summary(pool=(2, 2), top=2)
    for tensor in (found.entropy, found.received, found.argmax, found.pooled, *found.top):
        tensor.zero_()
    torch.testing.assert_close(seen.entropy(), want)
    assert seen.summary(top=2).top[0].sum() > 0


def test_a_score_that_counts_its_calls_is_asked_once() -> None:
    class Counting(regard.ScaledDot):
        calls = 0

        def project_query(self, query: Tensor) -> Tensor:
            self.calls += 1
            return super().project_query(query)

    score = Counting()
    seen = regard.attention_map(*inputs(), score=score)
    seen.entropy()
    seen.entropy()  # the first time, another thread may have set the number
    before = score.calls
    seen.received()
    seen.entropy()
    assert score.calls == before


def test_a_score_that_counts_its_calls_in_a_buffer_is_asked_once() -> None:
    class Counting(regard.ScaledDot):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def compare(self, query: Tensor, key: Tensor) -> Tensor:
            self.calls += 1
            return super().compare(query, key)

    score = Counting()
    seen = regard.attention_map(*inputs(), score=score)
    seen.entropy()
    seen.entropy()
    before = int(score.calls)
    seen.received()
    seen.entropy()
    assert int(score.calls) == before
    score.calls.zero_()  # a write by others is noticed
    seen.entropy()
    assert int(score.calls) > 0


def test_settings_within_lists_and_texts_are_followed() -> None:
    class Banded(regard.Dot):
        def __init__(self) -> None:
            super().__init__()
            self.bands, self.mode = [(1.0, 0.5), {"deep": (2.0,)}], "plain"

        def compare(self, query: Tensor, key: Tensor) -> Tensor:
            product = super().compare(query, key) * self.bands[0][0] * self.bands[1]["deep"][0]
            return product if self.mode == "plain" else -product

    query, key = inputs()
    score = Banded()
    seen = regard.attention_map(query, key, score=score)

    def differs() -> bool:
        found = seen.entropy()
        torch.testing.assert_close(found, regard.attention_map(query, key, score=score).entropy())
        new, known[0] = not torch.equal(found, known[0]), found
        return new

    known = [seen.entropy()]
    score.bands[0] = (3.0, 0.5)
    assert differs()
    score.bands[1]["deep"] = (0.5,)
    assert differs()
    score.mode = "turned"
    assert differs()


def test_a_write_that_another_thread_has_seen_is_not_forgotten() -> None:
    query, key = inputs()
    seen: list[AttentionMap] = []

    class Meanwhile(regard.Dot):
        done = False

        def compare(self, query: Tensor, own: Tensor) -> Tensor:
            found = super().compare(query, own)
            if not self.done:
                self.done = True
                key.mul_(3)
                thread = Thread(target=seen[0].entropy)
                thread.start()
                thread.join()
            return found

    seen.append(regard.attention_map(query, key, score=Meanwhile()))
    seen[0].entropy()
    torch.testing.assert_close(seen[0].entropy(), regard.attention_map(query, key, score="dot").entropy())


@pytest.mark.parametrize("kind", ["buffer", "attribute", "number"])
def test_a_setting_that_another_thread_writes_meanwhile_is_not_forgotten(kind: str) -> None:
    class Meanwhile(regard.Dot):
        def __init__(self) -> None:
            super().__init__()
            self.done = False
            if kind == "buffer":
                self.register_buffer("t", torch.ones(()))
            else:
                self.t = torch.ones(()) if kind == "attribute" else 1.0

        def write(self) -> None:
            if kind == "number":
                self.t = 5.0
            else:
                self.t.fill_(5.0)

        def compare(self, query: Tensor, key: Tensor) -> Tensor:
            found = super().compare(query, key) * self.t
            if not self.done:
                self.done = True
                thread = Thread(target=self.write)
                thread.start()
                thread.join()
            return found

    query, key = inputs()
    score = Meanwhile()
    seen = regard.attention_map(query, key, score=score)
    seen.entropy()
    torch.testing.assert_close(seen.entropy(), regard.attention_map(query, key, score=score).entropy())


def test_settings_of_callables_and_of_biases_are_followed() -> None:
    class Scaled:
        scale = 1.0

        def __init__(self) -> None:
            self.scale, self.itself = 1.0, self

        def __call__(self, query: Tensor, key: Tensor) -> Tensor:
            return self.scale * query @ key.mT

    class Slope(regard.attention.biases.Bias):
        def __init__(self) -> None:
            self.slope = 1.0

        def tile(self, rows: Tensor, columns: Tensor, shape: tuple[int, ...]) -> Tensor:
            return self.slope * (rows[:, None] - columns).float()

    query, key = inputs()
    for score, bias, owner, name in ((one := Scaled(), None, one, "scale"), ("dot", two := Slope(), two, "slope")):
        seen = regard.attention_map(query, key, score=score, bias=bias)
        seen.entropy()
        setattr(owner, name, 3.0)
        torch.testing.assert_close(seen.entropy(), regard.attention_map(query, key, score=score, bias=bias).entropy())


class Settings:
    """A score with a number, a tensor and a method."""

    def __init__(self) -> None:
        self.number, self.tensor = 1.0, torch.ones(())

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return query @ key.mT * self.tensor * self.number

    def method(self, query: Tensor, key: Tensor) -> Tensor:
        return self(query, key)


class Holding(regard.Dot):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held

    def compare(self, query: Tensor, key: Tensor) -> Tensor:
        return self.held[0](query, key)


class Sloped(regard.attention.biases.Bias):
    def __init__(self) -> None:
        self._slope = 0.0

    def tile(self, rows: Tensor, columns: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self._slope * (rows[:, None] + columns**2).float()


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda own: {"score": own.method}, lambda own: setattr(own, "number", 3.0)),
        (lambda own: {"score": partial(own.method)}, lambda own: setattr(own, "number", 3.0)),
        (lambda own: {"score": own}, lambda own: own.tensor.mul_(3)),
        (lambda own: {"score": own}, lambda own: setattr(own, "tensor", torch.tensor(3.0))),
        (lambda own: {"score": Holding([own])}, lambda own: own.tensor.mul_(3)),
    ],
)
def test_settings_of_what_a_score_holds_are_followed(make: Any, change: Any) -> None:
    query, key = inputs()
    own = Settings()
    seen = regard.attention_map(query, key, **make(own))
    seen.entropy()
    change(own)
    torch.testing.assert_close(seen.entropy(), regard.attention_map(query, key, **make(own)).entropy())


@pytest.mark.parametrize("held", [lambda layer: layer, lambda layer: layer.forward, partial])
def test_layers_that_a_bias_holds_are_followed(held: Any) -> None:
    class Of(regard.attention.biases.Bias):
        def __init__(self, function: Any) -> None:
            self.function = function

        def tile(self, rows: Tensor, columns: Tensor, shape: tuple[int, ...]) -> Tensor:
            return self.function((columns - rows[:, None]).float()[..., None])[..., 0]

    query, key = inputs()
    layer = nn.Linear(1, 1).requires_grad_(False)
    seen = regard.attention_map(query, key, bias=Of(held(layer)))
    seen.entropy()
    layer.weight.mul_(3)
    torch.testing.assert_close(seen.entropy(), regard.attention_map(query, key, bias=Of(held(layer))).entropy())


def test_settings_of_biases_within_others_are_followed() -> None:
    query, key = inputs()
    own = Sloped()
    whole = regard.attention_map(query, key, bias=own + own)
    maps = whole, whole.select(0)
    for seen in maps:
        seen.entropy()
    own._slope = 0.3
    new = regard.attention_map(query, key, bias=own + own)
    for seen, wanted in zip(maps, (new, new.select(0)), strict=True):
        torch.testing.assert_close(seen.entropy(), wanted.entropy())


def test_a_map_that_another_thread_reads_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = regard.attention_map(*inputs())

    def kept_by_another(tensor: Tensor) -> bool:
        vars(seen.source).setdefault("_poisoned", False)
        vars(seen.source)[f"kept_{len(vars(seen.source))}"] = 1
        return False

    monkeypatch.setattr(sources, "is_traced", kept_by_another)
    assert seen.source.versions()


def test_what_is_written_within_a_pass_is_noticed() -> None:
    query, key = inputs()

    class Writing(regard.Dot):
        written = False

        def project_query(self, query: Tensor) -> Tensor:
            if not self.written:
                self.written = True
                key.mul_(3)  # as another thread could
            return super().project_query(query)

    score = Writing()
    seen = regard.attention_map(query, key, score=score)
    seen.entropy()
    torch.testing.assert_close(seen.entropy(), regard.attention_map(query, key, score="dot").entropy())
