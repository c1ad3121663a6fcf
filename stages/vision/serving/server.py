"""The process of the server: its socket, its log, and how it ends."""

import os
import signal
import socket

import uvicorn
from fastapi import FastAPI

from vision.pipeline.errors import UserError

SHUTDOWN_SECONDS = 30
"""How long requests that have begun may take after SIGTERM."""


def open_socket(host: str, port: int) -> socket.socket:
    """Bind a socket, which does not listen yet.

    Raises:
        UserError: the address is in use or not of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # A socket that listens is the only sure sign that the port is free: two that are only bound can share it.
        socket.create_server(address[:2], family=family).close()
        bound = socket.socket(family)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        return bound
    except OSError as error:
        raise UserError(_format(host, port, error)) from None


def run_server(app: FastAPI, bound: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; then answer the requests that have begun, and return.

    Raises:
        UserError: another process has taken the port in the meantime.
    """
    # uvicorn handles both signals while it runs, and raises them again after it has shut down.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=SHUTDOWN_SECONDS)
    host, port = bound.getsockname()[:2]
    try:
        uvicorn.Server(config).run([bound])
    except OSError as error:
        raise UserError(_format(host, port, error)) from None


def _format(host: str, port: int, error: OSError) -> str:
    reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
    return f"--host {host} --port {port}: {reason}; choose another port or host"
