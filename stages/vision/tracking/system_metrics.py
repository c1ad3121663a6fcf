"""The use of CPU, memory, disk, network and GPU during a training, sampled by a thread."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import SimpleNamespace

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor


@contextmanager
def sample(uri: str, run_id: str, log: Callable[[Mapping[str, float], int], None]) -> Iterator[None]:
    """Call `log(metrics, step)` every ten seconds, or as often as MLflow's variables say, after the run's last step.

    MLflow's own thread is not used because it ends, and drops its samples, at the first request that fails.
    """
    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
    monitor.mlflow_logger = SimpleNamespace(record_metrics=log)
    stop = threading.Event()

    def run() -> None:
        while True:
            for _ in range(monitor.samples_before_logging):
                if stop.wait(monitor.sampling_interval):
                    return
                with suppress(Exception):  # a sample that fails is not worth a warning
                    monitor.collect_metrics()
            monitor.publish_metrics(monitor.aggregate_metrics())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
