"""The server process: KServe's ModelServer over our repository, on the address of the settings.

Owns: assembling the parts, start and stop. KServe's own listeners bind all interfaces and log each gRPC call and the
timing of each request; so both listeners are started here, with KServe's endpoints on them.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Mapping

import grpc
import uvicorn
from fastapi import FastAPI, Request, Response
from kserve.model_server import ModelServer
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.rest.v1_endpoints import register_v1_endpoints
from kserve.protocol.rest.v2_endpoints import register_v2_endpoints
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from serving import middleware
from serving.metrics import Metrics
from serving.repository import OpenReader, Repository, RevisionDataPlane, RevisionLoader
from serving.routes import ModelRoutes
from serving.workers import PEER_HEADER, Peers, Worker, end_with_parent, run_workers
from throughline.events.outbox import Outbox
from throughline.events.shipping_process import ShippingProcess
from throughline.foundation.connections import HalfClosable
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.guard import Guard
from throughline.foundation.security.tokens import BearerToken, demanded_token
from throughline.foundation.settings import Settings
from throughline.usecase import UseCase

GRACE_S = 10


def run(settings: Settings, usecases: Mapping[str, UseCase], open_reader: OpenReader, arguments: list[str]) -> None:
    """Serve until SIGTERM or SIGINT, with as many worker processes as set. `arguments`: of this process's command."""
    worker = Worker.of_arguments(arguments)
    if worker is None:
        for service in ("model_http", "model_grpc"):
            _require_free(settings.bind, settings.port(service), service)
    if worker is None and settings.model_workers > 1:
        family = socket.AF_INET6 if ":" in settings.bind else socket.AF_INET
        with socket.create_server((settings.bind, settings.port("model_http")), family=family) as listening:
            run_workers(settings, listening)
    else:
        Server(settings, usecases, open_reader, worker).start()


class Server(ModelServer):
    """One home's model server, or one of its workers; `start` returns after SIGTERM or SIGINT, when all requests are
    answered."""

    def __init__(
        self,
        settings: Settings,
        usecases: Mapping[str, UseCase],
        open_reader: OpenReader,
        worker: Worker | None = None,
    ) -> None:
        self.outbox = Outbox(settings.outboxes / str(worker.number if worker else 0))
        self.metrics = Metrics(self.outbox)
        self.repository = Repository(settings, usecases, open_reader, self.outbox.publish, self.metrics)
        super().__init__(
            http_port=settings.port("model_http"),
            grpc_port=settings.port("model_grpc"),
            workers=1,
            registered_models=self.repository,
            enable_latency_logging=False,
            grace_period=GRACE_S,
        )
        logging.getLogger("kserve").setLevel(logging.WARNING)
        self._settings = settings
        self._worker = worker
        self._sockets: list[socket.socket] = []
        self._peers: Peers | None = None
        if worker is not None:
            own = socket.create_server(("127.0.0.1", 0))
            self._sockets = [worker.listening, own]
            self._peers = Peers(settings, worker.number, own.getsockname()[1])
        self.dataplane = RevisionDataPlane(self.repository)
        self.model_repository_extension = RevisionLoader(self.repository, self._peers)

    def start(self, models: object = None) -> None:
        """Load what was deployed, serve until SIGTERM or SIGINT, then send the events that are left."""
        if self._worker:
            end_with_parent()
        self.repository.load_models()
        # What was imported and loaded stays: else a full collection looks at all of it, for a tenth of a second.
        gc.collect()
        gc.freeze()
        config = uvicorn.Config(
            self.create_app(),
            host=self._settings.bind,
            port=self.http_port,
            log_config=None,
            access_log=False,
            http=HalfClosable,
            timeout_graceful_shutdown=GRACE_S,
            timeout_keep_alive=self.timeout_keep_alive,
        )
        self._grpc_server = _GrpcListener(self, demanded_token(self._settings), shared=self._worker is not None)
        self.servers = [
            uvicorn.Server(config).serve(self._sockets or None),
            self._grpc_server.serve(self._settings.bind, self.grpc_port),
        ]
        self.register_signal_handler()
        shipping = None if self._worker else ShippingProcess(self._settings)
        try:
            with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
                runner.run(self._serve())
        finally:
            self.repository.close()
            if shipping is not None:
                shipping.close()
            self.outbox.close()

    def create_app(self) -> ASGIApp:
        """KServe's REST endpoints and ours, behind our middleware."""
        app = FastAPI(title="Throughline model server", docs_url=None, redoc_url=None)
        app.add_api_route("/", self.dataplane.live, methods=["GET"])
        app.add_api_route("/metrics", self._metrics, methods=["GET"])
        app.add_api_route("/v1/throughline/revisions", self.repository.served, methods=["GET"])
        app.add_api_route("/v1/throughline/refusals", self.repository.refusals, methods=["GET"])
        register_v1_endpoints(app, self.dataplane, self.model_repository_extension)
        register_v2_endpoints(app, self.dataplane, self.model_repository_extension)
        middleware.install(app)
        app.add_middleware(middleware.BodyMiddleware)
        routes = ModelRoutes(app, self.repository, self.metrics)
        guarded = BearerToken(routes, demanded_token(self._settings), middleware.is_open)
        return Guard(guarded, self._settings, "model server", self._settings.bind, self.http_port)

    async def _metrics(self, request: Request) -> Response:
        content = self.metrics.render()
        if self._peers is not None and PEER_HEADER not in request.headers:
            content = await run_in_threadpool(self._peers.metrics, content)
        return Response(content, media_type="text/plain; version=0.0.4")


class _GrpcListener:
    def __init__(self, server: Server, token: str | None, shared: bool) -> None:
        """shared: other workers listen on the same port."""
        self._owner = server
        self._shared = shared
        self._token = token
        self._server: grpc.aio.Server | None = None

    async def serve(self, host: str, port: int) -> None:
        self._server = grpc.aio.server(
            interceptors=[middleware.GrpcInterceptor(self._token)],
            # Without it a second server on the same port would silently take half of the calls.
            options=[
                ("grpc.so_reuseport", int(self._shared)),
                ("grpc.max_receive_message_length", middleware.MAX_BODY),
            ],
        )
        grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            InferenceServicer(self._owner.dataplane, self._owner.model_repository_extension), self._server
        )
        self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        await self._server.start()
        await self._server.wait_for_termination()

    async def stop(self, sig: int | None = None) -> None:
        if self._server is not None:
            await self._server.stop(grace=GRACE_S)


def _require_free(host: str, port: int, service: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ThroughlineError(
                f"Port {port} on {host} ({service}) cannot be used ({error.strerror}): "
                "stop what listens there, or set THROUGHLINE_PORT_BASE."
            ) from error
