"""Real servers on the loopback interface, for the duration of a test."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import psutil

from environment import clean_environment


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def responds(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait up to two minutes for a server; fail with its log if it ends or does not become ready."""
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


class MlflowServer:
    """An MLflow server that can be killed and started again.

    `database` is a SQLAlchemy URI; artifacts and the log are in `folder`.
    """

    def __init__(self, database: str, folder: Path, workers: int) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        store = ["--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts")]
        self.command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", str(workers)]
        self.command += store
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = clean_environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")  # jobs are nine more processes
        log = self.folder / "server.log"
        with log.open("w") as output:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        wait_until(lambda: responds(f"{self.address}/health"), self.process, log)
        assert listening_addresses(self.process.pid) == {"127.0.0.1"}

    def send(self, signal_number: int) -> None:
        """Send a signal to the server and its workers."""
        assert self.process is not None
        os.killpg(self.process.pid, signal_number)

    def kill(self) -> None:
        if self.process is not None:
            self.send(signal.SIGKILL)
            self.process.wait(timeout=60)
            self.process = None


def listening_addresses(pid: int) -> set[str]:
    """The addresses at which a process and its children listen."""
    process = psutil.Process(pid)
    connections = (one.net_connections("inet") for one in (process, *process.children(recursive=True)))
    return {found.laddr.ip for each in connections for found in each if found.status == psutil.CONN_LISTEN}


@contextmanager
def mlflow_server(database: str, folder: Path, workers: int) -> Iterator[MlflowServer]:
    """Run an MLflow server for the duration of the context; the test may kill and restart it."""
    server = MlflowServer(database, folder, workers)
    try:
        server.start()
        yield server
    finally:
        server.kill()
