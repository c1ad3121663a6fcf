"""tools/serve.py as a real process, over real HTTP."""

import concurrent.futures
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import numpy as np
import pytest
import requests
import torch
from PIL import Image
from torch import nn

from browser import chromium
from photos import make_photos
from serve_process import CLASSES, MIN_CONFIDENCE, ServeProcess, make_model, save_small_model, serve
from vision.pipeline.paths import ROOT
from vision.prediction.mlflow_format import ModelSettings, save_mlflow_model
from vision.prediction.predictor import Predictor, find_model, load_predictor
from vision.serving import schemas
from vision.serving.heat_map import cover_patches, heat_map

RANDOM = np.random.default_rng(0)


def encode(pixels: np.ndarray, suffix: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, suffix)
    return file.getvalue()


IMAGES = RANDOM.integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
FILES = [encode(pixels) for pixels in IMAGES]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("serve") / "models")


@pytest.fixture(scope="module")
def predictor(models: Path) -> Predictor:
    return load_predictor(find_model(str(models)))


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[ServeProcess]:
    with serve(models.parent) as process:
        yield process


def post(server: ServeProcess, *files: tuple[str, bytes], path: str = "predict") -> requests.Response:
    form = [("image", file) for file in files]
    return requests.post(f"{server.address}/{path}", files=form, timeout=60)


def check(entry: dict[str, Any], expected: np.ndarray) -> None:
    assert list(entry["probabilities"]) == CLASSES
    np.testing.assert_allclose(list(entry["probabilities"].values()), expected, atol=1e-6)
    assert entry["class"] == CLASSES[expected.argmax()]
    assert entry["probability"] == entry["probabilities"][entry["class"]]
    assert entry["unknown"] == (entry["probability"] < MIN_CONFIDENCE)


def test_answers_are_the_predictors_whatever_the_batch(server: ServeProcess, predictor: Predictor) -> None:
    expected = predictor.predict(IMAGES)
    requests_of = [range(number, number + 1) for number in range(80)] + [range(80, 83), range(83, 100)]

    def classify(numbers: range) -> dict[str, Any]:
        return post(server, *((f"{number}.png", FILES[number]) for number in numbers)).json()

    with concurrent.futures.ThreadPoolExecutor(len(requests_of)) as pool:
        answers = list(pool.map(classify, requests_of))
    for numbers, answer in zip(requests_of, answers, strict=True):
        assert answer["model"] == {"name": "models", "version": ""}
        assert [entry["file"] for entry in answer["predictions"]] == [f"{number}.png" for number in numbers]
        for number, entry in zip(numbers, answer["predictions"], strict=True):
            check(entry, expected[number])
        schemas.Predictions.model_validate(answer)
    sizes = requests.get(f"{server.address}/metrics", timeout=60).text
    assert 'batch_size_bucket{le="1.0"} 82.0' not in sizes  # some requests shared a batch


def test_photos_of_every_kind(server: ServeProcess, predictor: Predictor, tmp_path: Path) -> None:
    files = {kind: path.read_bytes() for kind, path in make_photos(tmp_path).items()}
    answer = post(server, *files.items()).json()
    expected = predictor.predict(np.stack([predictor.read_pixels(content) for content in files.values()]))
    for entry, row in zip(answer["predictions"], expected, strict=True):
        check(entry, row)


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream", "application/x-www-form-urlencoded"])
def test_a_raw_body(server: ServeProcess, predictor: Predictor, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    answer = requests.post(f"{server.address}/predict", data=FILES[0], headers=headers, timeout=60).json()
    (entry,) = answer["predictions"]
    assert entry["file"] == ""
    check(entry, predictor.predict(IMAGES[:1])[0])


def test_a_bad_file_does_not_spoil_the_others(server: ServeProcess, predictor: Predictor) -> None:
    response = post(server, ("a.png", FILES[0]), ("b.txt", b"text"), ("c.png", FILES[1]))
    assert response.status_code == 200
    first, bad, last = response.json()["predictions"]
    check(first, predictor.predict(IMAGES[:1])[0])
    assert bad == {"file": "b.txt", "error": "not an image, or truncated at its beginning"}
    check(last, predictor.predict(IMAGES[1:2])[0])
    schemas.Predictions.model_validate(response.json())


def test_a_heat_map(server: ServeProcess, predictor: Predictor) -> None:
    answer = post(server, ("a.png", FILES[0]), path="heat_map").json()
    rows = predictor.predict(np.stack([IMAGES[0], *cover_patches(IMAGES[0])]))
    best = rows[0].argmax()
    assert answer["class"] == CLASSES[best]
    np.testing.assert_allclose(answer["heat_map"], heat_map(rows[0, best], rows[1:, best]), atol=0.02)
    assert answer["pixels"].startswith("data:image/png;base64,")
    schemas.HeatMap.model_validate(answer)
    assert post(server, ("a.png", FILES[0]), ("b.png", FILES[0]), path="heat_map").status_code == 400


def bomb(side: int) -> bytes:
    """A PNG of side x side black pixels, of a few hundred kilobytes."""
    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    data = b"".join([*(packer.compress(row) for _ in range(min(side, 3000))), packer.flush()])

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunks(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield bytes(1_000_000)


BAD: dict[str, tuple[int, str, Callable[[], dict[str, Any]]]] = {
    "text": (400, "not an image", lambda: {"files": {"image": b"text"}}),
    "raw text": (400, "not an image", lambda: {"data": b"text"}),
    "an empty body": (400, "empty", lambda: {}),
    "an empty file": (400, "not an image", lambda: {"files": {"image": ("a.png", b"")}}),
    "a truncated image": (400, "cannot be decoded", lambda: {"data": FILES[0][:1000]}),
    "a large image": (400, "10,000 x 10,000 pixels, more than", lambda: {"files": {"image": bomb(10_000)}}),
    "a bomb": (400, "decompression bomb", lambda: {"files": {"image": bomb(30_000)}}),
    "only bad files": (400, "None of the 2", lambda: {"files": [("image", b"a"), ("image", b"b")]}),
    "a form without a file": (400, "no file", lambda: {"files": {"image": (None, "cat.jpg")}}),
    "too many files": (413, "64 files", lambda: {"files": [("image", FILES[0])] * 65}),
    "too large": (413, "20 MB", lambda: {"data": bytes(30_000_000)}),
    "too large, without a length": (413, "20 MB", lambda: {"data": chunks(30)}),
    "JSON": (415, "not supported", lambda: {"json": {"image": "abc"}}),
    "a broken form": (
        400,
        "form",
        lambda: {"data": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=a"}},
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_have_one_sentence(server: ServeProcess, name: str) -> None:
    status, words, request = BAD[name]
    for path in ("predict", "heat_map"):
        if name == "only bad files" and path == "heat_map":
            continue
        response = requests.post(f"{server.address}/{path}", timeout=60, **request())
        assert response.status_code == status, response.text
        assert list(response.json()) == ["error"]
        assert words in response.json()["error"]
        assert re.search(r"[^.]\.$", response.json()["error"])


def test_unknown_paths_and_methods_are_json_too(server: ServeProcess) -> None:
    for method, path, status in (("GET", "/nothing", 404), ("GET", "/predict", 405), ("POST", "/health", 405)):
        response = requests.request(method, f"{server.address}{path}", timeout=60)
        assert response.status_code == status
        assert list(response.json()) == ["error"]


@pytest.mark.slow
def test_large_uploads_and_bombs_leave_no_memory(server: ServeProcess) -> None:
    large = bomb(30_000)

    def send(number: int) -> int:
        data: Any = [chunks(30), bytes(25_000_000), large, b"\xff\xd8\xff" + bytes(10_000_000)][number % 4]
        return requests.post(f"{server.address}/predict", data=data, timeout=60).status_code

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(send, range(8)))
        before = server.memory()
        statuses = set(pool.map(send, range(60)))
    assert statuses == {400, 413}
    assert server.memory() - before < 50


@pytest.mark.slow
def test_an_overloaded_server_says_so_and_answers_the_others(server: ServeProcess) -> None:
    photo = encode(np.zeros((1200, 1600, 3), np.uint8), "JPEG")

    def send(number: int) -> tuple[int, str | None]:
        response = post(server, *[("a.jpg", photo)] * 64)
        return response.status_code, response.headers.get("Retry-After")

    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(send, range(40)))
    assert set(answers) == {(200, None), (503, "1")}
    assert post(server, ("a.png", FILES[0])).status_code == 200


def test_health_metrics_and_documentation(server: ServeProcess) -> None:
    health = requests.get(f"{server.address}/health", timeout=60).json()
    assert health == {
        "status": "ok",
        "model": {"name": "models", "version": ""},
        "classes": CLASSES,
        "model_error": None,
    }
    post(server, ("a.png", FILES[0]))
    post(server, ("a.png", b"text"))
    metrics = requests.get(f"{server.address}/metrics", timeout=60).text
    for line in (
        'http_requests_total{path="/predict",status="200"} ',
        'http_requests_total{path="/predict",status="400"} ',
        'http_request_seconds_bucket{le="0.1",path="/predict"} ',
        'images_total{result="error"} ',
        "batch_size_count ",
        'model_info{name="models",version=""} 1.0',
    ):
        assert f"\n{line}" in metrics, line
    api = requests.get(f"{server.address}/openapi.json", timeout=60).json()
    assert set(api["paths"]) == {"/", "/predict", "/heat_map", "/health", "/metrics"}
    body = api["paths"]["/predict"]["post"]["requestBody"]
    assert {"multipart/form-data", "application/octet-stream"} <= set(body["content"])
    assert {"200", "400", "413", "415", "503"} <= set(api["paths"]["/predict"]["post"]["responses"])


@pytest.mark.slow
def test_the_page(server: ServeProcess, tmp_path: Path) -> None:
    photos = [tmp_path / "a.png", tmp_path / "b.tiff"]  # Chromium does not show TIFF
    for photo in photos:
        Image.fromarray(IMAGES[0]).save(photo)
    (tmp_path / "c.png").write_bytes(b"text")
    with chromium() as browser:
        phone = {"viewport": {"width": 360, "height": 700}, "color_scheme": "dark", "has_touch": True}
        windows: list[dict[str, Any]] = [{}, phone]
        for settings in windows:
            page: Any = browser.new_page(**settings)
            problems: list[str] = []
            page.on("pageerror", lambda error, found=problems: found.append(str(error)))
            page.on(
                "request",
                lambda request, found=problems: (
                    None if request.url.startswith((server.address, "blob:", "data:")) else found.append(request.url)
                ),
            )
            page.set_default_timeout(10_000)
            page.goto(server.address)
            assert page.locator("#camera").is_visible() == ("has_touch" in settings)
            with page.expect_file_chooser() as chooser:
                page.locator("#choose").press("Enter")
            chooser.value.set_files([str(photo) for photo in photos])
            page.wait_for_selector("#recent li:nth-child(2)")
            page.wait_for_selector("#heat-note:has-text('Covering')")
            page.wait_for_selector("#image.pixels")  # of the TIFF file, what the network sees
            assert page.locator("#bars li").count() == len(CLASSES)
            assert page.locator("#answer").inner_text().split()[0] in [*CLASSES, "unknown"]
            page.locator("#recent button").nth(1).press("Enter")
            assert page.locator("#image").get_attribute("alt") == "a.png"
            page.set_input_files("#file", tmp_path / "c.png")
            page.wait_for_selector("#error:has-text('c.png: The image cannot be decoded: not an image')")
            assert page.locator("#result").is_hidden()  # it is of another image
            paste = """async bytes => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], "pasted.png", {type: "image/png"}));
                dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
                dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
            }"""
            page.evaluate(paste, list(FILES[1]))
            page.wait_for_selector("#recent li:nth-child(4)")
            assert page.locator("#error").is_hidden()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            page.goto(f"{server.address}/docs")
            page.wait_for_selector("h2:has-text('POST /predict')")
            assert problems == []


def raw_request(server: ServeProcess) -> tuple[socket.socket, bytes]:
    """A connection, and the bytes of a request that is not yet sent."""
    url = urlsplit(server.address)
    assert url.hostname
    assert url.port
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(FILES[0])}\r\nConnection: close\r\n\r\n"
    return socket.create_connection((url.hostname, url.port), timeout=60), head.encode() + FILES[0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_is_under_way_end(models: Path, number: signal.Signals) -> None:
    with serve(models.parent) as server:
        connection, request = raw_request(server)
        connection.sendall(request[:-500])
        idle = requests.Session()  # a connection that is kept alive delays nothing
        assert idle.get(f"{server.address}/health", timeout=60).status_code == 200
        server.process.send_signal(number)
        time.sleep(1)
        assert server.process.poll() is None
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{server.address}/health", timeout=60)
        connection.sendall(request[-500:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["predictions"][0]["class"] in CLASSES
        assert server.process.wait(timeout=60) == 0
        assert server.log.read_text() == ""


def fail(models: Path, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "tools/serve.py"), "--model", "models", *arguments]
    done = subprocess.run(command, cwd=models.parent, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


@pytest.mark.slow
def test_mistakes_are_one_line(models: Path, server: ServeProcess) -> None:
    port = str(urlsplit(server.address).port)
    assert fail(models, "--port", port) == (
        f"serve: --host 127.0.0.1 --port {port}: Address already in use; choose another port or host\n"
    )
    missing = fail(models, "--model", "nowhere", "--port", "0")
    assert missing.count("\n") == 1
    assert missing.startswith("serve: nowhere: expected a folder that train wrote")
    assert fail(models, "--port", "80000") == "serve: --port 80000: expected a number from 0 to 65535\n"
    assert fail(models, "--max-megabytes", "0") == "serve: --max-megabytes 0: expected a number above 0\n"


def register(folder: Path, seed: int) -> nn.Module:
    """Register a new version of the model `pets` and make it the champion; returns its network."""
    network = nn.Sequential(make_model(seed)[0], nn.Softmax(1)).eval()
    path = folder / f"version-{seed}"
    save_mlflow_model(path, network, IMAGES[:2], ModelSettings(CLASSES, MIN_CONFIDENCE))
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    client = mlflow.MlflowClient()
    if seed == 1:
        client.create_registered_model("pets")
    client.create_model_version("pets", str(path))
    client.set_registered_model_alias("pets", "champion", str(seed))
    return network


@pytest.mark.slow
def test_a_new_champion_replaces_the_old_one_without_a_lost_request(tmp_path: Path) -> None:
    networks = {"1": register(tmp_path, 1)}
    uri = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    answers: list[tuple[int, dict[str, Any]]] = []
    end = threading.Event()

    with serve(tmp_path, "--model", "models:/pets@champion", "--poll-seconds", "0.5", **uri) as server:

        def health() -> dict[str, Any]:
            return requests.get(f"{server.address}/health", timeout=60).json()

        def client(number: int) -> None:
            while not end.is_set():
                response = post(server, ("a.png", FILES[number]))
                answers.append((number, response.json() if response.ok else {"status": response.status_code}))

        def wait_for(key: str, ready: Any) -> dict[str, Any]:
            deadline = time.monotonic() + 60
            while not ready(health()[key]):
                assert time.monotonic() < deadline, health()
                time.sleep(0.1)
            return health()

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(client, number) for number in range(8)]
            try:
                while len(answers) < 50:
                    time.sleep(0.1)
                networks["2"] = register(tmp_path, 2)
                wait_for("model", {"name": "pets", "version": "2"}.__eq__)
                before = len(answers)
                while len(answers) < before + 50:
                    time.sleep(0.1)
                # The next version cannot be loaded: the present one stays.
                register(tmp_path, 3)
                (tmp_path / "version-3" / "MLmodel").write_text("broken")
                mlflow.MlflowClient().set_registered_model_alias("pets", "champion", "3")
            finally:
                end.set()
            for each in clients:
                each.result()

        def is_version_2_with_error(error: str | None) -> bool:
            return error is not None and "version 2 stays" in error

        assert wait_for("model_error", is_version_2_with_error)["model"]["version"] in ("2", "3")
    with torch.inference_mode():
        expected = {version: net(torch.from_numpy(IMAGES[:8])).numpy() for version, net in networks.items()}
    for number, answer in answers:
        assert set(answer) == {"model", "predictions"}, answer
        if answer["model"]["version"] in expected:
            check(answer["predictions"][0], expected[answer["model"]["version"]][number])
    assert {answer["model"]["version"] for _, answer in answers} >= {"1", "2"}
    log = server.log.read_text()
    assert "models:/pets@champion is now version 2\n" in log
    assert log.count("cannot be updated, version 2 stays") == 1
    assert "Traceback" not in log
