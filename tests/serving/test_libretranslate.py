"""LibreTranslate's routes, called by its own client and by forms and JSON."""

import threading
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError

import pytest
from libretranslatepy import LibreTranslateAPI
from starlette.testclient import TestClient

from regard.pipelines.translator import Translator
from regard.serving import libretranslate
from regard.serving.http import create_server_app
from regard.serving.markup import Markup
from servers import ask, serving


@pytest.fixture(scope="module")
def guarded(translator: Translator) -> Iterator[int]:
    with serving(create_server_app([translator], token="secret")) as port:
        yield port


def test_its_client_works(guarded: int, translator: Translator) -> None:
    api = LibreTranslateAPI(f"http://127.0.0.1:{guarded}/", "secret")
    assert api.translate("le chat noir", "fr", "en") == translator("le chat noir").text
    assert api.languages() == [
        {"code": "en", "name": "English", "targets": ["en"]},
        {"code": "fr", "name": "French", "targets": ["fr", "en"]},
    ]
    assert api.detect("Bonjour, comment allez-vous ?")[0]["language"] == "fr"
    assert 50 < api.detect("Bonjour, comment allez-vous ?")[0]["confidence"] <= 100


def test_its_client_needs_the_token(guarded: int) -> None:
    for key in (None, "wrong"):
        api = LibreTranslateAPI(f"http://127.0.0.1:{guarded}/", key)
        for call in (api.languages, lambda api=api: api.detect("a"), lambda api=api: api.translate("a", "fr", "en")):
            with pytest.raises(HTTPError) as refused:
                call()
            with refused.value as answer:
                assert answer.code == 401
                assert b'{"error":"this server asks for its token' in answer.read()


def test_lists_alternatives_and_detection(client: TestClient, translator: Translator) -> None:
    wanted = translator(["le chat", "le chien"], n_best=3)
    body = {"q": ["le chat", "le chien"], "source": "fr", "target": "en", "alternatives": 2}
    answer = client.post("/translate", json=body).json()
    assert answer["translatedText"] == [one.text for one in wanted]
    assert answer["alternatives"] == [[other.text for other in one.alternatives] for one in wanted]
    one = client.post("/translate", data=body | {"q": "le chat", "alternatives": "2"}).json()
    assert one == {"translatedText": wanted[0].text, "alternatives": answer["alternatives"][0]}
    parts = {"q": (None, "le chat"), "source": (None, "fr"), "target": (None, "en")}
    assert client.post("/translate", files=parts).json() == {"translatedText": wanted[0].text}
    found = client.post("/translate", json={"q": "Le chien blanc mange.", "source": "auto", "target": "en"}).json()
    assert found["detectedLanguage"]["language"] == "fr"
    same = client.post("/translate", json={"q": "The white dog is eating.", "source": "auto", "target": "en"}).json()
    assert same["translatedText"] == "The white dog is eating."


def test_tags_stay(client: TestClient, translator: Translator) -> None:
    body = {"q": "<p>le <b>chat</b></p><p>le chien</p>", "source": "fr", "target": "en", "format": "html"}
    cat, dog = (one.text for one in translator(["le <b>chat</b>", "le chien"], protect=True))
    assert "<b>" in cat
    assert client.post("/translate", json=body).json()["translatedText"] == f"<p>{cat}</p><p>{dog}</p>"


GOOD = {"q": "le chat", "source": "fr", "target": "en"}


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("/translate", {"source": "fr", "target": "en"}, "q is missing"),
        ("/translate", {"q": "a", "target": "en"}, "source is missing"),
        ("/translate", GOOD | {"q": 5}, "q: expected a string or a list; got 5"),
        ("/translate", GOOD | {"q": " "}, "q: expected a text; got none"),
        ("/translate", GOOD | {"q": ["a"] * 300}, "q: expected at most 256 texts; got 300"),
        ("/translate", GOOD | {"q": "le " * 400}, "q[0]: a text of 401 tokens is too long"),
        ("/translate", GOOD | {"source": "de"}, "de is not supported: this server knows en, fr"),
        ("/translate", GOOD | {"source": "en", "target": "fr"}, "en to fr is not supported"),
        ("/translate", GOOD | {"source": "auto", "target": "xx"}, "xx is not supported"),
        ("/translate", GOOD | {"format": "pdf"}, "format: expected text or html; got 'pdf'"),
        ("/translate", GOOD | {"alternatives": -1}, "alternatives: "),
        ("/translate", [1], "the body: expected an object"),
        ("/detect", {}, "q is missing"),
        ("/detect", {"q": ""}, "q: expected a text; got none"),
    ],
)
def test_refusals_are_sentences(client: TestClient, path: str, body: Any, sentence: str) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"].startswith(sentence)


def test_others_are_answered_while_markup_is_cut(guarded: int, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, answered, waited = threading.Event(), threading.Event(), []

    def slow(html: str, inline: bool) -> Markup:
        begun.set()
        waited.append(answered.wait(10))
        return Markup(html, inline)

    monkeypatch.setattr(libretranslate, "Markup", slow)
    body = {"q": "<b>le chat</b>", "source": "fr", "target": "en", "format": "html", "api_key": "secret"}
    found: list[Any] = []
    client = threading.Thread(
        target=lambda: found.append(ask(guarded, "/translate", body, {"Content-Type": "application/json"}))
    )
    client.start()
    assert begun.wait(10)
    assert ask(guarded, "/health")[0] == 200
    answered.set()
    client.join(30)
    assert waited == [True]
    assert found[0][0] == 200


def test_a_request_with_too_many_texts_between_tags_is_refused(client: TestClient) -> None:
    given = {"q": ["<p>a</p>" * 2_400] * 5, "source": "fr", "target": "en", "format": "html"}
    refused = client.post("/translate", json=given)
    assert refused.status_code == 422
    assert refused.json() == {"error": "expected at most 10,000 sentences in a request; got 12,000: ask in parts"}
    many = client.post("/v1/translate", json={"texts": ["Il dort. " * 2_100] * 5})
    assert many.status_code == 422
    assert "got 10,500" in many.json()["error"]["message"]


def test_html_in_the_target_language_stays_as_it_is(client: TestClient) -> None:
    html = "<p>caf&eacute; & more &quot;x&quot;</p>"
    body = {"q": html, "source": "en", "target": "en", "format": "html"}
    assert client.post("/translate", json=body).json() == {"translatedText": html}
