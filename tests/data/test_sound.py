"""Sound that people bring, and its spectrogram."""

from itertools import pairwise
from math import pi
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import regard
from regard.data.media import MediaBatches
from regard.data.sound import RATE, faster, log_mel, read_sound, seconds, segments, sound_blocks
from regard.data.tables import Row
from regard.errors import DataError
from regard.tasks import description
from regard.text.tokenizer import Tokenizer, TokenizerConfig


def sine(hertz: float, rate: int, long: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * pi * hertz * np.arange(int(long * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(
    ("rate", "kind", "ending"), [(16_000, "PCM_16", "wav"), (44_100, "PCM_U8", "wav"), (8000, "PCM_16", "flac")]
)
def test_any_rate_and_depth_is_heard_the_same(tmp_path: Path, rate: int, kind: str, ending: str) -> None:
    tone = sine(440, rate)
    soundfile.write(tmp_path / f"a.{ending}", np.stack([tone, tone], 1), rate, subtype=kind)
    heard = read_sound(tmp_path / f"a.{ending}")
    assert abs(len(heard) - RATE) <= 2
    assert torch.allclose(heard[2000:14_000], torch.from_numpy(sine(440, RATE))[2000:14_000], atol=0.02)


def test_blocks_join_to_the_whole(tmp_path: Path) -> None:
    tone = sine(300, 8000, 65.3)
    soundfile.write(tmp_path / "long.wav", tone, 8000)
    blocks = list(sound_blocks(tmp_path / "long.wav"))
    assert len(blocks) == 3
    assert abs(sum(map(len, blocks)) / RATE - 65.3) < 0.01
    assert seconds(tmp_path / "long.wav") == pytest.approx(65.3)
    whole = torch.cat(blocks)[1000:-1000]
    assert torch.allclose(whole, torch.from_numpy(sine(300, RATE, 65.3))[1000 : 1000 + len(whole)], atol=0.02)


def test_what_is_no_sound(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("hello")
    with pytest.raises(DataError, match=r"a.wav: no recording that can be read"):
        read_sound(tmp_path / "a.wav")
    with pytest.raises(DataError, match="no such file"):
        read_sound(tmp_path / "b.wav")
    with pytest.raises(DataError, match="a folder, not a recording"):
        read_sound(tmp_path)
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0), 8000)
    assert len(read_sound(tmp_path / "nothing.wav")) == 0


def test_a_tone_stands_in_its_band() -> None:
    """The band of 1000 Hz by hand: mel(1000) = 1000.0 of 31.7 … 2840.0, in 81 steps."""
    mel = log_mel(torch.from_numpy(np.concatenate([sine(1000, RATE), np.zeros(RATE, np.float32)])))
    assert mel.shape == (80, 1 + (2 * RATE - 512) // 160)
    step = (2840.0 - 31.7) / 81
    assert abs(int(mel[:, 20].argmax()) + 1 - (1000.0 - 31.7) / step) <= 1
    assert mel.mean(1).abs().max() < 1e-4
    assert log_mel(torch.zeros(3)).shape == (80, 1)


def test_another_tract_moves_a_tone_and_keeps_the_ends() -> None:
    """With a tract of 1.2 a tone of 1000 Hz sounds like one of 1200 Hz; 8 kHz stay 8 kHz."""

    def band(hertz: int, tract: float = 1.0) -> int:
        tone = np.concatenate([sine(hertz, RATE), np.zeros(RATE, np.float32)])
        return int(log_mel(torch.from_numpy(tone), tract=tract)[:, 20].argmax())

    assert band(1000, 1.2) == band(1200) > band(1000) > band(1000, 0.8) == band(800)
    assert band(7990, 0.8) == band(7990) == band(7990, 1.2) == 79


def test_cuts_are_at_quiet_moments() -> None:
    samples = torch.from_numpy(sine(200, RATE, 40.0))
    samples[11 * RATE : 12 * RATE] = 0
    cuts = segments(samples)
    assert cuts[0][0] == 0
    assert cuts[-1][1] == len(samples)
    assert all(a[1] == b[0] for a, b in pairwise(cuts))
    assert all(b - a <= 15 * RATE for a, b in cuts)
    assert 11 * RATE <= cuts[0][1] <= 12 * RATE
    assert segments(samples[:100]) == [(0, 100)]


def test_lengths_and_factors_that_mean_nothing_are_refused() -> None:
    samples = torch.zeros(RATE)
    assert segments(samples, 0.2)[-1][1] == RATE
    for longest in (0.19, 0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(regard.ConfigError, match=r"longest must be a number of seconds of at least 0\.2"):
            segments(samples, longest)
    for given in (
        {"tract": 0.0},
        {"tract": -1.0},
        {"tract": float("nan")},
        {"bands": 0},
        {"bands": -1},
        {"bands": 10**9},
    ):
        with pytest.raises(regard.ConfigError, match="expected 1 to 10,000 bands and a tract from"):
            log_mel(samples, **given)
    for factor in (0.0, -1.0, 1e9, float("nan"), float("inf")):
        with pytest.raises(regard.ConfigError, match=r"factor must be a number from 0\.01 to 100"):
            faster(samples, factor)


def test_faster_is_shorter() -> None:
    assert len(faster(torch.zeros(1000), 1.0)) == 1000
    assert abs(len(faster(torch.zeros(16_000), 1.1)) - 16_000 / 1.1) < 3


def test_recordings_are_joined_two_by_two_with_their_texts() -> None:
    """Every recording is there once, alone or as one of a pair, and an odd one is left alone."""
    samples = [torch.full((1000 + n,), float(n)) for n in range(5)]
    targets = [[10 + n] for n in range(5)]
    for join in (0.0, 1.0):
        batches = MediaBatches(
            samples, targets, range(5), [1] * 5, 100, (1, 2, 0), lambda one, _: one[None], 0, join, [3]
        )
        (batch,) = batches.epoch(0)
        assert batch.source_allowed is not None
        texts = [[i for i in row if i not in (0, 2)] for row in batch.target.tolist()]
        if not join:
            assert sorted(texts) == targets
            continue
        assert sorted(map(len, texts)) == [1, 3, 3]
        assert sorted(i for row in texts for i in row if i != 3) == [10, 11, 12, 13, 14]
        for row, source, allowed in zip(texts, batch.source[:, 0], batch.source_allowed, strict=True):
            heard = source[allowed].unique_consecutive().int().tolist()
            assert heard == [i - 10 for i in row if i != 3]


def test_what_is_joined_needs_tokens_that_stay_what_they_are() -> None:
    rows = [Row("a.wav", "yes no", "", ""), Row("b.wav", "no", "", "")]
    for kind, wanted in (("characters", 1), ("words", 0)):
        tokenizer = Tokenizer.learn([row.text for row in rows], TokenizerConfig(kind=kind, vocabulary=60))
        between = description._between(tokenizer, rows)
        assert len(between) == wanted
        assert tokenizer.decode([*tokenizer.encode("yes"), *between, *tokenizer.encode("no")]) == "yes no"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e19])
def test_a_sample_that_is_no_number_is_refused(tmp_path: Path, bad: float) -> None:
    samples = np.zeros(1000)
    samples[700] = bad
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="DOUBLE")
    with pytest.raises(DataError, match=r"a.wav: a sample is infinite or NaN"):
        read_sound(tmp_path / "a.wav")


def test_a_rate_that_would_make_hours_of_seconds_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(1000), 1)
    with pytest.raises(DataError, match=r"a.wav: expected at least 1,000 samples a second; got 1"):
        read_sound(tmp_path / "a.wav")


def test_a_recording_longer_than_wanted_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(3 * RATE), RATE)
    assert len(read_sound(tmp_path / "a.wav", longest=3.0)) == 3 * RATE
    with pytest.raises(DataError, match=r"a.wav: expected at most 2 seconds; got more: cut it"):
        read_sound(tmp_path / "a.wav", longest=2.0)
