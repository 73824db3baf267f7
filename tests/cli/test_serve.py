"""`regard serve` as a process: when it is ready, how it ends, what it refuses."""

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from conftest import made_pairs
from regard.web.server import bind
from servers import ask, served, text_of

one_kind = pytest.mark.parametrize("tiny_run", ["transformer"], indirect=True)


@pytest.mark.sampled(2)
@one_kind
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_it_finish_what_it_took(tiny_run: Path, number: signal.Signals) -> None:
    with served(tiny_run) as (process, port):
        texts = [source for source, _ in made_pairs()[:40]]
        found: list[tuple[int, Any]] = []
        thread = threading.Thread(target=lambda: found.append(ask(port, "/v1/translate", {"texts": texts})))
        thread.start()
        while "regard_queue_texts 0.0" in text_of(port, "/metrics") and not found:
            pass
        process.send_signal(number)
        thread.join(30)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert found[0][0] == 200
    assert len(found[0][1]["translations"]) == 40


@one_kind
def test_with_a_token_it_asks_for_it(tiny_run: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    with served(tiny_run, "--host", "0.0.0.0", "--token-file", token) as (_, port):
        assert ask(port, "/health")[0] == 200
        status, body = ask(port, "/v1/translate", {"texts": ["le chat"]})
        assert (status, body["error"]["code"]) == (401, "unauthorized")
        assert ask(port, "/v1/translate", {"texts": ["le chat"]}, {"Authorization": "Bearer secret"})[0] == 200


@one_kind
def test_without_a_token_it_answers_to_names_of_this_machine(tiny_run: Path) -> None:
    with served(tiny_run) as (_, port):
        for host, status in (("localhost", 200), (f"127.0.0.1:{port}", 200), ("rebound.example", 403)):
            assert ask(port, "/v1/translate", {"texts": ["le chat"]}, {"Host": host})[0] == status


def test_what_cannot_be_served_is_refused_in_one_sentence(talk, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    with bind("127.0.0.1", 0) as sock:
        sock.listen()
        port = sock.getsockname()[1]
        cases = {
            ("fr-en", "--host", "0.0.0.0"): (2, "--host 0.0.0.0 is open to other machines: name a file with a token"),
            ("fr-en", "--token-file", empty): (2, f"--token-file {empty}: the file is empty"),
            ("fr-en", "--token-file", tmp_path / "none"): (2, "none: no such file"),
            ("fr-en", "--port", port): (1, f"cannot listen at 127.0.0.1 port {port}: address already in use"),
            ("fr-em", "--port", 0): (2, "unknown model 'fr-em'"),
            ("english", "--port", 0): (2, "english is for `regard fill`: regard serve takes models that translate"),
            ("spelling", "spelling", "--port", 0): (2, "two models are called spelling"),
        }
        for arguments, (wanted, sentence) in cases.items():
            code, out, err = talk("serve", *arguments)
            assert (code, out, err.count("\n")) == (wanted, "", 1), err
            assert err.startswith("regard: ")
            assert sentence in err
    assert talk("serve")[0] == 2
