"""Settings of all tests: which run by default, how many threads each worker has, and hypothesis's profiles."""

import gc
import os
import signal
import sys
from collections import defaultdict

import hypothesis
import pytest

# Without bytecode files, each of the many Python processes would compile every module that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False  # also for the tests, which each worker imports

# A process that a shell starts in the background ignores Ctrl-C, and its children inherit that. Tests that interrupt
# child processes would then wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests train networks and start processes: how long an example takes says nothing about a defect.
hypothesis.settings.register_profile("default", deadline=None, max_examples=10)
hypothesis.settings.register_profile("all", deadline=None, max_examples=100)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--all`."""
    parser.addoption("--all", action="store_true", help="run the slow tests too: everything but the soak tests")


def pytest_configure(config: pytest.Config) -> None:
    """Choose which tests run, how many examples hypothesis tries, and the threads of each worker."""
    if config.getoption("--all"):
        config.option.markexpr = "not soak"
    elif all("::" in argument for argument in config.args):  # tests given by name run whatever their markers
        config.option.markexpr = ""
    hypothesis.settings.load_profile("all" if config.getoption("--all") else "default")
    # The workers divide the cores, for themselves and for the processes that they start. The process that starts the
    # workers sets nothing, because they inherit its environment.
    if not config.getoption("numprocesses", None):
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


LONG = ("tests/pipeline/test_pipeline.py", "tests/pipeline", "tests/unit/tracking", "tests/unit/prediction")
"""Files and folders whose tests run first. If a worker began a long file last, the others would wait for it."""


@pytest.hookimpl(tryfirst=True)  # before pytest selects tests by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first, and mark as slow all but `n` evenly spaced cases of a test that is marked `sample(n)`."""
    items.sort(key=lambda item: next((i for i, path in enumerate(LONG) if item.nodeid.startswith(path)), len(LONG)))
    cases = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sample"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for group in cases.values():
        marker = group[0].get_closest_marker("sample")
        assert marker is not None
        step = max(1, len(group) / marker.args[0])
        default = {int(step * number) for number in range(marker.args[0])}
        for number, item in enumerate(group):
            if number not in default:
                item.add_marker(pytest.mark.slow)


def pytest_unconfigure() -> None:
    """Let Python collect what `vision` has excluded from collections. Triton reports objects that are left."""
    gc.unfreeze()
