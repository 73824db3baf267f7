"""Running text in windows, sentences with hidden words: every token once, documents apart, the shares of the paper."""

import gzip
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import regard
from regard.data.texts import Masked, TextConfig, Windows, read_texts, units_of

BOS, EOS, PAD, MASK = 1, 2, 0, 4


def write(path: Path, text: str) -> str:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def test_the_end_of_a_single_text_is_for_development(tmp_path: Path) -> None:
    text = "".join(f"line {n}\n" for n in range(100))
    for name in ("a.txt", "a.txt.gz"):
        found = read_texts(TextConfig(train=write(tmp_path / name, text), dev_share=0.1))
        assert found.train[0] + found.dev[0] == text
        assert len(found.dev[0]) == round(0.1 * len(text))


def test_lines_are_split_by_themselves_and_come_once(tmp_path: Path) -> None:
    lines = [f"sentence {n}" for n in range(400)]
    path = write(tmp_path / "a.tsv", "".join(f"x\t{line}\n" for line in lines + lines[:50]))
    found = read_texts(TextConfig(train=path, documents="lines", column=1, dev_share=0.2))
    assert sorted(found.train + found.dev) == sorted(lines)
    assert 40 < len(found.dev) < 120
    fewer = read_texts(
        TextConfig(train=write(tmp_path / "b", "\n".join(lines[:200])), documents="lines", dev_share=0.2)
    )
    assert set(fewer.dev) <= set(found.dev)


def test_files_of_their_own_for_development(tmp_path: Path) -> None:
    a, b, dev = (write(tmp_path / name, name) for name in ("a", "b", "dev"))
    found = read_texts(TextConfig(train=(a, b), dev=dev))
    assert (found.train, found.dev) == (["a\n", "b\n"], ["dev\n"])


def test_what_cannot_be_read_is_refused_by_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "one\ttwo\nthree\n")
    with pytest.raises(regard.DataError, match=r"a.tsv:2: 1 columns, and texts.column is 1"):
        read_texts(TextConfig(train=path, column=1, documents="lines"))
    with pytest.raises(regard.DataError, match="no such file"):
        read_texts(TextConfig(train=str(tmp_path / "b")))


@pytest.mark.parametrize("epoch", [0, 1, 5])
@pytest.mark.parametrize("length", [1, 7, 10, 300])
def test_a_window_predicts_the_token_after_each(epoch: int, length: int) -> None:
    document = torch.randperm(101).tolist()
    batches = list(Windows([document], length, 3 * length, BOS, EOS, PAD).epoch(epoch))
    pairs = Counter()
    for batch in batches:
        assert batch.documents is None
        assert len(batch.tokens) <= 3
        for token, target in zip(batch.tokens.flatten().tolist(), batch.target.flatten().tolist(), strict=True):
            if target != PAD or document[document.index(token) + 1] == PAD:
                assert document[document.index(token) + 1] == target
                pairs[token] += 1
    assert len(pairs) >= 100 - length  # what stands before the first cut is another epoch's
    assert max(pairs.values()) <= 1 + (length > 100) * 300


def test_epochs_cut_elsewhere_and_may_begin_in_the_middle() -> None:
    windows = Windows([list(range(5, 205))], 10, 30, BOS, EOS, PAD)
    first, again, second = (list(windows.epoch(n)) for n in (0, 0, 1))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(first, again, strict=True))
    assert {b.tokens[0, 0].item() % 10 for b in first} != {b.tokens[0, 0].item() % 10 for b in second}
    rest = list(windows.epoch(0, 2))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(rest, first[2:], strict=True))
    still = Windows([list(range(5, 205))], 10, 30, BOS, EOS, PAD, moves=False)
    assert next(iter(still.epoch(0))).tokens[0].tolist() == list(range(5, 15))


def test_documents_stand_apart() -> None:
    documents = [[10, 11, 12], [20], [30, 31, 32, 33]]
    seen = []
    for batch in Windows(documents, 5, 5, BOS, EOS, PAD, moves=False).epoch(0):
        for token, target, number in zip(batch.tokens[0], batch.target[0], batch.documents[0], strict=True):
            seen.append((int(number), int(token), int(target)))
    wanted = []
    for number, row in enumerate(documents):
        whole = [BOS, *row, EOS]
        wanted += [(number, a, b) for a, b in pairwise(whole)]
    assert [one for one in seen if one[2] != PAD] == wanted


def masked(**more: object) -> Masked:
    sentences = [[BOS, *(int(i) for i in torch.randint(5, 50, (n % 13 + 1,))), EOS] for n in range(300)]
    units = [units_of(None, len(one) - 2) for one in sentences]
    return Masked(sentences, units, 0.15, range(5, 50), MASK, 200, PAD, **more)


def test_hidden_tokens_have_the_papers_shares() -> None:
    examples = masked(seed=3)
    shown, total, tokens = Counter(), 0, 0
    rows = 0
    for epoch in range(20):
        for batch in examples.epoch(epoch):
            rows += len(batch.tokens)
            assert batch.tokens.numel() <= 200
            chosen = batch.target != PAD
            assert not (chosen & ~batch.allowed).any()
            assert (chosen.sum(1) >= 1).all()
            total, tokens = total + int(chosen.sum()), tokens + int(batch.allowed.sum()) - 2 * len(batch.tokens)
            for a, b in zip(batch.tokens[chosen].tolist(), batch.target[chosen].tolist(), strict=True):
                shown["mask" if a == MASK else "same" if a == b else "other"] += 1
    assert rows == 20 * 300
    assert 0.15 < total / tokens < 0.22  # short sentences have one at least
    assert shown["mask"] / total == pytest.approx(0.8, abs=0.02)
    assert shown["same"] / total == pytest.approx(0.1, abs=0.02)


def test_epochs_hide_other_tokens_and_may_begin_in_the_middle() -> None:
    examples = masked()
    first, again = list(examples.epoch(0)), list(examples.epoch(0))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(first, again, strict=True))
    assert any(
        a.tokens.shape != b.tokens.shape or not torch.equal(a.tokens, b.tokens)
        for a, b in zip(first, examples.epoch(1), strict=False)
    )
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(first[3:], examples.epoch(0, 3), strict=True))


def test_whole_words_are_hidden_together() -> None:
    words = [[0, 0, 1, None, 2, 2, 2]] * 50
    sentences = [[BOS, 10, 11, 12, 13, 14, 15, 16, EOS]] * 50
    units = [units_of(some, 7) for some in words]
    examples = Masked(sentences, units, 0.15, range(5, 50), MASK, 90, PAD)
    found = set()
    for batch in examples.epoch(0):
        found |= {tuple((row != PAD).nonzero().flatten().tolist()) for row in batch.target}
    assert found == {(1, 2), (3,), (5, 6, 7)}
