"""What the server measures of itself, in the format of Prometheus."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vision.prediction.predictor import Predictor

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        """Start at 0."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "http_requests", "Requests by path and status", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "http_request_seconds", "Time of a request", ["path"], registry=self.registry, buckets=SECONDS
        )
        self.images = Counter("images", "Images by result: ok or error", ["result"], registry=self.registry)
        self.batch_size = Histogram(
            "batch_size", "Images that the network gets at once", registry=self.registry, buckets=SIZES
        )
        self.model = Gauge("model_info", "1 for the model that is served", ["name", "version"], registry=self.registry)

    def set_model(self, predictor: Predictor) -> None:
        """Report this model from now on."""
        self.model.clear()
        self.model.labels(predictor.source.name, predictor.source.version).set(1)


class MetricsMiddleware:
    """Counts and times the requests of an application."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        """Report `paths` by name, and all other paths, which clients invent, as `other`."""
        self.app = app
        self.metrics = metrics
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = scope["path"] if scope["path"] in self.paths else "other"
        try:
            await self.app(scope, receive, observe)
        finally:
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)
