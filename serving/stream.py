"""Predictions for messages: requests from a Redis Stream, replies by correlation id, dead letters with their reason.

    python -m serving.stream [USECASE]

Owns: the streams of a use case, acknowledgement, retries. Does not own: the prediction: the model server answers each
message like any other request, so that routing, log and metrics are the same.

`throughline:USECASE:requests` has messages with `body` (one instance as JSON, or an object with `instances`) and,
optionally, `correlation_id` and `reply_to` (a stream whose name begins with `throughline:`). The reply, in that stream
or `throughline:USECASE:replies`, has the same `correlation_id` and the answer of REST V1 as `body`. What cannot ever be
answered goes to `throughline:USECASE:dead` with its reason. A message is acknowledged together with its reply or dead
letter; one that another consumer left is taken over. Its prediction ids follow from its own id: a message that is
answered twice is logged once.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import httpx
import tenacity

from throughline.featurestore.online_format import connect_redis
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.calls import client_of
from throughline.foundation.settings import Settings, load_settings
from throughline.usecase import UseCase, get_usecase, load_usecases

if TYPE_CHECKING:
    from redis import Redis

log = logging.getLogger(__name__)

GROUP = "throughline"
PREFIX = "throughline:"
AT_ONCE = 100
BLOCK_MS = 500
IDLE_MS = 30_000  # after this, a message that was delivered and not acknowledged is taken over
DELIVERIES = 10  # so often a message is tried before it is a dead letter
KEPT = 1_000_000  # replies and dead letters in a stream, about
_NAMESPACE = uuid.UUID("6f1a1d9e-5d5b-5d0e-9a53-3a8a3c3f0f4b")

Message = tuple[bytes, dict[bytes, bytes]]


class Unanswered(ThroughlineError):
    """The model server cannot answer now: the message stays pending."""


class StreamConsumer:
    """One consumer of a use case's group; several may run, on any machine."""

    def __init__(self, settings: Settings, usecase: UseCase, redis: Redis, idle_ms: int = IDLE_MS) -> None:
        self._usecase = usecase
        self._redis: Any = redis  # its annotations are those of the client for asyncio, too
        self._idle_ms = idle_ms
        self._name = f"{socket.gethostname()}-{os.getpid()}"
        self._server = client_of(settings, "model_http")
        self.requests, self.replies, self.dead = (
            f"{PREFIX}{usecase.name}:{kind}" for kind in ("requests", "replies", "dead")
        )
        self.stopping = threading.Event()

    def run(self) -> None:
        """Answer messages until `stopping` is set. While Redis or the model server is away, nothing is lost."""
        retry = tenacity.Retrying(
            wait=tenacity.wait_exponential_jitter(initial=0.1, max=5),
            retry=tenacity.retry_if_exception_type((Unanswered, OSError, _redis_errors())),
            stop=tenacity.stop_when_event_set(self.stopping),
            sleep=tenacity.sleep_using_event(self.stopping),
            before_sleep=_report,
        )
        while not self.stopping.is_set():
            try:
                retry(self.step)
            except tenacity.RetryError:
                return

    def step(self) -> int:
        """Answer what is there, or wait half a second for it; returns how many messages were settled.

        Raises `Unanswered` when the model server does not answer; what is left stays pending.
        """
        self._join()
        _, left, _ = self._redis.xautoclaim(self.requests, GROUP, self._name, self._idle_ms, count=AT_ONCE)
        self._settle(left, again=True)
        fresh = self._redis.xreadgroup(GROUP, self._name, {self.requests: ">"}, count=AT_ONCE, block=BLOCK_MS)
        messages = [message for _, found in fresh or [] for message in found]
        self._settle(messages, again=False)
        return len(left) + len(messages)

    def _join(self) -> None:
        from redis.exceptions import ResponseError  # postpones redis

        try:
            self._redis.xgroup_create(self.requests, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def _settle(self, messages: Iterable[Message], again: bool) -> None:
        for number, fields in messages:
            if again and (tried := self._deliveries(number)) > DELIVERIES:
                self._bury(number, fields, f"it was delivered {tried} times and never answered")
                continue
            try:
                target = self._reply_to(fields)
                answer = self._predict(number, _instances(fields))
            except ValueError as error:
                self._bury(number, fields, str(error))
                continue
            reply = {"correlation_id": fields.get(b"correlation_id", number), "body": answer}
            self._finish(number, target, reply)

    def _predict(self, number: bytes, instances: list[Any]) -> bytes:
        """The body of the answer. Raises `ValueError` with the reason of a refusal."""
        request_id = uuid.uuid5(_NAMESPACE, f"{self.requests}/{number.decode()}")
        try:
            answer = self._server.post(
                f"/v1/models/{self._usecase.name}:predict",
                json={"instances": instances},
                headers={"X-Throughline-Request-Id": str(request_id)},
            )
        except (httpx.HTTPError, ThroughlineError) as error:
            raise Unanswered(f"the model server does not answer ({error})") from error
        if answer.is_success:
            return answer.content
        reason = answer.text[:500]
        if answer.status_code in (400, 404, 413, 422):
            raise ValueError(reason)
        raise Unanswered(f"the model server answers {answer.status_code}: {reason}")

    def _reply_to(self, fields: dict[bytes, bytes]) -> str:
        named = fields.get(b"reply_to", self.replies.encode()).decode("utf-8", "replace")
        if not named.startswith(PREFIX) or named == self.requests:
            raise ValueError(f"reply_to: {ascii(named)[:80]} is no stream for replies: begin its name with {PREFIX}")
        return named

    def _deliveries(self, number: bytes) -> int:
        found = self._redis.xpending_range(self.requests, GROUP, number, number, 1)
        return found[0]["times_delivered"] if found else 0

    def _bury(self, number: bytes, fields: dict[bytes, bytes], reason: str) -> None:
        log.error("Message %s of %s is a dead letter: %s", number.decode(), self.requests, reason)
        self._finish(number, self.dead, {**fields, b"message": number, b"reason": reason.encode("utf-8", "replace")})

    def _finish(self, number: bytes, target: str, fields: dict[Any, Any]) -> None:
        """Reply and acknowledge in one transaction: neither is there without the other."""
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.xadd(target, fields, maxlen=KEPT, approximate=True)
            pipe.xack(self.requests, GROUP, number)
            pipe.execute()


def _instances(fields: dict[bytes, bytes]) -> list[Any]:
    """The instances of a message. Raises `ValueError`."""
    try:
        body = json.loads(fields[b"body"])
    except KeyError:
        raise ValueError("body: is missing") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"body: is not JSON ({str(error)[:120]})") from None
    if isinstance(body, dict) and "instances" not in body:
        return [body]
    if isinstance(body, dict) and isinstance(body["instances"], list):
        return body["instances"]
    raise ValueError('body: must be one instance or {"instances": [...]}')


def _redis_errors() -> type[Exception]:
    from redis.exceptions import RedisError  # postpones redis

    return RedisError


def _report(state: tenacity.RetryCallState) -> None:
    if state.attempt_number in (1, 10) or state.attempt_number % 100 == 0:
        log.warning("Messages wait: %s", state.outcome.exception() if state.outcome else None)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = load_settings()
        if settings.online_store is None:
            raise ThroughlineError("Messages come from Redis: set THROUGHLINE_ONLINE_STORE to its URL.")
        usecase = get_usecase(sys.argv[1]) if len(sys.argv) > 1 else next(iter(load_usecases().values()))
        consumer = StreamConsumer(settings, usecase, connect_redis(settings.online_store.get_secret_value()))
    except ThroughlineError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: consumer.stopping.set())
    log.info("%s answers messages of %s", usecase.name, consumer.requests)
    consumer.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
