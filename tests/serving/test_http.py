"""regard's own API: results are the library's, refusals are one sentence in one shape."""

import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

import regard
from regard.errors import ConfigError
from regard.pipelines.base import InputError
from regard.pipelines.translator import Translator
from regard.serving.http import create_server_app
from regard.web.limits import Limits
from servers import serving, wait_until

TEXTS = ["le chat noir", "Le chien blanc mange. Le lapin dort.", ""]


def test_translations_are_those_of_the_library(client: TestClient, translator: Translator) -> None:
    answer = client.post("/v1/translate", json={"texts": TEXTS, "beam": 2, "n_best": 3, "alignment": True})
    assert answer.status_code == 200
    body = answer.json()
    assert body["model"] == "small"
    wanted = translator(TEXTS, beam=3, n_best=3)
    for one, generation in zip(body["translations"], wanted, strict=True):
        assert one["text"] == generation.text
        assert one["log_prob"] == pytest.approx(generation.log_prob, abs=1e-4)
        assert [word["text"] for word in one["words"]] == generation.text.split()
        assert sum(word["log_prob"] for word in one["words"]) >= one["log_prob"] - 1e-4
        assert [other["text"] for other in one["alternatives"]] == [a.text for a in generation.alternatives]
        assert one["alignment"]["source"] == generation.source.split()
        assert one["alignment"]["pairs"] == [list(pair) for pair in generation.alignment.pairs]
    plain = client.post("/v1/translate", json={"texts": TEXTS[:1]}).json()["translations"][0]
    assert set(plain) == {"text", "score", "log_prob", "words", "alternatives"}


def events(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.strip().split("\n\n"):
        kind, data = block.split("\n")
        found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


@pytest.mark.parametrize("how", [{"json": {"stream": True}}, {"headers": {"Accept": "text/event-stream"}}])
def test_sentences_are_streamed_and_the_whole_is_the_same(client: TestClient, how: dict) -> None:
    body = {"texts": TEXTS, "n_best": 2, "alignment": True}
    answer = client.post("/v1/translate", json=body | how.get("json", {}), headers=how.get("headers"))
    assert answer.headers["content-type"].startswith("text/event-stream")
    *sentences, (last, whole) = events(answer.text)
    assert {(one["index"], one["sentence"]) for _, one in sentences} == {(0, 0), (1, 0), (1, 1), (2, 0)}
    assert ([kind for kind, _ in sentences], last) == (["sentence"] * 4, "result")
    wanted = client.post("/v1/translate", json=body).json()
    for one, other in zip(whole["translations"], wanted["translations"], strict=True):
        assert (one["text"], one["alignment"]) == (other["text"], other["alignment"])
        assert one["log_prob"] == pytest.approx(other["log_prob"], abs=1e-4)


def test_scores_are_those_of_the_library(client: TestClient, translator: Translator) -> None:
    body = {"sources": ["le chat", "le chien"], "targets": ["the cat", "the dog"]}
    answer = client.post("/v1/score", json=body).json()
    for one, scored in zip(answer["scores"], translator.score(**body), strict=True):
        assert one["log_prob"] == pytest.approx(scored.log_prob, abs=1e-4)
        assert [token["text"] for token in one["tokens"]] == scored.tokens


def test_completions_are_those_of_the_library_and_stream_piece_by_piece(client: TestClient) -> None:
    completer = regard.load("shakespeare")
    settings = {"length": 12, "seed": 3, "top_k": 20, "stop": ["zzz"]}
    answer = client.post("/v1/complete", json={"texts": ["ROMEO:", "O"], **settings}).json()
    wanted = completer(["ROMEO:", "O"], **settings)
    assert [one["text"] for one in answer["completions"]] == [one.text for one in wanted]
    streamed = events(client.post("/v1/complete", json={"texts": ["ROMEO:"], "stream": True, **settings}).text)
    pieces = "".join(one["text"] for kind, one in streamed if kind == "piece")
    assert pieces == streamed[-1][1]["completions"][0]["text"] == wanted[0].text
    best = client.post("/v1/complete", json={"texts": ["O"], "length": 4, "beam": 2, "n_best": 2}).json()
    assert len(best["completions"][0]["alternatives"]) == 1


LONG = "le " * 400


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/v1/translate", {"texts": "a"}, 422, "texts: expected a list; got 'a'"),
        ("/v1/translate", {"texts": []}, 422, "texts: "),
        ("/v1/translate", {"texts": ["a"] * 300}, 422, "texts: expected at most 256 texts; got 300"),
        ("/v1/translate", {"texts": ["a", "b" * 30_000]}, 422, "texts[1]: expected at most 20,000 characters"),
        ("/v1/translate", {"texts": ["a", LONG]}, 422, "texts[1]: a text of 401 tokens is too long"),
        ("/v1/translate", {"texts": [LONG], "stream": True}, 422, "texts[0].sentences[0]: a text of 401 tokens"),
        ("/v1/translate", {"texts": ["a"], "beam": 0}, 422, "beam: expected greater than or equal to 1; got 0"),
        ("/v1/translate", {"texts": ["a"], "model": "smal"}, 404, "unknown model 'smal': this server can translate"),
        ("/v1/translate", {"texts": ["a"], "model": "shakespeare"}, 404, "unknown model 'shakespeare'"),
        ("/v1/score", {"sources": ["a"], "targets": []}, 422, "targets: "),
        ("/v1/score", {"sources": ["a"], "targets": ["b", "c"]}, 422, "targets: expected one for each"),
        ("/v1/score", {"sources": ["a"], "targets": [" "]}, 422, "targets[0]: expected a text"),
        (
            "/v1/score",
            {"sources": ["a"] * 3, "targets": ["b", "c", 3 * LONG]},
            422,
            "targets[2]: cannot be scored: a text",
        ),
        ("/v1/score", {"sources": ["a", LONG], "targets": ["b", "c"]}, 422, "sources[1]: cannot be scored: a text"),
        ("/v1/complete", {"texts": ["a"], "temperature": -1}, 422, "temperature: "),
        ("/v1/complete", {"texts": ["a"], "beam": 2, "seed": 1}, 422, "beam: a beam search neither streams"),
        ("/v1/complete", {"texts": ["a"], "n_best": 2}, 422, "n_best: only a search"),
        ("/v1/complete", {"texts": ["a", "b"], "stream": True}, 422, "texts: a stream continues one text"),
        ("/v1/caption", {}, 404, "no such route: /v1/caption"),
    ],
)
def test_refusals_are_one_sentence(client: TestClient, path: str, body: Any, status: int, sentence: str) -> None:
    answer = client.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, set(error)) == (status, {"code", "message"})
    assert error["message"].startswith(sentence)
    assert "\n" not in error["message"]


def test_bodies_of_another_type_are_refused(client: TestClient) -> None:
    answer = client.post("/v1/translate", content=b"q=a", headers={"Content-Type": "text/plain"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert client.post("/v1/translate", content=b"\xff").status_code == 400
    assert client.post("/v1/translate", content=b"[]").status_code == 422


def test_health_metrics_and_pages(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok", "models": ["small", "shakespeare"]}
    client.post("/v1/translate", json={"texts": ["le chat"]})
    text = client.get("/metrics").text
    for name in ("regard_batch_size_count", "regard_queue_texts 0.0", "regard_queue_characters 0.0"):
        assert name in text
    assert 'regard_tokens_total{model="small",side="output"}' in text
    page = client.get("/").text
    assert '[{"name": "small", "languages": ["fr", "en"]}]' in page
    assert not any(word in page for word in ("http:", "https:", "src=", "@import"))
    described = client.get("/openapi.json").json()
    assert {"/translate", "/v1/translate", "/v1/score", "/v1/complete", "/health"} <= set(described["paths"])


class Fake:
    """A translator that does what a test says, and keeps its batches."""

    task, name = "translate", "fake"
    bundle = SimpleNamespace(languages=("fr", "en"))
    decoding = SimpleNamespace(beam=4)

    def __init__(self, work: Callable[[str], None] = lambda text: None) -> None:
        self.work, self.batches = work, []

    def read_words(self, generations: list[Any]) -> None:
        pass

    def each(self, texts: list[str], **settings: Any) -> list[Any]:
        self.batches.append(list(texts))
        for text in texts:
            self.work(text)
        return [
            InputError("it is bad") if text == "bad" else SimpleNamespace(
                text=text.upper(), score=0.0, log_prob=float("-inf"), words=[], alternatives=[], source_ids=[1], ids=[2]
            )
            for text in texts
        ]  # fmt: skip


def test_concurrent_requests_share_a_batch_and_one_bad_text_harms_no_other() -> None:
    go = threading.Event()
    fake = Fake(lambda text: None if text != "first" else go.wait(5) and None)
    with serving(create_server_app([fake])) as port, ThreadPoolExecutor(8) as pool:

        def post(*texts: str) -> httpx.Response:
            return httpx.post(f"http://127.0.0.1:{port}/v1/translate", json={"texts": texts}, timeout=10)

        first = pool.submit(post, "first")
        wait_until(lambda: fake.batches == [["first"]])
        others = [pool.submit(post, *texts) for texts in (("a", "b"), ("c",), ("d", "bad"))]
        health = httpx.get(f"http://127.0.0.1:{port}/metrics").text  # the loop is free while a batch is computed
        wait_until(lambda: "regard_queue_texts 5.0" in httpx.get(f"http://127.0.0.1:{port}/metrics").text)
        go.set()
        assert "regard_queue_texts" in health
        assert first.result().json()["translations"][0]["text"] == "FIRST"
        assert [[one["text"] for one in other.result().json()["translations"]] for other in others[:2]] == [
            ["A", "B"], ["C"],
        ]  # fmt: skip
        assert first.result().json()["translations"][0]["log_prob"] is None
        assert others[2].result().status_code == 422
        assert others[2].result().json()["error"]["message"] == "texts[1]: it is bad"
    assert sorted(fake.batches[1]) == ["a", "b", "bad", "c", "d"]


def test_waiting_work_of_a_client_that_has_gone_is_dropped_and_a_full_queue_is_429() -> None:
    go = threading.Event()
    fake = Fake(lambda text: None if text != "first" else go.wait(5) and None)
    limits = Limits(waiting=50, least=1, seconds=5.0)
    with serving(create_server_app([fake], limits), limits) as port, ThreadPoolExecutor(4) as pool:

        def post(text: str) -> httpx.Response:
            return httpx.post(f"http://127.0.0.1:{port}/v1/translate", json={"texts": [text]}, timeout=10)

        def waiting() -> str:
            text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
            return next(line for line in text.splitlines() if line.startswith("regard_queue_characters "))

        first = pool.submit(post, "first")
        wait_until(lambda: len(fake.batches) == 1)
        body = json.dumps({"texts": ["x" * 40]}).encode()
        head = f"POST /v1/translate HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(head + body)
            wait_until(lambda: waiting().endswith(" 40.0"))
            refused = post("y" * 20)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
            assert int(refused.headers["Retry-After"]) >= 1
            plain = httpx.post(
                f"http://127.0.0.1:{port}/translate", data={"q": "y" * 20, "source": "fr", "target": "en"}
            )
            assert (plain.status_code, type(plain.json()["error"])) == (429, str)
        wait_until(lambda: waiting().endswith(" 0.0"))
        go.set()
        assert first.result().status_code == 200
    assert fake.batches == [["first"]]


def test_what_takes_too_long_is_503_and_what_fails_500_without_a_trace() -> None:
    def work(text: str) -> None:
        if text == "slow":
            time.sleep(0.6)
        if text == "broken":
            raise ValueError("a secret")

    fake = Fake(work)
    limits = Limits(seconds=0.2)
    with TestClient(create_server_app([fake], limits), raise_server_exceptions=False) as client:
        answer = client.post("/v1/translate", json={"texts": ["slow"]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "timeout")
        time.sleep(0.6)
        answer = client.post("/v1/translate", json={"texts": ["broken"]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
        assert "secret" not in answer.text


def test_a_stream_that_is_left_stops_being_computed() -> None:
    pieces: list[int] = []

    class Endless:
        task, name = "complete", "endless"

        def stream(self, text: str, **settings: Any) -> Any:
            for n in range(1000):
                pieces.append(n)
                time.sleep(0.01)
                yield "a"

    with serving(create_server_app([Endless()])) as port:
        with httpx.stream(
            "POST", f"http://127.0.0.1:{port}/v1/complete", json={"texts": ["a"], "stream": True}
        ) as answer:
            next(answer.iter_lines())
        wait_until(lambda: len(pieces) > 0 and _still(pieces))
    assert len(pieces) < 500


def _still(pieces: list[int]) -> bool:
    before = len(pieces)
    time.sleep(0.1)
    return len(pieces) == before


class Describing:
    """A captioner or a transcriber that tells what it was given."""

    decoding = SimpleNamespace(beam=2)

    def __init__(self, task: str) -> None:
        self.task, self.name = task, task

    def each(self, files: list[bytes], **settings: Any) -> list[Any]:
        try:
            settings.get("report", lambda _: None)(1000.0 if files[0] == b"long" else 1.0)
        except InputError as error:
            return [error]
        text = f"{len(files[0])} bytes, beam {settings['beam']}"
        return [SimpleNamespace(text=text, score=0.0, log_prob=0.0, ids=[1], alternatives=[], pieces=[])]


def test_files_come_as_bodies_and_nothing_names_one_of_the_server() -> None:
    with TestClient(create_server_app([Describing("caption"), Describing("transcribe")])) as client:
        for task in ("caption", "transcribe"):
            answer = client.post(f"/v1/{task}?beam=3", content=b"abc")
            assert answer.json()["text"] == "3 bytes, beam 3"
            assert client.post(f"/v1/{task}").status_code == 400
            assert client.post(f"/v1/{task}?file=/etc/passwd", content=b"abc").status_code == 422
            assert client.post(f"/v1/{task}?model=x", content=b"abc").status_code == 404
            assert client.post(f"/v1/{task}?beam=x", content=b"abc").status_code == 422
            assert client.post(f"/v1/{task}", content=b"x" * (2**20 + 1)).status_code == 413
        assert "too long" in client.post("/v1/transcribe", content=b"long").json()["error"]["message"]
        assert client.post("/v1/translate", json={}).status_code == 404
        assert client.get("/").status_code == 404


@pytest.mark.parametrize("models", [[], [Fake(), Fake()], [regard.load("english")]])
def test_models_that_cannot_be_served_are_refused(models: list[Any]) -> None:
    with pytest.raises(ConfigError):
        create_server_app(models)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prefix_forced_and_forbidden_words_are_those_of_the_library(client, translator, stream) -> None:
    demands = {"prefix": "the", "force": ["dog"], "forbid": ["red"]}
    text = "La maison. Le chat noir dort."  # as one text, not sentence by sentence
    answer = client.post("/v1/translate", json={"texts": [text], "stream": stream, **demands})
    assert answer.status_code == 200, answer.text
    whole = json.loads(answer.text.split("event: result\ndata: ")[1]) if stream else answer.json()
    (made,) = whole["translations"]
    assert made["text"] == translator(text, **demands).text
    assert made["text"].startswith("the")
    assert "dog" in made["text"]


def test_demands_that_contradict_each_other_are_refused(client) -> None:
    answer = client.post("/v1/translate", json={"texts": ["a"], "force": ["the cat"], "forbid": ["cat"]})
    assert answer.status_code == 422
    assert "which forbid names" in answer.json()["error"]["message"]


def test_a_protected_text_is_streamed_whole(client: TestClient, translator: Translator) -> None:
    text = "Le chat {n} dort.\nLe chien {m} mange."
    answer = client.post("/v1/translate", json={"texts": [text], "protect": True, "stream": True})
    (_, whole) = events(answer.text)[-1]
    assert whole["translations"][0]["text"] == translator(text, protect=True).text


def test_a_body_of_many_wrong_texts_is_refused_at_once(client: TestClient) -> None:
    for path, body in (("/v1/translate", {"texts": [1] * 300_000}), ("/translate", {"q": [1] * 300_000})):
        answer = client.post(path, json=body)
        assert answer.status_code in (400, 422)
        assert len(answer.content) < 2000
