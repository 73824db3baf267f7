"""Roles: planted heads are found, untrained ones are not; the statistics by hand."""

from collections.abc import Callable
from math import comb
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, scaled_dot_product_attention

import regard
from regard.analysis import roles as room
from regard.analysis.roles import Sequences, among, beside, bootstrap, find_roles, holm, sign_test
from regard.attention.maps.map import AttentionMap
from regard.models.language import DecoderConfig, DecoderLM

N, V, INPUTS = 23, 13, 20
SHARP = 12.0  # logit of a planted key
PLANTED = ["previous token", "induction", "duplicate token", "sink", "same token", "nothing"]


class Planted(nn.Module):
    """One layer of heads whose queries and keys are made to match, from tokens and places."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(7)
        self.register_buffer("noise", torch.randn(2, N, V, generator=draw))

    def forward(self, tokens: Tensor) -> Tensor:
        token = one_hot(tokens, V).float()
        place = torch.eye(N).expand(len(tokens), N, N)
        before = token.roll(1, 1) * (torch.arange(N) > 0)[:, None]
        first = (torch.arange(N) == 0).float()[:, None].expand(len(tokens), N, N)
        pairs = [
            (place.roll(-1, 2), place), (token, before), (token, token), (torch.ones(len(tokens), N, N) / N, first),
            (place, place), tuple(self.noise.expand(len(tokens), 2, N, V).unbind(1)),
        ]  # fmt: skip
        pad = lambda x: nn.functional.pad(x, (0, N - x.shape[-1]))  # noqa: E731
        query, key = (torch.stack([pad(pair[side]) for pair in pairs], 1) for side in (0, 1))
        strength = torch.tensor([SHARP] * 5 + [0.3])[:, None, None]
        return scaled_dot_product_attention(query * strength * N**0.5, key, key, is_causal=True)


def texts(n: int = INPUTS, seed: int = 0, first: int | None = None) -> Tensor:
    drawn = torch.randint(V, (n, N), generator=torch.Generator().manual_seed(seed))
    if first is not None:
        drawn[:, 0] = first
    return drawn


@pytest.fixture(scope="module")
def found() -> list[regard.Role]:
    return regard.roles(Planted(), [{"tokens": texts()}])


@pytest.mark.parametrize("head", range(len(PLANTED) - 1))
def test_planted_heads_are_found(found: list[regard.Role], head: int) -> None:
    (planted,) = [one for one in found if (one.head, one.role) == (head, PLANTED[head])]
    assert (planted.site, planted.inputs) == (".", INPUTS)
    assert planted.effect > 0.45
    assert planted.interval[0] - 1e-9 <= planted.effect <= planted.interval[1] + 1e-9
    assert planted.p < 1e-3
    others = [one.effect for one in found if one.head == head and one is not planted]
    assert head == 2 or max(others, default=0.0) < 0.5  # a token is a duplicate of itself


def test_the_even_head_has_no_role(found: list[regard.Role]) -> None:
    assert not [one for one in found if one.head == len(PLANTED) - 1]


def test_an_input_a_dict_is_an_input_a_row() -> None:
    rows = regard.roles(Planted(), [{"tokens": one[None]} for one in texts()])
    assert rows == regard.roles(Planted(), [{"tokens": texts()}])


class Alone(nn.Module):
    """A model without a batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Planted()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.inner(tokens[None])[0]


class Unbatched(nn.Module):
    """Two heads without a batch axis: the second looks at the first key."""

    def forward(self, tokens: Tensor) -> Tensor:
        key = (torch.arange(len(tokens)) == 0).float()[:, None].expand(2, -1, 4) * torch.tensor([0.0, 1])[:, None, None]
        return scaled_dot_product_attention(torch.full_like(key, SHARP), key, key)


def test_without_a_batch_axis() -> None:
    given = [{"tokens": one} for one in texts()]
    assert {one.role for one in regard.roles(Alone(), given)} >= set(PLANTED[:5])
    assert [(one.role, one.head) for one in regard.roles(Unbatched(), given)] == [("sink", 1)]


def test_a_few_inputs_prove_nothing() -> None:
    assert regard.roles(Planted(), [{"tokens": texts(3)}]) == []
    with pytest.raises(regard.ConfigError, match="roles need inputs"):
        regard.roles(Planted(), [])


class Encoder(nn.Module):
    """An encoder of torch's, with embeddings of places and its weights drawn wider than its makers did."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(V, 16), nn.Embedding(N, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, V)
        with torch.no_grad():
            for layer in self.layers.layers:
                layer.self_attn.in_proj_weight.mul_(width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(tokens) + self.places.weight))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("first", [None, 1])
def test_untrained_models_have_no_roles(seed: int, first: int | None) -> None:
    torch.manual_seed(seed)
    config = DecoderConfig(kind="decoder", width=16, layers=2, heads=4, ffn_width=32)
    given = [{"tokens": texts(seed=seed + 1, first=first)}]
    for model in (DecoderLM(V, config).eval(), Encoder(1.0).eval(), Encoder(1.5).eval()):
        assert regard.roles(model, given) == []


class Copying(nn.Module):
    """Two heads whose output writes the token that was looked at, or anything; attention is even."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.unembedding = nn.Embedding(40, 12), nn.Linear(12, 40)
        self.attention = Even()
        with torch.no_grad():
            self.unembedding.weight.copy_(self.embedding.weight)
            self.attention.output.weight[:, :6] = self.attention.value.weight[:6].pinverse()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.unembedding(self.attention(self.embedding(tokens)))


class Even(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value, self.output = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        value = self.value(x).unflatten(-1, (2, 6)).transpose(1, 2)
        heads = scaled_dot_product_attention(value * 0, value, value)
        return self.output(heads.transpose(1, 2).flatten(2))


def test_what_nothing_reads_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The output layer of a single input; of a batch every layer is."""
    model, linear, used = Even(), nn.functional.linear, []
    monkeypatch.setattr(
        nn.functional, "linear", lambda x, weight, bias=None: used.append(weight) or linear(x, weight, bias)
    )
    for rows in (1, 3):
        used.clear()
        regard.roles(model, [{"x": torch.randn(rows, 7, 12)}], cells={"same token": beside(0)})
        assert any(one is model.value.weight for one in used)
        assert any(one is model.output.weight for one in used) == (rows > 1)


def test_a_copying_head_by_its_weights() -> None:
    torch.manual_seed(0)
    found = regard.roles(Copying(), [{"tokens": torch.randint(40, (10, 9))}])
    assert [(one.role, one.site, one.head) for one in found] == [("copying", "attention", 0)]
    assert found[0].effect > 0.4
    assert found[0].inputs == 40
    own = {"same token": beside(0)}
    assert regard.roles(Copying(), [{"tokens": torch.randint(40, (10, 9))}], cells=own) == []


def gpt2() -> tuple[nn.Module, str, Tensor, Tensor]:
    """A model, the site of an attention, and the values `[d_v, d]` and outputs `[d, d_v]` of its first head."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None
    )
    model = transformers.GPT2LMHeadModel(config)
    attention = model.transformer.h[1].attn
    return model, "transformer.h.1.attn", attention.c_attn.weight[:, 32:40].mT, attention.c_proj.weight[:8].mT


def bert() -> tuple[nn.Module, str, Tensor, Tensor]:
    transformers = pytest.importorskip("transformers")
    model = transformers.BertForMaskedLM(transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    ))  # fmt: skip
    attention = model.bert.encoder.layer[1].attention
    site = "bert.encoder.layer.1.attention.self"
    return model, site, attention.self.value.weight[:8], attention.output.dense.weight[:, :8]


def t5() -> tuple[nn.Module, str, Tensor, Tensor]:
    transformers = pytest.importorskip("transformers")
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, num_layers=1, num_heads=2, d_ff=24, decoder_start_token_id=0,
    ))  # fmt: skip
    attention = model.decoder.block[0].layer[1].EncDecAttention
    return model, "decoder.block.0.layer.1.EncDecAttention", attention.v.weight[:8], attention.o.weight[:, :8]


def distilbert() -> tuple[nn.Module, str, Tensor, Tensor]:
    transformers = pytest.importorskip("transformers")
    config = transformers.DistilBertConfig(vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=24)
    model = transformers.DistilBertForMaskedLM(config)
    attention = model.distilbert.transformer.layer[0].attention
    site = "distilbert.transformer.layer.0.attention"
    return model, site, attention.v_lin.weight[:8], attention.out_lin.weight[:, :8]


@pytest.mark.parametrize("make", [gpt2, bert, t5, distilbert])
def test_a_copying_head_of_a_transformers_model(make: Callable[[], tuple[nn.Module, str, Tensor, Tensor]]) -> None:
    torch.manual_seed(0)
    model, site, value, output = make()
    given = {"input_ids": torch.randint(40, (1, 9))}
    given |= {"decoder_input_ids": torch.randint(40, (1, 5))} if make is t5 else {}

    def copying() -> list[tuple[str, int]]:
        found = regard.roles(model.eval(), given)
        return [(one.site, one.head) for one in found if one.role == "copying"]

    assert copying() == []
    with torch.no_grad():
        output.copy_(value.pinverse())
    assert copying() == [(site, 0)]


class Alphabet(Copying):
    """Tokens are letters and numbers; the first head writes the one that comes after what it looks at."""

    tokenizer = SimpleNamespace(tokens=lambda ids: [*"abcdefghijklmnopqrst", *map(str, range(20))])

    def __init__(self) -> None:
        super().__init__()
        after = torch.arange(40).roll(-1)
        with torch.no_grad():
            moved = self.embedding.weight.pinverse() @ self.embedding.weight[after]  # the best x W ≈ what comes after
            left, sizes, right = moved.svd()
            self.attention.value.weight[:6] = left[:, :6].mT
            self.attention.output.weight[:, :6] = right[:, :6] * sizes[:6]


def test_a_successor_head_by_its_weights() -> None:
    torch.manual_seed(0)
    (found,) = regard.roles(Alphabet(), {"tokens": torch.randint(40, (1, 9))})
    assert (found.role, found.site, found.head) == ("successor", "attention", 0)
    assert found.effect > 0.3
    assert found.inputs == 38  # pairs: nineteen of letters, nineteen of numbers


def seen(weights: Tensor, queries: str, keys: str, **more: object) -> dict[str, tuple[AttentionMap, Sequences]]:
    return {"site": (AttentionMap.from_weights(weights), Sequences(queries.split(), keys.split(), **more))}


def test_cross_attention_aligns_and_moves_forward() -> None:
    examples = []
    for n in range(20):
        t, s = 9 + n % 3, 11
        near = torch.zeros(t, s)
        near[torch.arange(t), (torch.arange(t) * (s - 1) / (t - 1)).round().long()] = 1
        queries = " ".join("abcdefghijklm"[:t])
        predicted = [*queries.split()[1:], None]
        copied = torch.rand(t, s, generator=torch.Generator().manual_seed(n))
        copied[2] = torch.eye(s)[5]  # the key "d", as the output's next token is
        maps = torch.stack([near, near.flip(0), copied])
        examples.append(seen(maps, queries, "A B C D E d G H I J K", predicted=predicted, crossing=True))
    found = {(one.head, one.role) for one in find_roles(examples)}
    assert found == {(0, "alignment"), (0, "monotone"), (2, "retrieval")}


def sentence() -> dict[str, tuple[AttentionMap, Sequences]]:
    even = torch.full((5, 5), 0.2)
    stop = torch.eye(5)[[4] * 5]
    back = torch.eye(5)[[4, 0, 1, 2, 3]]
    tokens = "a b c a ."
    return seen(
        torch.stack([0.9 * back + 0.1 * even, stop, even]), tokens, tokens, counts={"a": 9, "b": 9, "c": 2, ".": 30}
    )


def test_effects_by_hand() -> None:
    found = find_roles([sentence()] * 20)
    assert {(one.head, one.role) for one in found} == {(0, "previous token"), (1, "separator")}
    previous = next(one for one in found if one.head == 0)
    assert (previous.share, previous.chance) == (pytest.approx(0.92), pytest.approx(0.2))
    assert previous.effect == pytest.approx(0.9)
    assert previous.interval == pytest.approx((0.9, 0.9))
    assert previous.p == pytest.approx(3 * 8 / 2**20)  # the first of Holm's: 3 heads × 8 roles that have cells
    only = find_roles([sentence()] * 20, {"c": among("c".__eq__)})
    assert only == []


def test_the_next_token_and_the_rarest_one_are_found() -> None:
    examples = []
    for n in range(20):
        keys = ["a", "b"] * 4
        keys[n % 8] = f"once {n}"
        tokens = Sequences(keys, keys, counts={"a": 70, "b": 70, f"once {n}": 1})
        ahead, rare = torch.eye(8).roll(1, 1), torch.eye(8)[[n % 8] * 8]
        examples.append({"site": (AttentionMap.from_weights(torch.stack([ahead, rare, torch.ones(8, 8) / 8])), tokens)})
    found = {(one.head, one.role): one for one in find_roles(examples)}
    assert {(0, "next token"), (1, "rare word")} == {*found}
    assert found[1, "rare word"].chance == pytest.approx(1 / 8)
    assert [one.effect for one in found.values()] == pytest.approx([1, 1])


def test_the_null_is_equal_attention_under_the_mask() -> None:
    """A window of two keys: half of the weight on the previous token is no role."""
    query = torch.zeros(2, 30, 4)
    narrow = regard.attention_map(query, query, mask=regard.window(1, 0))
    tokens = Sequences([str(n) for n in range(30)], [str(n) for n in range(30)])
    assert find_roles([{"site": (narrow, tokens)}] * 20) == []
    shares = dict(room._shares(narrow, tokens, {"previous": beside(-1)}))
    assert shares["previous"][1] == pytest.approx(0.5)


def test_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = find_roles([sentence()] * 20)
    monkeypatch.setattr(room, "BLOCK", 1)
    assert find_roles([sentence()] * 20) == whole


def test_cells() -> None:
    rows, tokens = torch.arange(5), Sequences(list("abcab"), list("abcab"), [*list("bcab"), None], counts={"c": 1})
    want = {
        "previous token": [[], [0], [1], [2], [3]], "next token": [[1], [2], [3], [4], []],
        "same token": [[n] for n in range(5)], "duplicate token": [[3], [4], [], [0], [1]],
        "induction": [[], [], [], [1], [2]], "sink": [[0]] * 5, "rare word": [[0, 1, 3, 4]] * 5,
        "retrieval": [[1, 4], [2], [0, 3], [1, 4], []], "separator": [[]] * 5,
    }  # fmt: skip
    for role, keys in want.items():
        chosen = room.CELLS[role](tokens, rows, 5, 5)
        assert [row.nonzero().flatten().tolist() for row in chosen] == keys, role
    assert room.CELLS["alignment"](tokens, rows, 5, 5) is None
    crossing = Sequences([], [], crossing=True)
    chosen = room.CELLS["alignment"](crossing, torch.arange(3), 3, 5)
    assert [row.nonzero().flatten().tolist() for row in chosen] == [[0, 1], [1, 2, 3], [3, 4]]
    assert [room.CELLS[role](crossing, rows, 5, 5) for role in want if role != "sink"] == [None] * 8


def test_holm_and_the_sign_test_and_the_bootstrap() -> None:
    assert holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert holm([]) == []
    numbers = [1.0] * 7 + [-1.0] * 2 + [0.0]
    assert sign_test(numbers) == pytest.approx(sum(comb(9, k) for k in (7, 8, 9)) / 2**9)
    assert sign_test([]) == 1
    low, high = bootstrap([0.0, 1.0] * 50)
    assert (low, high) == (pytest.approx(0.4, abs=0.03), pytest.approx(0.6, abs=0.03))


def test_cross_attention_of_a_recurrent_decoder_stays_one_where_both_lengths_are_equal() -> None:
    """No causal site comes before it: its name tells."""
    model = regard.load("fr-en-rnn")
    verbs = ("dort", "mange", "lit", "joue")
    some = [f"{one} {other}" for one in ("le chat", "la fille", "un chien") for other in verbs]
    runs = [model.forward_pass(text) for text in some]
    assert sum(len(run.tokens) == len(run.source_tokens) for run in runs) > 6
    found = regard.roles(model, some, level=1.0)
    assert {one.inputs for one in found if one.role == "alignment"} == {len(some)}
    assert not {one.role for one in found} & {"previous token", "next token", "same token", "duplicate token"}


def test_arguments_may_come_in_any_order() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=20, d_model=16, d_kv=8, num_layers=1, num_heads=2, d_ff=24, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    given = [{"input_ids": torch.randint(20, (1, 6)), "decoder_input_ids": torch.randint(20, (1, 6))} for _ in range(3)]
    found = regard.roles(model, given, level=1.0, least=-1.0)
    turned = [dict(reversed(one.items())) for one in given]
    assert found == regard.roles(model, turned, level=1.0, least=-1.0)
    labelled = [{**one, "labels": torch.randint(20, (1, 6))} for one in given]
    assert found == regard.roles(model, labelled, level=1.0, least=-1.0)


def test_on_a_real_model() -> None:
    """An encoder-decoder of texts: cross-attention aligns."""
    found = regard.roles(regard.load("fr-en"), [f"Le {noun} dort ici." for noun in ("chat", "train")], level=1.0)
    assert {one.site.rsplit(".", 1)[1] for one in found if one.role == "alignment"} == {"cross"}
    assert any(one.role == "same token" for one in found)


def test_a_sign_test_of_many_inputs_is_exact_and_quick() -> None:
    assert sign_test([1.0] * 3 + [-1.0]) == 5 / 16
    assert sign_test([1.0, 0.0, -1.0]) == 0.75
    assert sign_test([]) == 1.0
    found = sign_test([1.0] * 5100 + [-1.0] * 4900)
    assert found == pytest.approx(0.0233, abs=5e-4)
