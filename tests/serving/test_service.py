"""The models behind the queue: a long text waits sentence by sentence."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from regard.serving.service import Service, _frozen, sentences
from regard.web.limits import Limits


def test_a_long_text_takes_turns_and_is_dropped_where_its_client_has_gone() -> None:
    begun, turns = threading.Event(), threading.Semaphore(0)
    calls: list[list[str]] = []

    def each(texts: list[str], **_: object) -> list[str]:
        calls.append(texts)
        begun.set()
        assert turns.acquire(timeout=10)
        return [text.upper() for text in texts]

    translator = SimpleNamespace(
        task="translate", name="one", each=each, read_words=list, decoding=SimpleNamespace(beam=4),
        bundle=SimpleNamespace(languages=["fr", "en"]),
    )  # fmt: skip

    async def serve() -> str:
        service = Service([translator], Limits(batch=5))
        (long,) = await service.translate(
            translator, [" ".join(f"Le chat numéro {n} dort." for n in range(23))], True, record=False
        )
        await asyncio.to_thread(begun.wait, 10)
        (short,) = await service.translate(translator, ["le chien"], True, record=False, beam=2)
        turns.release(3)
        found: str = await short
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)
        turns.release(99)
        await service.close()
        return found

    assert asyncio.run(serve()) == "LE CHIEN"
    assert len(calls[0]) == 5  # of 23 sentences: the memory of one batch
    assert ["le chien"] in calls[1:3]  # in its turn, before the rest of the long text
    assert sum(map(len, calls)) < 20  # and most of that is not computed at all


def test_texts_are_cut_beside_the_loop_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def cut(text: str, language: str) -> list[str]:
        threads.append(threading.current_thread())
        return text.split("|") if language == "fr" else []

    monkeypatch.setattr("regard.serving.service.cut", cut)
    assert asyncio.run(sentences(["a|b", "c", ""], "fr")) == [["a", "b"], ["c"], [""]]
    assert len(threads) == 3
    assert threading.main_thread() not in threads


def test_what_is_wrong_with_one_sentence_is_told_of_the_text() -> None:
    wrong = ValueError("too long")
    translator = SimpleNamespace(
        task="translate", name="one", each=lambda texts, **_: [wrong for _ in texts], read_words=list,
        decoding=SimpleNamespace(beam=4), bundle=SimpleNamespace(languages=["fr", "en"]),
    )  # fmt: skip

    async def serve() -> object:
        service = Service([translator], Limits())
        (found,) = await asyncio.gather(*await service.translate(translator, ["Il dort. Elle dort."], False))
        await service.close()
        return found

    assert asyncio.run(serve()) is wrong


def test_a_wide_beam_counts_as_often_as_it_holds_the_models_own() -> None:
    begun, go = threading.Event(), threading.Event()
    calls: list[int] = []

    def each(texts: list[str], **_: object) -> list[str]:
        calls.append(len(texts))
        begun.set()
        assert go.wait(10)
        return texts

    translator = SimpleNamespace(
        task="translate", name="one", each=each, read_words=list, decoding=SimpleNamespace(beam=4),
        bundle=SimpleNamespace(languages=["fr", "en"]),
    )  # fmt: skip

    async def serve() -> None:
        service = Service([translator], Limits(batch=7, batch_characters=1_000, least=11))
        first = await service.translate(translator, ["le"], True, record=False)
        await asyncio.to_thread(begun.wait, 10)
        wide = await service.translate(translator, ["le chat"] * 13, True, record=False, n_best=31)
        assert service.batcher._size == 13 * 11 * 8
        usual = await service.translate(translator, ["le chat"] * 13, True, record=False)
        assert service.batcher._size == 13 * 11 * 8 + 13 * 11
        for one in usual:
            one.cancel()
        go.set()
        await asyncio.gather(*first, *wide)
        await service.close()

    asyncio.run(serve())
    assert calls == [1, 7, 6]  # 7 of 88 characters are 616


def test_the_order_of_a_glossary_tells_requests_apart() -> None:
    terms = {"chat": "dog", "Chat": "cow"}
    other = dict(reversed(terms.items()))
    assert _frozen({"glossary": terms}) != _frozen({"glossary": other})
    assert _frozen({"glossary": terms, "beam": 2}) == _frozen({"beam": 2, "glossary": dict(terms)})
