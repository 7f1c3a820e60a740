"""A test waits for its own server, not for another that answers on the same port."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support import servers
from throughline.services.ports import take_ports

SERVE = ["-m", "http.server", "--bind", "127.0.0.1"]


def test_a_server_of_ours_is_ready_once_it_answers(tmp_path: Path) -> None:
    port = take_ports(1)
    process = subprocess.Popen([sys.executable, *SERVE, str(port)], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        servers.wait_until_ready(process, port, lambda: servers.get_ok(url), tmp_path / "x.log")
        assert servers.get_ok(url)
    finally:
        servers.end(process)


def test_the_answer_of_another_server_on_the_port_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=other.serve_forever)
    thread.start()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        url = f"http://127.0.0.1:{other.server_port}"
        assert servers.get_ok(url)
        monkeypatch.setattr(servers, "DEADLINE_S", 1)
        with pytest.raises(pytest.fail.Exception, match=f"x did not start on port {other.server_port}"):
            servers.wait_until_ready(process, other.server_port, lambda: servers.get_ok(url), tmp_path / "x.log")
    finally:
        servers.end(process)
        other.shutdown()
        other.server_close()
        thread.join()
