"""The routes of the server."""

import asyncio
import base64
import io
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from vision.prediction.predictor import Predictor
from vision.serving import schemas
from vision.serving.batcher import Batcher
from vision.serving.errors import OverloadedError, RequestError
from vision.serving.heat_map import GRID, cover_patches, heat_map
from vision.serving.metrics import Metrics, MetricsMiddleware
from vision.serving.served_model import ServedModel
from vision.serving.uploads import ImageFile, UploadLimits, Uploads

_FOLDER = Path(__file__).parent
_PATHS = frozenset({"/", "/predict", "/heat_map", "/health", "/metrics", "/docs", "/openapi.json"})
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src blob: data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}
"""Neither page may load anything from another address."""


def create_application(served: ServedModel, metrics: Metrics, limits: UploadLimits | None = None) -> FastAPI:
    """Make the ASGI application that serves a model."""
    service = _Service(served, metrics, Uploads(limits or UploadLimits()))
    app = FastAPI(title="Image classification", docs_url=None, redoc_url=None, lifespan=service.lifespan)
    app.add_middleware(MetricsMiddleware, metrics=metrics, paths=_PATHS)
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_exception)

    files = schemas.describe_upload("one or several image files; any field name will do")
    file = schemas.describe_upload("one image file; any field name will do")
    add, errors = app.add_api_route, schemas.ERRORS
    predictions, heat_map = schemas.Predictions, schemas.HeatMap
    post = ["POST"]
    add("/", service.page, response_class=HTMLResponse)
    add("/predict", service.predict, methods=post, response_model=predictions, responses=errors, openapi_extra=files)
    add("/heat_map", service.heat_map, methods=post, response_model=heat_map, responses=errors, openapi_extra=file)
    add("/health", service.health, response_model=schemas.Health)
    add("/metrics", service.export_metrics, response_class=Response)
    add("/docs", service.docs, include_in_schema=False)
    return app


class _Service:
    """The endpoints, and what they share."""

    def __init__(self, served: ServedModel, metrics: Metrics, uploads: Uploads) -> None:
        self.served = served
        self.metrics = metrics
        self.uploads = uploads
        self.page_html, self.docs_html = (
            (_FOLDER / name).read_text(encoding="utf-8").replace("MAX_BYTES", str(uploads.limits.bytes_per_request))
            for name in ("page.html", "docs.html")
        )

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Start and stop the threads."""
        # Decoding releases the GIL, so that photos are decoded on all cores while the event loop goes on.
        with ThreadPoolExecutor(os.cpu_count(), "decode") as self.decoding:
            async with Batcher(self.metrics.batch_size.observe) as self.batcher:
                self.served.start_polling()
                yield
                self.served.stop_polling()

    async def page(self) -> Response:
        """Show the page on which people classify images."""
        return HTMLResponse(self.page_html, headers=_PAGE_HEADERS)

    async def docs(self) -> Response:
        """Show this description."""
        return HTMLResponse(self.docs_html, headers=_PAGE_HEADERS)

    async def predict(self, request: Request) -> Response:
        """Classify one or several image files: a form with files, or one file as the body.

        A file that is no image has an entry with `error`, and the other files are classified all the same. If no file
        is an image, the status is 400.
        """
        predictor = self.served.predictor
        async with self.uploads.read(request) as files:
            with self.batcher.reserve(len(files)) as reservation:
                decoded = await self._decode(predictor, files)
                images = [pixels for pixels in decoded if not isinstance(pixels, str)]
                rows = iter((await reservation.predict(predictor, images)).tolist())
        entries = [
            {"file": file.name, "error": pixels}
            if isinstance(pixels, str)
            else {"file": file.name, **_describe(predictor, next(rows))}
            for file, pixels in zip(files, decoded, strict=True)
        ]
        return JSONResponse({"model": _model(predictor), "predictions": entries})

    async def heat_map(self, request: Request) -> Response:
        """Compute where the network looked to find the class of one image."""
        predictor = self.served.predictor
        async with self.uploads.read(request) as files:
            if len(files) > 1:
                raise RequestError(400, "A heat map is of one image; send one file.")
            with self.batcher.reserve(1 + GRID**2) as reservation:
                (pixels,) = await self._decode(predictor, files)
                assert not isinstance(pixels, str)  # a lone file that cannot be decoded has raised
                rows = await reservation.predict(predictor, [pixels, *cover_patches(pixels)])
        best = int(rows[0].argmax())
        heat = heat_map(rows[0, best], rows[1:, best])
        return JSONResponse(
            {
                "model": _model(predictor),
                "class": predictor.classes[best],
                "heat_map": heat.round(4).tolist(),
                "pixels": _data_uri(pixels),
            }
        )

    async def health(self) -> Response:
        """Say that the server works, and which model it serves."""
        predictor = self.served.predictor
        return JSONResponse(
            {
                "status": "ok",
                "model": _model(predictor),
                "classes": list(predictor.classes),
                "model_error": self.served.error,
            }
        )

    async def export_metrics(self) -> Response:
        """Report requests, times, batch sizes and the model, for Prometheus."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _decode(self, predictor: Predictor, files: Sequence[ImageFile]) -> list[np.ndarray | str]:
        """Decode files: uint8 [H, W, 3] each, or why a file cannot be decoded.

        Raises:
            RequestError: none can be decoded.
        """
        loop = asyncio.get_running_loop()
        tasks = [loop.run_in_executor(self.decoding, _read_pixels, predictor, file.content) for file in files]
        decoded = await asyncio.gather(*tasks)
        errors = [pixels for pixels in decoded if isinstance(pixels, str)]
        self.metrics.images.labels("error").inc(len(errors))
        self.metrics.images.labels("ok").inc(len(files) - len(errors))
        if len(errors) == len(files):
            which = "The image" if len(files) == 1 else f"None of the {len(files)} images"
            verb = "cannot" if len(files) == 1 else "can"
            raise RequestError(400, f"{which} {verb} be decoded: {errors[0].rstrip('.')}.")
        return decoded


def _read_pixels(predictor: Predictor, content: bytes) -> np.ndarray | str:
    try:
        return predictor.read_pixels(content)
    except ValueError as error:
        return str(error)


def _describe(predictor: Predictor, probabilities: Sequence[float]) -> dict[str, Any]:
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    return {
        "class": predictor.classes[best],
        "probability": probabilities[best],
        "unknown": predictor.is_unknown(probabilities[best]),
        "probabilities": dict(zip(predictor.classes, probabilities, strict=True)),
    }


def _model(predictor: Predictor) -> dict[str, str]:
    return {"name": predictor.source.name, "version": predictor.source.version}


def _data_uri(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


async def _on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"Retry-After": "1"} if isinstance(error, OverloadedError) else None
    return JSONResponse({"error": error.message}, error.status, headers)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(
        {"error": f"{request.method} {request.url.path}: {error.detail}."}, error.status_code, error.headers
    )


async def _on_exception(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "The server failed; its log has the reason."}, 500)
