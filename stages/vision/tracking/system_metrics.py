"""The use of CPU, memory, disk, network and GPU during a training, sampled by a thread."""

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

MEMORY = "system/system_memory_usage_megabytes"
"""A metric that every sample has."""


@contextmanager
def sample_system_metrics(log: Callable[[Mapping[str, float], int], None], uri: str, step: int) -> Iterator[None]:
    """Call `log(metrics, step)` every ten seconds, or as often as MLflow's variables say, from this step on.

    MLflow's own thread is not used because it ends, and drops its samples, at the first request that fails.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor("", tracking_uri=uri)
    stop = threading.Event()

    def sample() -> None:
        for number in itertools.count(1):
            if stop.wait(monitor.sampling_interval):
                return
            with suppress(Exception):  # a sample that fails is not worth a warning
                monitor.collect_metrics()
                logged, rest = divmod(number, monitor.samples_before_logging)
                if rest == 0:
                    log({f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}, step + logged)
                    for source in monitor.monitors:
                        source.clear_metrics()

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
