"""Make the pictures of the documentation from a checkout in which the pipeline has run.

    python docs/make_pictures.py                # from this checkout
    python docs/make_pictures.py /path/to/it    # from another one

Writes docs/images/report.png (the report page), docs/images/mlflow.png (the table of runs in MLflow) and
docs/images/serve.png (the page of tools/serve.py). Needs Chromium and the development dependencies.
"""

import argparse
import contextlib
import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

IMAGES = Path(__file__).resolve().parent / "images"
MAX_BYTES = 200_000
WIDTH = 1180
"""Of the report's window, in pixels."""
WAIT_SECONDS = 60
"""How long to wait for a server."""

COLUMNS = [
    "attributes.`Models`",
    "metrics.`test_accuracy`",
    "metrics.`best_val_accuracy`",
    "params.`model.name`",
    "params.`train.epochs`",
    "params.`train.lr`",
]
TABLE = {
    "searchFilter": "",
    "orderByKey": "attributes.start_time",
    "orderByAsc": False,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "modelVersionFilter": "All Runs",
    "datasetsFilter": [],
    "selectedColumns": COLUMNS,
    "columnOrder": [],
    "columnWidths": {},
    "runsExpanded": {},
    "runsPinned": [],
    "runsHidden": [],
    "runsVisibilityMap": {},
    "groupBy": None,
    "groupsExpanded": {},
}
"""The state of MLflow's table of runs."""


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="?", type=Path, default=IMAGES.parents[1], help="where the pipeline has run")
    checkout = parser.parse_args().checkout.resolve()
    needed = ("report/index.html", "mlflow.db", "metrics/run.json", "data/processed/test_images.npy")
    report, database, record, images = (checkout / name for name in needed)
    for path in (report, database, record, images):
        if not path.is_file():
            sys.exit(f"make_pictures: {path}: not found; run `dvc repro` there first")
    experiment_id = json.loads(record.read_text())["mlflow"]["experiment_id"]
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        sys.exit("make_pictures: Chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        save_png(capture_report(browser, report), IMAGES / "report.png")
        with mlflow_server(database) as address:
            save_png(capture_runs(browser, address, experiment_id), IMAGES / "mlflow.png")
        with model_server(checkout) as address:
            save_png(capture_prediction(browser, address, images), IMAGES / "serve.png")
        browser.close()


def capture_report(browser: Browser, report: Path) -> bytes:
    """A PNG of the report from its top to the end of the section on training."""
    page = browser.new_page(viewport={"width": WIDTH, "height": 800})
    page.goto(report.as_uri())
    section = page.locator("#training").bounding_box()
    if section is None:
        sys.exit(f"make_pictures: {report}: has no section on training")
    height = section["y"] + section["height"] + 24
    return page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})


def capture_runs(browser: Browser, address: str, experiment_id: str) -> bytes:
    """A PNG of the table of runs of an MLflow experiment, with the columns COLUMNS."""
    page = browser.new_page(viewport={"width": 1440, "height": 520})
    # MLflow keeps the state of its pages in the browser's local storage.
    state = {
        f'MLflowLocalStorage-1.1-ExperimentPage-["{experiment_id}"]-ReactComponentState': TABLE,
        "mlflow.assistant.panelOpen_v1": False,
        "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,
    }
    page.add_init_script(
        f"for (const [key, value] of Object.entries({json.dumps(state)}))"
        " if (!localStorage.getItem(key)) localStorage.setItem(key, JSON.stringify(value))"
    )
    page.goto(f"{address}/#/experiments/{experiment_id}/runs?workflowType=machine_learning")
    page.wait_for_selector('a[href*="/runs/"]')
    page.wait_for_timeout(3000)  # the table is drawn in several steps
    return page.screenshot()


def capture_prediction(browser: Browser, address: str, images: Path) -> bytes:
    """A PNG of the page of tools/serve.py after it has classified four test images."""
    page = browser.new_page(viewport={"width": 900, "height": 700})
    page.goto(address)
    for count, number in enumerate((2, 4, 3, 0), 1):  # the last one is shown large
        file = io.BytesIO()
        Image.fromarray(np.load(images, mmap_mode="r")[number]).save(file, "PNG")
        page.set_input_files("#file", {"name": f"{number}.png", "mimeType": "image/png", "buffer": file.getvalue()})
        page.wait_for_function("count => recent.length == count", arg=count)  # a variable of the page
    page.wait_for_timeout(2000)  # the heat map comes after the classes
    return page.screenshot(full_page=True)


def mlflow_server(database: Path) -> contextlib.AbstractContextManager[str]:
    """Run MLflow's server for the block and yield its address."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"]
    return run_server(command, database.parent)


def model_server(checkout: Path) -> contextlib.AbstractContextManager[str]:
    """Serve the checkout's model for the block and yield the server's address."""
    return run_server([sys.executable, str(IMAGES.parents[1] / "tools/serve.py"), "--model", "models"], checkout)


@contextlib.contextmanager
def run_server(command: list[str], folder: Path) -> Iterator[str]:
    """Run a server on a free port for the block and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        cwd=folder,
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_healthy(address)
        yield address
    finally:
        process.terminate()
        process.wait()


def wait_until_healthy(address: str) -> None:
    """Return when the server answers; exit with a message if it does not within a minute."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=5)
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.5)
    sys.exit(f"make_pictures: the server did not answer within {WAIT_SECONDS} s")


def save_png(content: bytes, path: Path) -> None:
    """Write a PNG of at most MAX_BYTES, with as many colors as fit."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    for colors in (256, 128, 64, 32):
        buffer = io.BytesIO()
        picture.quantize(colors, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        if len(buffer.getvalue()) <= MAX_BYTES:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(buffer.getvalue())
            print(f"{path}: {len(buffer.getvalue()):,} bytes, {colors} colors")
            return
    sys.exit(f"make_pictures: {path} is larger than {MAX_BYTES:,} bytes; make the window smaller")


if __name__ == "__main__":
    main()
