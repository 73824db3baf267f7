"""What takes minutes: any request that the description allows, and very many of them; neither breaks the server.

REGARD_TEST_REQUESTS=100_000 pytest -s -m slow tests/serving/test_load.py
"""

import http.client
import json
import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error

import regard
from conftest import made_pairs, tiny
from regard.pipelines.translator import Translator
from regard.serving.http import create_server_app
from regard.web.limits import Limits
from servers import served, text_of

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # schemathesis' strategies do
def test_no_request_that_the_description_allows_is_a_failure(translator: Translator) -> None:
    app = create_server_app([translator, regard.load("shakespeare")], Limits(characters=500))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [one.ok() for one in schema.get_all_operations()]
    assert len(operations) > 8
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        def check(case: Any) -> None:
            case.call_and_validate(checks=[not_a_server_error], timeout=120)

        check()


REQUESTS = int(os.environ.get("REGARD_TEST_REQUESTS", "10_000"))
CLIENTS, EARLY = 64, 1_000


def resident(process: int) -> int:
    """KiB of a process's resident memory."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.fixture
def short_answers(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A barely trained translator whose outputs are short, since it does not know when to end."""
    from regard import experiment

    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    experiment.train(tiny("transformer", max_steps=2, evaluate_every=2), run=tmp_path / "run")
    path = tmp_path / "run" / "bundle.json"
    bundle = json.loads(path.read_text())
    bundle["decoding"] |= {"length_ratio": 0.01, "length_extra": 3, "beam": 1}
    path.write_text(json.dumps(bundle))
    return tmp_path / "run"


def test_many_requests_need_no_more_memory_than_one_thousand(short_answers: Path) -> None:
    words = " ".join(source for source, _ in made_pairs()).split()
    seen: Counter[int] = Counter()

    def client(number: int) -> None:
        draws = random.Random(number)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for _ in range(count):
            text = ". ".join(" ".join(draws.choices(words, k=12)) for _ in range(40))[: draws.randint(1, 2000)]
            connection.request(
                "POST", "/v1/translate", json.dumps({"texts": [text], "alignment": draws.random() < 0.1})
            )
            answer = connection.getresponse()
            answer.read()
            seen[answer.status] += 1
        connection.close()

    with served(short_answers) as (process, port), ThreadPoolExecutor(CLIENTS) as pool:
        count = EARLY // CLIENTS + 1
        list(pool.map(client, range(CLIENTS)))
        early = resident(process.pid)
        count = (REQUESTS - EARLY) // CLIENTS + 1
        list(pool.map(client, range(CLIENTS, 2 * CLIENTS)))
        late = resident(process.pid)
        waiting = text_of(port, "/metrics")
    print(f"{sum(seen.values()):,} requests: {dict(seen)}; {early:,} KiB after {EARLY:,}, {late:,} KiB at the end")
    assert set(seen) <= {200, 429}, seen
    assert seen[200] > 0.5 * REQUESTS
    assert "regard_queue_characters 0.0" in waiting
    assert late < 1.05 * early, (early, late)


def test_overload_is_429_and_what_was_taken_is_answered(short_answers: Path) -> None:
    text = "le chat noir dort. " * 100

    def post(_: int) -> tuple[int, str | None]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request("POST", "/v1/translate", json.dumps({"texts": [text] * 10}))
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status, answer.headers["Retry-After"]

    with served(short_answers) as (_, port), ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(post, range(CLIENTS)))
    assert {status for status, _ in answers} == {200, 429}
    assert all(wait is not None and int(wait) >= 1 for status, wait in answers if status == 429)
