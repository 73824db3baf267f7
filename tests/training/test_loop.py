"""The loop: stopping and going on changes nothing, not one bit; the best are kept; everything else is as written."""

from dataclasses import replace
from functools import cache
from itertools import count

import pytest
import torch
from torch.nn.functional import cross_entropy

from regard.data.batching import Batches, move, some_rows
from regard.errors import BundleError, ConfigError
from regard.models.build import build
from regard.models.recurrent import RecurrentConfig
from regard.models.transformer import TransformerConfig
from regard.training import objective
from regard.training.best import best_path, measure
from regard.training.checkpoint import load_checkpoint
from regard.training.config import TrainingConfig
from regard.training.distributed import Processes
from regard.training.engine import LAST, Engine
from regard.training.journal import Journal
from regard.training.loop import Diverged, Interrupted, train, update
from regard.training.objective import Objective, batch_loss
from regard.training.optimizer import make_optimizer
from regard.training.schedule import factor

VOCABULARY, PAD, BOS, EOS = 23, 0, 1, 2
MODELS = {
    "recurrent": RecurrentConfig(
        kind="recurrent", width=16, embedding=16, score_width=16, encoder_layers=2, dropout=0.3
    ),
    "lstm": RecurrentConfig(
        kind="recurrent", width=16, embedding=16, cell="lstm", score="general", asks="new", feed="previous", dropout=0.3
    ),
    "transformer": TransformerConfig(
        kind="transformer", width=16, encoder_layers=1, decoder_layers=1, heads=2, ffn_width=32,
        dropout=0.3, attention_dropout=0.2,
    ),
}  # fmt: skip
STEPS, EVERY = 17, 5


def make_batches(pairs=30, tokens=28, seed=3):
    generator = torch.Generator().manual_seed(11)

    def sentence():
        length = int(torch.randint(1, 6, (), generator=generator))
        return torch.randint(4, VOCABULARY, (length,), generator=generator).tolist()

    return Batches([(sentence(), sentence()) for _ in range(pairs)], tokens, BOS, EOS, PAD, seed)


def make_model(kind, seed=0):
    torch.manual_seed(seed)
    return build(VOCABULARY, MODELS[kind])


def settings(**changes):
    usual = {
        "max_steps": STEPS, "warmup": 4, "learning_rate": 1e-2, "schedule": "cosine", "evaluate_every": EVERY,
        "metric": "loss", "keep_best": 2, "checkpoint_seconds": 1e6, "seed": 5,
    }  # fmt: skip
    return TrainingConfig(**{**usual, **changes})


def dev_loss(model):
    """The loss on a few pairs; it also draws random numbers, which must not disturb the training."""
    torch.rand(7)
    total = tokens = 0
    for batch in make_batches(8).epoch(0):
        _, nll, n = batch_loss(model, batch, settings(), PAD)
        total, tokens = total + float(nll), tokens + n
    return {"loss": total / tokens}


def without_seconds(entries):
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in entries]


def run(folder, kind="transformer", *, stop=None, crash=None, resume=False, seed=0, evaluate=dev_loss, **changes):
    """Train a tiny model; `stop` after that step, or die without a word when `crash(entry)` says so."""
    seen = []

    def report(entry):
        seen.append(entry)
        if crash and crash(entry):
            raise ZeroDivisionError

    weights = train(
        make_model(kind, seed), make_batches(), settings(**changes), folder, evaluate=evaluate, report=report,
        should_stop=lambda: bool(seen) and seen[-1]["step"] == stop, resume=resume,
    )  # fmt: skip
    return weights, seen


def same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    @cache
    def make(kind, precision):
        folder = tmp_path_factory.mktemp("whole")
        return run(folder, kind, precision=precision)[0], folder

    return make


def check_same_run(weights, folder, whole, whole_folder):
    same_bits(weights, whole)
    tensors, state = load_checkpoint(folder / LAST)
    expected_tensors, expected_state = load_checkpoint(whole_folder / LAST)
    same_bits(tensors, expected_tensors)  # weights, moments and random numbers
    assert without_seconds([state]) == without_seconds([expected_state])
    entries, expected = (Journal(f / "journal.jsonl").entries() for f in (folder, whole_folder))
    assert without_seconds(entries) == without_seconds(expected)
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in whole_folder.iterdir())


def test_the_batches_here_make_several_epochs():
    assert 2 < len(make_batches().order(0)) < STEPS / 2


@pytest.mark.sampled(4)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("where", ["middle of an epoch", "end of an epoch", "at an evaluation"])
def test_interrupted_and_resumed_is_the_same_run(tmp_path, uninterrupted, kind, precision, where):
    epoch = len(make_batches().order(0))
    stop = {"middle of an epoch": epoch + 2, "end of an epoch": epoch, "at an evaluation": 2 * EVERY}[where]
    with pytest.raises(Interrupted):
        run(tmp_path, kind, precision=precision, stop=stop)
    assert load_checkpoint(tmp_path / LAST)[1]["step"] == stop
    weights, seen = run(tmp_path, kind, precision=precision, resume=True, seed=99)  # fresh weights are replaced
    assert next(entry["step"] for entry in seen) == stop + 1
    check_same_run(weights, tmp_path, *uninterrupted(kind, precision))


@pytest.mark.parametrize("end", [False, True], ids=["in the middle", "at the end"])
def test_an_interrupted_evaluation_is_made_on_resume(tmp_path, uninterrupted, end):
    at = -(-STEPS // EVERY) if end else 2
    left = [at, at + 1]  # numbers of the evaluations that are interrupted: the same one twice

    def interrupted(model):
        number = next(numbers)
        numbers_here = dev_loss(model)  # random numbers are drawn before the interruption
        if number in left:
            raise Interrupted
        return numbers_here

    numbers = count(1)
    step = min(at * EVERY, STEPS)
    for resume in (False, True):
        with pytest.raises(Interrupted):
            run(tmp_path, evaluate=interrupted, resume=resume)
        state = load_checkpoint(tmp_path / LAST)[1]
        assert state["step"] == step
        assert [one[1] for one in state["best"]]
        assert all(one[1] < step for one in state["best"])
        assert all(entry["step"] < step for entry in Journal(tmp_path / "journal.jsonl").entries())
    weights, seen = run(tmp_path, evaluate=interrupted, resume=True)
    assert (seen[0]["event"], seen[0]["step"]) == ("evaluation", step)
    check_same_run(weights, tmp_path, *uninterrupted("transformer", "float32"))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", MODELS)
def test_interrupted_after_every_step_is_the_same_run(tmp_path, uninterrupted, kind):
    for stop in range(1, STEPS):
        with pytest.raises(Interrupted):
            run(tmp_path, kind, stop=stop, resume=stop > 1, seed=stop - 1)
    weights, _ = run(tmp_path, kind, resume=True)
    check_same_run(weights, tmp_path, *uninterrupted(kind, "float32"))


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(lambda e: e["step"] == EVERY + 3, id="between checkpoints"),
        pytest.param(lambda e: e["event"] == "evaluation" and e["step"] == 2 * EVERY, id="journal written, not stored"),
        pytest.param(lambda e: e["event"] == "evaluation" and e["step"] == 3 * EVERY, id="an older best removed"),
        pytest.param(lambda e: e["event"] == "evaluation" and e["step"] == STEPS, id="at the very last evaluation"),
    ],
)
def test_killed_and_resumed_is_the_same_run(tmp_path, uninterrupted, moment):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, crash=moment)
    weights, _ = run(tmp_path, resume=True)
    check_same_run(weights, tmp_path, *uninterrupted("transformer", "float32"))


def test_killed_after_the_last_step_and_resumed_is_the_same_run(tmp_path, uninterrupted):
    run(tmp_path)
    weights, seen = run(tmp_path, resume=True)
    assert not seen
    check_same_run(weights, tmp_path, *uninterrupted("transformer", "float32"))


def test_two_seeds_are_two_runs(tmp_path, uninterrupted):
    weights, _ = run(tmp_path, seed=1)
    assert any(
        not torch.equal(weights[name], other) for name, other in uninterrupted("transformer", "float32")[0].items()
    )


def test_a_checkpoint_is_written_after_its_seconds(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, checkpoint_seconds=1e-9, crash=lambda entry: entry["step"] == 4)
    assert load_checkpoint(tmp_path / LAST)[1]["step"] == 3


def test_interrupted_means_saved_even_if_the_wish_comes_late(tmp_path):
    asked = count(1)
    with pytest.raises(Interrupted):  # the wish comes between two questions, as Ctrl-C may
        train(
            make_model("transformer"), make_batches(), settings(), tmp_path,
            evaluate=dev_loss, report=lambda _: None, should_stop=lambda: next(asked) >= 2,
        )  # fmt: skip
    assert load_checkpoint(tmp_path / LAST)[1]["step"] > 0


def test_resume_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(BundleError, match="no such checkpoint"):
        run(tmp_path, resume=True)


def test_nothing_to_train_on_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing to train on: check data\.train, data\.longest and the shares"):
        train(
            make_model("transformer"), Batches([], 10, BOS, EOS, PAD), settings(), tmp_path,
            evaluate=dev_loss, report=lambda _: None,
        )  # fmt: skip


def test_reports_every_step_and_evaluation(tmp_path):
    _, seen = run(tmp_path)
    steps = [entry for entry in seen if entry["event"] == "step"]
    assert [entry["step"] for entry in steps] == list(range(1, STEPS + 1))
    assert [entry["step"] for entry in seen if entry["event"] == "evaluation"] == [5, 10, 15, 17]
    for entry in steps:
        assert entry["learning_rate"] == pytest.approx(1e-2 * factor("cosine", entry["step"], 4, STEPS))
        assert entry["seconds"] >= 0
    written = Journal(tmp_path / "journal.jsonl").entries()
    assert [entry["event"] for entry in written] == ["evaluation"] * 4 + ["average"]
    assert written[0]["train_loss"] == steps[4]["loss"]


def test_the_journal_says_where_in_the_data_each_evaluation_stood(tmp_path):
    _, seen = run(tmp_path)
    epoch = len(make_batches().order(0))
    for entry in seen:
        if entry["event"] == "evaluation":
            assert entry["epoch"] * epoch + entry["batch"] == entry["step"]


def scripted(*numbers, name="bleu"):
    """An evaluation that gives these numbers, one a call."""
    numbers = iter(numbers)
    return lambda model: {name: float(next(numbers))}


@pytest.mark.parametrize(
    ("patience", "numbers", "stops_after"),
    [(1, [1, 2, 2, 9], 3), (2, [1, 3, 2, 3, 9], 4), (2, [1, 0, 2, 1, 1, 9], 5), (0, [5, 4, 3, 2, 1], 5)],
)
def test_patience_stops_early(tmp_path, patience, numbers, stops_after):
    _, seen = run(
        tmp_path, evaluate=scripted(*numbers, *[0] * 9), metric="bleu",
        patience=patience, max_steps=10, evaluate_every=2,
    )  # fmt: skip
    assert seen[-1]["step"] == 2 * stops_after


def test_patience_is_remembered_over_an_interruption(tmp_path):
    chosen = {"metric": "bleu", "patience": 2, "evaluate_every": 2}
    with pytest.raises(Interrupted):
        run(tmp_path, evaluate=scripted(5, 4), stop=5, **chosen)
    _, seen = run(tmp_path, evaluate=scripted(3, 0), resume=True, **chosen)
    assert seen[-1]["step"] == 6


@pytest.mark.parametrize(
    ("metric", "numbers", "kept"),
    [
        ("bleu", [1, 5, 3, 4], [4, 8]),
        ("bleu", [4, 3, 2, 1], [2, 4]),
        ("chrf", [2, 2, 2, 2], [6, 8]),  # of equals the later ones
        ("loss", [1, 5, 3, 4], [2, 6]),
    ],
)
def test_the_best_are_kept_and_the_others_removed(tmp_path, metric, numbers, kept):
    run(
        tmp_path, evaluate=scripted(*numbers, 0, name=metric), metric=metric, keep_best=2, max_steps=8, evaluate_every=2
    )
    assert sorted(tmp_path.glob("best-*")) == [best_path(tmp_path, step) for step in kept]


def test_a_loss_that_is_not_a_number_is_never_the_best(tmp_path):
    numbers = scripted(float("nan"), 3, 2, float("nan"), 9, name="loss")
    run(tmp_path, evaluate=numbers, keep_best=2, max_steps=8, evaluate_every=2)
    assert sorted(tmp_path.glob("best-*")) == [best_path(tmp_path, step) for step in (4, 6)]


@pytest.mark.parametrize(
    ("metric", "of_average", "chosen"),
    [
        ("bleu", 4, False), ("bleu", 5, True), ("bleu", 6, True),
        ("loss", 2, False), ("loss", 1, True), ("loss", 0, True),
    ],
)  # fmt: skip
def test_the_average_is_chosen_only_if_it_is_not_worse(tmp_path, metric, of_average, chosen):
    numbers = [1, 5, 3, 4] if metric == "bleu" else [3, 1, 2, 5]
    weights, _ = run(
        tmp_path, evaluate=scripted(*numbers, of_average, name=metric), metric=metric,
        keep_best=3, max_steps=8, evaluate_every=2,
    )  # fmt: skip
    of = [4, 8, 6] if metric == "bleu" else [4, 6, 2]
    best = [load_checkpoint(best_path(tmp_path, step))[0] for step in of]
    for name, tensor in weights.items():
        mean = (sum(b[name].double() for b in best) / 3).float()
        torch.testing.assert_close(tensor, mean if chosen else best[0][name], atol=1e-7 if chosen else 0, rtol=0)
    last = Journal(tmp_path / "journal.jsonl").entries()[-1]
    assert last == {"event": "average", "step": 8, "of": of, "chosen": chosen, f"dev_{metric}": of_average}


def test_evaluation_is_without_dropout_gradients_and_trace(tmp_path):
    model = make_model("transformer").train()
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)

    def evaluate(m):
        assert not m.training
        assert torch.is_inference_mode_enabled()
        return {"x": float(torch.rand(100).sum() * 0 + 2)}

    assert measure(model, evaluate) == {"dev_x": 2.0}
    assert model.training
    assert torch.equal(torch.rand(3), expected)


def plain_step(model, batch, config):
    """The same step written with torch alone."""
    parameters = dict(model.named_parameters())
    decayed = [p for p in parameters.values() if p.ndim > 1]
    others = [p for p in parameters.values() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate, betas=config.betas, eps=1e-9,
    )  # fmt: skip
    logits = model(batch.source, batch.previous, batch.source_allowed)
    loss = cross_entropy(
        logits.flatten(0, 1), batch.target.flatten(), ignore_index=PAD, label_smoothing=config.label_smoothing
    )
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in parameters.values() if p.grad is not None]).norm()
    for p in parameters.values():
        if p.grad is not None:
            p.grad *= min(1.0, config.clip / norm)
    optimizer.step()
    return loss, norm


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("clip", [1e-2, 1e6])
def test_update_is_adamw_on_the_mean_clipped_gradient(kind, clip):
    config = settings(clip=clip, weight_decay=0.3, learning_rate=1e-2)
    ours, theirs = make_model(kind).eval(), make_model(kind).eval()
    batch = make_batches().collate([0, 7, 13])
    numbers = update(Engine(ours, config, PAD, Processes()), batch)
    loss, norm = plain_step(theirs, batch, config)
    assert numbers["smoothed_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert numbers["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert numbers["tokens"] == sum(len(make_batches().pairs[i][1]) + 1 for i in (0, 7, 13))
    moved = 0.0
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        # AdamW's first step divides the gradient by its own size: a gradient of rounding errors has no direction
        sure = b.grad.abs() > 1e-6 * min(1.0, clip / norm) if b.grad is not None else torch.ones_like(b, dtype=bool)
        torch.testing.assert_close(a[sure], b[sure], atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        moved += float((a.detach() - dict(make_model(kind).named_parameters())[name].detach()).abs().sum())
    assert moved > 0


@pytest.mark.parametrize("kind", MODELS)
def test_loss_counts_real_tokens_only(kind):
    model = make_model(kind).eval()
    batches = make_batches()
    indices = sorted(range(30), key=lambda i: len(batches.pairs[i][1]))[::9]
    together = batch_loss(model, batches.collate(indices), settings(), PAD)
    apart = [batch_loss(model, batches.collate([i]), settings(), PAD) for i in indices]
    for n in range(2):
        assert together[n].item() == pytest.approx(sum(part[n].item() for part in apart), rel=1e-5)
    assert together[2] == sum(part[2] for part in apart)


@pytest.fixture(autouse=True)
def bfloat16_everywhere(monkeypatch):
    """What is tested in bfloat16 is computed in it, on any processor."""
    monkeypatch.setattr(objective, "computes_bfloat16", lambda device: True)


def test_a_processor_without_bfloat16_computes_float32(monkeypatch):
    batch, model = make_batches().collate(range(5)), make_model("transformer").eval()
    wide, narrow = (batch_loss(model, batch, settings(precision=p), PAD)[0] for p in ("float32", "bfloat16"))
    monkeypatch.setattr(objective, "computes_bfloat16", lambda device: device != "cpu")
    again = batch_loss(model, batch, settings(precision="bfloat16"), PAD)[0]
    assert again == wide != narrow
    assert objective.used_precision(settings(precision="bfloat16"), "cpu") == "float32"
    assert objective.used_precision(settings(precision="bfloat16"), "cuda") == "bfloat16"


@pytest.mark.parametrize("kind", MODELS)
def test_bfloat16_is_near_float32(kind):
    batch = make_batches().collate(range(5))
    model = make_model(kind).eval()
    wide, narrow = (batch_loss(model, batch, settings(precision=p), PAD) for p in ("float32", "bfloat16"))
    assert narrow[0].dtype == torch.float32
    assert narrow[0].item() == pytest.approx(wide[0].item(), rel=0.02)
    narrow[0].backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


GUIDED = {"recurrent": "decoder.cross", "lstm": "decoder.cross", "transformer": "decoder.layers.0.cross"}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_guided_alignment_adds_its_cross_entropy(kind, precision):
    """The witness takes the weights of head 0 from single steps, and sums over links in a plain loop."""
    batches, model = make_batches(6), make_model(kind).eval()
    links = [[(t, 0) for t in range(len(target))] + [(0, len(source))] for source, target in batches.pairs]
    guided = replace(batches, links=links)
    plain = batch_loss(model, batches.collate(range(6)), settings(precision=precision), PAD)
    batch = guided.collate(range(6))
    ours = batch_loss(model, batch, settings(precision=precision, guided_alignment=0.5), PAD)
    with torch.no_grad():
        state = model.start(model.encode(batch.source, batch.source_allowed), record=True)
        for token in batch.previous.split(1, 1):
            state = model.step(token, state).state
        weights = model.maps(state)[GUIDED[kind]].full()[:, 0, 0]
    expected = 0.0
    for n, some in enumerate(links):
        for t, s in some:
            share = 1 / len({j for i, j in some if i == t})
            expected -= 0.5 * share * float(weights[n, t, s].log())
    near = 1e-4 if precision == "float32" else 0.05
    assert (ours[0] - plain[0]).item() == pytest.approx(expected, rel=near)
    assert ours[1].item() == pytest.approx(plain[1].item(), rel=1e-6)
    ours[0].backward()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", MODELS)
def test_guided_alignment_turns_the_attention(kind, tmp_path):
    batches = make_batches(12)
    guided = replace(batches, links=[[(t, 0) for t in range(len(target) + 1)] for _, target in batches.pairs])
    config, model = settings(max_steps=25, guided_alignment=1.0, schedule="constant"), make_model(kind)
    train(model, guided, config, tmp_path, evaluate=lambda m: {"loss": 0.0}, report=lambda _: None)
    batch = guided.collate(range(12))
    with torch.no_grad():
        state = model.eval().start(model.encode(batch.source, batch.source_allowed), record=True)
        for token in batch.previous.split(1, 1):
            state = model.step(token, state).state
        weights = model.maps(state)[GUIDED[kind]].full()[:, 0, 0]
    fair = 1 / batch.source_allowed.sum(-1).float().mean()
    assert weights[..., 0][batch.target != PAD].mean() > 1.5 * fair


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_infinite_gradient_skips_the_update(bad):
    config, batch = settings(), make_batches().collate(range(5))
    model = make_model("transformer")
    engine = Engine(model, config, PAD, Processes())
    optimizer = engine.optimizer
    update(engine, batch)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    moments = {i: {n: t.clone() for n, t in s.items()} for i, s in optimizer.state_dict()["state"].items()}
    spoiled = model.embedding.weight.register_hook(lambda gradient: gradient * bad)
    numbers = update(engine, batch)
    spoiled.remove()
    assert not torch.isfinite(torch.tensor(numbers["gradient_norm"]))  # and the report says so
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    for i, state in optimizer.state_dict()["state"].items():
        same_bits(state, moments[i])
    assert torch.isfinite(torch.tensor(update(engine, batch)["gradient_norm"]))
    assert any(not torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_only_matrices_decay():
    model = make_model("recurrent")
    decayed, others = make_optimizer(model, settings(weight_decay=0.25)).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.25, 0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in others["params"]} == {1}
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_a_tiny_model_learns_to_copy(tmp_path):
    pairs = [([i, j], [i, j]) for i in range(4, 9) for j in range(4, 9)]
    model = make_model("transformer")
    losses = []
    train(
        model, Batches(pairs, 64, BOS, EOS, PAD), settings(max_steps=60, evaluate_every=60, label_smoothing=0.0),
        tmp_path, evaluate=lambda m: {"loss": 0.0}, report=lambda e: losses.append(e.get("loss")),
    )  # fmt: skip
    assert losses[59] < 0.7 * losses[0]


def spoiled(model, *calls):
    """A model whose gradient is infinite at these updates (counted from 1)."""
    number = count(1)
    model.embedding.weight.register_hook(lambda gradient: gradient * (float("inf") if next(number) in calls else 1))
    return model


def train_spoiled(folder, *calls, evaluate=dev_loss, **changes):
    # the gradient of the largest batch is computed once before the first step
    return train(
        spoiled(make_model("transformer"), *(n + 1 for n in calls)), make_batches(), settings(**changes), folder,
        evaluate=evaluate, report=lambda _: None,
    )  # fmt: skip


def test_a_run_that_diverges_stops_and_keeps_its_last_good_checkpoint(tmp_path):
    with pytest.raises(Diverged, match=r"10 times in a row, up to step 17 \(epoch \d+, batch \d+\)\. Last.safetensors"):
        train_spoiled(tmp_path, *range(8, 99))
    assert load_checkpoint(tmp_path / LAST)[1]["step"] == EVERY  # step 10 and 15 were in the bad stretch
    skipped = [entry for entry in Journal(tmp_path / "journal.jsonl").entries() if entry["event"] == "skipped"]
    assert [entry["step"] for entry in skipped] == list(range(8, 18))


def test_skipped_updates_are_reported_and_do_not_stop_a_run(tmp_path):
    weights = train_spoiled(tmp_path, 2, 3, 9)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    entries = Journal(tmp_path / "journal.jsonl").entries()
    assert [entry["step"] for entry in entries if entry["event"] == "skipped"] == [2, 3, 9]
    assert [entry["skipped"] for entry in entries if entry["event"] == "evaluation"] == [2, 3, 3, 3]


def test_a_run_without_a_finite_evaluation_has_no_model(tmp_path):
    with pytest.raises(Diverged, match="no evaluation had a finite loss"):
        train_spoiled(tmp_path, evaluate=lambda model: {"loss": float("nan"), "bleu": 3.0}, metric="bleu")
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("kind", MODELS)
def test_tokens_with_the_id_of_padding_count(kind):
    """Half of the tokens have the padding's id, as where another tokenizer puts a word there."""
    model = make_model(kind).eval()
    pairs = [([5, 6], [PAD, 7, PAD]), ([8], [PAD])]
    _, nll, tokens = batch_loss(model, Batches(pairs, 99, BOS, EOS, PAD).collate([0, 1]), settings(), PAD)
    assert tokens == 6
    total = 0.0
    for source, target in pairs:
        logits = model(torch.tensor([[*source, EOS]]), torch.tensor([[BOS, *target]]))
        total += cross_entropy(logits[0], torch.tensor([*target, EOS]), reduction="sum").item()
    assert float(nll) == pytest.approx(total, rel=1e-5)


def test_the_objective_is_a_module_whose_forward_is_the_loss():
    model, batch = make_model("transformer").eval(), make_batches().collate([0, 7, 13])
    ours = Objective(model, settings(), PAD)
    made = ours(batch)
    assert {name.removeprefix("model.") for name, _ in ours.named_parameters()} == {
        n for n, _ in model.named_parameters()
    }
    assert torch.equal(made.loss, batch_loss(model, batch, settings(), PAD).loss)
    nll, tokens = objective.token_nll(model, batch)
    assert (float(nll), tokens) == (pytest.approx(float(made.nll)), made.tokens)
    assert not nll.requires_grad
    dropped = Objective(model.train(), settings(word_dropout=0.9), PAD)
    seen = []
    model.embedding.register_forward_hook(lambda _module, given, _output: seen.append(given[0]))
    dropped(batch)
    assert (seen[-1][:, 1:] == PAD).float().mean() > (batch.previous[:, 1:] == PAD).float().mean()


def test_batches_move_to_the_models_device():
    batch = make_batches().collate([0, 1])
    moved = move(batch, torch.device("meta"))
    assert moved.source.device.type == moved.target_allowed.device.type == "meta"
    assert moved.links is None
    assert move(batch, torch.device("cpu")) is batch


def test_data_without_a_batch_are_refused(tmp_path):
    class Nothing:
        pad = PAD

        def __len__(self):
            return 1

        def padding_share(self):
            return 0.0

        def epoch(self, epoch, start=0):
            return iter(())

        def largest(self):
            return None

    with pytest.raises(ConfigError, match="nothing to train on"):
        train(make_model("transformer"), Nothing(), settings(), tmp_path, evaluate=dev_loss, report=lambda _: None)


def test_muon_without_matrices_of_blocks_is_adamw():
    model = make_model("recurrent")
    assert isinstance(make_optimizer(model, settings(optimizer="muon")), torch.optim.AdamW)


@pytest.mark.parametrize("kind", MODELS)
def test_r_drop_draws_two_passes_together(kind):
    """The mean of two passes with their own dropout, plus the weighted divergence between them, by hand."""
    batch, model, weight = make_batches().collate(range(6)), make_model(kind), 3.0
    model.train()
    torch.manual_seed(4)
    ours = batch_loss(model, batch, settings(r_drop=weight), PAD)
    torch.manual_seed(4)
    twice = some_rows(batch, torch.arange(6).repeat(2))
    plain = batch_loss(model, twice, settings(), PAD)
    torch.manual_seed(4)
    hidden, _ = twice.hidden(model)
    p, q = (half[batch.target_allowed].log_softmax(-1) for half in model.project(hidden).chunk(2))
    apart = 0.5 * ((p.exp() - q.exp()) * (p - q)).sum()
    assert apart.item() > 0.01
    assert ours.loss.item() == pytest.approx((plain.loss + weight * apart).item() / 2, rel=1e-4)
    assert ours.nll.item() == pytest.approx(plain.nll.item() / 2, rel=1e-5)
    assert ours.tokens == int(batch.target_allowed.sum())


def test_r_drop_is_for_training_alone():
    batch, model = make_batches().collate(range(6)), make_model("transformer").eval()
    assert batch_loss(model, batch, settings(r_drop=5.0), PAD) == batch_loss(model, batch, settings(), PAD)
