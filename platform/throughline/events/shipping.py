"""The process that sends what is in the outboxes to the collector: at least once, in batches, in order.

    python -m throughline.events.shipping ROOT URL    (headers and the time to drain come over stdin as a line of JSON)

Owns: reading segments, batches, retries, what is set aside, the status file. Does not own: writing the outboxes
(`outbox.py`), starting this process (`shipping_process.py`). It runs beside the process that answers, which ends it by
closing stdin; so it ignores signals sent to the group, and imports little (`http.client`; no settings).
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from throughline.events import spool
from throughline.events.cloudevent import BATCH, STRUCTURED
from throughline.foundation.files import try_lock
from throughline.foundation.security.home import HEADER
from throughline.journal.set_aside import SetAside

log = logging.getLogger(__name__)

BATCH_EVENTS = 500
BATCH_BYTES = 512 << 10
LINGER_S = 0.05  # gather this long: fewer requests beside the serving process
IDLE_S = 0.25
SLOWEST_RETRY_S = 5.0

# The receiver will never take these, whatever its state; anything else is tried again.
FINAL = {400, 413, 415, 422}


@dataclass(frozen=True)
class Batch:
    """Lines from a cursor on, and the cursor after them; `finished`: the segment ends there and may be removed."""

    lines: list[bytes]
    after: spool.Cursor
    finished: bool


class Unavailable(Exception):
    """The receiver does not answer, or cannot take events now."""


class Refused(Exception):
    """The receiver will never take this request."""

    def __init__(self, status: int, answer: str) -> None:
        super().__init__(f"{status}: {answer}")
        self.status = status


def read_batch(folder: Path, cursor: spool.Cursor | None) -> Batch | None:
    """The next lines of a folder. None when there is nothing to do.

    A later segment means that the writer is through with the one before; half a line at its end was never confirmed.
    """
    found = spool.segments(folder)
    if not found:
        return None
    segment = cursor.segment if cursor else found[0]
    if segment not in found:
        segment = next((later for later in found if later > segment), found[0])
        cursor = None
    path = spool.segment_path(folder, segment)
    size = path.stat().st_size
    if cursor is None or cursor.offset > size:  # shorter than it was: a power loss
        cursor = spool.Cursor(segment, 0, segment)
    lines, length = _whole_lines(path, cursor.offset, size)
    offset = cursor.offset + length
    finished = segment != found[-1] and (not lines or offset == size)
    if not lines and not finished:
        return None
    return Batch(lines, spool.Cursor(segment, offset, cursor.line + len(lines)), finished)


def _whole_lines(path: Path, offset: int, size: int) -> tuple[list[bytes], int]:
    """Lines of at most a batch (of one line, where it is longer), and their length in the file."""
    if offset == size:
        return [], 0
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read(BATCH_BYTES)
        if b"\n" not in content:
            content += file.readline()
    lines = content.split(b"\n")[:-1][:BATCH_EVENTS]
    return lines, sum(map(len, lines)) + len(lines)


class Receiver:
    """Posts lines to the collector, in batches as long as it takes them."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        address = urlsplit(url)
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(str(address.hostname), address.port, timeout=30)
        self._path = (address.path or "/") + (f"?{address.query}" if address.query else "")
        self._headers = headers
        self._batches = True

    def send(self, lines: list[bytes]) -> list[tuple[bytes, str]]:
        """Returns the lines that were refused for good, with the reason. Raises `Unavailable`; then none of the lines
        counts as sent."""
        if not lines:
            return []
        if len(lines) == 1 or self._batches:
            try:
                return self._post(lines)
            except Refused as refused:
                if len(lines) == 1:
                    return [(lines[0], str(refused))]
                if refused.status == 415:
                    self._batches = False
        # Halves, down to the line at fault; with a receiver that takes no batches, line by line.
        middle = len(lines) // 2 if self._batches else 1
        return self.send(lines[:middle]) + self.send(lines[middle:])

    def _post(self, lines: list[bytes]) -> list[tuple[bytes, str]]:
        batched = len(lines) > 1
        body = b"[" + b",".join(lines) + b"]" if batched else lines[0]
        headers = {**self._headers, "Content-Type": BATCH if batched else STRUCTURED}
        try:
            self._connection.request("POST", self._path, body, headers)
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise Unavailable(str(error) or type(error).__name__) from error
        own = self._headers.get(HEADER, "")
        if not (response.getheader(HEADER) or "").startswith(own):
            raise Unavailable("another home or program answers on its port")
        if response.status in FINAL:
            raise Refused(response.status, answer[:300].decode(errors="replace"))
        if response.status >= 300:
            raise Unavailable(f"it answered {response.status}: {answer[:200].decode(errors='replace')}")
        return _refused(answer, lines) if batched else []


def _refused(answer: bytes, lines: list[bytes]) -> list[tuple[bytes, str]]:
    """What a receiver did not take of a batch that it took: our collector names each by its position."""
    try:
        named = orjson.loads(answer or b"{}").get("refused") or []
        return [(lines[int(each["position"])], str(each["error"])) for each in named]
    except (ValueError, AttributeError, TypeError, KeyError, IndexError):  # another receiver's own answer
        return []


class Shipping:
    """Sends the outboxes under `root`; one process at a time."""

    def __init__(self, root: Path, receiver: Receiver, stopping: threading.Event) -> None:
        self._root, self._receiver, self._stopping = root, receiver, stopping
        self.status = spool.read_status(root)
        self._aside = SetAside(root)
        self._failures = 0

    def run(self, drain_s: float) -> None:
        """Send until stopping is set, then what is left for at most `drain_s`."""
        until = None
        while True:
            if until is None and self._stopping.is_set():
                until = time.monotonic() + drain_s
            try:
                sent = self.step()
            except Exception:  # the boundary of this process: whatever it is, what comes later must be sent
                log.exception("Sending events failed; trying again")
                self._failed("an error of the shipping process: see the log of the model server")
                sent = False
            if until is not None and (time.monotonic() > until or (not sent and not self.status.failure)):
                return
            if until is None:
                self._stopping.wait(LINGER_S if sent else self._retry_s() or IDLE_S)
            elif not sent:
                time.sleep(min(self._retry_s(), 0.2))

    def step(self) -> bool:
        """One batch of each folder; whether there was anything. A folder that cannot be read does not stop others."""
        anything = False
        for folder in sorted(path for path in self._root.iterdir() if path.is_dir()):
            try:
                batch = read_batch(folder, self.status.cursors.get(folder.name))
                if batch is not None:
                    self._ship(folder, batch)
                    anything = True
            except Unavailable as error:
                self._failed(f"the collector does not take events ({error})")
                return False
            except OSError as error:
                self._failed(f"{folder} cannot be read or nothing set aside ({error})")
        return anything

    def _ship(self, folder: Path, batch: Batch) -> None:
        whole, torn = [], []
        for line in batch.lines:
            if _is_event(line):
                whole.append(line)
            else:
                torn.append((line, "not a line of JSON: cut short by a full disk or a power loss"))
        refused = self._receiver.send(whole)
        self._set_aside(folder.name, torn + refused)
        self.status.sent += len(whole) - len(refused)
        self.status.cursors[folder.name] = batch.after
        self.status.failure, self._failures = None, 0
        if batch.finished:  # before the status is written: on a full disk this makes space
            spool.segment_path(folder, batch.after.segment).unlink()
        self._write_status()

    def _failed(self, what: str) -> None:
        self._failures += 1
        since = (self.status.failure or {}).get("since") or _now()
        self.status.failure = {"what": what, "since": since}
        if self._failures in (1, 10) or self._failures % 100 == 0:
            log.warning("Events wait in the outbox: %s (attempt %d).", what, self._failures)
        self._write_status()

    def _write_status(self) -> None:
        try:
            self.status.write(self._root)
        except OSError as error:
            log.warning("%s cannot be written (%s): free disk space.", self._root / spool.STATUS, error)

    def _retry_s(self) -> float:
        """Growing, with jitter; 0 while all goes well."""
        if not self._failures:
            return 0
        return min(SLOWEST_RETRY_S, 0.1 * 2 ** min(self._failures, 10)) * random.uniform(0.5, 1)

    def _set_aside(self, worker: str, lines: list[tuple[bytes, str]]) -> None:
        if lines:
            log.error("%d events can never be delivered and are set aside. The last: %s", len(lines), lines[-1][1])
            self._aside.add(lines, worker=worker)
            self.status.set_aside += len(lines)


def _is_event(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except ValueError:
        return False


def _now() -> str:
    return datetime.now(UTC).isoformat()


def main(root: Path, url: str) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    given: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    stopping = threading.Event()

    def wait_for_the_end_of_the_parent() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        stopping.set()

    threading.Thread(target=wait_for_the_end_of_the_parent, daemon=True).start()
    root.mkdir(parents=True, exist_ok=True)
    while (held := try_lock(root / "lock")) is None:  # of a server that ended just now, which drains
        if stopping.wait(0.1):
            return 0
    with held:
        Shipping(root, Receiver(url, given["headers"]), stopping).run(given["drain_s"])
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
