"""Batches: every pair once, within the budget, padded on the right, the same order for the same epoch."""

import random

import pytest
import torch

from regard.data.batching import Batches, lengths_mask, pad
from regard.storage import fingerprint
from regard.text.bpe_dropout import Segmented

PAD, BOS, EOS = 0, 1, 2


def make(count=97, tokens=60, seed=0, longest=11):
    dice = random.Random(5)
    pairs = [([100 + n] * dice.randrange(1, longest), [500 + n] * dice.randrange(longest)) for n in range(count)]
    return Batches(pairs, tokens, BOS, EOS, PAD, seed)


def lengths(batches, indices):
    return [[len(batches.pairs[i][side]) + 1 for i in indices] for side in (0, 1)]


@pytest.mark.parametrize("epoch", [0, 1, 7])
@pytest.mark.parametrize("tokens", [1, 13, 60, 10_000])
def test_every_pair_exactly_once(epoch, tokens):
    batches = make(tokens=tokens)
    assert sorted(i for batch in batches.order(epoch) for i in batch) == list(range(97))


@pytest.mark.parametrize("tokens", [1, 13, 60, 10_000])
def test_the_budget_is_kept_but_for_a_single_long_pair(tokens):
    batches = make(tokens=tokens)
    for indices in batches.order(3):
        positions = max(max(side) * len(side) for side in lengths(batches, indices))
        assert positions <= tokens or len(indices) == 1


def test_batches_are_filled():
    batches = make(tokens=60)
    total = sum(max(map(sum, lengths(batches, [i]))) for i in range(97))
    assert len(batches.order(0)) < 2 * total / 60


def test_the_same_epoch_has_the_same_order_and_another_another():
    assert make().order(4) == make().order(4)
    assert make().order(4) != make().order(5)
    assert make().order(4) != make(seed=1).order(4)
    shuffled = [sorted(batch) for batch in make().order(4)]
    assert sorted(shuffled) != sorted(sorted(batch) for batch in make().order(5))  # other mates too
    sizes = [max(lengths(make(), batch)[1]) for batch in make().order(4)]
    assert sizes != sorted(sizes)  # not from short to long


def test_asking_for_an_order_leaves_the_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(make().epoch(0))
    assert torch.equal(torch.rand(3), expected)


def test_collate_by_hand():
    batch = Batches([([5, 6], [7]), ([8], [9, 10, 11])], 99, BOS, EOS, PAD).collate([1, 0])
    assert batch.source.tolist() == [[8, EOS, PAD], [5, 6, EOS]]
    assert batch.source_allowed.tolist() == [[True, True, False], [True, True, True]]
    assert batch.previous.tolist() == [[BOS, 9, 10, 11], [BOS, 7, PAD, PAD]]
    assert batch.target.tolist() == [[9, 10, 11, EOS], [7, EOS, PAD, PAD]]


def test_every_batch_is_what_its_pairs_say():
    batches = make()
    for indices, batch in zip(batches.order(2), batches.epoch(2), strict=True):
        assert torch.equal(batch.source_allowed, batch.source != PAD)
        for n, i in enumerate(indices):
            source, target = batches.pairs[i]
            assert batch.source[n][batch.source_allowed[n]].tolist() == [*source, EOS]
            assert [t for t in batch.target[n].tolist() if t != PAD] == [*target, EOS]
            assert [t for t in batch.previous[n].tolist() if t != PAD] == [BOS, *target]
        assert batch.target.shape == batch.previous.shape


@pytest.mark.parametrize("start", [0, 1, 3, 999])
def test_an_epoch_from_the_middle(start):
    whole, part = list(make().epoch(1)), list(make().epoch(1, start))
    assert len(part) == len(whole[start:])
    for a, b in zip(whole[start:], part, strict=True):
        assert torch.equal(a.source, b.source)
        assert torch.equal(a.target, b.target)


@pytest.mark.parametrize("tokens", [1, 13, 60, 10_000])
def test_padding_share_by_counting(tokens):
    batches = make(tokens=tokens)
    empty = positions = 0
    for batch in batches.epoch(0):
        for tensor in (batch.source, batch.target):
            empty, positions = empty + int((tensor == PAD).sum()), positions + tensor.numel()
    assert batches.padding_share() == pytest.approx(empty / positions)


def test_nothing_at_all():
    batches = Batches([], 10, BOS, EOS, PAD)
    assert batches.order(0) == []
    assert list(batches.epoch(0)) == []
    assert batches.padding_share() == 0


def test_links_by_hand():
    pairs, links = [([5, 6], [7]), ([8], [9, 10, 11])], [[(0, 0), (0, 1)], [(2, 0)]]
    batch = Batches(pairs, 99, BOS, EOS, PAD, links=links).collate([1, 0])
    nobody = [0.0, 0.0, 0.0]
    assert batch.links.tolist() == [
        [nobody, nobody, [1.0, 0.0, 0.0], nobody],
        [[0.5, 0.5, 0.0], nobody, nobody, nobody],
    ]
    assert batch.links.shape == (*batch.target.shape, batch.source.shape[1])
    assert Batches(pairs, 99, BOS, EOS, PAD, links=[[], []]).collate([0, 1]).links.sum() == 0
    assert Batches(pairs, 99, BOS, EOS, PAD).collate([0, 1]).links is None


@pytest.mark.parametrize("rows", [[[1, 2], [3]], [[1]], [[], [4, 5, 6]], [[], []], []])
def test_pad_and_mask(rows):
    padded, mask = pad(rows, 9), lengths_mask(rows)
    width = max(map(len, rows), default=0)
    assert padded.shape == mask.shape == (len(rows), width)
    assert padded.dtype == torch.long
    assert padded.tolist() == [row + [9] * (width - len(row)) for row in rows]
    assert mask.tolist() == [[True] * len(row) + [False] * (width - len(row)) for row in rows]


def test_random_segmentations_take_their_links_along():
    """Every token in two halves: a link of two tokens becomes the four of their halves."""

    def halves(ids, dice):
        del dice
        return Segmented([half for i in ids for half in (i, -i)], [n for n in range(len(ids)) for _ in range(2)])

    pairs, links = [([5, 6], [7]), ([8], [9, 10])], [[(0, 1)], []]
    batches = Batches(pairs, 99, BOS, EOS, PAD, links=links, segment=halves)
    batch = next(batches.epoch(0))
    n = int((batch.source[:, 0] == 5).nonzero())
    assert batch.source[n].tolist() == [5, -5, 6, -6, EOS]
    assert batch.target[n, :3].tolist() == [7, -7, EOS]
    expected = torch.zeros(5, 5)
    expected[:2, 2:4] = 0.5  # a target token's weight of 1, shared among two source tokens
    assert torch.equal(batch.links[n], expected)
    assert batches.collate([0]).source.tolist() == [[5, 6, EOS]]  # without an epoch, its own tokens


def test_random_segmentations_are_sorted_by_their_own_lengths():
    """Every token in one to four pieces: a batch holds no more positions than it may, and little padding."""

    def pieces(ids, dice):
        counts = [dice.randrange(1, 5) for _ in ids]
        return Segmented([i for i, count in zip(ids, counts, strict=True) for _ in range(count)], [0] * sum(counts))

    pairs = [([n] * (3 + n % 11), [n] * (3 + n % 11)) for n in range(10, 610)]
    batches = Batches(pairs, 211, BOS, EOS, PAD, segment=pieces)
    given = list(batches.epoch(1))
    assert sorted(first for batch in given for first in batch.source[:, 0].tolist()) == list(range(10, 610))
    assert max(side.numel() for batch in given for side in (batch.source, batch.target)) <= 211
    real = sum(int(batch.target_allowed.sum()) for batch in given)
    assert real / sum(batch.target.numel() for batch in given) > 0.9
    largest = batches.largest()
    assert largest.target.numel() <= 211
    assert batches.padding_share() < 0.2
    later = list(batches.epoch(1, start=5))
    assert all(torch.equal(a.target, b.target) for a, b in zip(given[5:], later, strict=True))


def test_random_segmentations_depend_on_seed_epoch_and_example_alone():
    def shuffled(ids, dice):
        return Segmented(dice.sample(ids, len(ids)), list(range(len(ids))))

    pairs = [([n, n + 1, n + 2, n + 3, n + 4], [n, n + 5]) for n in range(10, 40)]

    def seen(tokens, epoch, start=0, seed=0):
        batches = Batches(pairs, tokens, BOS, EOS, PAD, seed, segment=shuffled)
        return {tuple(sorted(row)): row for batch in batches.epoch(epoch, start) for row in batch.source.tolist()}

    assert seen(99, 2) == seen(30, 2)  # whatever its batch mates
    assert seen(99, 2) != seen(99, 3)
    assert seen(99, 2) != seen(99, 2, seed=1)
    later = seen(99, 2, start=2)  # resumed in the middle of an epoch
    assert later.items() <= seen(99, 2).items()


def test_what_two_corpora_in_files_have_in_common_is_known_without_reading_them() -> None:
    def digest(made_from: str, target: int, tokens: int = 100) -> str:
        pairs = [([4], [target])] * 3
        links = [[(0, 0)]] * target
        return fingerprint(Batches(pairs, tokens, 1, 2, 0, made_from=made_from, links=links).identity)

    one = digest("key 3", 5)
    assert one == digest("key 3", 6)
    assert len({one, digest("key 4", 5), digest("key 3", 5, tokens=99)}) == 3
    assert digest("", 5) != digest("", 6)  # in memory, the pairs themselves count
