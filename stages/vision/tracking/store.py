"""The MLflow store: where it is, how to connect, how long to wait, and its errors in one line.

MLflow takes seconds to import, so it is imported inside functions, and never when tracking is off.
"""

import contextlib
import os
import re
import sqlite3
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from vision.pipeline.errors import UserError
from vision.pipeline.paths import ROOT, main_root
from vision.pipeline.stage import importing
from vision.storage.atomic import atomic_write

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Seconds to wait:
TIMEOUT = 5  # for the answer of a server, or for a locked SQLite file
UPLOAD_TIMEOUT = 60  # for the answer of a server while a file is uploaded
OPENING_LOCK_TIMEOUT = 60  # for a locked SQLite file when a run is opened

_SQLITE = "sqlite:///"
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would print the password
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # errors are raised as well; the log has tracebacks
}
_CREDENTIALS = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of a user who may write there"
_lock_timeout: float = 20  # MLflow's own


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or `mlflow.db` in the main checkout."""
    return resolve_uri(os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlflow.db")


def resolve_uri(uri: str) -> str:
    """Make the path of an SQLite file absolute; a relative one starts at the main checkout."""
    path = sqlite_path(uri)
    return uri if path is None else f"{_SQLITE}{main_root(ROOT) / path}"


def recorded_uri(uri: str) -> str:
    """The URI for metrics/run.json, without a password.

    The path of an SQLite file in the checkout is relative to the checkout, so the checkout can be moved.
    """
    path, root = sqlite_path(uri), main_root(ROOT)
    return f"{_SQLITE}{path.relative_to(root)}" if path and path.is_relative_to(root) else public_uri(uri)


def public_uri(uri: str) -> str:
    """The URI without user name, password and options."""
    return re.sub(r"://[^/].*@", "://", uri).partition("?")[0]  # passwords may contain @, and with SQLAlchemy /


def run_page(uri: str, experiment_id: str, run_id: str) -> str:
    """The address of a run in MLflow's UI, which `mlflow ui` serves at port 5000."""
    server = public_uri(uri).rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite store; None for another store."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def connect(uri: str) -> "MlflowClient":
    """Connect to the store; a missing SQLite file is created. Raises whatever MLflow or the database raises."""
    _import_mlflow(uri)
    from mlflow import MlflowClient

    file = sqlite_path(uri)
    if file is None:
        if uri.startswith("postgresql") and "PGCONNECT_TIMEOUT" not in os.environ:
            uri += f"{'&' if '?' in uri else '?'}connect_timeout={TIMEOUT}"
        if uri.startswith(("postgresql", "mysql", "mssql")):
            from sqlalchemy import NullPool, create_engine

            create_engine(uri, poolclass=NullPool).connect().close()  # MLflow would retry for a minute
        _set_tracking_uri(uri)
        return MlflowClient(uri)
    from sqlalchemy import Engine, event

    _limit_sqlite_waits()
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):  # two processes that create the tables at once would both fail
        if not file.exists():
            with atomic_write(file) as partial:  # MLflow cannot use a half-created database
                partial.unlink(missing_ok=True)
                event.listen(Engine, "connect", _disable_fsync)
                try:
                    MlflowClient(f"{_SQLITE}{partial}")
                finally:
                    event.remove(Engine, "connect", _disable_fsync)
    with contextlib.closing(sqlite3.connect(file, timeout=_lock_timeout)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # fails if the file is damaged or locked
    _set_tracking_uri(uri)
    # MLflow places the artifacts of new experiments in mlruns/ of the working directory.
    with contextlib.chdir(file.parent):
        return MlflowClient(uri)


def get_experiment_id(client: "MlflowClient", name: str) -> str:
    """The ID of the experiment, which is created if it is missing.

    Raises:
        UserError: the experiment was deleted.
    """
    from mlflow import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            client.create_experiment(name)
        except MlflowException:
            if client.get_experiment_by_name(name) is None:  # no other process has created it at the same time
                raise
        return get_experiment_id(client, name)
    if experiment.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise UserError(f"tracking.experiment: {name!r} was deleted in MLflow; `{restore}`, or choose another name")
    kind = "mlflow.experimentKind"  # what the UI sets when a user chooses between model training and GenAI
    if kind not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, kind, "custom_model_development")
    return experiment.experiment_id


def find_run(client: "MlflowClient", run_id: str) -> "Run | None":
    """The run; None if the store does not have it or it is deleted."""
    from mlflow import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


@contextmanager
def request_timeouts(request: int = TIMEOUT, lock: int = TIMEOUT) -> Iterator[None]:
    """Wait so many seconds for an answer and for a locked SQLite file, and retry nothing.

    This changes MLflow's defaults, so the user's MLFLOW_HTTP_REQUEST_* variables win. It changes no variable because
    os.environ must not change while other threads run.
    """
    global _lock_timeout
    _import_mlflow()
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES as RETRIES
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT as REQUEST

    before = RETRIES.default, REQUEST.default, _lock_timeout
    RETRIES.default, REQUEST.default, _lock_timeout = 0, request, lock
    try:
        yield
    finally:
        RETRIES.default, REQUEST.default, _lock_timeout = before


@contextmanager
def opening(uri: str) -> Iterator[None]:
    """Open a run in the block; only a locked SQLite file is waited for.

    Raises:
        UserError: the store cannot be used.
    """
    try:
        with request_timeouts(lock=OPENING_LOCK_TIMEOUT):
            yield
    except UserError:
        raise
    except Exception as error:
        raise _user_error(uri, error) from None


def format_reason(uri: str, error: Exception) -> str:
    """The cause that urllib3 or the database reports in MLflow's message, or else the start of the message."""
    text = str(error).replace(uri, public_uri(uri))
    cause = re.search(
        r"Caused by \w+\(.*?: (.*?)['\"]\)|Caused by (.*?)\)*$|\((?:sqlite3|psycopg\w*)\.[\w.]+\) (.*)", text, re.M
    )
    start = text.partition(" Response body")[0].partition("\n")[0] or type(error).__name__
    return textwrap.shorten(next(filter(None, cause.groups())) if cause else start, 200)


def format_error(uri: str, error: Exception) -> str:
    """The store, why it failed, and what the user can do if it will not recover by itself."""
    advice = f"; {_CREDENTIALS}" if _is_forbidden(error) else ""
    return f"{public_uri(uri)}: {format_reason(uri, error)}{advice}"


def _is_forbidden(error: Exception) -> bool:
    code = getattr(error, "error_code", "")
    return code in ("UNAUTHENTICATED", "PERMISSION_DENIED") or re.match(r"40[13]\b", str(error)) is not None


def _user_error(uri: str, error: Exception) -> UserError:
    reason, file = format_reason(uri, error), sqlite_path(uri)
    if file is None:
        problem = f"MLFLOW_TRACKING_URI={public_uri(uri)}: MLflow cannot connect ({reason})"
        advice = _CREDENTIALS if _is_forbidden(error) else "start the server, correct the address"
    else:
        problem = f"{file}: MLflow cannot use this database ({reason})"
        advice = f"if an older MLflow created it, run `mlflow db upgrade {uri}`; else move it away"
        if "locked" in reason:
            advice = "another process holds it; wait until it ends or end it"
        elif "disk" in reason:  # full or broken
            advice = "free some space"
    return UserError(f"{problem}; {advice}, or set tracking.enabled: false in params.yaml")


def _import_mlflow(uri: str = "http") -> None:
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    with importing():
        import mlflow  # noqa: F401

        if not uri.startswith("http"):
            from mlflow.store.tracking import sqlalchemy_store  # noqa: F401  (the client would import it later)


def _set_tracking_uri(uri: str) -> None:
    """Set the global URI, by which an SQL registry finds logged models, but leave the variable that MLflow sets too."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before


def _disable_fsync(connection: sqlite3.Connection, record: object) -> None:
    # MLflow creates the tables in hundreds of commits, which would take five seconds; `atomic_write` syncs the file.
    connection.execute("PRAGMA synchronous = OFF")


@cache
def _limit_sqlite_waits() -> None:
    """Apply `_lock_timeout` to MLflow's sessions, each of which sets 20 s at its start."""
    from sqlalchemy import Engine, event

    @event.listens_for(Engine, "after_cursor_execute")
    def on_execute(connection: object, cursor: Any, statement: str, *others: object) -> None:
        if "PRAGMA busy_timeout" in statement:
            cursor.execute(f"PRAGMA busy_timeout = {_lock_timeout * 1000:.0f}")
