import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest
from starlette.requests import Request

from vision.serving.errors import OverloadedError, RequestError
from vision.serving.uploads import ImageFile, UploadLimits, Uploads

LIMITS = UploadLimits(bytes_per_request=1000, bytes_in_total=1500, files=3, seconds=0.5)


def form(*files: tuple[str, bytes], filename: str = 'filename="a.png"') -> bytes:
    parts = [
        f'--X\r\nContent-Disposition: form-data; name="{name}"; {filename}\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in files
    ]
    return b"".join([*parts, b"--X--\r\n"])


def make_request(chunks: Iterable[bytes], content_type: str, pause: float = 0, length: str = "") -> Request:
    async def messages() -> AsyncIterator[dict[str, object]]:
        for chunk in chunks:
            await asyncio.sleep(pause)
            yield {"type": "http.request", "body": chunk, "more_body": True}
        yield {"type": "http.request", "body": b"", "more_body": False}

    raw = {"content-type": content_type, "content-length": length}.items()
    scope = {"type": "http", "method": "POST", "headers": [(name.encode(), value.encode()) for name, value in raw]}
    return Request(scope, messages().__anext__)


def read(request: Request, limits: UploadLimits = LIMITS) -> list[ImageFile]:
    async def run() -> list[ImageFile]:
        uploads = Uploads(limits)
        async with uploads.read(request) as files:
            pass
        assert uploads._bytes == 0
        return files

    return asyncio.run(run())


FORM = "multipart/form-data; boundary=X"


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_the_files_of_a_form_by_any_field_name(step: int) -> None:
    body = form(("image", b"one"), ("image", b"two"), ("other", b"\r\n--Y\r\n\0"))
    chunks = [body[start : start + step] for start in range(0, len(body), step)]
    assert read(make_request(chunks, FORM)) == [
        ImageFile("a.png", content) for content in (b"one", b"two", b"\r\n--Y\r\n\0")
    ]


@pytest.mark.parametrize("content_type", ["", "image/png", "IMAGE/X-ANY; a=b", "application/octet-stream"])
def test_a_raw_body_is_one_file(content_type: str) -> None:
    assert read(make_request([b"ab", b"", b"c"], content_type)) == [ImageFile("", b"abc")]


REFUSED = {
    "an empty body": (make_request([], ""), 400, "The body is empty"),
    "an empty form": (make_request([form()], FORM), 400, "The form has no file"),
    "a form of text": (make_request([form(("image", b"cat.jpg"), filename="a=b")], FORM), 400, "with the @"),
    "no boundary": (make_request([form(("image", b"1"))], "multipart/form-data"), 400, "Missing boundary"),
    "not a form": (make_request([b"abc"], FORM), 400, "cannot be read"),
    "half a form": (make_request([form(("image", b"1" * 99))[:90]], FORM), 400, "no file"),
    "four files": (make_request([form(*[("image", b"1")] * 4)], FORM), 413, "More than 3 files"),
    "a long form": (make_request([form(("image", b"1" * 2000))], FORM), 413, "larger than 0.001 MB"),
    "a long stream": (make_request([b"1" * 100] * 11, ""), 413, "larger than 0.001 MB"),
    "a long length": (make_request([b"1"], "", length="1001"), 413, "larger than 0.001 MB"),
    "JSON": (make_request([b"{}"], "application/json"), 415, "application/json"),
    "text": (make_request([b"abc"], "text/plain; charset=utf-8"), 415, "'text/plain'"),
    "a slow client": (make_request([b"1"] * 100, "", pause=0.1), 408, "more than 0.5 s"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    request, status, message = REFUSED[name]
    with pytest.raises(RequestError) as error:
        read(request)
    assert error.value.status == status
    assert message in error.value.message


def test_an_endless_upload_is_given_up() -> None:
    def chunks() -> Iterable[bytes]:
        for number in range(10**9):
            assert number < 200, "it reads for ever"
            yield b"1" * 100

    with pytest.raises(RequestError, match="larger"):
        read(make_request(chunks(), ""))


def test_all_uploads_together_have_a_limit() -> None:
    async def run() -> None:
        uploads = Uploads(LIMITS)
        async with uploads.read(make_request([b"1" * 900], "")):
            with pytest.raises(OverloadedError):
                async with uploads.read(make_request([b"1" * 700], "")):
                    pass
            async with uploads.read(make_request([b"1" * 500], "")) as files:
                assert len(files[0].content) == 500
        async with uploads.read(make_request([b"1" * 900], "")):
            pass

    asyncio.run(run())
