"""The shipping process as its parent sees it: started, watched, started again when it died, closed.

Owns: the child process. Does not own: what it does (`shipping.py`).
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time

from throughline.events import spool
from throughline.foundation.security.calls import headers_of
from throughline.foundation.settings import Settings

log = logging.getLogger(__name__)

DRAIN_S = 5.0
SLOWEST_RESTART_S = 30.0


class ShippingProcess:
    """One per home. It ends by itself, after a drain of `drain_s`, when the process that started it ends."""

    def __init__(self, settings: Settings, drain_s: float = DRAIN_S) -> None:
        self.root = settings.outboxes
        self._command = [sys.executable, "-m", "throughline.events.shipping"]
        self._command += [str(self.root), settings.url("collector")]
        # over stdin: arguments of a process can be read by every user
        self._given = json.dumps({"headers": headers_of(settings, "collector"), "drain_s": drain_s}).encode() + b"\n"
        self._drain_s = drain_s
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process = self._start()
        self._watcher = threading.Thread(target=self._watch, name="shipping-watcher", daemon=True)
        self._watcher.start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> spool.ShippingStatus:
        return spool.read_status(self.root)

    def close(self) -> None:
        """Have what is left sent for at most the time to drain; the rest stays in the outbox for the next start."""
        self._stopping.set()
        with self._lock:
            process = self._process
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(self._drain_s + 2)
        except subprocess.TimeoutExpired:  # what it has not confirmed is sent again
            process.kill()
            process.wait()
        self._watcher.join(timeout=5)

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(self._given)
        process.stdin.flush()
        return process

    def _watch(self) -> None:
        pause = 0.1
        while True:
            started = time.monotonic()
            status = self._process.wait()
            if time.monotonic() > started + SLOWEST_RESTART_S:
                pause = 0.1
            if self._stopping.is_set():
                return
            log.error("The shipping process ended (exit status %d); events wait. It is started again.", status)
            if self._stopping.wait(pause):
                return
            pause = min(2 * pause, SLOWEST_RESTART_S)
            with self._lock:
                if self._stopping.is_set():
                    return
                try:
                    self._process = self._start()
                except OSError as error:
                    log.error("The shipping process cannot be started (%s); trying again.", error)
