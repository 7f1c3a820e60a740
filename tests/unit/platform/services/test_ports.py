"""No two processes of a machine use the same ports."""

from __future__ import annotations

import socket
import subprocess
import sys

from throughline.services import ports

TAKE = "from throughline.services.ports import take_ports; print(take_ports(9), flush=True); input()"


def test_processes_that_choose_at_the_same_moment_never_choose_the_same() -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", TAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    bases = [int(process.stdout.readline()) for process in started]
    for process in started:
        process.communicate("\n")
    taken = [port for base in bases for port in range(base, base + 9)]
    assert len(set(taken)) == len(taken)


def test_a_process_never_gets_the_same_ports_twice() -> None:
    bases = [ports.take_ports(9) for _ in range(12)]
    taken = [port for base in bases for port in range(base, base + 9)]
    assert len(set(taken)) == len(taken)
    assert all(ports.FIRST <= port < ports.LAST for port in taken)


def test_a_port_that_somebody_listens_on_is_not_given() -> None:
    base = ports.take_ports(1)
    with socket.create_server(("127.0.0.1", base + 1)):
        found = ports.take_ports(3)
    assert base + 1 not in range(found, found + 3)
