"""Clients that open more connections than a server may have files, and clients that send what is no HTTP."""

import re
import resource
import socket
import subprocess
import sys
import time
from collections import Counter

import pytest

FILES = 256  # that the server may have open
REQUEST = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def status(port: int) -> int:
    """The status of /health."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(REQUEST)
        return int(sock.recv(20).split()[1])


@pytest.mark.slow
def test_a_server_without_files_to_spare_answers_and_prints_nothing() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most < 3 * FILES:
        pytest.skip("this process may not open enough connections")
    command = [sys.executable, "-m", "regard", "serve", "fr-en", "--port", "0", "--threads", "1"]
    limited = ["sh", "-c", f'ulimit -n {FILES} && exec "$@"', "sh", *command]
    with subprocess.Popen(limited, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            found = re.search(r":(\d+)\s*$", server.stderr.readline())
            assert found
            port = int(found[1])
            idle = []
            for _ in range(FILES + 150):
                idle.append(sock := socket.socket())
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", port))
            time.sleep(1)
            answers = Counter(status(port) for _ in range(20))
            for sock in idle:
                sock.close()
            for _ in range(100):
                with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
                    sock.sendall(b"this is no HTTP\r\n\r\n")
                    assert b" 400 " in sock.recv(20)
            after = status(port)
        finally:
            server.terminate()
            code = server.wait(60)
            printed = server.stderr.read() if server.stderr else ""
    print(f"connections: {FILES + 150} at once with {FILES} files, 100 without HTTP: {dict(answers)}, then {after}")
    assert set(answers) <= {200, 503}
    assert (after, code, printed) == (200, 0, "")
