"""Outputs in pieces: joined they are the text, and none comes later than it must."""

import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import torch

from regard.errors import ConfigError, RegardError
from regard.pipelines.load import load
from regard.pipelines.stream import Streamed, whole_words

TEXT = "le chat noir dort. Le chien rouge mange."


@pytest.fixture(scope="module")
def translator(tiny_run):
    return load(tiny_run)


@pytest.mark.parametrize(
    "settings",
    [
        {"beam": 1},
        {"beam": 4, "n_best": 2},
        {"beam": 4, "groups": 2},
        {"sample": True, "seed": 3},
        {"force": ["dog"]},
        {"protect": True},
        {"sample": True, "mbr": 2, "seed": 3},
    ],
)
def test_pieces_joined_are_the_text_and_the_result_is_the_calls(translator, settings) -> None:
    whole = translator(TEXT, **settings)
    stream = translator.stream(TEXT, **settings)
    pieces = []
    for piece in stream:
        assert not torch.is_inference_mode_enabled()  # in the code that reads pieces
        pieces.append(piece)
    assert "".join(pieces) == whole.text == stream.result.text
    assert stream.result.ids == whole.ids
    assert stream.result.log_prob == pytest.approx(whole.log_prob, rel=1e-6, abs=1e-5)
    assert [one.text for one in stream.result.alternatives] == [one.text for one in whole.alternatives]
    if settings == {"sample": True, "seed": 3}:  # the others say too few words, untrained as the model is
        assert len(pieces) >= len(whole.text.split()) - 1 > 3  # word by word
    parts = getattr(stream.result, "parts", [stream.result])
    assert all(len(part.attention) for part in parts)


def test_an_unread_stream_computes_its_result(translator) -> None:
    assert translator.stream(TEXT, beam=2).result.text == translator(TEXT, beam=2).text
    assert list(translator.stream("")) == []
    with pytest.raises(ConfigError, match="unknown setting"):
        next(translator.stream(TEXT, sample=True, warmth=1.0))


def test_the_last_word_may_grow() -> None:
    assert [whole_words(text) for text in ("", "the", "the ca", "the cat sat")] == ["", "", "the", "the cat"]


def test_a_stream_that_an_error_ended_has_no_result() -> None:
    def pieces() -> Generator[str, None, str]:
        yield "the"
        raise ValueError("broken")

    stream = Streamed(pieces())
    assert next(stream) == "the"
    with pytest.raises(ValueError, match="broken"):
        next(stream)
    with pytest.raises(RegardError, match=r"there is no result: an error ended this stream"):
        _ = stream.result


def test_threads_that_read_one_stream_share_its_pieces() -> None:
    def pieces() -> Generator[str, None, str]:
        for number in range(23):
            time.sleep(0.002)  # the others ask meanwhile
            yield f"{number} "
        return "whole"

    stream = Streamed(pieces())
    with ThreadPoolExecutor(3) as pool:
        read = [one.result(30) for one in [pool.submit(list, stream) for _ in range(3)]]
    assert sorted(int(piece) for some in read for piece in some) == list(range(23))
    assert stream.result == "whole"


@pytest.mark.parametrize("read", [0, 1])
def test_a_closed_stream_computes_nothing_more(translator, read: int) -> None:
    with closing(translator.stream(TEXT, sample=True, seed=3)) as stream:
        assert len([next(stream) for _ in range(read)]) == read
    assert list(stream) == []
    with pytest.raises(RegardError, match=r"or it was closed; start another"):
        _ = stream.result
