"""The page's server answers its own visitor alone, and what it answers is what the model does."""

import base64
import gzip
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load as read_tensors
from starlette.testclient import TestClient

import regard
from regard.attention.maps.packed import pack_map
from regard.explorer.patches import Part, patched
from regard.explorer.questions import Believe
from regard.explorer.server import QUESTIONS, create_explorer
from regard.figures.page import Page
from regard.observation.intervene import ablate
from regard.pipelines.page import look_at

TOKEN = "only-for-this-visitor"


@pytest.fixture(scope="module")
def model() -> Any:
    return regard.load("fr-en")


@pytest.fixture(scope="module")
def client(translation: Page, model: Any) -> Iterator[TestClient]:
    app, _ = create_explorer(translation, model, TOKEN)
    with TestClient(app, base_url="http://127.0.0.1:8000") as made:
        yield made


def ask(client: TestClient, name: str, **body: Any) -> dict[str, Any]:
    answer = client.post(f"/api/{name}", json=body, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_the_page_opens_with_its_token_only(client: TestClient) -> None:
    assert client.get("/").status_code == 401
    assert client.get("/", params={"token": "wrong"}).status_code == 401
    page = client.get("/", params={"token": TOKEN})
    assert page.status_code == 200
    assert "connect-src 'self'" in page.text
    assert TOKEN in page.text


@pytest.mark.parametrize("where", ["key", "word", "head", "position"])
def test_a_number_that_torch_does_not_have_is_refused(client: TestClient, where: str) -> None:
    asked: dict[str, Any] = {"source": "le chat", "site": "decoder.layers.0.self", "change": {"kind": "force"}}
    (asked["change"] if where in ("key", "word") else asked)[where] = 10**30
    answer = client.post("/api/what-if", json=asked, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 422
    assert f"{where}: Input should be less than 2147483648" in answer.json()["error"]["message"]


def test_questions_need_the_token_and_a_local_host(client: TestClient) -> None:
    assert client.post("/api/look", json={"text": "le chat"}).status_code == 401
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert client.post("/api/look", json={"text": "a"}, headers={**headers, "Host": "evil.example"}).status_code == 400
    assert client.get("/", params={"token": TOKEN}, headers={"Host": "evil.example:80"}).status_code == 400


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("look", b"{", 422), ("look", b"[" * 100_000, 413), ("look", b"[" * 60_000, 422),
        ("look", b'{"text": ""}', 422),
        ("look", b'{"text": "a", "path": "/etc/passwd"}', 422), ("look", b'{"text": 3}', 422),
        ("what-if", json.dumps({"source": "le chat", "site": "nowhere", "change": {"kind": "ablate"}}).encode(), 422),
        ("what-if", json.dumps({"source": "le", "site": "", "change": {"kind": "drop", "word": 9}}).encode(), 422),
        ("believe", json.dumps({"source": "le", "site": "decoder.layers.0.cross", "position": 99}).encode(), 422),
        ("passwd", b"{}", 404),
    ],
)  # fmt: skip
def test_bad_questions_are_one_sentence(client: TestClient, name: str, body: bytes, status: int) -> None:
    answer = client.post(f"/api/{name}", content=body, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == status
    message = answer.json()["error"]["message"]
    assert message
    assert "\n" not in message
    assert "Traceback" not in message


def test_another_text(client: TestClient, model: Any) -> None:
    found = ask(client, "look", text="le chien dort")
    run = found["document"]["runs"][0]
    assert run["text"] == model("le chien dort", beam=4).text
    tensors = read_tensors(gzip.decompress(base64.b64decode(found["tensors"])))
    assert all(any(name.startswith(one["tensors"] + ".") for name in tensors) for one in run["maps"])


def test_what_if(client: TestClient, model: Any) -> None:
    site, source = "decoder.layers.1.cross", "le chat noir"
    common = {"source": source, "output": "", "site": site, "head": 1, "position": 1}
    dropped = ask(client, "what-if", **common, change={"kind": "drop", "word": 2})
    assert dropped["before"]["text"] == model(source, beam=4).text
    assert dropped["text"] == model("le chat", beam=4).text
    assert "changes" in dropped["sentence"]
    replaced = ask(client, "what-if", **common, change={"kind": "replace", "word": 1, "text": "chien"})
    assert replaced["text"] == model("le chien noir", beam=4).text
    ablated = ask(client, "what-if", **common, change={"kind": "ablate"})

    def without(weights: torch.Tensor) -> torch.Tensor:
        weights = weights.clone()
        weights[..., 1, :, :] = 0
        return weights

    made = model(source, beam=4)
    with regard.intervene(model.model, site, without):
        assert ablated["text"] == model(source, beam=4).text
        logits = made.forward_pass().logits()[0, 1].detach()
    shares, ids = logits.softmax(-1).topk(2)
    assert ablated["step"][0] == [model.tokenizer.tokens([int(ids[0])])[0], pytest.approx(float(shares[0]), abs=1e-4)]
    for kind in ("uniform", "force"):
        assert ask(client, "what-if", **common, change={"kind": kind})["step"] != ablated["step"]


SITES = {  # a site of every kind, a head, a key, and how a sentence begins that names them
    "decoder.layers.1.cross": (1, 2, "With all weight on “▁noir” in head 1 of decoder.layers.1.cross, "),
    "encoder.layers.0.self": (2, 3, "With all weight on “</s>” in head 2 of encoder.layers.0.self, "),
    "decoder.layers.2.self": (0, 1, "With all weight on “▁the” in head 0 of decoder.layers.2.self, "),
}


@pytest.mark.parametrize("site", SITES)
def test_the_sentence_names_the_key_that_got_all_weight(client: TestClient, site: str) -> None:
    head, key, beginning = SITES[site]
    common = {"source": "le chat noir", "site": site, "head": head, "position": 1}
    found = ask(client, "what-if", **common, change={"kind": "force", "key": key})
    assert found["sentence"].startswith(beginning)


def test_a_key_whose_name_others_have_is_named_with_its_number(client: TestClient) -> None:
    common = {"source": "le chat et le chien", "site": "decoder.layers.1.cross", "head": 0, "position": 1}
    found = ask(client, "what-if", **common, change={"kind": "force", "key": 3})
    assert found["sentence"].startswith("With all weight on “▁le” (key 4) in head 0 of ")


def test_of_a_site_with_one_head_no_number_is_named() -> None:
    model = regard.load("fr-en-rnn")
    app, _ = create_explorer(look_at([model], ["le chat"]), model, TOKEN)
    with TestClient(app, base_url="http://127.0.0.1:8000") as made:
        found = ask(made, "what-if", source="le chat", site="decoder.cross", position=1,
                    change={"kind": "force", "key": 1})  # fmt: skip
    assert found["sentence"].startswith("With all weight on “▁chat” in decoder.cross, ")


def test_what_if_gives_the_attention_before_and_after(client: TestClient, model: Any) -> None:
    site, source = "decoder.layers.1.cross", "le chat noir"
    common = {"source": source, "output": "", "site": site, "head": 1, "position": 1}
    found = ask(client, "what-if", **common, change={"kind": "force", "key": 2})["page"]
    tensors = read_tensors(gzip.decompress(base64.b64decode(found["tensors"])))
    before, after = found["document"]["runs"]
    assert before["text"] == model(source, beam=4).text
    where = {
        run["label"]: next(one["tensors"] for one in run["maps"] if one["site"] == site) for run in (before, after)
    }
    query, key = (tensors[f"{where['before']}.{name}"] for name in ("query", "key"))
    torch.testing.assert_close(
        (query @ key.mT).softmax(-1), model(source, beam=4).attention[site].full(), atol=1e-4, rtol=0
    )
    weights = tensors[f"{where['after']}.weights"]
    assert weights[1, :, 2].eq(1).all()  # as forced, and of no other head
    assert not weights[0, :, 2].eq(1).any()
    logs = [sum(run["words"]["output"]["log_prob"]) for run in (before, after)]
    assert logs[0] == pytest.approx(sum(word.log_prob for word in model(source, beam=4).words), abs=1e-3)
    with regard.intervene(model.model, site, forced):
        made = model(source, beam=4)
        assert after["text"] == made.text
        assert logs[1] == pytest.approx(sum(word.log_prob for word in made.words), abs=1e-3)


def test_what_if_of_a_decoder_alone_gives_the_attention_before_and_after() -> None:
    model = regard.load("shakespeare")
    beginning, site, head, key = "To be, or not", "decoder.layers.5.self", 2, 17
    page = look_at([model], [beginning])
    app, _ = create_explorer(page, model, TOKEN)
    common = {"source": beginning, "output": "", "site": site, "head": head, "position": 30}
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        found = ask(client, "what-if", **common, change={"kind": "force", "key": key})
        left_out = ask(client, "what-if", **common, change={"kind": "drop", "word": 2})
        beyond = client.post("/api/what-if", json={**common, "change": {"kind": "force", "key": 997}},
                             headers={"Authorization": f"Bearer {TOKEN}"})  # fmt: skip
    assert "there is no key 998" in beyond.json()["error"]["message"]
    before, after = found["page"]["document"]["runs"]
    assert before["text"] == page.document["runs"][0]["text"]
    assert before["words"] == page.document["runs"][0]["words"]
    tensors = read_tensors(gzip.decompress(base64.b64decode(found["page"]["tensors"])))
    where = [next(one for one in run["maps"] if one["site"] == site) for run in (before, after)]
    assert [(one["rows"], one["columns"]) for one in where] == [("text", "text")] * 2
    query, key_vectors = (tensors[f"{where[0]['tensors']}.{name}"] for name in ("query", "key"))
    scores = query @ key_vectors.mT
    causal = torch.ones(scores.shape[-2:]).tril().bool()
    made = model(beginning, length=64, seed=0)
    torch.testing.assert_close(
        scores.masked_fill(~causal, -torch.inf).softmax(-1)[:, len(beginning) - 1 :], made.attention[site].full(),
        atol=1e-4, rtol=0,
    )  # fmt: skip
    weights = tensors[f"{where[1]['tensors']}.weights"]
    assert weights[head, key:, key].eq(1).all()
    assert weights[head, :key, key].eq(0).all()  # a query does not look ahead
    assert not weights[1, key:, key].eq(1).any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))

    def forced(weights: torch.Tensor) -> torch.Tensor:
        weights = weights.clone()
        own = torch.arange(weights.shape[-2]) + weights.shape[-1] - weights.shape[-2] >= key
        rows = weights[..., head, :, :]  # a view
        rows[..., own, :] = 0
        rows[..., own, key : key + 1] = 1
        return weights

    with regard.intervene(model.model, site, forced):
        assert after["text"] == model(beginning, length=64, seed=0).text
    assert after["text"] != before["text"]
    # the candidates are those after the same letter, which now stands three places further on the left
    same = (
        model.pass_over([*model.encode("To be, not"), *made.ids[:-1]]).logits().detach()[0, 30 - len(" or")].softmax(-1)
    )
    assert left_out["step"][0][1] == pytest.approx(float(same.max()), abs=1e-4)
    assert left_out["page"]["document"]["runs"][1]["sequences"]["text"][:10] == list("To be, not")


def forced(weights: torch.Tensor) -> torch.Tensor:
    weights = weights.clone()
    weights[..., 1, :, :] = 0
    weights[..., 1, :, 2] = 1
    return weights


PATCHES = {  # a model, its site and head, a text, and one of as many tokens
    "to the source": ("fr-en", "decoder.layers.1.cross", 1, "le chat noir dort", "le chien blanc dort"),
    "in the source": ("fr-en", "encoder.layers.1.self", 3, "le chat noir dort", "le chien blanc dort"),
    "in the output": ("fr-en", "decoder.layers.1.self", 0, "le chat noir dort", "la maison est grande et vieille"),
    "step by step": ("fr-en-rnn", "decoder.cross", 0, "le chat noir dort", "le chien blanc dort"),
    "a decoder alone": ("shakespeare", "decoder.layers.2.self", 1, "To be, or not", "To me, or him"),
}


@pytest.mark.parametrize("part", ["weights", "query", "key", "value"])
@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_from_another_sentence(name: str, part: str) -> None:
    known, site, head, text, other = PATCHES[name]
    model = regard.load(known)
    settings: dict[str, Any] = {"length": 64, "seed": 0} if known == "shakespeare" else {"beam": 4}
    made = model(text, **settings)
    given, wanted = made.forward_pass(), torch.tensor(made.ids)[:, None]
    if known == "shakespeare":
        there = model.pass_over([*model.encode(other), *made.ids[:-1]], made.ids)
    else:
        there = replace(model(other), ids=made.ids, tokens=made.tokens, text=made.text).forward_pass()

    def total(out: Any) -> torch.Tensor:
        return getattr(out, "logits", out)[0, -len(wanted) :].float().log_softmax(-1).gather(-1, wanted).sum()

    found = patched(given, there, site, head, cast(Part, part))
    if name != "in the output":  # where the other source has another number of tokens, which `patch` refuses
        table = regard.patch(model.model, there.arguments, given.arguments, total, part, sites=[site])
        assert float(total(found.logits[None])) == pytest.approx(float(table.table[0, head]), abs=1e-3)
    own, theirs = (patched(one, one, site, head, "value").maps for one in (given, there))
    same = patched(given, given, site, head, cast(Part, part))  # its own part
    torch.testing.assert_close(same.maps[site].full(), own[site].full(), atol=1e-5, rtol=0)
    packed = [pack_map(one[site])[1] for one in (own, theirs)]
    wanted_map = own[site].full().clone()
    if part == "weights":
        wanted_map[head] = theirs[site].full()[head]
    elif part != "value" and name == "to the source":
        mixed = {one: packed[0][one].clone() for one in ("query", "key")}
        mixed[part][head] = packed[1][part][head]
        wanted_map = (mixed["query"] @ mixed["key"].mT).softmax(-1)
    if part == "weights" or name == "to the source" or (part == "value" and name != "step by step"):  # no state follows
        torch.testing.assert_close(found.maps[site].full(), wanted_map, atol=1e-5, rtol=0)
    app, _ = create_explorer(look_at([model], [text], tests=False), model, TOKEN)
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        answer = ask(client, "what-if", source=text, site=site, head=head, position=1,
                     change={"kind": "patch", "part": part, "text": other})  # fmt: skip
    change = float(total(found.logits[None]) - total(given.logits().detach()))
    said = f"({change:+.2f} nats)".replace("-", "−") if abs(change) >= 0.005 else "as probable as before"
    assert said in answer["sentence"]
    assert f"from “{other}”" in answer["sentence"]
    assert answer["text"] == answer["before"]["text"] == made.text
    assert answer["step"][0][1] == pytest.approx(float(found.logits[1].softmax(-1).max()), abs=1e-4)
    after = answer["page"]["document"]["runs"][1]
    if known != "shakespeare":
        logs = found.logits.float().log_softmax(-1).gather(-1, wanted)[:-1].sum()  # all but the end
        assert sum(after["words"]["output"]["log_prob"]) == pytest.approx(float(logs), abs=1e-3)
    for one in after["maps"]:
        tensors = read_tensors(gzip.decompress(base64.b64decode(answer["page"]["tensors"])))
        for key, tensor in pack_map(found.maps[one["site"]])[1].items():
            torch.testing.assert_close(tensors[f"{one['tensors']}.{key}"], tensor, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"text": "le chien"}, "take a sentence of as many tokens"), ({"text": " "}, "there is no other sentence"),
     ({"text": "la maison noire", "part": "state"}, "change.part")],
)  # fmt: skip
def test_a_patch_that_cannot_be_made_is_one_sentence(client: TestClient, change: dict[str, str], said: str) -> None:
    body = {"source": "le chat noir", "site": "decoder.layers.1.cross", "change": {"kind": "patch", **change}}
    answer = client.post("/api/what-if", json=body, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 422
    assert said in answer.json()["error"]["message"]


def test_believe(client: TestClient) -> None:
    common = {"source": "le chat noir", "site": "decoder.layers.1.cross"}
    whole, one = ask(client, "believe", **common), ask(client, "believe", **common, position=1)
    assert whole["sentence"] != one["sentence"]
    assert "step" in one
    assert "step" not in whole
    assert len(one["measures"]["zeroed"]) == len(one["columns"])
    assert len(one["measures"]["left_out"]) == len(one["columns"])


def test_another_text_comes_before_the_test_of_its_map(client: TestClient, model: Any) -> None:
    text = "le chien dort"
    (run, *others) = ask(client, "look", text=text)["document"]["runs"]
    assert "believe" not in run
    assert all("to_test" not in other for other in others)
    found = ask(client, "believe", source=text, output=run["text"], site=run["to_test"], yields=True)
    wanted = look_at([model], [text]).document["runs"][0]
    assert (found, run["to_test"]) == (wanted["believe"], wanted["chosen"]["site"])
    assert "to_test" not in wanted


def test_only_the_answering_model_is_tested_later(model: Any) -> None:
    other = regard.load("fr-en-fast")
    runs = look_at([model, other], ["le chat"], tests=False).document["runs"]
    first, second = (next(run for run in runs if run["label"] == one.name) for one in (model, other))
    assert ("to_test" in first, "believe" in first) == (True, False)
    assert ("to_test" in second, "believe" in second) == (False, True)


def test_a_test_in_the_background_gives_way_to_other_questions(
    translation: Page, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = threading.Event()

    def endless(_: Any, asked: Believe, between: Any = None) -> dict[str, Any]:
        while asked.yields:
            started.set()
            between()
        return {}

    monkeypatch.setitem(QUESTIONS, "believe", (Believe, endless))
    app, _ = create_explorer(translation, model, TOKEN)
    with TestClient(app, base_url="http://127.0.0.1:8000") as made, ThreadPoolExecutor(1) as beside:
        test = beside.submit(ask, made, "believe", source="le chat", site="decoder.layers.1.cross", yields=True)
        started.wait()
        assert ask(made, "look", text="le chien")["document"]["runs"][0]["source"] == "le chien"
        assert test.result() == {"later": True}


def test_heads_over_a_corpus(client: TestClient, model: Any) -> None:
    texts = ["le chat noir", "le chien dort"]
    found = ask(client, "atlas", texts=texts)
    assert (found["texts"], found["own"]) == (2, True)
    drops = []
    for text in texts:
        given = model(text, beam=4).forward_pass()
        wanted = torch.tensor(given.predicted)[:, None]

        def mean(given: Any = given, wanted: torch.Tensor = wanted) -> float:
            return float(given.logits().detach()[0, -len(wanted) :].log_softmax(-1).gather(-1, wanted).mean())

        whole = mean()
        with regard.intervene(model.model, "decoder.layers.1.cross", ablate(2)):
            drops.append(whole - mean())
    assert found["importance"]["decoder.layers.1.cross"][2] == pytest.approx(sum(drops) / 2, abs=1e-4)
    assert found["roles"] == []  # two texts prove no role
    one = client.post("/api/atlas", json={"texts": ["le"]}, headers={"Authorization": f"Bearer {TOKEN}"})
    assert one.json()["error"]["message"].startswith("heads are compared over 2 to 64 texts; got 1")


def test_a_page_without_a_model_answers_no_question(translation: Page) -> None:
    app, token = create_explorer(translation, None)
    with TestClient(app, base_url="http://localhost") as client:
        answer = client.post("/api/look", json={"text": "a"}, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 404
        shown = client.get("/", params={"token": token}).text.partition('id="document">')[2].partition("</script>")[0]
        assert "live" not in json.loads(shown)  # it offers no question either


@pytest.mark.parametrize("body", [r'{"\ud800": 1}', r'{"source": "\udfff"}', "[" * 60_000, "\x00"])
def test_a_question_that_no_text_can_hold_is_refused(client: TestClient, body: str) -> None:
    answer = client.post("/api/look", content=body, headers={"Authorization": f"Bearer {TOKEN}"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (422, "the question is no JSON object")
