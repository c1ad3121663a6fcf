"""The use of CPU, memory, disk, network and GPU during a training, sampled by a thread."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import SimpleNamespace

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from vision.tracking.spool import Spool


@contextmanager
def sample_system_metrics(spool: Spool) -> Iterator[None]:
    """Log a sample every ten seconds, or as often as MLflow's variables say, after the run's last step.

    MLflow's own thread is not used because it ends, and drops its samples, at the first request that fails.
    """
    monitor = SystemMetricsMonitor(spool.run_id, resume_logging=True, tracking_uri=spool.uri)
    interval = monitor.sampling_interval * monitor.samples_before_logging
    stop = threading.Event()
    monitor.mlflow_logger = SimpleNamespace(
        record_metrics=lambda metrics, step: spool.put({"metrics": metrics, "step": step})
    )

    def sample() -> None:
        while not stop.wait(interval):
            with suppress(Exception):  # a sample that fails is not worth a warning
                monitor.collect_metrics()
                monitor.publish_metrics(monitor.aggregate_metrics())

    with ThreadPoolExecutor(1) as thread:
        thread.submit(sample)
        try:
            yield
        finally:
            stop.set()
