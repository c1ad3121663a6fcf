"""Where MLflow's store is, how it is reached, how long it is waited for, and what its errors mean.

MLflow takes seconds to import, so it is imported when a store is opened and not at all when tracking is off.
"""

import contextlib
import fcntl
import os
import re
import sqlite3
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision.pipeline.errors import UserError
from vision.pipeline.paths import ROOT, main_root
from vision.pipeline.stage import importing
from vision.storage.atomic import atomic_write

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_DATABASES = ("postgresql", "mysql", "mssql")
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the address as the user gave it, with the password
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # whatever matters is raised as well; log lines would come with tracebacks
}
_RETRIES, *_TIMEOUTS = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT", "PGCONNECT_TIMEOUT"
_OF_USER = {name for name in (_RETRIES, *_TIMEOUTS) if name in os.environ}

_CREDENTIALS = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of one who may write there"
_OPENING = {"server": 5, "lock": 60}
QUICK = {"server": 5, "lock": 5}
"""The patience of all that is not to hold up a training."""

_lock_seconds = 20.0  # MLflow's own


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or MLflow's default at the main root."""
    return resolved(os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlflow.db")


def resolved(uri: str) -> str:
    """The URI with a relative path of an SQLite file taken from the main root."""
    return f"{_SQLITE}{main_root(ROOT) / _path(uri)}" if uri.startswith(_SQLITE) else uri


def recorded(uri: str) -> str:
    """The URI for metrics/run.json: without a password, and relative where it can be, so that a checkout may move."""
    if uri.startswith(_SQLITE) and _path(uri).is_relative_to(main_root(ROOT)):
        return f"{_SQLITE}{_path(uri).relative_to(main_root(ROOT))}"
    return public(uri)


def public(uri: str) -> str:
    """The URI without a user name, a password (which may have an @ or, in SQLAlchemy's, a slash) and options."""
    return re.sub(r"://[^/].*@", "://", uri).partition("?")[0]


def page(uri: str, experiment_id: str, run_id: str) -> str:
    """The address of a run in MLflow's UI, which `mlflow ui` serves at this port."""
    server = public(uri).rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}"


def database(uri: str) -> Path | None:
    """The file of an SQLite store; None of another."""
    return _path(uri) if uri.startswith(_SQLITE) else None


def client(uri: str) -> "MlflowClient":
    """A client of the store; the file of an SQLite store is made if there is none.

    Whatever MLflow raises where it cannot use the store is raised, and soon, where MLflow would try again for minutes.
    """
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    with importing():
        from mlflow import MlflowClient

        if not uri.startswith("http"):
            from mlflow.store.tracking import sqlalchemy_store  # noqa: F401  (the client would import it later)

    if uri.startswith(_DATABASES):
        _connect(uri)
    file = database(uri)
    if file is None:
        return MlflowClient(uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{file}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two processes that create the tables at once would both fail
        if not file.exists():
            with atomic_write(file) as partial:  # an interrupted creation would never work again
                partial.unlink(missing_ok=True)
                with _not_waiting_for_the_disk():
                    MlflowClient(f"{_SQLITE}{partial}")
    with contextlib.closing(sqlite3.connect(file, timeout=_lock_seconds)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # damaged, or locked by another process
    _shorten_waits()
    # Artifacts of new experiments are placed relative to the working directory, in mlruns/.
    with contextlib.chdir(file.parent):
        return MlflowClient(uri)


def experiment_id(client: "MlflowClient", name: str) -> str:
    """The experiment of that name, made if there is none.

    Raises:
        UserError: it was deleted.
    """
    from mlflow import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name)
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another process was faster
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise UserError(f"tracking.experiment: {name!r} was deleted in MLflow; `{restore}`, or choose another name")
    return experiment.experiment_id


def is_there(client: "MlflowClient", run_id: str) -> bool:
    """Whether the store has the run, and it was not deleted."""
    from mlflow import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


@contextmanager
def opening(uri: str) -> Iterator[None]:
    """First contact: any failure is the store's, and one that does not answer is given up soon.

    An SQLite file that another process has locked is waited for, up to a minute.

    Raises:
        UserError: the store cannot be used.
    """
    try:
        with patience(**_OPENING):
            yield
    except UserError:
        raise
    except Exception as error:
        raise trouble(uri, error) from None


@contextmanager
def patience(server: int, lock: int) -> Iterator[None]:
    """For the block, wait so many seconds for each answer of a server, and for a locked SQLite file; try nothing again.

    What the user's own variables say of servers stays.
    """
    global _lock_seconds
    wanted = {_RETRIES: "0", **dict.fromkeys(_TIMEOUTS, str(server))}
    before = {name: os.environ.get(name) for name in wanted.keys() - _OF_USER}
    before_lock, _lock_seconds = _lock_seconds, float(lock)
    os.environ.update({name: wanted[name] for name in before})
    try:
        yield
    finally:
        _lock_seconds = before_lock
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def reason(uri: str, error: Exception) -> str:
    """Part of a line, of what MLflow says in many: what urllib3 or the database meant, or how the message begins."""
    text = str(error).replace(uri, public(uri))
    meant = re.search(
        r"Caused by \w+\(.*?: (.*?)['\"]\)|Caused by (.*?)\)*$|\((?:sqlite3|psycopg\w*)\.[\w.]+\) (.*)", text, re.M
    )
    beginning = text.partition(" Response body")[0].partition("\n")[0] or type(error).__name__
    return textwrap.shorten(next(filter(None, meant.groups())) if meant else beginning, 200)


def failure(uri: str, error: Exception) -> str:
    """Part of a line: which store has failed, why, and what the user can do if it does not pass by itself."""
    return f"{public(uri)}: {reason(uri, error)}" + (f"; {_CREDENTIALS}" if is_forbidden(error) else "")


def is_forbidden(error: Exception) -> bool:
    """Whether the server does not know the user, or lets him do nothing here."""
    code = getattr(error, "error_code", "")
    return code in ("UNAUTHENTICATED", "PERMISSION_DENIED") or re.match(r"40[13]\b", str(error)) is not None


def trouble(uri: str, error: Exception) -> UserError:
    """One line of why a store cannot be used, and what to do."""
    why = reason(uri, error)
    otherwise = "or set tracking.enabled: false in params.yaml"
    if (file := database(uri)) is not None:
        advice = f"if an older MLflow made it, `mlflow db upgrade {uri}`; else move it away, {otherwise}"
        if "locked" in why:
            advice = f"another process holds it; wait until it is done or end it, {otherwise}"
        elif "disk" in why:  # it is full, or breaking
            advice = f"free some space, {otherwise}"
        return UserError(f"{file}: MLflow cannot use this database ({why}); {advice}")
    origin = "MLFLOW_TRACKING_URI" if os.environ.get("MLFLOW_TRACKING_URI") == uri else "metrics/run.json: tracking_uri"
    advice = _CREDENTIALS if is_forbidden(error) else "start the server, correct the address"
    return UserError(f"{origin}={public(uri)}: MLflow cannot be reached there ({why}); {advice}, {otherwise}")


def _path(uri: str) -> Path:
    return Path(uri.removeprefix(_SQLITE))


def _connect(uri: str) -> None:
    """Reach a database once; MLflow would try again for a minute."""
    from sqlalchemy import NullPool, create_engine

    create_engine(uri, poolclass=NullPool).connect().close()


@contextmanager
def _not_waiting_for_the_disk() -> Iterator[None]:
    """Have SQLite wait for the disk at no commit of the block.

    MLflow makes the tables step by step through all of its versions; to wait after each of them takes five seconds. The
    whole file is waited for before it gets its name.
    """
    from sqlalchemy import Engine, event

    def connected(connection: sqlite3.Connection, record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", connected)
    try:
        yield
    finally:
        event.remove(Engine, "connect", connected)


@cache
def _shorten_waits() -> None:
    """Have SQLite wait for a lock as long as `patience` says; MLflow sets 20 seconds anew at each of its sessions."""
    from sqlalchemy import Engine, event

    def executed(connection: Any, cursor: Any, statement: str, *others: object) -> None:
        if "PRAGMA busy_timeout" in statement:
            cursor.execute(f"PRAGMA busy_timeout = {_lock_seconds * 1000:.0f}")

    event.listen(Engine, "after_cursor_execute", executed)
