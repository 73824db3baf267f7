"""`regard serve` under load, on loopback: sentences/s, latencies and memory, beside CTranslate2 behind the same server.

    python benchmarks/serving.py [seconds]

A load is so many clients, each of which sends the next sentence as soon as the last one is answered. The server runs in
a process of its own; the clients share its processor.
"""

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from statistics import quantiles

CONCURRENCY = (1, 8, 64)
ENGINES = (("regard", "float32"), ("regard", "int8"), ("ctranslate2", "float32"), ("ctranslate2", "int8"))
SENTENCES = [
    "Le chat noir dort sur la table.",
    "Où est la gare, s'il vous plaît ?",
    "Je ne sais pas encore ce que je vais faire demain.",
    "Elle a acheté une nouvelle voiture parce que la sienne était trop vieille.",
    "Merci beaucoup !",
    "Il pleut depuis trois jours.",
    "Nous aimerions réserver une table pour quatre personnes.",
    "Les enfants jouent dans le jardin avec leur chien.",
]


@contextmanager
def server(engine: str, precision: str) -> Iterator[tuple[int, int]]:
    """A server as a process: its port and its number."""
    command = [sys.executable, "-m", "regard", "serve", "fr-en", "--port", "0", "--engine", engine]
    with subprocess.Popen([*command, "--precision", precision], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            yield int(process.stderr.readline().strip().rpartition(":")[2]), process.pid
        finally:
            process.terminate()


def client(port: int, number: int, end: float) -> list[float]:
    """The latencies of one client's requests until `end`."""
    found = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for text in cycle(SENTENCES[number % len(SENTENCES) :] + SENTENCES[: number % len(SENTENCES)]):
        start = time.perf_counter()
        if start > end:
            connection.close()
            return found
        body = json.dumps({"q": text, "source": "fr", "target": "en"})
        connection.request("POST", "/translate", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        found.append(time.perf_counter() - start)
    return found


def load(port: int, clients: int, seconds: float) -> list[float]:
    """The latencies of all requests of so many clients."""
    end = time.perf_counter() + seconds
    with ThreadPoolExecutor(clients) as pool:
        return [one for some in pool.map(lambda n: client(port, n, end), range(clients)) for one in some]


def resident(process: int) -> float:
    """MiB of a process's resident memory."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    print("| engine | precision | clients | sentences/s | p50, ms | p99, ms | RSS, MiB |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for engine, precision in ENGINES:
        with server(engine, precision) as (port, process):
            load(port, 2, 2.0)  # warm up
            for clients in CONCURRENCY:
                start = time.perf_counter()
                found = load(port, clients, seconds)
                rate = len(found) / (time.perf_counter() - start)
                cuts = quantiles(found, n=100)
                print(
                    f"| {engine} | {precision} | {clients} | {rate:.0f} | {1000 * cuts[49]:.0f} | "
                    f"{1000 * cuts[98]:.0f} | {resident(process):.0f} |", flush=True,
                )  # fmt: skip


if __name__ == "__main__":
    main()
