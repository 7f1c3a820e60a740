"""Open arrival on Locust: callers that take the next due instant, wait for it, and send one request.

Owns: sending and timing. Locust runs the callers and counts their requests; a latency is
counted from the instant the request was due, not from its sending, so a server that stalls is charged with every
request that it held up. Does not own: the instants (`arrivals.py`),
what counts as an answer (`answers.py`), what happens beside the load (`run.py`).
Locust patches the standard library: only a process that gevent patched first may import this module.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import gevent
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError
from locust import User, task
from locust.env import Environment
from locust.exception import StopUser

from loadtests.answers import BadAnswer, prediction_ids
from loadtests.arrivals import Phase, due
from loadtests.levels import Sample
from loadtests.target import SEED, Target
from throughline.foundation.errors import ThroughlineError

TIMEOUT_S = 30.0
AFTER_S = 40.0  # what is under way at the end may still be answered
# libev rounds sleeps up to whole milliseconds; the last one is spent yielding, so that requests leave when due
_EARLY_S = 0.001


@dataclass
class Course:
    """The requests of one run: what is due next, and what became of it."""

    target: Target
    due: Iterator[tuple[float, int]]
    bodies: dict[int, Iterator[bytes]]
    start: float = 0.0
    samples: list[Sample] = field(default_factory=list)


def load(
    target: Target,
    phases: Sequence[Phase],
    rows: Sequence[int],
    clients: int,
    beside: Sequence[Callable[[], None]] = (),
    progress: Callable[[Sequence[Sample]], None] | None = None,
) -> list[Sample]:
    """Run the load and return its requests in the order in which they ended.

    `beside`: functions that run in greenlets during the load and are ended after it. Raises `ThroughlineError` when
    Locust counted other requests or failures than were sampled.
    """
    turns = _turns(phases, rows)
    course = Course(target, turns, {count: target.bodies(count) for count in rows})
    environment = Environment(user_classes=[type("Caller", (_Caller,), {"course": course})], catch_exceptions=False)
    runner = environment.create_local_runner()
    course.start = time.perf_counter() + 0.2  # until all callers are there
    runner.start(clients, spawn_rate=clients)
    if runner.spawning_greenlet:
        runner.spawning_greenlet.join()  # before it, the count of users is no sign of the end
    others = [gevent.spawn(each) for each in beside]
    deadline = course.start + sum(phase.seconds for phase in phases) + AFTER_S
    while runner.user_count and time.perf_counter() < deadline:
        gevent.sleep(0.1)
        if progress:
            progress(course.samples)
    gevent.killall(others)
    for other in others:
        if other.exception is not None:
            raise other.exception
    unanswered = runner.user_count
    runner.quit()
    total = environment.stats.total
    failures = sum(sample.failure is not None for sample in course.samples)
    if (total.num_requests, total.num_failures) != (len(course.samples), failures):
        raise ThroughlineError(
            f"Locust counted {total.num_requests} requests and {total.num_failures} failures, "
            f"sampled were {len(course.samples)} and {failures}: the figures cannot be trusted."
        )
    if unanswered:
        raise ThroughlineError(f"{unanswered} requests had no answer after {AFTER_S:g} s: see the log of the server.")
    return course.samples


def _turns(phases: Sequence[Phase], rows: Sequence[int]) -> Iterator[tuple[float, int]]:
    for number, instant in enumerate(due(phases, SEED)):
        yield instant, rows[number % len(rows)]


class _Caller(User):
    """One connection. Callers take due instants in their order; with all of them busy the next one waits."""

    abstract = True
    course: Course

    def on_start(self) -> None:
        target = self.course.target
        self._http = HTTPClient(
            target.host, target.port, connection_timeout=TIMEOUT_S, network_timeout=TIMEOUT_S, concurrency=1
        )
        self._headers = target.headers

    def on_stop(self) -> None:
        self._http.close()

    @task
    def send(self) -> None:
        instant, rows = next(self.course.due, (None, 0))
        if instant is None:
            raise StopUser
        body, at = next(self.course.bodies[rows]), self.course.start + instant
        _wait_until(at)
        sent, failure, ids, length = time.perf_counter(), None, (), 0
        try:
            answer = self._http.post(self.course.target.path, body=body, headers=self._headers)
            content = answer.read()
            length = len(content)
            ids = prediction_ids(answer.status_code, content, rows)
        except (BadAnswer, OSError, HTTPParseError) as error:  # what geventhttpclient raises for a broken connection
            failure = error
        ended = time.perf_counter()
        latency = (ended - at) * 1000
        text = None if failure is None else " ".join(str(failure).split())[:120] or type(failure).__name__
        self.course.samples.append(Sample(instant, rows, latency, (sent - at) * 1000, text, ids))
        self.environment.events.request.fire(
            request_type="POST", name=f"{rows} rows", response_time=latency, response_length=length,
            exception=failure, context={},
        )  # fmt: skip


def _wait_until(at: float) -> None:
    early = at - time.perf_counter() - _EARLY_S
    if early > 0:
        gevent.sleep(early)
    while time.perf_counter() < at:
        gevent.sleep(0)
