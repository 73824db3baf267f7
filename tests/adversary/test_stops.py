"""Signals that a server receives while it answers: what it took is finished, and nothing is printed."""

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

TEXT = " ".join(["Le chat noir dort sur la table de la cuisine."] * 12)


def stopped(*signals: signal.Signals) -> tuple[int, str, list[int]]:
    """Exit code, standard error and the statuses of four requests of a server that gets the signals meanwhile."""
    command = [sys.executable, "-m", "regard", "serve", "fr-en", "--port", "0"]
    statuses: list[int] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            port = int(re.search(r":(\d+)\s*$", server.stderr.readline())[1])

            def ask(stream: bool) -> None:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                body = json.dumps({"texts": [TEXT], "stream": stream})
                try:
                    connection.request("POST", "/v1/translate", body, {"Content-Type": "application/json"})
                    with connection.getresponse() as answer:
                        whole = b"event: result" in answer.read() or not stream
                        statuses.append(answer.status if whole else 0)
                except (OSError, http.client.HTTPException):
                    statuses.append(0)
                finally:
                    connection.close()

            clients = [threading.Thread(target=ask, args=(n % 2 == 0,)) for n in range(4)]
            for client in clients:
                client.start()
            time.sleep(0.6)
            for number in signals:
                server.send_signal(number)
                time.sleep(0.05)
            code = server.wait(60)
            for client in clients:
                client.join(60)
            return code, server.stderr.read(), statuses
        finally:
            server.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    "signals",
    [["SIGTERM", "SIGTERM"], ["SIGINT", "SIGTERM"], ["SIGHUP"], ["SIGHUP", "SIGTERM"], ["SIGTERM", "SIGHUP"]],
    ids="-".join,
)
def test_a_server_finishes_what_it_took(signals: list[str]) -> None:
    assert stopped(*(signal.Signals[name] for name in signals)) == (0, "", [200] * 4)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["SIGINT", "SIGTERM"])
def test_a_second_interrupt_ends_a_server_quietly(first: str) -> None:
    code, printed, _ = stopped(signal.Signals[first], signal.SIGINT)
    assert (code, printed) == (130, "")
