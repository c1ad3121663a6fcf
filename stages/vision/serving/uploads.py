"""Uploads: the image files in the body of a request, within limits.

A body is counted while it arrives, so an upload without Content-Length cannot fill the memory either.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from vision.serving.errors import OverloadedError, RequestError

RAW_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""Content types, besides `image/...`, of a body that is one file; the last is what `curl --data-binary` sends."""
DRAIN_FACTOR = 5
"""The rest of a body that is too large is read and dropped up to so many times the limit.

A client that is still sending when the server closes the connection would report the closed connection, not the answer.
"""


@dataclass(frozen=True)
class UploadLimits:
    """Limits of uploads.

    Attributes:
        bytes_per_request: of the body of one request.
        bytes_in_total: of the bodies of all requests that are not yet answered.
        files: in one request.
        seconds: in which the body of a request has to arrive.
    """

    bytes_per_request: int = 20_000_000
    bytes_in_total: int = 400_000_000
    files: int = 64
    seconds: float = 60


@dataclass(frozen=True)
class ImageFile:
    """An uploaded file: its name, empty for a raw body, and its content."""

    name: str
    content: bytes


class Uploads:
    """Reads the files of requests and counts the bytes that they hold."""

    def __init__(self, limits: UploadLimits) -> None:
        """Read within `limits`."""
        self.limits = limits
        self._bytes = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[list[ImageFile]]:
        """Read the files of a request, at least one; their bytes are counted until the block ends.

        Raises:
            RequestError: the body is too large or too slow, has too many files, none, or another content type.
            OverloadedError: all requests together hold too many bytes.
        """
        body = _Body(self, request)
        try:
            try:
                async with asyncio.timeout(self.limits.seconds):
                    files = await self._read_files(request, body)
            except TimeoutError:
                raise RequestError(408, f"The upload took more than {self.limits.seconds:g} s.") from None
            except ClientDisconnect:
                raise RequestError(400, "The upload is incomplete.") from None
            yield files
        finally:
            self._bytes -= body.num_bytes

    async def _read_files(self, request: Request, body: "_Body") -> list[ImageFile]:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type == "multipart/form-data":
            return await self._read_form(request.headers, body)
        if content_type not in RAW_TYPES and not content_type.startswith("image/"):
            raise RequestError(
                415, f"The content type {content_type[:99]!r} is not supported; send a form with files, or one image."
            )
        content = b"".join([chunk async for chunk in body.stream()])
        if not content:
            raise RequestError(400, "The body is empty; send an image file.")
        return [ImageFile("", content)]

    async def _read_form(self, headers: Headers, body: "_Body") -> list[ImageFile]:
        parser = MultiPartParser(headers, body.stream(), max_files=self.limits.files, max_fields=self.limits.files)
        parser.spool_max_size = self.limits.bytes_per_request + 1  # never write to disk
        try:
            form = await parser.parse()
        except MultiPartException as error:
            if error.message.startswith("Too many files"):
                raise RequestError(413, f"More than {self.limits.files} files; send fewer per request.") from None
            raise RequestError(400, f"The form cannot be read: {error.message}") from None
        files = [field for _, field in form.multi_items() if isinstance(field, UploadFile)]
        found = [ImageFile(file.filename or "", await file.read()) for file in files]
        await form.close()
        if not found:
            raise RequestError(400, "The form has no file; with curl, write -F image=@cat.jpg, with the @.")
        return found


class _Body:
    """The body of a request, counted while it arrives."""

    def __init__(self, uploads: Uploads, request: Request) -> None:
        self.num_bytes = 0
        self._uploads = uploads
        self._request = request

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the parts of the body as they arrive."""
        limits = self._uploads.limits
        length = self._request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limits.bytes_per_request:
            await self._refuse()
        async for chunk in self._request.stream():
            self.num_bytes += len(chunk)
            self._uploads._bytes += len(chunk)
            if self.num_bytes > limits.bytes_per_request:
                await self._refuse()
            if self._uploads._bytes > limits.bytes_in_total:
                raise OverloadedError
            if chunk:
                yield chunk

    async def _refuse(self) -> None:
        limit = self._uploads.limits.bytes_per_request
        dropped = 0
        if "expect" not in self._request.headers:  # such a client waits for an answer before it sends the body
            async for chunk in self._request.stream():
                dropped += len(chunk)
                if dropped > DRAIN_FACTOR * limit:
                    break
        raise RequestError(413, f"The upload is larger than {limit / 1e6:g} MB.")
