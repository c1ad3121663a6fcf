"""The MLflow store: where it is, how to connect, and its errors in one line.

MLflow takes seconds to import. It is imported in functions, and so are the modules of this package that import it:
`registry`, `spool` and `system_metrics`. It is never imported when tracking is off.
"""

import contextlib
import os
import re
import sqlite3
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from vision.pipeline.errors import UserError
from vision.pipeline.paths import ROOT, main_root
from vision.pipeline.stage import importing
from vision.storage.atomic import atomic_write

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TIMEOUT = 5  # seconds to wait for the first answer of a server, or for a locked SQLite file
OPENING_LOCK_TIMEOUT = 60  # seconds to wait for a locked SQLite file when a run is opened
MLFLOW_VARIABLES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would print the password
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # errors are raised as well; the log has tracebacks
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # seconds; a server may need many for an uploaded file
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "PGCONNECT_TIMEOUT": f"{TIMEOUT}",
}
"""Environment variables for MLflow, unless the user has set them."""
_SQLITE = "sqlite:///"
_ADVICE = {
    "locked": "another process holds it; wait until it ends or end it",
    "disk|No space": "free some space",
    f"^{_SQLITE}": "if an older MLflow created it, run `mlflow db upgrade {uri}`; else move it away",
    "": "start the server, correct MLFLOW_TRACKING_URI",
}
"""What to do if a run cannot be opened; the first whose key matches the error."""


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or `mlflow.db` in the main checkout."""
    return resolve_uri(os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlflow.db")


def resolve_uri(uri: str) -> str:
    """Make the path of an SQLite file absolute; a relative one starts at the main checkout."""
    path = sqlite_path(uri)
    return f"{_SQLITE}{main_root(ROOT) / path}" if path else uri


def recorded_uri(uri: str) -> str:
    """The URI without a password; the path of an SQLite file in the checkout is relative, so the checkout can move."""
    path, root = sqlite_path(uri), main_root(ROOT)
    return f"{_SQLITE}{path.relative_to(root)}" if path and path.is_relative_to(root) else public_uri(uri)


def public_uri(uri: str) -> str:
    """The URI without user name, password and options."""
    return re.sub(r"://[^/].*@", "://", uri).partition("?")[0]  # passwords may contain @, and with SQLAlchemy /


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite store; None for another store."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def connect(uri: str, lock_timeout: float = TIMEOUT) -> "MlflowClient":
    """Connect to a store that answers; a missing SQLite file is created. Raises what MLflow or the database raises."""
    _import_mlflow(uri)
    if file := sqlite_path(uri):
        _create_sqlite(file)
        with contextlib.closing(sqlite3.connect(file, timeout=lock_timeout)) as connection:
            connection.execute("BEGIN IMMEDIATE")  # fails if the file is damaged or locked
    elif uri.startswith("http"):
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        http_request(get_default_host_creds(uri), "/version", "GET", timeout=TIMEOUT)
    elif uri.startswith(("postgresql", "mysql", "mssql")):
        from sqlalchemy import NullPool, create_engine

        create_engine(uri, poolclass=NullPool).connect().close()  # MLflow would retry for a minute
    return _make_client(uri)


@cache
def _import_mlflow(uri: str) -> None:
    """Import MLflow with its variables, and set the global URI, by which an SQL registry finds logged models."""
    for variable, value in MLFLOW_VARIABLES.items():
        os.environ.setdefault(variable, value)
    with importing():
        import mlflow

    before = dict(os.environ)
    mlflow.set_tracking_uri(uri)  # sets MLFLOW_TRACKING_URI, too, which has to stay as it is
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.update(before)


@cache
def _make_client(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    # MLflow places the artifacts of new experiments in mlruns/ of the working directory.
    file = sqlite_path(uri)
    with importing(), contextlib.chdir(file.parent if file else "."):
        return MlflowClient(uri)


def _create_sqlite(file: Path) -> None:
    """Create the tables of a missing database under another name, because MLflow cannot use a half-created one."""
    from mlflow import MlflowClient

    with FileLock(f"{file}.lock"):  # two processes that create the tables at once would both fail
        if not file.exists():
            with atomic_write(file) as partial:
                partial.unlink(missing_ok=True)
                MlflowClient(f"{_SQLITE}{partial}")


def get_experiment_id(client: "MlflowClient", name: str) -> str:
    """The ID of the experiment, which is created if it is missing. Raises a UserError if it was deleted."""
    from mlflow import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            client.create_experiment(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process has created it at the same moment
                raise
        return get_experiment_id(client, name)
    if experiment.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise UserError(f"tracking.experiment: {name!r} was deleted in MLflow; `{restore}`, or choose another name")
    kind = "mlflow.experimentKind"  # what the UI sets when a user chooses between model training and GenAI
    if kind not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, kind, "custom_model_development")
    return experiment.experiment_id


@contextlib.contextmanager
def opening(uri: str) -> Iterator["MlflowClient"]:
    """Connect for the block, waiting longer for a locked SQLite file. Raise a UserError if the store cannot be used."""
    try:
        yield connect(uri, OPENING_LOCK_TIMEOUT)
    except UserError:
        raise
    except Exception as error:
        cause = format_error(uri, error)
        advice = next(advice for pattern, advice in _ADVICE.items() if re.search(pattern, cause)).format(uri=uri)
        raise UserError(f"MLflow cannot use {cause}; {advice}, or set tracking.enabled: false in params.yaml") from None


def find_run(client: "MlflowClient", experiment_id: str, run_id: str) -> "Run | None":
    """The run; None if the experiment does not have it or it is deleted."""
    return next(iter(client.search_runs([experiment_id], f"attributes.run_id = '{run_id}'")), None)


def format_error(uri: str, error: Exception) -> str:
    """The store, the cause that urllib3 or the database reports in MLflow's message, and what to do without access."""
    text = str(error).replace(uri, public_uri(uri))
    cause = re.search(
        r"Caused by \w+\(.*?: (.*?)['\"]\)|Caused by (.*?)\)*$|\((?:sqlite3|psycopg\w*)\.[\w.]+\) (.*)", text, re.M
    )
    start = text.partition(" Response body")[0].partition("\n")[0] or type(error).__name__
    reason = textwrap.shorten(next(filter(None, cause.groups())) if cause else start, 200)
    if getattr(error, "error_code", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED") or re.match(r"40[13]\b", text):
        reason += "; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of a user who may write there"
    return f"{public_uri(uri)}: {reason}"
