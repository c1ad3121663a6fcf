"""Measure tools/serve.py beside `mlflow models serve` of the same model, in turn.

    python benchmarks/serving.py                             # the champion of experiment cifar10
    python benchmarks/serving.py --model models:/cifar10/3 --rounds 5 --seconds 20

64 clients send images of 32x32 pixels (PNG), and photos of 2 megapixels (JPEG). Each sends the next one when it has its
answer. tools/serve.py gets files in a form, MLflow gets JSON with base64 in a column `image`. All servers are started
once and wait while another is measured. MLflow runs with one worker process, its default, and with one per core.
tools/serve.py is one process. The clients share the cores with the servers.

At the end tools/serve.py gets 10,000 more requests, every other one a photo, for the growth of its memory.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
import psutil
from PIL import Image, ImageFilter

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 120
CLIENTS = 64
MEMORY_REQUESTS = 10_000
WARM_UP_REQUESTS = 500
BOUNDARY = "-boundary-"


@dataclass(frozen=True)
class Server:
    """A server that runs: where it takes images, and its process."""

    name: str
    url: str
    process: psutil.Process

    def encode(self, file: bytes) -> tuple[bytes, dict[str, str]]:
        """Make the body and the headers of a request."""
        if self.name.startswith("mlflow"):
            table = {"columns": ["image"], "data": [[base64.b64encode(file).decode()]]}
            return json.dumps({"dataframe_split": table}).encode(), {"Content-Type": "application/json"}
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n\r\n'
        body = b"".join([head.encode(), file, f"\r\n--{BOUNDARY}--\r\n".encode()])
        return body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}

    def decode(self, answer: bytes) -> tuple[str, float]:
        """The class and its probability in an answer."""
        document = json.loads(answer)
        entry = document["predictions"][0]
        return entry["class"], entry["probability"]

    def cpu_seconds(self) -> float:
        """CPU time of the server's processes so far."""
        processes = [self.process, *self.process.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    def memory(self) -> float:
        """Resident memory in MB."""
        return self.process.memory_info().rss / 1e6


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models:/cifar10@champion", help="in MLflow (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement (default: %(default)s)")
    parser.add_argument("--skip-memory", action="store_true", help="leave out the 10,000 requests")
    parser.add_argument("--skip-mlflow", action="store_true", help="measure tools/serve.py alone")
    options = parser.parse_args()
    if options.rounds < 1:
        sys.exit("serving.py: --rounds must be at least 1")

    inputs = {"32x32": [make_image(32, 32, seed, "PNG") for seed in range(CLIENTS)]}
    inputs["2 megapixels"] = [make_image(1632, 1224, seed, "JPEG") for seed in range(8)]
    sizes = {name: statistics.mean(map(len, files)) / 1e3 for name, files in inputs.items()}
    print("Files: " + ", ".join(f"{name} {size:,.1f} kB" for name, size in sizes.items()))
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(serve(options.model))]
        if not options.skip_mlflow:
            workers = sorted({1, os.cpu_count() or 1})
            servers += [stack.enter_context(mlflow_serve(options.model, count)) for count in workers]
        asyncio.run(compare_answers(servers, inputs))
        results: dict[tuple[str, str], list[Measurement]] = {}
        for _ in range(options.rounds):
            for size, files in inputs.items():
                for server in servers:
                    measurement = asyncio.run(measure(server, files, options.seconds))
                    results.setdefault((size, server.name), []).append(measurement)
        print_results(results)
        if not options.skip_memory:
            print_memory(servers[0], inputs)


def make_image(width: int, height: int, seed: int, suffix: str) -> bytes:
    """A file with smooth random colors and some noise, which compresses about as a photo does."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC).filter(ImageFilter.SMOOTH), np.int16)
    pixels = (smooth + random.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, suffix, quality=85)
    return file.getvalue()


@contextlib.contextmanager
def serve(model: str) -> Iterator[Server]:
    """Run tools/serve.py for the block."""
    port = free_port()
    command = [sys.executable, str(ROOT / "tools/serve.py"), "--model", model, "--port", str(port)]
    with run_server(command, f"http://127.0.0.1:{port}/health", {}) as process:
        yield Server("serve.py", f"http://127.0.0.1:{port}/predict", psutil.Process(process.pid))


@contextlib.contextmanager
def mlflow_serve(model: str, workers: int) -> Iterator[Server]:
    """Run `mlflow models serve` for the block; the workers divide the cores."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    command += ["--port", str(port), "--workers", str(workers), "--timeout", "600"]
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
    environment["MLFLOW_TRACKING_URI"] = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{ROOT / 'mlflow.db'}")
    with run_server(command, f"http://127.0.0.1:{port}/health", environment) as process:
        yield Server(
            f"mlflow, {workers} workers" if workers > 1 else "mlflow, 1 worker",
            f"http://127.0.0.1:{port}/invocations",
            psutil.Process(process.pid),
        )


@contextlib.contextmanager
def run_server(command: Sequence[str], health: str, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the end of the block; wait until it is healthy."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not asyncio.run(is_healthy(health)):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"serving.py: {' '.join(command)} does not start:\n{log.read().decode()}")
                time.sleep(0.5)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


async def is_healthy(url: str) -> bool:
    """Whether a server answers."""
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status == 200
    except (aiohttp.ClientError, OSError):
        return False


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Measurement:
    """The latencies of requests in seconds, how long all took, and the CPU time of the server."""

    latencies: Sequence[float]
    seconds: float
    cpu_seconds: float

    @property
    def cpu_per_request(self) -> float:
        """CPU time of the server for a request, in milliseconds; it says more on a busy machine."""
        return self.cpu_seconds / len(self.latencies) * 1e3

    @property
    def throughput(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.seconds

    def quantile(self, fraction: float) -> float:
        """A quantile of the latencies, in milliseconds."""
        return float(np.quantile(self.latencies, fraction)) * 1e3


async def measure(
    server: Server, files: Sequence[bytes], seconds: float = float("inf"), num_requests: int | None = None
) -> Measurement:
    """Send files with 64 clients for some seconds, or so many requests. Every answer must have the status 200."""
    requests = [server.encode(file) for file in files]
    order = (
        itertools.cycle(requests) if num_requests is None else itertools.islice(itertools.cycle(requests), num_requests)
    )
    latencies: list[float] = []
    connector = aiohttp.TCPConnector(limit=CLIENTS)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(600)) as session:
        started, cpu = time.perf_counter(), server.cpu_seconds()

        async def client() -> None:
            for body, headers in order:
                sent = time.perf_counter()
                if sent - started > seconds:
                    break
                async with session.post(server.url, data=body, headers=headers) as response:
                    answer = await response.read()
                if response.status != 200:
                    sys.exit(f"serving.py: {server.name} answered {response.status}: {answer[:200].decode()}")
                latencies.append(time.perf_counter() - sent)

        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        return Measurement(latencies, time.perf_counter() - started, server.cpu_seconds() - cpu)


async def compare_answers(servers: Sequence[Server], inputs: dict[str, list[bytes]]) -> None:
    """Exit if two servers do not agree on every image."""
    async with aiohttp.ClientSession() as session:
        for file in itertools.chain.from_iterable(inputs.values()):
            answers = []
            for server in servers:
                body, headers = server.encode(file)
                async with session.post(server.url, data=body, headers=headers) as response:
                    answers.append(server.decode(await response.read()))
            (name, probability), *others = answers
            if any(other[0] != name or abs(other[1] - probability) > 1e-5 for other in others):
                sys.exit(f"serving.py: the servers disagree: {answers}")


def print_results(results: dict[tuple[str, str], list[Measurement]]) -> None:
    """Print the table, and the ratios of the throughputs."""
    print(f"\n{CLIENTS} clients, medians of {len(next(iter(results.values())))} rounds, in turn\n")
    print(
        "| images | server | requests per second (lowest, highest) | p50, ms | p99, ms | server's CPU per request, ms |"
    )
    print("|---|---|---|---|---|---|")
    for (size, name), rounds in results.items():
        rates = [one.throughput for one in rounds]
        p50, p99 = (statistics.median(one.quantile(fraction) for one in rounds) for fraction in (0.5, 0.99))
        cpu = statistics.median(one.cpu_per_request for one in rounds)
        rate = f"{statistics.median(rates):,.0f} ({min(rates):,.0f}, {max(rates):,.0f})"
        print(f"| {size} | {name} | {rate} | {p50:,.0f} | {p99:,.0f} | {cpu:.2f} |")
    for (size, name), rounds in results.items():
        if name != "serve.py":
            pairs = zip(results[size, "serve.py"], rounds, strict=True)
            ratios = [ours.throughput / theirs.throughput for ours, theirs in pairs]
            spread = f"{min(ratios):.1f}, {max(ratios):.1f}"
            print(f"\n{size}: {statistics.median(ratios):.1f} times the throughput of {name} ({spread})")


def print_memory(server: Server, inputs: dict[str, list[bytes]]) -> None:
    """Print the growth of the memory over 10,000 requests."""
    small, photos = inputs.values()
    files = [file for pair in zip(small[: len(photos)], photos, strict=True) for file in pair]
    asyncio.run(measure(server, files, num_requests=WARM_UP_REQUESTS))
    before = server.memory()
    asyncio.run(measure(server, files, num_requests=MEMORY_REQUESTS))
    after = server.memory()
    print(f"\nMemory of serve.py: {before:,.0f} MB, after {MEMORY_REQUESTS:,} requests {after:,.0f} MB "
          f"({after - before:+,.0f} MB)")  # fmt: skip


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
