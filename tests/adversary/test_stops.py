"""Signals: a server finishes what it took, other commands end with the code of the signal; nothing else is printed."""

import http.client
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

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


SMALL = ("model.width=16", "model.embedding=16", "model.score_width=16", "training.max_steps=3000")
VERBS = {
    "train": ["train", "first", "--folder", "run", *(word for one in SMALL for word in ("--set", one))],
    "tune": [
        "tune", "first", "--folder", "trials", "--range", "training.learning_rate=1e-4..1e-2,log", "--minutes", "2",
        "--trial-minutes", "0.05", "--set", "model.width=16",
    ],
    "translate": ["translate", "--model", "fr-en-fast", "--output", "out.txt"],
    "evaluate": ["evaluate", "fr-en-fast", "--source", "in.txt", "--reference", "in.txt"],
    "look": ["look", "fr-en-fast", "le chat noir", "--save", "page.html"],
    "complete": ["complete", "ROMEO:", "--length", "900"],
    "caption": ["caption", "samples/picture.png"],
    "doctor": ["doctor"],
}  # fmt: skip


@pytest.mark.slow
def test_verbs_end_with_the_code_of_a_signal_at_any_moment(tmp_path: Path) -> None:
    draw, faults = random.Random(5), []
    (tmp_path / "in.txt").write_text("Le chat noir dort sur la table de la cuisine.\n" * 1000)
    subprocess.run([sys.executable, "-m", "regard", "samples", "samples"], cwd=tmp_path, check=True, timeout=120)
    attempts = [(verb, number) for verb in VERBS for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] * 3
    late = 0
    for verb, number in attempts:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        command = [sys.executable, "-m", "regard", *VERBS[verb]]
        piped = subprocess.PIPE
        with (
            (tmp_path / "in.txt").open() as source,
            subprocess.Popen(command, cwd=tmp_path, stdin=source, stdout=piped, stderr=piped) as one,
        ):
            moment = draw.uniform(0.5, 6)
            time.sleep(moment)
            late += one.poll() is not None
            one.send_signal(number)
            try:
                _, printed = one.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                one.kill()
                printed = b"hangs"
        # once all is done, a signal ends Python itself: a shell shows the same code
        if one.returncode not in (0, 128 + number, -number) or b"Traceback" in printed or printed == b"hangs":
            faults.append(f"{verb} {number.name} {moment:.2f}: {one.returncode} {printed[-300:]!r}")
    print(f"signals: seed 5: {len(attempts)} attempts, {late} after the end, {len(faults)} faults")
    assert not faults
